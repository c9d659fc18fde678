"""Which format a folder is in, and loading it.

A format is told from the files that lie there, never from their content:

    neurollm              neurollm.json
    saelens               cfg.json + sae_weights.safetensors
    sparsify              cfg.json + sae.safetensors
    dictionary_learning   ae.pt + config.json
    gemma_scope           params.npz
    gemma_scope_2         params.safetensors + config.json
    llama_scope           hyperparams.json + checkpoints/, or config.json + sae_weights.safetensors
    openai                a single .pt file
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from neurollm import datasets
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    native,
    openai,
    saelens,
    sparsify,
)
from neurollm.dictionaries.formats.reading import Given
from neurollm.errors import DataMismatch, InvalidInput, NeurollmError
from neurollm.models import Site

EXPECTED = (
    "neurollm.json (neurollm), cfg.json + sae_weights.safetensors (saelens), cfg.json + sae.safetensors (sparsify), "
    "ae.pt + config.json (dictionary_learning), params.npz (gemma_scope), params.safetensors (gemma_scope_2), "
    "hyperparams.json or config.json + sae_weights.safetensors (llama_scope), or a .pt file (openai)"
)


def load_dictionary(
    path: str | os.PathLike,
    format: str = "auto",
    *,
    site: Site | None = None,
    k: int | None = None,
    model_name: str = "",
) -> Dictionary:
    """Load a dictionary written by neurollm or by another package.

    All formats become the same equations (`neurollm.dictionaries.sae`), so that features
    and reconstructions are those of the package that wrote the files. Weights are held and
    computed with in float32: those of a float64 file are rounded, and its ``dtype`` is ``"float32"``.

    Parameters
    ----------
    path : str or path
        ``"demo"`` or ``"demo_seed0"`` to ``"demo_seed2"`` (embedded), a folder, or a file in it.
    format : {"auto", "neurollm", "saelens", "sparsify", "dictionary_learning", "gemma_scope", \
"gemma_scope_2", "llama_scope", "openai"}, default="auto"
        ``"auto"`` goes by the files that lie there. ``"saelens"`` ignores a
        ``neurollm.json`` beside them.
    site : Site, optional
        Where in the model it was trained. Needed where the files do not say it: OpenAI,
        Gemma Scope out of its folders, sparsify in a renamed folder.
    k : int, optional
        Active features per token, where the files do not say it.
    model_name : str, optional
        The model it was trained on, where the files do not say it.

    Returns
    -------
    Dictionary

    Raises
    ------
    InvalidInput
        If nothing is there, the format is unknown or ambiguous, something is not supported,
        or the files do not say enough.
    DataMismatch
        If files are damaged, do not belong together, or contradict `site`, `k` or `model_name`.

    Examples
    --------
    >>> load_dictionary("demo")
    dictionary topk (4,096 features at resid_post.3)
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise InvalidInput(f"dictionary {path!r}: expected a name or a folder")
    if site is not None and not isinstance(site, Site):
        raise InvalidInput(f"site is {site!r}; expected a Site such as Site(6, 'resid_post')")
    given = Given(site, k, model_name)
    place = _embedded(str(path)) or Path(path)
    if format != "auto" and format not in _LOADERS:
        raise InvalidInput(f"format {format!r} is unknown; use 'auto' or one of {', '.join(_LOADERS)}")
    if not place.exists():
        raise InvalidInput(
            f"dictionary {str(path)!r}: there is no such folder; expected 'demo' or a folder with {EXPECTED}"
        )
    name = _detected(place) if format == "auto" else format
    if place.is_file() and place.suffix not in (".pt", ".pth", ".npz"):
        place = place.parent
    try:
        return _LOADERS[name](place, given)
    except NeurollmError:
        raise
    except Exception as error:  # what damaged and hostile files provoke cannot be listed
        told = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataMismatch(
            f"{place}: damaged, or not what format {name!r} should be ({type(error).__name__}: {told})"
        ) from error


def _embedded(name: str) -> Path | None:
    """Folder of a dictionary that ships with the package."""
    if name == "demo":
        return datasets.demo_dictionary_path()
    return datasets.demo_seed_path(name) if name in datasets.DEMO_SEEDS else None


def _detected(place: Path) -> str:
    if place.is_file() and place.suffix in (".pt", ".pth"):
        beside = any((folder / "config.json").is_file() for folder in (place.parent, place.parent.parent))
        return "dictionary_learning" if beside and re.fullmatch(r"ae(_\d+)?", place.stem) else "openai"
    folder = place.parent if place.is_file() else place
    there = {
        name
        for name in (*_FILES, "config.json", "cfg.json", saelens.WEIGHTS_FILE, native.SIDE_FILE)
        if (folder / name).is_file()
    }
    formats = [_FILES[name] for name in there & _FILES.keys()]
    if native.SIDE_FILE in there:
        formats.append("neurollm")
    elif "cfg.json" in there and ("sparsify" not in formats or saelens.WEIGHTS_FILE in there):
        formats.append("saelens")
    elif {"config.json", saelens.WEIGHTS_FILE} <= there and "llama_scope" not in formats:
        formats.append("llama_scope")
    if len(formats) == 1:
        return formats[0]
    if not formats:
        raise InvalidInput(f"dictionary {str(place)!r}: no known format; expected {EXPECTED}")
    raise InvalidInput(
        f"dictionary {str(place)!r}: files of several formats lie there ({', '.join(sorted(formats))}); say which one "
        "with format="
    )


def _load_native(folder: Path, given: Given) -> Dictionary:
    side = native.read_side(folder)
    if (folder / saelens.CONFIG_FILE).is_file():
        return saelens.load_saelens(folder, given, side)
    return native.load_control(folder, side, given)


_FILES = {
    sparsify.WEIGHTS_FILE: "sparsify",
    dictionary_learning.WEIGHTS_FILE: "dictionary_learning",
    gemma_scope.ARCHIVE: "gemma_scope",
    gemma_scope.WEIGHTS_FILE: "gemma_scope_2",
    "hyperparams.json": "llama_scope",
}
_LOADERS: dict[str, Callable[[Path, Given], Dictionary]] = {
    "neurollm": _load_native,
    "saelens": saelens.load_saelens,
    "sparsify": sparsify.load_sparsify,
    "dictionary_learning": dictionary_learning.load_dictionary_learning,
    "gemma_scope": gemma_scope.load_gemma_scope,
    "gemma_scope_2": gemma_scope.load_gemma_scope_2,
    "llama_scope": llama_scope.load_llama_scope,
    "openai": openai.load_openai,
}
