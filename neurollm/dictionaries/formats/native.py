"""``neurollm.json``: what a dictionary is beyond the layout of other packages.

It lies beside the SAELens files of an SAE and says what these have no place for: the
model's fingerprint, centring token by token, quality, origin. Alone it describes a
control, which has no weights of that layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.dictionaries import controls
from neurollm.dictionaries.formats.reading import Given, read_json
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import sha256_file

if TYPE_CHECKING:
    from neurollm.dictionaries.base import Dictionary
    from neurollm.dictionaries.sae import SAE

FORMAT_VERSION = 1
SIDE_FILE = "neurollm.json"


def side_record(sae: SAE, weights_sha256: str) -> dict[str, Any]:
    """The content of the ``neurollm.json`` of an SAE; what has its default is left out."""
    per_token = sae.normalisation.per_token
    return {
        "format_version": FORMAT_VERSION,
        "architecture": sae.architecture,
        "site": sae.site.to_dict(),
        **({"target_site": sae.target_site.to_dict()} if sae.is_transcoder else {}),
        "model": {"name": sae.model_name, "fingerprint": sae.model_fingerprint},
        "d_in": sae.d_in,
        "n_features": sae.n_features,
        **sae.options,
        **({"per_token": per_token} if per_token != "none" else {}),
        "weights_sha256": weights_sha256,
        "metrics": sae.metrics,
        "provenance": sae.provenance,
    }


def read_side(folder: Path) -> dict[str, Any]:
    """``neurollm.json`` of a folder.

    Raises
    ------
    InvalidInput
        If it is not what it should be, or of another version.
    """
    side = read_json(folder / SIDE_FILE)
    if side.get("format_version") != FORMAT_VERSION:
        raise InvalidInput(
            f"{folder / SIDE_FILE}: format_version is {side.get('format_version')!r}; "
            f"this edition reads {FORMAT_VERSION}"
        )
    side.setdefault("provenance", {})
    for key in ("site", "model", "metrics", "provenance"):
        if not isinstance(side.get(key), dict):
            raise InvalidInput(f"{folder / SIDE_FILE}: {key} is {side.get(key)!r}; expected a JSON object")
    for part, key in (("site", "layer"), ("model", "name"), ("model", "fingerprint")):
        if key not in side[part]:
            raise InvalidInput(f"{folder / SIDE_FILE}: {part}.{key} is missing")
        if part == "model" and not isinstance(side[part][key], str):
            raise InvalidInput(f"{folder / SIDE_FILE}: {part}.{key} is {side[part][key]!r}; expected a text")
    return side


def check_weights(side: dict[str, Any], folder: Path, weights_file: str) -> None:
    """Refuse weights that the side file was not written for.

    Raises
    ------
    DataMismatch
        If their SHA-256 differs.
    """
    found = sha256_file(folder / weights_file)
    if side.get("weights_sha256") != found:
        raise DataMismatch(
            f"{folder / SIDE_FILE} describes other weights than {weights_file} beside it (sha256 "
            f"{str(side.get('weights_sha256'))[:12]}, found {found[:12]}); restore the pair, or delete {SIDE_FILE}"
        )


def load_control(folder: Path, side: dict[str, Any], given: Given) -> Dictionary:
    """A control dictionary from its ``neurollm.json`` (and ``control.safetensors``, where it has arrays).

    Raises
    ------
    InvalidInput
        If the architecture is not a control's.
    DataMismatch
        If the files contradict `given`.
    """
    where = folder / SIDE_FILE
    kind = controls.CONTROLS.get(side.get("architecture"))
    if kind is None:
        raise InvalidInput(
            f"{where}: architecture {side.get('architecture')!r} without cfg.json; alone it can only be one of "
            f"{', '.join(controls.CONTROLS)}"
        )
    dictionary = kind.load(folder, side)
    given.settled_site(dictionary.site, where)
    given.settled_name(dictionary.model_name, where)
    k = getattr(dictionary, "k", None)
    if k is None:
        given.refuse_k(dictionary.architecture, where)
    else:
        given.settled_k(k, dictionary.n_features, where)
    return dictionary
