"""How activations fill their space.

* mean cosine of two different tokens, exact from one sum: (‖Σ uᵢ‖² − n) / (n (n − 1)),
  uᵢ = xᵢ / ‖xᵢ‖; 0 when directions are balanced, near 1 when all tokens point the same way;
* participation ratio (Σ λ)² / Σ λ² of the eigenvalues λ of the covariance: the number of
  dimensions, if all had the same variance (Σ λ = trace, Σ λ² = ‖C‖²_F: no eigenvalue is needed);
* massive dimensions: those whose mean |x|, or whose standard deviation, lies more than `z`
  robust deviations (1.4826 MAD) above the median of all dimensions on the logarithmic scale *and*
  above `ratio` times the median.

The mean cosine is repeated after removing the mean, after whitening, and without the massive
dimensions. Whitening and mean are those of the same rows. Sun et al. (2024),
https://arxiv.org/abs/2402.17762; Ethayarajh (2019), https://arxiv.org/abs/1909.00512.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.dictionaries.rows import Rows, count_rows, row_batches
from neurollm.errors import InvalidInput
from neurollm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Z, RATIO = 6.0, 3.0
NEGLIGIBLE = 1e-10  # of the largest eigenvalue: such directions have no variance and are not whitened


@dataclass(frozen=True, eq=False)
class Anisotropy:
    """How unevenly the activations of one site fill their space.

    Attributes
    ----------
    n_tokens, d : int
    mean_cosine : float
        Of two different tokens.
    mean_cosine_centred, mean_cosine_whitened, mean_cosine_without_massive : float
        After removing the mean, after whitening (which removes it as well), without massive dimensions.
    participation_ratio : float
        1 to `d`.
    rank : int
        Directions with variance.
    mean, sd, mean_abs : ndarray, shape (d,)
        Of each dimension.
    eigenvalues : ndarray, shape (d,)
        Of the covariance, largest first.
    massive : ndarray of int
        Massive dimensions, the one with the largest mean |x| first.
    rule : str
        What was called massive.
    """

    n_tokens: int
    d: int
    mean_cosine: float
    mean_cosine_centred: float
    mean_cosine_whitened: float
    mean_cosine_without_massive: float
    participation_ratio: float
    rank: int
    mean: np.ndarray
    sd: np.ndarray
    mean_abs: np.ndarray
    eigenvalues: np.ndarray
    massive: np.ndarray
    rule: str

    def top_share(self, n: int) -> float:
        """Share of the variance that the `n` dimensions with the most variance have."""
        return _share(np.sort(self.sd**2)[::-1], n)

    def top_component_share(self, n: int) -> float:
        """Share of the variance along the first `n` principal components."""
        return _share(self.eigenvalues, n)

    def to_frame(self) -> pd.DataFrame:
        """One row per dimension: mean, sd, mean_abs, share of variance, massive."""
        import pandas as pd

        share = self.sd**2 / max(float(np.sum(self.sd**2)), np.finfo(float).tiny)
        columns = {"mean": self.mean, "sd": self.sd, "mean_abs": self.mean_abs, "share": share}
        massive = np.isin(np.arange(self.d), self.massive)
        return pd.DataFrame({"dimension": np.arange(self.d), **columns, "massive": massive})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what is of every dimension."""
        arrays = ("mean", "sd", "mean_abs", "eigenvalues", "massive")
        names = [field.name for field in dataclasses.fields(self) if field.name not in arrays]
        shares = {f"top_{n}_dimensions": self.top_share(n) for n in (1, 3, 10) if n <= self.d}
        shares |= {f"top_{n}_components": self.top_component_share(n) for n in (1, 3, 10) if n <= self.d}
        return {name: getattr(self, name) for name in names} | shares | {"massive": self.massive.tolist()}


