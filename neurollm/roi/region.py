"""A region of interest: a named set of features, and on which contents it was chosen."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.designs import Contrast
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import write_json
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "neurollm.ROI"
VERSION = 2
METHODS = ("declared", "contrast", "rsa", "searchlight", "greedy", "stability")
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ROI:
    """A set of features.

    Made by `select_roi`, `localize`, `greedy_roi` and `stability_roi` from trials, or by `ROI.declared`,
    `roi_from_labels` and `cluster_rois` without any.

    Attributes
    ----------
    name : str
    feature : tuple of int or str
        Ids.
    signs : tuple of int
        Direction of each feature in the contrast, +1 or −1: opposite features do not cancel in the region's mean.
        All +1 where the selection has no direction (RSA).
    selection : str
        How the features were chosen, in one sentence; for a declared region, the reason.
    contrast : Contrast or None
        By which they were chosen; None for all other ways.
    item : str or None
        Column that named the items then.
    items : tuple of str
        Normalised names of all items of the selection's trial table, sorted.
    texts : tuple of str
        SHA-256 of all its normalised texts, sorted.
    method : {"declared", "contrast", "rsa", "searchlight", "greedy", "stability"}
        Which way it was chosen. A declared region was chosen without looking at trials.
    """

    name: str
    feature: tuple[int | str, ...]
    signs: tuple[int, ...]
    selection: str
    contrast: Contrast | None = None
    item: str | None = None
    items: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    method: str = "declared"

    def __post_init__(self) -> None:
        where = f"ROI {shown(self.name)}"
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidInput("ROI: the name is empty; it names the result.")
        object.__setattr__(self, "feature", tuple(_plain(feature, where) for feature in self.feature))
        for field in ("signs", "items", "texts"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.feature:
            raise InvalidInput(f"{where}: it has no features.")
        twice = sorted({str(f) for f in self.feature if self.feature.count(f) > 1}) if _repeats(self.feature) else ()
        if twice:
            raise InvalidInput(f"{where}: the feature {listed(twice)} is given more than once.")
        if len(self.signs) != len(self.feature) or not set(self.signs) <= {-1, 1}:
            raise InvalidInput(f"{where}: signs must hold +1 or -1 for each of the {len(self.feature)} features.")
        if not isinstance(self.selection, str) or not self.selection.strip():
            raise InvalidInput(f"{where}: selection is empty; write down how the features were chosen.")
        if not all(isinstance(text, str) and _HASH.fullmatch(text) for text in self.texts):
            raise InvalidInput(f"{where}: texts must hold SHA-256 hashes, 64 hex digits each.")
        if self.method not in METHODS:
            raise InvalidInput(f"{where}: method is {shown(self.method)}; it is one of {listed(METHODS)}.")
        if self.is_declared != (not self.texts) or (self.items and not self.texts):
            raise InvalidInput(
                f"{where}: a region chosen by {'data' if self.is_declared else self.method} needs the hashes of the "
                "texts it was chosen on, and a declared one has none."
            )
        if (self.method == "contrast") != (self.contrast is not None):
            raise InvalidInput(f"{where}: a contrast belongs to the method 'contrast' and to no other.")

    @property
    def is_declared(self) -> bool:
        """Whether the features were named without looking at trials."""
        return self.method == "declared"

    @classmethod
    def declared(cls, name: str, features: Sequence[int | str], reason: str, signs: Sequence[int] | None = None) -> ROI:
        """A region known beforehand: by hand, from a paper, from labels.

        Parameters
        ----------
        name : str
        features : sequence of int or str
        reason : str
            Where the features come from.
        signs : sequence of {+1, −1}, optional
            Default: all +1.

        Returns
        -------
        ROI

        Raises
        ------
        InvalidInput
            The reason is empty, or a feature is given twice.

        Examples
        --------
        >>> ROI.declared("negation", [12, 40], "labelled 'not' and 'never' in the feature index").is_declared
        True
        """
        if isinstance(features, str) or not hasattr(features, "__len__"):
            raise InvalidInput(f"ROI {shown(name)}: features must be a list of ids, found {shown(features)}.")
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidInput(
                f"ROI {shown(name)}: a declared region needs a written reason, which says where its features come from."
            )
        return cls(name, tuple(features), tuple(signs) if signs is not None else (1,) * len(features), reason.strip())

    def check_disjoint(self, obs: pd.DataFrame, item: str | None = "item") -> None:
        """Refuse trials on which the region was selected: `neurollm.roi.check_disjoint`."""
        from neurollm.roi.disjoint import check_disjoint

        check_disjoint(self, obs, item)

    def save(self, path: str | os.PathLike) -> Path:
        """Write JSON, atomically."""
        plain = asdict(self) | {"contrast": None if self.contrast is None else self.contrast.to_dict()}
        write_json(path, {"format": FORMAT, "version": VERSION, **plain})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ROI:
        """Read a saved region.

        Raises
        ------
        InvalidInput
            There is no such file, or it is no region.
        DataMismatch
            It is damaged, or was written by another version.
        """
        try:
            plain: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(f"{path}: there is no such file.") from None
        except (ValueError, OSError) as error:
            raise InvalidInput(f"{path}: cannot be read as JSON ({error}).") from None
        if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
            raise InvalidInput(f"{path}: this is not a saved ROI.")
        if plain.pop("version", None) != VERSION:
            raise DataMismatch(f"{path}: was written by another version of neurollm; select the ROI again.")
        try:
            contrast = plain.pop("contrast")
            return cls(**plain, contrast=None if contrast is None else Contrast.from_dict(contrast))
        except (InvalidInput, KeyError, TypeError, ValueError) as error:
            raise DataMismatch(f"{path}: the ROI is damaged ({error}); select it again.") from None


def _plain(feature: Any, where: str) -> int | str:
    """An id as JSON keeps it."""
    value = feature.item() if hasattr(feature, "item") else feature
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InvalidInput(f"{where}: a feature id must be a whole number or text, found {shown(value)}.")
    return value


def _repeats(values: tuple) -> bool:
    return len(set(values)) < len(values)
