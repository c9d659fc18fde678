"""Studentised bootstrap over documents, for ratios of sums.

The document is the unit: its tokens are not independent. Every figure is a function of sums over documents,
θ = ΣN_d / ΣD_d or a signed sum of such ratios, with the linearised standard error

    se² = n/(n − 1) Σ l_d²,    l_d = (N_d − θ D_d) / ΣD_d.

Documents are drawn with replacement; each draw gives t* = (θ* − θ)/se*. The interval is θ ± q se, q the .95
quantile of |t*|, and p the share of |t*| ≥ |θ − θ₀|/se (Davison & Hinkley 1997, Bootstrap methods and their
application, ch. 5). With ``log`` the same of log θ.

In simulations (600 each; lognormal documents, of equal and of very unequal length; sd of log values .6 to 1) the
interval of a ratio of two correlated means held the truth in 95 to 96 % with 10 documents, 93 to 94 % with 20 and 96
to 98 % with 40, the percentile interval in 88 to 90, 89 to 90 and 92 to 94 %. The test of two equal ratios, with
``log``, rejected in 4 to 7, 6 and 3 to 4 %, signs flipped by document in 8 to 18, 7 to 18 and 6 to 13 %; without
``log`` it finds fewer of the ratios that differ. The interval of a mean by itself is too narrow where few documents
dominate it: 88 to 93, 90 to 94 and 91 to 93 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.random import stream

METHOD = "studentised bootstrap over documents"
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
        With 0 there are estimates and no intervals.
    random_state : int, default=0

    Examples
    --------
    >>> kl, n = np.arange(1.0, 13.0), np.full(12, 5.0)
    >>> found = DocumentBootstrap(12, 500).estimate([kl], [n])
    >>> found.value, found.low < 1.3 < found.high
    (1.3, True)
    """

    def __init__(self, n_documents: int, n_boot: int, random_state: int = 0) -> None:
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
        """
        sums = np.stack([*numerators, *denominators]).astype(float)
        signs = np.asarray(signs, float)
        theta, se = (one[0] for one in _linearised(sums, np.ones((1, self.n_documents)), signs, log))
        back = np.exp if log else float
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
        half = t[int(0.05 * (self.n_boot + 1)) - 1] * se
        p = (1 + int(np.sum(t >= abs(theta) / se))) / (self.n_boot + 1)
        return Estimate(*(float(back(one)) for one in (theta, theta - half, theta + half)), p, float(se))

    def named(self, name: str, numerator: Any, denominator: Any, log: bool = False) -> dict[str, float]:
        """Estimate and interval of ΣN / ΣD as columns of a table."""
        found = self.estimate([numerator], [denominator], log=log)
        return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


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
