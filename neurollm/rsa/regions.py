"""RDMs of regions, layers and whole models, from Gram matrices over blocks of features.

For the patterns x_i of a region with p features (means of the trials of condition i):

==================  ==========================================================================================
distance            d_ij
==================  ==========================================================================================
``squared``         ‖x_i − x_j‖² / p
``correlation``     1 − corr(x_i, x_j) over features
``cosine``          1 − cos(x_i, x_j)
``crossvalidated``  [‖s_i − s_j‖² − Σ_r ‖x_ri − x_rj‖²] / (R(R − 1)p) for R repeats, with s = Σ_r x_r; its
                    expectation is 0 for two conditions that do not differ (crossnobis with identity noise,
                    Walther et al. 2016)
==================  ==========================================================================================

These are rsatoolbox's ``euclidean``, ``correlation`` and ``crossnobis``. Only the n × n Gram matrix is kept, features
come in blocks, and no matrix of features × features exists. The form g_ii + g_jj − 2g_ij loses all digits of a small
distance between large patterns: features are centred first, and pairs that are still much closer to each other than
to the centre are measured by their differences.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.toolbox import as_rdms, plain_values
from neurollm.stats.arrays import BLOCK, by_columns, canonical_columns, dense
from neurollm.validation import closest, listed, shown

if TYPE_CHECKING:
    import pandas as pd
    from rsatoolbox.rdm import RDMs

logger = logging.getLogger("neurollm")

Distance = Literal["squared", "correlation", "cosine", "crossvalidated"]
DISTANCES = {
    "squared": "squared euclidean",
    "correlation": "correlation",
    "cosine": "cosine",
    "crossvalidated": "crossnobis",
}
_CLOSE = 1e-5  # of the patterns' own size: below it a distance from a Gram matrix has fewer than ten digits
_SPARSE = 0.1  # share of nonzeros up to which sparse products are faster than dense ones
_PAIRS = 4096  # pairs measured at a time


def region_rdms(
    X: Any,
    obs: pd.DataFrame | Sequence[Any],
    regions: Mapping[str, Any],
    *,
    condition: str | None = None,
    repeat: str | None = None,
    distance: Distance = "squared",
    descriptors: Mapping[str, Any] | None = None,
) -> RDMs:
    """Compute one RDM per region.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_trials, n_features)
    obs : DataFrame with n_trials rows, or sequence of n_trials labels
        Labels name the condition of every trial.
    regions : mapping of str to columns
        Slice, list of column numbers or boolean mask; ``slice(None)`` is the whole layer.
    condition : str, optional
        Column of `obs` whose values are the rows of the RDM; trials of one value are averaged, and the rows stand in
        the order of sorted values. Default: every trial is a row.
    repeat : str, optional
        Column of the independent repeats (templates, contexts, seeds) of every condition, for ``crossvalidated``.
        Repeats weigh the same, whatever their number of trials.
    distance : {"squared", "correlation", "cosine", "crossvalidated"}
    descriptors : mapping, optional
        Facts about all RDMs: model, site, dictionary.

    Returns
    -------
    rsatoolbox.rdm.RDMs
        `rdm_descriptors`: name and n_features. `pattern_descriptors`: the columns of `obs` that are the same in all
        trials of every condition. NaN where a distance is not defined: a constant pattern has no correlation, a pattern
        of zeros no cosine; a warning names the conditions.

    Raises
    ------
    InvalidInput
        A column, region or distance is unknown or empty, rsatoolbox is not installed, or a repeat lacks a condition.
    DataMismatch
        Trials and `obs` differ in number, or a region holds numbers that are not finite.

    Examples
    --------
    >>> X = np.array([[1e8, 1e8], [1e8 + 1, 1e8], [1e8, 1e8 + 3]])
    >>> region_rdms(X, ["a", "b", "c"], {"layer": slice(None)}).dissimilarities.tolist()
    [[0.5, 4.5, 5.0]]
    """
    _check(regions, distance, repeat)
    frame, condition = _trials(obs, condition)
    if X.shape[0] != len(frame):
        raise DataMismatch(f"the activations have {X.shape[0]} rows but there are {len(frame)} trials.")
    codes, rows = _conditions(frame, condition)
    weights = _repeats(frame, codes, repeat) if repeat is not None else [_averages(codes)]
    array = canonical_columns(X) if sparse.issparse(X) else by_columns(X)
    labels = [str(label) for label in rows[condition]] if condition is not None else [str(row) for row in rows.index]
    rdms, counts = [], []
    for name, columns in regions.items():
        region = _Region(str(name), array, _columns(columns, X.shape[1], str(name)), tuple(weights))
        if distance in ("correlation", "cosine") and region.columns.size == 1:
            raise InvalidInput(
                f"region {shown(name)}: distance '{distance}' of a single feature is not defined; use 'squared'."
            )
        with np.errstate(invalid="ignore", over="ignore"):  # not finite: refused in a sentence
            rdms.append(_distances(region, distance, labels))
        counts.append(region.columns.size)
    return as_rdms(
        np.array(rdms),
        measure=DISTANCES[distance],
        descriptors=dict(descriptors or {}),
        rdm={"name": [str(name) for name in regions], "n_features": counts},
        pattern={name: plain_values(rows[name]) for name in rows.columns},
    )


def _check(regions: Any, distance: Any, repeat: str | None) -> None:
    if distance not in DISTANCES:
        raise InvalidInput(
            f"distance is {shown(distance)}{closest(str(distance), DISTANCES)}; expected one of {listed(DISTANCES)}."
        )
    if (distance == "crossvalidated") != (repeat is not None):
        raise InvalidInput(
            "distance 'crossvalidated' needs repeat, the column of the independent repeats of every condition; the "
            "other distances do not use it."
        )
    if not isinstance(regions, Mapping) or not regions:
        raise InvalidInput("regions must map at least one name to columns, such as {'layer': slice(None)}.")


@dataclass(frozen=True)
class _Region:
    """The patterns of a region: weights (n × trials, one per repeat) times columns of the activations."""

    name: str
    array: Any
    columns: np.ndarray
    weights: tuple[sparse.csr_array | None, ...]

    @property
    def is_sparse(self) -> bool:
        if not sparse.issparse(self.array):
            return False
        stored = np.diff(self.array.indptr)[self.columns].sum()
        return bool(stored <= _SPARSE * self.columns.size * self.array.shape[0])

    def raw(self, size: int) -> Iterator[Any]:
        """Blocks of trials × features: dense, or sparse if few are not zero."""
        keep = self.is_sparse
        for start in range(0, self.columns.size, size):
            columns = self.columns[start : start + size]
            run = columns.size == columns[-1] - columns[0] + 1 and bool((np.diff(columns) == 1).all())
            block = self.array[:, slice(columns[0], columns[-1] + 1) if run else columns]
            yield block if keep else dense(block)

    def patterns(self, size: int = BLOCK) -> Iterator[list[Any]]:
        """Blocks of the patterns of each repeat."""
        for block in self.raw(size):
            yield [block if weights is None else weights @ block for weights in self.weights]


def _distances(region: _Region, distance: Distance, labels: list[str]) -> np.ndarray:
    """Upper triangle of the RDM of a region."""
    if distance == "crossvalidated":
        return _crossvalidated(region)
    shift = None
    if distance == "correlation":
        shift, constant = _row_means(region)
    gram = _finite(_gram(region, shift, centre=distance == "squared"), region)
    if distance == "squared":
        return _from_gram(gram, region, None, None) / region.columns.size
    size = np.sqrt(np.diag(gram))
    undefined = constant if distance == "correlation" else size == 0
    scale = np.where(undefined, np.nan, size)
    if undefined.any():
        what = "is constant over features" if distance == "correlation" else "is zero in all features"
        logger.warning(
            "region %s: the pattern of %d of %d conditions %s, so their distances are not defined (NaN): %s",
            shown(region.name),
            undefined.sum(),
            undefined.size,
            what,
            listed([labels[row] for row in np.flatnonzero(undefined)]),
        )
    return _from_gram(gram / np.outer(scale, scale), region, shift, scale) / 2


def _gram(region: _Region, shift: np.ndarray | None, centre: bool) -> np.ndarray:
    """Gram matrix of the patterns less `shift`, a number for every row, with centred features if told."""
    if region.is_sparse:
        gram = sum((block @ block.T).toarray() for (block,) in region.patterns(BLOCK * 16))
        if shift is None:
            return gram
        moved = gram - region.columns.size * np.outer(shift, shift)
        if (np.diag(moved) > _CLOSE * np.diag(gram))[np.diag(gram) > 0].all():
            return moved  # else the subtraction has cost too many digits
    gram = 0.0
    for (block,) in region.patterns():
        block = _densely(block)
        block = block if shift is None else block - shift[:, None]
        block = block - block.mean(axis=0) if centre else block
        gram = gram + block @ block.T
    return gram


def _from_gram(gram: np.ndarray, region: _Region, shift: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    """Squared distances of all pairs; those of close pairs from their differences."""
    first, second = np.triu_indices(len(gram), 1)
    own = np.diag(gram)
    total = own[first] + own[second]
    out = total - 2 * gram[first, second]
    close = np.flatnonzero(out < _CLOSE * total)
    if close.size:
        out[close] = 0.0
        for (block,) in region.patterns():
            block = _densely(block)
            block = block if shift is None else block - shift[:, None]
            block = block if scale is None else block / scale[:, None]
            for start in range(0, close.size, _PAIRS):
                pairs = close[start : start + _PAIRS]
                out[pairs] += ((block[first[pairs]] - block[second[pairs]]) ** 2).sum(axis=1)
    return out


def _crossvalidated(region: _Region) -> np.ndarray:
    gram, n_repeats = 0.0, len(region.weights)
    for blocks in region.patterns():
        blocks = [_densely(block) for block in blocks]
        blocks = [block - block.mean(axis=0) for block in blocks]
        total = sum(blocks)
        gram = gram + total @ total.T - sum(block @ block.T for block in blocks)
    first, second = np.triu_indices(len(_finite(gram, region)), 1)
    own = np.diag(gram)
    scale = n_repeats * (n_repeats - 1) * region.columns.size
    return (own[first] + own[second] - 2 * gram[first, second]) / scale


def _row_means(region: _Region) -> tuple[np.ndarray, np.ndarray]:
    """Mean over features of every pattern, and whether it is constant."""
    total, lowest, highest = 0.0, np.inf, -np.inf
    for (block,) in region.patterns():
        block = _densely(block)
        total = total + block.sum(axis=1)
        lowest, highest = np.minimum(lowest, block.min(axis=1)), np.maximum(highest, block.max(axis=1))
    # Averages of equal trials may differ by rounding.
    constant = highest - lowest <= 1e-13 * np.maximum(np.abs(lowest), np.abs(highest))
    return total / region.columns.size, constant


def _finite(gram: np.ndarray, region: _Region) -> np.ndarray:
    """Return the Gram matrix, or refuse the region; the data are searched only then."""
    if np.isfinite(gram).all():
        return gram
    bad = sum(int((~np.isfinite(_densely(block))).any(axis=0).sum()) for block in region.raw(BLOCK))
    found = f"{bad} of {region.columns.size} features hold numbers that are not finite; leave these features out"
    raise DataMismatch(
        f"region {shown(region.name)}: {found if bad else 'its numbers are too large to be squared; divide them'}."
    )


def _densely(block: Any) -> np.ndarray:
    return block.toarray() if sparse.issparse(block) else block


def _trials(obs: Any, condition: str | None) -> tuple[pd.DataFrame, str | None]:
    """The trial table; labels become its column ``condition``."""
    import pandas as pd

    if isinstance(obs, pd.DataFrame):
        if condition is not None and condition not in obs.columns:
            raise InvalidInput(f"obs has no column {shown(condition)}{closest(condition, obs.columns)}.")
        return obs.reset_index(drop=True), condition
    if isinstance(obs, str) or not hasattr(obs, "__len__"):
        raise InvalidInput("obs must be a DataFrame with one row per trial, or one label per trial.")
    if condition is not None:
        raise InvalidInput("condition names a column, so obs must be a DataFrame; these are labels.")
    return pd.DataFrame({"condition": list(obs)}), "condition"


def _conditions(frame: pd.DataFrame, condition: str | None) -> tuple[np.ndarray, pd.DataFrame]:
    """Number of every trial's condition, and the columns that are facts about conditions."""
    import pandas as pd

    if condition is None:
        return np.arange(len(frame)), frame
    labels = frame[condition]
    if labels.isna().any():
        raise InvalidInput(
            f"column {shown(condition)}: {int(labels.isna().sum())} of {len(labels)} trials have no condition."
        )
    kinds = {type(label) for label in labels.tolist()}
    codes, _ = pd.factorize(labels if len(kinds) == 1 else labels.astype(str), sort=True)
    _, first = np.unique(codes, return_index=True)
    kept = [condition]
    for name in frame.columns:
        if name != condition:
            values = np.empty(len(frame), object)
            values[:] = [repr(value) for value in plain_values(frame[name])]
            if (values == values[first][codes]).all():
                kept.append(name)
    return codes, frame.iloc[first][kept].reset_index(drop=True)


