"""Reading a study folder: everything the report needs, as saved, and nothing computed anew."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import slug
from neurollm.reporting.decoding import checked

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult
    from neurollm.rsa import RSAResult


@dataclass(frozen=True)
class Study:
    """The saved results of one study."""

    folder: Path
    manifest: dict[str, Any]
    design: dict[str, Any]
    results: dict[str, ContrastResult]
    """Contrast name to result, in the order of the design."""
    audit: list[dict[str, Any]]
    contexts: dict[str, dict[str, list[dict[str, Any]]]]
    controls: dict[str, list[dict[str, Any]]]
    dictionary: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    rsa: RSAResult | None = None
    decode: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Contrast name to what ``decode.json`` says."""

    @property
    def alpha(self) -> float:
        """Family-wise level of the study."""
        analyses = self.config.get("analyses") or {}
        return float(self.manifest.get("alpha") or (analyses.get("glm") or {}).get("alpha") or 0.05)

    @property
    def site(self) -> str:
        """Where in the model, in words; empty when it was not recorded."""
        dictionary = self.manifest.get("dictionary") or {}
        site = self.manifest.get("site") or dictionary.get("site") or (self.config.get("model") or {}).get("site")
        if isinstance(site, dict) and "layer" in site:
            return f"layer {site['layer']} ({site.get('stream', 'resid_post')})"
        return str(site) if site else ""

    @property
    def settings(self) -> dict[str, Any]:
        """How tokens became trials: the window, the pooling, the transform, the least number of active items."""
        features = self.config.get("features") or {}
        known = ("tokens", "pool", "transform", "min_active_items")
        found = {key: self.manifest.get(key, features.get(key)) for key in known}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def name(self) -> str:
        """The study's name, or its folder's where none was recorded."""
        return str(self.manifest.get("name") or self.folder.name)


def read_study(folder: str | os.PathLike) -> Study:
    """Read what `neurollm run` left in a study folder.

    Parameters
    ----------
    folder : path-like
        ``reports/<study>/``.

    Returns
    -------
    Study

    Raises
    ------
    InvalidInput
        The folder is not there or holds no finished study.
    DataMismatch
        A file in it is damaged, or a contrast of the design has no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInput(f"There is no study folder {folder}: run the study first, it writes its results there.")
    design = _json(folder / "design.json", dict)
    config_text = _text(folder / "config.yaml")
    return Study(
        folder=folder,
        manifest=_json(folder / "manifest.json", dict),
        design=design,
        results=_results(folder / "glm", design),
        audit=_json(folder / "audit.json", list, default=[]),
        contexts=_json(folder / "contexts.json", dict, default={}),
        controls=_json(folder / "controls.json", dict, default={}),
        dictionary=_json(folder / "dictionary.json", dict, default={}),
        config=_yaml(folder / "config.yaml", config_text),
        config_text=config_text,
        rsa=_rsa(folder / "rsa" / "rsa.json"),
        decode=checked(_json(folder / "decode.json", dict, default={}), folder / "decode.json"),
    )


def _results(folder: Path, design: dict[str, Any]) -> dict[str, ContrastResult]:
    from neurollm.glm import ContrastResult

    results = {}
    for name in design.get("contrasts") or {}:
        path = folder / f"{slug(name)}.json"
        if not path.is_file():
            raise DataMismatch(
                f"{path} is missing: design.json names the contrast {name!r}, but it has no result; "
                "run the study again."
            )
        results[name] = ContrastResult.load(path)
    return results


def _rsa(path: Path) -> RSAResult | None:
    from neurollm.rsa import RSAResult

    return RSAResult.load(path) if path.is_file() else None


def _json(path: Path, kind: type, default: Any = None) -> Any:
    if not path.is_file():
        if default is not None:
            return default
        raise InvalidInput(f"{path} is missing, so {path.parent} holds no finished study: run the study again.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataMismatch(f"{path} is not readable as JSON ({error}): run the study again.") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise DataMismatch(f"{path} should hold {expected}, but holds {type(value).__name__}: run the study again.")
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _yaml(path: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataMismatch(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    return value if isinstance(value, dict) else {}
