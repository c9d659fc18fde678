"""Measuring a saved dictionary on held-out activations once, and keeping the figures with it.

Figures are kept in ``neurollm.json`` (`Dictionary.metrics`), the density of every feature in
``density.safetensors`` beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.cosines import decoder_cosines
from neurollm.dictionaries.metrics import DictionaryMetrics, evaluate_dictionary
from neurollm.errors import DataMismatch
from neurollm.files import atomic_path
from neurollm.validation import shown

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

DENSITY_FILE = "density.safetensors"
STORE = "held_out_sha256"  # key in the metrics: the store they were measured on


def check_held_out(store: ActivationStore, held_out: ActivationStore) -> None:
    """Refuse held-out data that a dictionary trained on `store` cannot be measured on.

    Raises
    ------
    DataMismatch
        If site or model differ, or any text is in both stores.
    """
    if held_out.site != store.site:
        raise DataMismatch(f"held_out is of {held_out.site}, the store of {store.site}; harvest both at one site")
    if held_out.model_fingerprint != store.model_fingerprint:
        raise DataMismatch(
            f"held_out is of a model with fingerprint {held_out.model_fingerprint[:12]}, the store of one with "
            f"{store.model_fingerprint[:12]}; harvest both with one model"
        )
    corpora = [data.manifest.get("settings", {}).get("corpus sha256", data.sha256) for data in (store, held_out)]
    if corpora[0] == corpora[1]:
        raise DataMismatch("held_out holds the very texts of the store; harvest texts that the training does not see")
    shared = shared_texts(store, held_out)
    if shared:
        raise DataMismatch(
            f"{len(shared):,} of the {len(held_out.documents):,} texts of held_out are in the store too, the first of "
            f"them {shown(shared[0])}; harvest texts that the training does not see"
        )


def shared_texts(store: ActivationStore, held_out: ActivationStore) -> list[str]:
    """Names of the documents of `held_out` whose text is that of a document of `store`; empty texts do not count.

    Texts are compared by their SHA-256, whatever their names; each file of documents is read once.
    """
    known = {digest for _, digest in text_digests(store)}
    return [name for name, digest in text_digests(held_out) if digest in known]


def text_digests(store: ActivationStore, documents: Iterable[int] | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and SHA-256 of every document, or of some, with a text."""
    for index in range(len(store.documents)) if documents is None else documents:
        name, text = store.documents[int(index)]
        if text.strip():
            yield name, hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def measure(dictionary: Dictionary, folder: str | os.PathLike, held_out: ActivationStore) -> DictionaryMetrics:
    """Metrics of a dictionary on held-out data; saved with it, and only read when they were measured before.

    Parameters
    ----------
    dictionary : Dictionary
    folder : path-like
        Where it is saved.
    held_out : ActivationStore

    Returns
    -------
    DictionaryMetrics
    """
    from safetensors.numpy import save_file

    if dictionary.metrics.get(STORE) == held_out.sha256:
        saved = saved_metrics(dictionary, folder)
        if saved is not None and saved.density.size:
            return saved
    metrics = evaluate_dictionary(dictionary, held_out)
    with atomic_path(Path(folder) / DENSITY_FILE) as partial:
        save_file({"density": metrics.density}, partial)
    plain = {name: _plain(value) for name, value in metrics.to_dict().items() if value is not None}
    dictionary.metrics = plain | {STORE: held_out.sha256}
    dictionary.save(folder)
    return metrics


def saved_metrics(dictionary: Dictionary, folder: str | os.PathLike) -> DictionaryMetrics | None:
    """The figures saved with a dictionary; None if there are none, or not all. Without densities theirs is empty.

    Raises
    ------
    DataMismatch
        If the density file is damaged or of another dictionary.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = Path(folder) / DENSITY_FILE
    try:
        density = load_file(file)["density"] if file.is_file() else np.empty(0)
    except (SafetensorError, KeyError, OSError) as error:
        raise DataMismatch(f"{file} is damaged ({error}); delete it and measure again") from None
    if density.shape not in ((dictionary.n_features,), (0,)):
        raise DataMismatch(
            f"{file} has densities of shape {density.shape}, {dictionary} has {dictionary.n_features} features; "
            "delete it and measure again"
        )
    fields = [field.name for field in dataclasses.fields(DictionaryMetrics) if field.name not in ("density", "cosines")]
    figures = {name: dictionary.metrics[name] for name in fields if name in dictionary.metrics}
    if any(name not in figures for name in _REQUIRED):  # measured by an edition that knew fewer figures
        return None
    figures = {name: float("nan") if value is None else value for name, value in figures.items()}
    return DictionaryMetrics(**figures, density=density, cosines=decoder_cosines(dictionary))


_REQUIRED = {
    field.name
    for field in dataclasses.fields(DictionaryMetrics)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
} - {"density", "decoder_cosine"}


def _plain(value: object) -> object:
    """NaN has no place in JSON."""
    return None if isinstance(value, float) and math.isnan(value) else value