def _averages(codes: np.ndarray) -> sparse.csr_array | None:
    """Averages of the trials of each condition; None if there is one of each, in order."""
    counts = np.bincount(codes)
    if (counts == 1).all() and (np.diff(codes) == 1).all():
        return None
    trials = np.arange(codes.size)
    return sparse.csr_array((1 / counts[codes], (codes, trials)), shape=(counts.size, codes.size))


def _repeats(frame: pd.DataFrame, codes: np.ndarray, repeat: str) -> list[sparse.csr_array]:
    """The averages of every repeat."""
    import pandas as pd

    if repeat not in frame.columns:
        raise InvalidInput(f"obs has no column {shown(repeat)}{closest(repeat, frame.columns)}.")
    if frame[repeat].isna().any():
        raise InvalidInput(f"column {shown(repeat)}: {int(frame[repeat].isna().sum())} trials have no repeat.")
    repeat_codes, names = pd.factorize(frame[repeat].astype(str), sort=True)
    if len(names) < 2:
        raise InvalidInput(f"column {shown(repeat)}: a crossvalidated distance needs at least 2 repeats, found 1.")
    n, weights = codes.max() + 1, []
    for number, name in enumerate(names):
        trials = np.flatnonzero(repeat_codes == number)
        counts = np.bincount(codes[trials], minlength=n)
        if not counts.all():
            raise InvalidInput(
                f"column {shown(repeat)}: the repeat {shown(name)} lacks {int((counts == 0).sum())} of {n} conditions; "
                "every repeat needs all of them."
            )
        shape = (n, codes.size)
        weights.append(sparse.csr_array((1 / counts[codes[trials]], (codes[trials], trials)), shape=shape))
    return weights


def _columns(columns: Any, n_features: int, name: str) -> np.ndarray:
    """Column numbers of a region, sorted."""
    if isinstance(columns, slice):
        found = np.arange(n_features)[columns]
    else:
        found = np.asarray(columns)
        if found.dtype == bool and found.shape == (n_features,):
            found = np.flatnonzero(found)
    if found.size == 0:
        raise InvalidInput(f"region {shown(name)}: it has no features.")
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise InvalidInput(
            f"region {shown(name)}: its columns must be a slice, column numbers or a mask of length {n_features}."
        )
    found = np.sort(found.astype(np.intp))
    if found[0] < 0 or found[-1] >= n_features:
        raise InvalidInput(f"region {shown(name)}: a column lies outside 0 … {n_features - 1}.")
    if (np.diff(found) == 0).any():
        raise InvalidInput(f"region {shown(name)}: a column is given more than once.")
    return found