def anisotropy_report(
    data: Rows, *, z: float = Z, ratio: float = RATIO, batch_size: int = 4096, verbose: int = 0
) -> Anisotropy:
    """Measure how unevenly activations fill their space; two passes over the rows.

    Parameters
    ----------
    data : ActivationStore, Tensor or ndarray (n, d)
    z, ratio : float, default=6, 3
        Both must be exceeded by a massive dimension, see the module.
    batch_size : int, default=4096
    verbose : int, default=0

    Returns
    -------
    Anisotropy
        Of activations that do not vary the centred and whitened cosines and the participation ratio are NaN.

    Raises
    ------
    InvalidInput
        If there are fewer than two rows, or a value is NaN or infinite.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((500, 20))
    >>> x[:, 4] += 30
    >>> report = anisotropy_report(x)
    >>> report.massive.tolist(), report.mean_cosine > 0.9, abs(report.mean_cosine_centred) < 0.01
    ([4], True, True)
    """
    n = count_rows(data)
    if n < 2:
        raise InvalidInput(f"anisotropy_report: expected at least 2 rows of activations, found {n}")
    with Progress("anisotropy", 2 * n, "tokens", verbose) as progress:
        moments = _moments(data, batch_size, progress)
        covariance = moments["products"] / n
        values, vectors = np.linalg.eigh(covariance)
        used = values > NEGLIGIBLE * max(values.max(), 0)
        sd = np.sqrt(np.maximum(np.diag(covariance), 0))
        massive = _massive(moments["mean_abs"], sd, z, ratio)
        kept = np.setdiff1d(np.arange(len(sd)), massive)
        whiten = vectors[:, used] / np.sqrt(values[used])
        cosines = _mean_cosines(data, batch_size, progress, moments["mean"], whiten, kept)
    squares = float(np.sum(covariance**2))
    return Anisotropy(
        n_tokens=n,
        d=len(sd),
        **cosines,
        participation_ratio=float(np.trace(covariance) ** 2 / squares) if squares else float("nan"),
        rank=int(used.sum()),
        mean=moments["mean"],
        sd=sd,
        mean_abs=moments["mean_abs"],
        eigenvalues=np.maximum(values[::-1], 0),
        massive=massive,
        rule=f"mean |x| or SD above {ratio:g} times the median of the dimensions and {z:g} robust deviations "
        f"of its logarithm above it",
    )


def _moments(data: Rows, batch_size: int, progress: Progress) -> dict[str, Any]:
    """Mean, sum of products of deviations, and mean |x|, merged batch by batch without cancellation."""
    n, mean, products, total_abs, origin = 0, 0.0, 0.0, 0.0, None
    for batch in row_batches(data, batch_size):
        x = batch.cpu().double().numpy()
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
            raise InvalidInput(f"anisotropy_report: row {n + bad} contains NaN or infinite values")
        total_abs = total_abs + np.abs(x).sum(0)
        origin = x[0] if origin is None else origin
        x = x - origin  # exactly 0 if nothing varies
        own = x.mean(0)
        deviations, step = x - own, own - mean
        products = products + deviations.T @ deviations + np.outer(step, step) * (n * len(x) / (n + len(x)))
        mean = mean + step * (len(x) / (n + len(x)))
        n += len(x)
        progress.advance(len(x))
    return {"mean": origin + mean, "products": products, "mean_abs": total_abs / n}


def _mean_cosines(
    data: Rows, batch_size: int, progress: Progress, mean: np.ndarray, whiten: np.ndarray, kept: np.ndarray
) -> dict[str, float]:
    names = ("mean_cosine", "mean_cosine_centred", "mean_cosine_whitened", "mean_cosine_without_massive")
    totals, counts = [0.0] * 4, [0] * 4
    for batch in row_batches(data, batch_size):
        x = batch.cpu().double().numpy()
        centred = x - mean
        for place, rows in enumerate((x, centred, centred @ whiten, x[:, kept])):
            norms = np.linalg.norm(rows, axis=1)
            pointing = norms > 0  # a zero vector has no direction
            totals[place] = totals[place] + (rows[pointing] / norms[pointing, None]).sum(0)
            counts[place] += int(pointing.sum())
        progress.advance(len(x))
    return {name: _pairs_mean(total, n) for name, total, n in zip(names, totals, counts, strict=True)}


def _pairs_mean(total: np.ndarray, n: int) -> float:
    """Mean cosine of two different ones of `n` unit vectors with this sum."""
    return float((np.sum(total**2) - n) / (n * (n - 1))) if n > 1 else float("nan")


def _massive(mean_abs: np.ndarray, sd: np.ndarray, z: float, ratio: float) -> np.ndarray:
    far = np.zeros(len(sd), dtype=bool)
    for size in (mean_abs, sd):
        alive = size > 0
        if not alive.any():
            continue
        logs = np.log(size[alive])
        deviations = logs - np.median(logs)
        spread = 1.4826 * np.median(np.abs(deviations))
        far[alive] |= (deviations > z * spread) & (deviations > np.log(ratio))
    found = np.flatnonzero(far)
    return found[np.argsort(-mean_abs[found], kind="stable")]


def _share(values: np.ndarray, n: int) -> float:
    total = float(values.sum())
    return float(values[:n].sum() / total) if total else float("nan")
