"""What an RSA of all features found: one map per model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "neurollm.RSAResult"
VERSION = 1


@dataclass(frozen=True, eq=False)
class RSAMap:
    """Scores of all features against one model; NaN where a feature is not tested.

    Attributes
    ----------
    model, description : str
    r : ndarray, shape (V,)
        Positive: the feature's distances are larger where the model says so.
    r_over_ceiling : ndarray, shape (V,)
        Divided by the largest score of any single feature (`neurollm.stats.rdms.ceilings`), negative ones too.
    z : ndarray, shape (V,)
        In standard deviations of the permutation distribution.
    p, p_fwer, q : ndarray, shape (V,)
        Of the feature, corrected for all features of this model by the largest z, and false discovery rate.
    n_active : ndarray of int, shape (V,)
        Rows in which the feature is not zero.
    valid : ndarray of bool, shape (V,)
        Tested: the feature varies, is active in enough rows, and its score depends on the arrangement.
    ceiling : float
    layer_r : float
        Score of the RDM of all features together.
    n_rows, n_items, n_dropped : int
    n_perm : int
    exhaustive : bool
    smallest_p : float
        The least p that these arrangements can give.
    smallest_p_active : ndarray, shape (V,)
        Without nuisance models, the least p that the feature's active rows allow: the chance that an arrangement leaves
        their labels as they are (`neurollm.rsa.exchange.smallest_p_of_active`).
    exchange : str
        What was exchanged.
    null_max : ndarray, shape (n_perm,)
    """

    model: str
    description: str
    r: np.ndarray
    r_over_ceiling: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    q: np.ndarray
    n_active: np.ndarray
    valid: np.ndarray
    ceiling: float
    layer_r: float
    n_rows: int
    n_items: int
    n_dropped: int
    n_perm: int
    exhaustive: bool
    smallest_p: float
    smallest_p_active: np.ndarray
    exchange: str
    null_max: np.ndarray


@dataclass(frozen=True, eq=False)
class RSAResult:
    """Maps of several models.

    Attributes
    ----------
    maps : tuple of RSAMap
    feature : ndarray, shape (V,)
        Ids.
    comparison, distance, alternative, fdr, scale : str
    nuisance : tuple of str
        Models that were held constant.
    min_active, random_state : int
    trials : str
        Digest of the items and texts that were analysed.
    item : str or None
        Column of the item.
    """

    maps: tuple[RSAMap, ...]
    feature: np.ndarray
    comparison: str
    distance: str
    alternative: str
    fdr: str
    scale: str
    nuisance: tuple[str, ...]
    min_active: int
    random_state: int
    trials: str
    item: str | None

    def __getitem__(self, model: str) -> RSAMap:
        """The map of a model."""
        for one in self.maps:
            if one.model == model:
                return one
        known = [one.model for one in self.maps]
        hint = closest(str(model), known) or "."
        raise InvalidInput(f"this result has no model {model!r}{hint} It has {listed(known)}.")

    def to_frame(self) -> pd.DataFrame:
        """One row per feature and model, in the order of models, then features."""
        import pandas as pd

        names = ("r", "r_over_ceiling", "z", "p", "p_fwer", "q", "n_active", "valid")
        parts = [
            pd.DataFrame({"feature": self.feature, "model": one.model} | {name: getattr(one, name) for name in names})
            for one in self.maps
        ]
        return pd.concat(parts, ignore_index=True)

    def strongest(self, model: str, n: int) -> np.ndarray:
        """Positions of the features that speak most for the alternative: the largest z, among equals the lowest id."""
        one = self[model]
        size = {"two-sided": np.abs(one.z), "greater": one.z, "less": -one.z}[self.alternative]
        tested = np.flatnonzero(one.valid & np.isfinite(size))
        return tested[np.lexsort((self.feature[tested], -size[tested]))[:n]]

    def verdict(self, model: str | None = None, alpha: float = 0.05) -> str:
        """The result in one sentence per model."""
        chosen = self.maps if model is None else (self[model],)
        return "\n".join(self._sentence(one, alpha) for one in chosen)

    def _sentence(self, one: RSAMap, alpha: float) -> str:
        tested = int(one.valid.sum())
        if not tested:
            rare = int((one.n_active < self.min_active).sum())
            return (
                f"{one.model}: none of the {len(self.feature):,} features could be tested ({rare:,} are active in "
                f"fewer than {self.min_active} rows; the others do not vary, or no arrangement changes their score)."
            )
        best = self._best(one)
        most = f" of at most {one.ceiling:.3f}" if np.isfinite(one.ceiling) and one.r[best] >= 0 else ""
        top = f"strongest: feature {self.feature[best]}, r = {one.r[best]:.3f}{most}"
        left = f"; {len(self.feature) - tested:,} were not tested" if tested < len(self.feature) else ""
        left += f"; {one.n_dropped} items without all conditions were left out" if one.n_dropped else ""
        if not one.n_perm:
            return f"{one.model}: {tested:,} features scored without a test ({top}){left}."
        found = one.r[one.valid & (one.p_fwer <= alpha)]
        against = f" and {int((found < 0).sum()):,} run against it" if (found < 0).any() else ""
        how = "all" if one.exhaustive else "random"
        partial = f", {listed(self.nuisance)} held constant (approximate)" if self.nuisance else ""
        return (
            f"{one.model}: {int((found >= 0).sum()):,} of {tested:,} tested features follow the model{against} at "
            f"family-wise p ≤ {alpha:g}{partial} "
            f"({self.alternative}, {self.comparison} of {self.distance} distances, {one.n_perm:,} {how} shufflings of "
            f"{one.n_items} items, smallest p possible {one.smallest_p:.2g}; {top}){left}."
        )

    def _best(self, one: RSAMap) -> int:
        """Position of the tested feature that speaks most for the alternative."""
        if np.isfinite(one.z[one.valid]).any():
            return int(self.strongest(one.model, 1)[0])
        size = {"two-sided": np.abs(one.r), "greater": one.r, "less": -one.r}[self.alternative]
        return int(np.argmax(np.where(one.valid & np.isfinite(size), size, -np.inf)))

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``rsa.parquet`` (features), ``rsa.npz`` (nulls) and ``rsa.json`` (all else); return the JSON's path."""
        base = Path(folder)
        with atomic_path(base / "rsa.parquet") as partial:
            frame = self.to_frame()
            frame["smallest_p_active"] = np.concatenate([one.smallest_p_active for one in self.maps])
            frame.to_parquet(partial, index=False)
        with atomic_path(base / "rsa.npz") as partial, open(partial, "wb") as handle:
            np.savez_compressed(handle, **{f"null_max_{i}": one.null_max for i, one in enumerate(self.maps)})
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("maps", "feature")
        }
        maps = [{name: _plain(getattr(one, name)) for name in _SCALARS} for one in self.maps]
        write_json(base / "rsa.json", {"format": FORMAT, "version": VERSION, **plain, "maps": maps})
        return base / "rsa.json"

    @classmethod
    def load(cls, path: str | os.PathLike) -> RSAResult:
        """Read a saved result.

        Parameters
        ----------
        path : path-like
            The ``.json`` file; the other two lie beside it.

        Raises
        ------
        InvalidInput
            There is no such file, or it is no RSA result.
        DataMismatch
            It is damaged, or was written by another version.
        """
        path = Path(path)
        plain = _read(path)
        try:
            return _restored(cls, plain, path)
        except FileNotFoundError as error:
            raise DataMismatch(f"{error.filename}: is missing; it belongs to {path.name}.") from None
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            raise DataMismatch(f"{path}: the files of this result are damaged ({error}); run RSA again.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file.") from None
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise InvalidInput(f"{path}: this is not a saved RSA result.")
    if plain.pop("version", None) != VERSION:
        raise DataMismatch(f"{path}: was written by another version of neurollm; run RSA again.")
    return plain


def _restored(cls: type[RSAResult], plain: dict[str, Any], path: Path) -> RSAResult:
    import pandas as pd

    frame = pd.read_parquet(path.with_suffix(".parquet"))
    scalars = plain.pop("maps")
    size = len(frame) // max(len(scalars), 1)
    maps = []
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as nulls:
        for number, one in enumerate(scalars):
            part = frame.iloc[number * size : (number + 1) * size]
            arrays = {name: part[name].to_numpy() for name in _ARRAYS}
            floats = {name: float("nan") if value is None else value for name, value in one.items()}
            maps.append(RSAMap(**floats, **arrays, null_max=nulls[f"null_max_{number}"]))
    plain["nuisance"] = tuple(plain["nuisance"])
    return cls(maps=tuple(maps), feature=frame["feature"].to_numpy()[:size], **plain)


_ARRAYS = tuple(f.name for f in dataclasses.fields(RSAMap) if f.type == "np.ndarray" and f.name != "null_max")
_SCALARS = tuple(f.name for f in dataclasses.fields(RSAMap) if f.type != "np.ndarray")
