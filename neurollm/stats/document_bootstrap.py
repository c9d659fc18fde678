"""Studentised bootstrap over documents, for ratios of sums.

The document is the unit: its tokens are not independent. Every figure is a function of sums over documents,
θ = ΣN_d / ΣD_d or a signed sum of such ratios, with the linearised standard error

    se² = n/(n − 1) Σ l_d²,    l_d = (N_d − θ D_d) / ΣD_d.

Documents are drawn with replacement; each draw gives t* = (θ* − θ)/se*. The interval is θ ± q se, q the .95
quantile of |t*|, and p the share of |t*| ≥ |θ − θ₀|/se (Davison & Hinkley 1997, Bootstrap methods and their
application, ch. 5). With ``log`` the same of log θ.

The sd of the log of the documents' lengths decides how well this holds. `benchmarks/document_bootstrap.py` (2,000
lognormal data sets per line, sd of log values .6 and 1, independent of the length; 399 draws) finds, for a nominal
95 %: intervals of a ratio of two correlated means, as it is, with ``log``, and percentile intervals; rejections at
.05 of two equal ratios, with ``log``; intervals of a mean per token:

    documents  sd length   ratio         log           percentile    rejected      mean
    10         0 to .5     .929 – .944   .944 – .951   .876 – .880   .046 – .050   .883 – .935
    10         1           .913 – .932   .933 – .936   .860 – .871   .063 – .067   .862 – .917
    10         1.5         .890 – .904   .913 – .917   .848 – .863   .082 – .084   .840 – .889
    20         0 to .5     .933 – .945   .942 – .950   .899 – .908   .049 – .059   .886 – .933
    20         1           .928 – .946   .947 – .953   .897 – .907   .046 – .057   .875 – .919
    20         1.5         .907 – .925   .923 – .931   .881 – .881   .071 – .081   .855 – .895
    40         0 to .5     .944 – .951   .945 – .953   .908 – .930   .045 – .055   .902 – .940
    40         1           .944 – .949   .947 – .954   .904 – .909   .052 – .054   .889 – .923
    40         1.5         .926 – .936   .939 – .945   .901 – .903   .057 – .073   .865 – .906

So with few documents of very unequal length, cut them to similar lengths or take more. The interval of a mean by
itself is too narrow where few documents dominate it; with ``log`` it holds 91 to 95 % for lengths of sd 0 to .5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.validation import shown

METHOD = "studentised bootstrap over documents"
FEWEST_DRAWS = 19  # of fewer, none is beyond the 5 % that an interval leaves out
WEIGHT_VALUES = 2**22  # of bootstrap weights in one block
NEGLIGIBLE = 1e-12  # relative size that cannot be told from rounding


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and the two-sided p of its null value; NaN where there is none.

    `se` is its linearised standard error, with ``log`` that of its logarithm.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    se: float = float("nan")


class DocumentBootstrap:
    """Studentised bootstrap of ratios of sums over documents; the equations are in the module's introduction.

    Parameters
    ----------
    n_documents : int
    n_boot : int
        At least 19; with 0 there are estimates and no intervals.
    random_state : int, default=0

    Raises
    ------
    InvalidInput
        If `n_boot` is something else.

    Examples
    --------
    >>> kl, n = np.arange(1.0, 13.0), np.full(12, 5.0)
    >>> found = DocumentBootstrap(12, 500).estimate([kl], [n])
    >>> found.value, found.low < 1.3 < found.high
    (1.3, True)
    """

    def __init__(self, n_documents: int, n_boot: int, random_state: int = 0) -> None:
        check_draws(n_boot)
        self.n_documents, self.n_boot, self.random_state = n_documents, n_boot, random_state

    def _weights(self) -> Iterator[np.ndarray]:
        """How often each document occurs in each draw, (draws of a block, D)."""
        size = max(1, WEIGHT_VALUES // self.n_documents)
        for block, start in enumerate(range(0, self.n_boot, size)):
            rng = stream(self.random_state, "documents", block)
            count = min(size, self.n_boot - start)
            yield rng.multinomial(self.n_documents, np.full(self.n_documents, 1 / self.n_documents), count)

    def estimate(
        self, numerators: Iterable[Any], denominators: Iterable[Any], *, signs: Sequence[int] = (1,), log: bool = False
    ) -> Estimate:
        """Σᵢ signᵢ ΣNᵢ / ΣDᵢ with interval and p.

        Parameters
        ----------
        numerators, denominators : sequences of r arrays, shape (D,)
        signs : sequence of r int
        log : bool, default=False
            Work with the logarithms of the ratios: the null value is 1, otherwise 0.

        Returns
        -------
        Estimate
            Without interval and p where the ratio (with ``log``, its logarithm) is not defined or cannot vary.
        """
        sums = np.stack([*numerators, *denominators]).astype(float)
        signs = np.asarray(signs, float)
        theta, se = (one[0] for one in _linearised(sums, np.ones((1, self.n_documents)), signs, log))
        back = np.exp if log else float
        if not np.isfinite(theta):
            return Estimate(float(back(theta)))
        if not self.n_boot or not se > 0:
            return Estimate(float(back(theta)), se=float(se))
        t = []
        for weights in self._weights():
            drawn, error = _linearised(sums, weights, signs, log)
            with np.errstate(invalid="ignore", divide="ignore"):
                t.append(np.abs(drawn - theta) / error)
        t = np.concatenate(t)
        t[np.isnan(t)] = np.inf  # a draw without an estimate counts as far off
        t = np.sort(t)[::-1]
        half = t[(self.n_boot + 1) // 20 - 1] * se
        p = (1 + int(np.sum(t >= abs(theta) / se))) / (self.n_boot + 1)
        return Estimate(*(float(back(one)) for one in (theta, theta - half, theta + half)), p, float(se))

    def named(self, name: str, numerator: Any, denominator: Any, log: bool = False) -> dict[str, float]:
        """Estimate and interval of ΣN / ΣD as columns of a table."""
        found = self.estimate([numerator], [denominator], log=log)
        return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def check_draws(n_boot: Any, where: str = "", fewest: int = FEWEST_DRAWS) -> None:
    """Refuse what is neither 0 nor a whole number of at least `fewest`."""
    whole = isinstance(n_boot, int | np.integer) and not isinstance(n_boot, bool)
    if not whole or (n_boot != 0 and n_boot < fewest):
        raise InvalidInput(
            f"{where}n_boot must be a whole number of at least {fewest}, or 0 for no intervals, found {shown(n_boot)}"
        )


def _linearised(sums: np.ndarray, weights: np.ndarray, signs: np.ndarray, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Estimate and standard error, shapes (B,), under weights (B, D) of the documents' sums (2r, D)."""
    r, n = len(signs), weights.shape[1]
    totals = weights @ sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = totals[:, :r] / totals[:, r:]
        theta = (np.log(ratio) if log else ratio) @ signs
        # dθ/dN and dθ/dD; their products with a document's sums are its l.
        slope = signs / totals[:, r:] / (ratio if log else 1.0)
        slopes = np.hstack([slope, -slope * ratio])
        variance = (weights * np.square(slopes @ sums)).sum(1)
        size = (weights * np.square(np.abs(slopes) @ np.abs(sums))).sum(1)
    variance[variance <= NEGLIGIBLE**2 * size] = 0.0
    return theta, np.sqrt(variance * n / max(n - 1, 1))
