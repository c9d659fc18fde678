"""What an interaction model computes, as features: raw activations in, interaction dimensions or components out.

They are dictionaries, so every analysis of features can be run on them:

    InteractionFeatures    the K dimensions of B
    ComponentFeatures      the d units of one component of the reconstruction: x̂ of the dictionary, s·W + b, or g(B)

and both go through the one forward pass of the interaction model.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries import load_dictionary
from neurollm.dictionaries.base import Dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import write_json
from neurollm.interactions.model import NFM
from neurollm.models import LanguageModel, Site

FORMAT_VERSION = 1
CONFIG_FILE = "interaction_features.json"
DICTIONARY, MODEL, SECONDARY = "dictionary", "nfm", "secondary"  # folders below
COMPONENTS = ("dictionary", "linear", "interaction")


class FeaturesOfCode(Dictionary):
    """Features computed by an interaction model from the codes of a dictionary.

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM
    n_features : int

    Raises
    ------
    InvalidInput
        If the dictionary is a transcoder.
    DataMismatch
        If the model was trained on the codes of another dictionary.
    """

    def __init__(self, dictionary: Dictionary, nfm: NFM, n_features: int) -> None:
        if dictionary.is_transcoder:
            raise InvalidInput(f"{dictionary} is a transcoder; interaction models are of dictionaries of one site")
        nfm.check(dictionary)
        model = {"model_name": dictionary.model_name, "model_fingerprint": dictionary.model_fingerprint}
        super().__init__(dictionary.site, dictionary.d_in, n_features, **model)
        self.dictionary, self.nfm = dictionary, nfm
        self.provenance = {"dictionary": dictionary.fingerprint, "nfm": nfm.fingerprint}

    @property
    def device(self) -> torch.device:
        """Where the interaction model is."""
        return self.nfm.device

    def check(self, lm: LanguageModel, site: Site | None = None) -> None:
        """Refuse a model or a site that the dictionary below was not made for, with DataMismatch."""
        self.dictionary.check(lm, site)

    def interactions(self, x: torch.Tensor) -> torch.Tensor:
        """B of raw activations, (n, K)."""
        return self.nfm.interactions(self.dictionary.encode_sparse(x))

    def describe(self) -> dict[str, Any]:
        """What is written into results."""
        model = {"fingerprint": self.nfm.fingerprint, "provenance": self.nfm.provenance, "sizes": repr(self.nfm)}
        return {**super().describe(), **self._parameters(), "dictionary": self.dictionary.describe(), "nfm": model}

    def save(self, folder: str | os.PathLike) -> None:
        """Write the dictionary and the interaction model into folders below; `load_interaction_features` reads them."""
        folder = Path(folder)
        self.dictionary.save(folder / DICTIONARY)
        self.nfm.save(folder / MODEL)
        record = {"format_version": FORMAT_VERSION, "architecture": self.architecture, **self._parameters()}
        write_json(folder / CONFIG_FILE, {**record, "fingerprint": self.fingerprint})

    @abstractmethod
    def _parameters(self) -> dict[str, Any]:
        """What, beside dictionary and interaction model, `load_interaction_features` needs."""

    def _identity(self) -> list[bytes]:
        parameters = json.dumps(self._parameters(), sort_keys=True)
        return [part.encode() + b"\n" for part in (self.dictionary.fingerprint, self.nfm.fingerprint, parameters)]


class InteractionFeatures(FeaturesOfCode):
    """The interaction dimensions B of an interaction model; decoding is g(B).

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM

    Examples
    --------
    >>> dictionary = load_dictionary("demo")
    >>> weights = {"V": torch.full((dictionary.n_features, 3), 0.1), "A": torch.ones(3, dictionary.d_in)}
    >>> InteractionFeatures(dictionary, NFM(weights, top_n=16)).encode(torch.randn(5, dictionary.d_in)).shape
    torch.Size([5, 3])
    """

    architecture = "interactions"

    def __init__(self, dictionary: Dictionary, nfm: NFM) -> None:
        super().__init__(dictionary, nfm, nfm.rank)

    @property
    def directions(self) -> torch.Tensor | None:
        """What a dimension of 1 adds, (K, d_in); None for a read-out with a hidden layer."""
        return self.nfm.weights["A"] if self.nfm.readout == "linear" else None

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.interactions(x)

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self.nfm.interaction(features)

    def _parameters(self) -> dict[str, Any]:
        return {}


class ComponentFeatures(FeaturesOfCode):
    """The raw units of one component of the reconstruction x̂ + s·W + b + g(B).

    Decoding is the identity: a component is a part of the activations already.

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM
    component : {"dictionary", "linear", "interaction"}
        x̂ of the dictionary; the change of its decoder, s·W + b; g(B).
    """

    architecture = "component"

    def __init__(self, dictionary: Dictionary, nfm: NFM, component: str) -> None:
        if component not in COMPONENTS:
            raise InvalidInput(f"component is {component!r}; expected one of {', '.join(COMPONENTS)}")
        self.component = component
        super().__init__(dictionary, nfm, dictionary.d_in)

    @property
    def directions(self) -> torch.Tensor:
        """The unit vectors."""
        return torch.eye(self.d_in, device=self.device)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        if self.component == "dictionary":
            return self.dictionary.reconstruct(x)
        if self.component == "linear":
            return self.nfm.linear(self.dictionary.encode_sparse(x))
        return self.nfm.interaction(self.interactions(x))

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return features.clone()

    def _parameters(self) -> dict[str, Any]:
        return {"component": self.component}


def load_interaction_features(folder: str | os.PathLike) -> FeaturesOfCode:
    """Features that `save` of `InteractionFeatures`, `ComponentFeatures` or `SecondaryDictionary` wrote.

    Raises
    ------
    InvalidInput
        If there are none in the folder.
    DataMismatch
        If the files are damaged or do not belong together.
    """
    from neurollm.interactions.secondary import SecondaryDictionary  # which is made of the classes above

    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise InvalidInput(f"{folder}: there are no interaction features here (no {CONFIG_FILE})")
    try:
        record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        version, architecture, fingerprint = (record[key] for key in ("format_version", "architecture", "fingerprint"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataMismatch(
            f"{folder / CONFIG_FILE}: damaged ({error}); restore it or save the features again"
        ) from None
    kinds = {kind.architecture: kind for kind in (InteractionFeatures, ComponentFeatures, SecondaryDictionary)}
    if version != FORMAT_VERSION or architecture not in kinds:
        raise DataMismatch(
            f"{folder / CONFIG_FILE}: format_version {version!r} and architecture {architecture!r}; this edition reads "
            f"{FORMAT_VERSION} and {', '.join(kinds)}"
        )
    kind, more = kinds[architecture], {}
    if kind is ComponentFeatures:
        more = {"component": record.get("component")}
    elif kind is SecondaryDictionary:
        more = {"sae": load_dictionary(folder / SECONDARY)}
    features = kind(load_dictionary(folder / DICTIONARY), NFM.load(folder / MODEL), **more)
    if features.fingerprint != fingerprint:
        raise DataMismatch(
            f"{folder}: {CONFIG_FILE} describes another dictionary or model than those in the folders below"
        )
    return features


def interaction_edit(
    dictionary: Dictionary, nfm: NFM, dims: Sequence[int] | None = None, scale: float | Sequence[float] = 0.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """An edit for `neurollm.models.intervene` that multiplies interaction dimensions.

    x ← x + g(B′) − g(B), where B′ is B with some dimensions multiplied. What neither dictionary nor interaction model
    explains stays as it is, and so does what they say of everything else: x is never replaced by a reconstruction.

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM
    dims : sequence of int, optional
        Default: all.
    scale : float or one for each of `dims`, default=0.0
        1 changes nothing, bit for bit; 0 for all dimensions takes g(B) away.

    Returns
    -------
    callable
        Takes and gives activations (…, d), of any dtype, at all positions that it is handed.

    Raises
    ------
    InvalidInput
        If a dimension does not exist, or a scale is not a finite number.

    Examples
    --------
    >>> dictionary = load_dictionary("demo")
    >>> weights = {"V": torch.full((dictionary.n_features, 3), 0.1), "A": torch.ones(3, dictionary.d_in)}
    >>> edit = interaction_edit(dictionary, NFM(weights, top_n=16), dims=[1], scale=1.0)
    >>> hidden = torch.randn(1, 4, dictionary.d_in)
    >>> bool((edit(hidden) == hidden).all())
    True
    """
    features = InteractionFeatures(dictionary, nfm)
    chosen = np.arange(nfm.rank) if dims is None else np.asarray(dims)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not np.isin(chosen, np.arange(nfm.rank)).all():
        raise InvalidInput(f"dims are {dims!r}; expected numbers of interaction dimensions from 0 to {nfm.rank - 1}")
    try:
        factors = np.broadcast_to(np.asarray(scale, np.float32), chosen.shape)
    except (ValueError, TypeError):
        factors = np.full(chosen.shape, np.nan)
    if not np.isfinite(factors).all():
        raise InvalidInput(f"scale is {scale!r}; expected a finite number, or one for each of {len(chosen)} dimensions")
    multiplier = torch.ones(nfm.rank, device=nfm.device)
    multiplier[torch.from_numpy(chosen).to(nfm.device)] = torch.tensor(factors, device=nfm.device)

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        pooled = features.encode(hidden.detach().reshape(-1, dictionary.d_in)).to(nfm.device)
        change = nfm.interaction(pooled * multiplier) - nfm.interaction(pooled)
        return (hidden + change.to(hidden.device).reshape(hidden.shape)).to(hidden.dtype)

    return edit
