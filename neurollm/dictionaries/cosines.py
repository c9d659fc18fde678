"""Cosines between the directions of features, and what independent directions would give.

For directions independent and uniform on the sphere in d dimensions, (1 + cos) / 2 follows
Beta((d − 1)/2, (d − 1)/2), so that

    E|cos| = Γ(d/2) / (√π Γ((d + 1)/2)) ≈ sqrt(2 / (π d))        95th percentile ≈ 1.645 / √d

and the cosines of one direction with n others are independent of each other:

    E max = 1 − ∫ P(cos ≤ t)ⁿ dt over [−1, 1] < sqrt(2 ln n / d), the asymptote

With n = F − 1 the latter is the exact expectation of the mean largest cosine of a random dictionary. The asymptote
is far too large in few dimensions: by 14 % at F = 4,096, d = 256, by 29 % at F = 200, d = 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.controls import RawUnits
from neurollm.dictionaries.sae import SAE
from neurollm.errors import InvalidInput

BLOCK = 2048  # features on either side of a block of cosines: 16 MB
BINS = 20_000  # of the histogram over [−1, 1]
EXACT = 4096  # percentiles of so many features are those of the values themselves


@dataclass(frozen=True, eq=False)
class DecoderCosines:
    """Cosines of every two different decoder directions of a dictionary.

    Attributes
    ----------
    n_features, d : int
        Features whose direction is not zero.
    largest : ndarray of float32, shape (n_features,)
        Largest cosine of each feature with another.
    mean, mean_abs, p95, maximum : float
        Over all pairs. Above 4,096 features p95 is read from a histogram: its error is below 0.0001.
    counts : ndarray of int64, shape (20000,)
        Histogram of all pairs over [−1, 1].
    """

    n_features: int
    d: int
    largest: np.ndarray
    mean: float
    mean_abs: float
    p95: float
    maximum: float
    counts: np.ndarray

    @property
    def mean_largest(self) -> float:
        """Mean over features of the largest cosine with another (MMCS within the dictionary)."""
        return float(self.largest.mean(dtype=np.float64))

    @property
    def random(self) -> dict[str, float]:
        """The same figures expected of as many independent directions; ``maximum`` as if pairs were independent."""
        n_pairs = self.n_features * (self.n_features - 1) // 2
        return {
            "mean_largest": expected_largest(self.n_features - 1, self.d),
            "mean": 0.0,
            "mean_abs": expected_abs(self.d),
            "p95": random_quantile(0.95, self.d),
            "maximum": expected_largest(n_pairs, self.d),
        }

    def to_dict(self) -> dict[str, Any]:
        """Figures and their random references, as plain data."""
        names = ("mean_largest", "mean", "mean_abs", "p95", "maximum")
        return {name: getattr(self, name) for name in names} | {f"random_{k}": v for k, v in self.random.items()}


def decoder_cosines(dictionary: Dictionary) -> DecoderCosines | None:
    """Cosines within a dictionary, in blocks: F × F values are never held at once above 4,096 features.

    Parameters
    ----------
    dictionary : Dictionary

    Returns
    -------
    DecoderCosines or None
        None of raw units, and where fewer than two features have a direction.

    Examples
    --------
    >>> from neurollm.dictionaries import RandomDirections
    >>> from neurollm.models import Site
    >>> cosines = decoder_cosines(RandomDirections(Site(3), 64, 500))
    >>> abs(cosines.mean_largest / cosines.random["mean_largest"] - 1) < 0.02
    True
    """
    if dictionary.directions is None or isinstance(dictionary, RawUnits):
        return None
    return direction_cosines(unit_directions(dictionary))


def direction_cosines(unit: torch.Tensor) -> DecoderCosines | None:
    """The same of directions of length 1, float32, shape (n, d); those that are zero are left out.

    Examples
    --------
    >>> direction_cosines(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).mean_abs
    0.3333333333333333
    """
    used = unit.any(1)
    unit = unit if used.all() else unit[used]
    n, d = unit.shape
    if n < 2:
        return None
    largest = torch.full((n,), -1.0, device=unit.device)
    counts = torch.zeros(BINS, dtype=torch.float64, device=unit.device)
    total_abs, values = 0.0, []
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            block = (unit[i : i + BLOCK] @ unit[j : j + BLOCK].T).clamp_(-1, 1)
            pairs = block[torch.ones_like(block, dtype=torch.bool).triu_(1)] if i == j else block.flatten()
            if i == j:
                block.fill_diagonal_(-1)
            for start, axis in ((i, 1), (j, 0)):
                place = slice(start, start + block.shape[1 - axis])
                largest[place] = torch.maximum(largest[place], block.amax(axis))
            total_abs += float(pairs.abs().sum(dtype=torch.float64))
            counts += torch.histc(pairs, BINS, -1, 1).double()
            if n <= EXACT:
                values.append(pairs.cpu().numpy())
    histogram = np.rint(counts.cpu().numpy()).astype(np.int64)
    n_pairs = n * (n - 1) / 2
    total = unit.sum(0, dtype=torch.float64)
    return DecoderCosines(
        n_features=n,
        d=d,
        largest=largest.cpu().numpy(),
        mean=float((total @ total - n) / (2 * n_pairs)),
        mean_abs=total_abs / n_pairs,
        p95=float(np.quantile(np.concatenate(values), 0.95)) if values else _binned_quantile(histogram, 0.95),
        maximum=float(largest.max()),
        counts=histogram,
    )


def unit_directions(dictionary: Dictionary, encoder: bool = False) -> torch.Tensor:
    """Directions of length 1 in the space of raw activations, float32, (n_features, d); zero ones stay zero.

    Parameters
    ----------
    dictionary : Dictionary
    encoder : bool, default=False
        Of the encoder instead of the decoder.

    Raises
    ------
    InvalidInput
        If it has none.
    """
    folded = dictionary.fold() if isinstance(dictionary, SAE) else dictionary
    rows = folded.directions
    if encoder:
        weights = folded.weights if isinstance(folded, SAE) else {}
        rows = weights["W_enc"].T if "W_enc" in weights else None
    if rows is None:
        raise InvalidInput(f"{dictionary} has no {'encoder' if encoder else 'decoder'} directions")
    return torch.nn.functional.normalize(rows.float(), dim=1)


def expected_abs(d: int) -> float:
    """E|cos| of two independent directions in d dimensions.

    Examples
    --------
    >>> round(expected_abs(640) / (2 / (np.pi * 640)) ** 0.5, 3)
    1.0
    """
    from scipy.special import gammaln

    return float(np.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def expected_largest(n: int, d: int) -> float:
    """Expected largest of the cosines of a direction with `n` independent ones in d dimensions."""
    from scipy.special import betainc

    t = np.linspace(-1, 1, 40_001)
    return float(1 - np.trapezoid(betainc((d - 1) / 2, (d - 1) / 2, (1 + t) / 2) ** n, t))


def random_quantile(q: float, d: int) -> float:
    """Quantile of the cosine of two independent directions in d dimensions."""
    from scipy.special import betaincinv

    return float(2 * betaincinv((d - 1) / 2, (d - 1) / 2, q) - 1)


def _binned_quantile(counts: np.ndarray, q: float) -> float:
    """The middle of the bin in which the quantile falls."""
    place = int(np.searchsorted(np.cumsum(counts), q * counts.sum()))
    return -1 + (place + 0.5) * 2 / BINS
