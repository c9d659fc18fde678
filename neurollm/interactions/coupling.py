"""Do features with long decoder directions have short embeddings, and what must be so by arithmetic.

With a = ‖decoder row‖, b = ‖W row‖ (0 without a refit) and c = ‖v‖ of a feature and T = a + b + c, the shares
a/T, b/T, c/T and (b + c)/T correlate strongly with a² although nothing was learned: a is in every denominator.
If b and c hardly vary, a/T rises and the others fall with a, whatever a is. Such correlations say nothing beyond
what they exceed

* the same with b and c as at random initialisation,
* the same with b and c exchanged among features (b and c of a feature stay together).

p is the share of all B + 1 correlations that lie as far from their mean as the trained one (`rank_p`): one of the
other sign differs as much as a larger one. Correlations of a² with b and with c themselves are not coupled; both are
in the table. Features that fire often have long vectors of every kind, therefore each correlation is also
given with log density held constant. For a comparison on data see `neurollm.interactions.contributions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neurollm.random import stream
from neurollm.stats.modes import varies

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 8  # features of a correlation
SAME = 1e-6  # relative difference that is rounding in float32


def norm_coupling(
    decoder: np.ndarray,
    refit: np.ndarray | None,
    embedding: np.ndarray,
    initial: Sequence[tuple[np.ndarray | None, np.ndarray]],
    *,
    density: np.ndarray | None = None,
    random_state: int = 0,
) -> pd.DataFrame:
    """Correlations of squared decoder norms with other norms and with shares of norms, beside two nulls.

    Parameters
    ----------
    decoder, embedding : ndarray, shape (F,)
        Norms a and c.
    refit : ndarray, shape (F,), or None
        Norms b.
    initial : sequence of (refit, embedding)
        Norms b and c of models that have learned nothing.
    density : ndarray, shape (F,), optional
        Share of tokens on which each feature is active. Features with density 0 are left out.
    random_state : int, default=0

    Returns
    -------
    DataFrame
        One row per quantity and method (pearson, spearman): ``coupled`` (a is part of the quantity), ``n`` features,
        ``r`` with ``ci_low`` and ``ci_high`` (95 %, features taken as independent), for both nulls ``…_mean``,
        ``…_min``, ``…_max``, ``p_…``, ``excess`` = r − mean of the initial models; the same as ``partial_r``,
        ``partial_init_mean``, ``p_partial_init`` with density; ``n_null``. NaN where a norm does not vary.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> a, c = draw.uniform(0.2, 0.6, 500), draw.normal(0.9, 0.03, 500)
    >>> table = norm_coupling(a, None, c, [(None, draw.normal(0.9, 0.03, 500)) for _ in range(19)])
    >>> row = table[(table["quantity"] == "c / T") & (table["method"] == "pearson")].iloc[0]
    >>> bool(row["r"] < -0.95), bool(row["init_mean"] < -0.95), bool(row["p_init"] > 0.05)
    (True, True, True)
    """
    import pandas as pd

    used = decoder > 0
    if density is not None:
        used &= density > 0
    decoder, embedding = decoder[used], embedding[used]
    refit = None if refit is None else refit[used]
    initial = [(None if b is None else b[used], c[used]) for b, c in initial]
    orders = [stream(random_state, "coupling.shuffle", draw).permutation(len(decoder)) for draw in range(len(initial))]
    shuffled = [(None if refit is None else refit[order], embedding[order]) for order in orders]
    held = None if density is None else np.log(density[used])
    rows = []
    observed = _quantities(decoder, refit, embedding)
    nulls = {
        name: [_quantities(decoder, b, c) for b, c in models]
        for name, models in (("init", initial), ("shuffled", shuffled))
    }
    for name, (values, coupled) in observed.items():
        null = {which: [model[name][0] for model in models] for which, models in nulls.items()}
        for method in ("pearson", "spearman"):
            row = _row(decoder**2, values, null, method, held)
            rows.append({"quantity": name, "method": method, "coupled": coupled} | row)
    return pd.DataFrame(rows).assign(n_null=len(initial))


def _quantities(a: np.ndarray, b: np.ndarray | None, c: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
    """What a² is correlated with, and whether a is part of it."""
    total = a + c + (0 if b is None else b)
    refit = {} if b is None else {"b": (b, False), "b / T": (b / total, True), "(b + c) / T": (1 - a / total, True)}
    return {"c": (c, False), "a / T": (a / total, True), "c / T": (c / total, True)} | refit


def _row(
    squares: np.ndarray, values: np.ndarray, null: dict[str, list[np.ndarray]], method: str, held: np.ndarray | None
) -> dict[str, float]:
    correlate = _Correlation(squares, method, None)
    r = correlate(values)
    row: dict[str, float] = {"n": len(values), "r": r} | dict(
        zip(("ci_low", "ci_high"), _interval(r, len(values), method), strict=True)
    )
    for which, draws in null.items():
        found = np.array([correlate(draw) for draw in draws])
        row |= {f"{which}_mean": found.mean(), f"{which}_min": found.min(), f"{which}_max": found.max()}
        row[f"p_{which}"] = _p(r, found)
    row["excess"] = r - row["init_mean"]
    if held is not None:
        partial = _Correlation(squares, method, held)
        row["partial_r"] = partial(values)
        found = np.array([partial(draw) for draw in null["init"]])
        row |= {"partial_init_mean": found.mean(), "p_partial_init": _p(row["partial_r"], found)}
    return row


class _Correlation:
    """Pearson or rank correlation with fixed values, optionally with others held constant."""

    def __init__(self, x: np.ndarray, method: str, held: np.ndarray | None) -> None:
        self.method = method
        self.defined = len(x) >= FEWEST and varies(x)
        columns = [np.ones(len(x))] + ([] if held is None else [self._scale(held)])
        self.basis = np.linalg.qr(np.column_stack(columns))[0]
        self.x = self._residual(x) if self.defined else x

    def _scale(self, values: np.ndarray) -> np.ndarray:
        from scipy.stats import rankdata

        return rankdata(values) if self.method == "spearman" else values

    def _residual(self, values: np.ndarray) -> np.ndarray:
        values = self._scale(values)
        values = values - values.mean()
        return values - self.basis @ (self.basis.T @ values)

    def __call__(self, y: np.ndarray) -> float:
        if not self.defined or not varies(y):
            return float("nan")
        y = self._residual(y)
        size = np.linalg.norm(self.x) * np.linalg.norm(y)
        return float(self.x @ y / size) if size > 0 else float("nan")


def _p(r: float, null: np.ndarray) -> float:
    """Two-sided p of a correlation; NaN where it or the null is undefined."""
    return rank_p(r, null) if np.isfinite(r) and np.isfinite(null).all() else float("nan")


def rank_p(value: float, null: np.ndarray, sign: int = 0) -> float:
    """p of a number beside those of B random models: its rank among all B + 1 by distance from their mean.

    With `sign` 1 or −1 its rank from the largest or the smallest.

    Examples
    --------
    >>> rank_p(0.9, np.array([-0.97, -0.98, -0.99])), rank_p(-0.98, np.array([-0.97, -0.98, -0.99]))
    (0.25, 1.0)
    """
    everything = np.r_[value, null]
    distance = sign * everything if sign else np.abs(everything - everything.mean())
    reached = np.count_nonzero(distance[1:] >= distance[0] - SAME * np.abs(everything).max())
    return float((reached + 1) / (len(null) + 1))


def _interval(r: float, n: int, method: str) -> tuple[float, float]:
    """95 % interval by Fisher's z; that of a rank correlation with variance 1.06 / (n − 3)."""
    if not np.isfinite(r) or abs(r) >= 1:
        return float("nan"), float("nan")
    half = 1.959964 * np.sqrt((1.06 if method == "spearman" else 1.0) / (n - 3))
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))
