"""RSA of every feature with squared distances (x_i − x_j)², without forming an RDM per feature.

With x centred, S_k = Σ x_i^k, a model D over pairs i < j with weights W (0 for a pair left out), m = Σ W and
L_A = diag(A1) − A:

    Σ W D d       = xᵀ L_{W∘D} x
    Σ W d         = xᵀ L_W x                                  (n S2 with all pairs)
    Σ W d²        = deg·x⁴ − 4 (x³)ᵀWx + 3 (x²)ᵀWx²           (n S4 + 3 S2² with all pairs)

    cosine           r = xᵀL_{W∘D}x / (√Σ W d² · √Σ W D²)
    pearson          r = xᵀL_{W∘(D − D̄)}x / (√(Σ W d² − (Σ W d)²/m) · √Σ W (D − D̄)²)
    whitened         r = xᵀK_D x / (S2 ‖K_D‖),  K_D = −½ HDH
    whitened_pearson r = [xᵀK_D x − S2 tr K_D/(n−1)] / (S2 √((n−2)/(n−1)) √(‖K_D‖² − (tr K_D)²/(n−1)))

"whitened" is the cosine that takes the dependence between distances into account (Diedrichsen et al. 2021,
arXiv:2007.02789), and is linear CKA of the feature with the model. "half_rank" is "pearson" with the model's distances
replaced by their ranks; the feature's are not ranked, so it is not Spearman's correlation.

Partial. With nuisance models N and q_k an orthonormal basis of (1, N) over pairs, D and d are taken without their parts
in it. Under an arrangement π of the model's residual D⊥ it is freed of the nuisance again,

    r_π = (xᵀL_{πD⊥}x − Σ_k c_k xᵀL_{q_k}x) / (‖d⊥‖ √(‖D⊥‖² − Σ_k c_k²)),   c_k = ⟨q_k, πD⊥⟩,

as residuals are shuffled in regression (Freedman & Lane 1983): an approximate test, because distances of one RDM are
not exchangeable residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import by_columns, dense
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.forms import Form, form
from neurollm.stats.rdms.model import PairModel, centred_kernel, pair_model, ranked
from neurollm.stats.threads import n_threads, workers

COMPARISONS = ("pearson", "cosine", "whitened", "whitened_pearson", "half_rank")
_BLOCK = 1 << 18  # values of a block: few enough for the cache of a core, enough that Python does not count
_FLAT = 1e-12  # a sum of squares below this share of its parts is rounding


@dataclass(frozen=True)
class _Powers:
    """Centred features, their squares, and the sums of these: S2 (NaN for constant features) and S4/S2²."""

    x: np.ndarray
    x2: np.ndarray
    s2: np.ndarray
    room: list[np.ndarray]  # for their third and fourth powers

    @property
    def kurtosis(self) -> np.ndarray:
        return np.ones(len(self.x2)) @ np.multiply(self.x2, self.x2, out=self.room[-1]) / self.s2**2


class SquaredScores:
    """Scores of all features against one model, as they are and under rearrangements of the model.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM; NaN leaves a pair out.
    comparison : {"pearson", "cosine", "whitened", "whitened_pearson", "half_rank"}
    nuisance : sequence of ndarray, shape (n, n)
        Model RDMs that are held constant; only with "pearson" and "half_rank", and models over all pairs.

    Raises
    ------
    InvalidInput
        The model is not symmetric, is constant, or leaves out pairs where the comparison needs all.
    """

    def __init__(self, X: Any, D: np.ndarray, comparison: str = "pearson", nuisance: Sequence[np.ndarray] = ()) -> None:
        self._X = by_columns(X)
        self.n_features = X.shape[1]
        self._comparison = comparison
        model = pair_model(D, X.shape[0])
        if comparison == "half_rank":
            model = ranked(model)
        self._whitened = comparison.startswith("whitened")
        self._centred = comparison in ("pearson", "half_rank")
        _check(model, comparison, nuisance)
        self._nuisance = _Nuisance(model, nuisance) if nuisance else None
        self._model = model
        self._prepare()

    def _prepare(self) -> None:
        model = self._model
        n = len(model.values)
        if self._whitened:
            kernel = centred_kernel(model.values)
            self._form = form(-model.values / 2, np.zeros(n), centred=True)
            trace, size2 = np.trace(kernel), np.sum(kernel**2)
            corrected = self._comparison == "whitened_pearson"
            self._shift = trace / (n - 1) if corrected else 0.0
            size2 = (size2 - trace**2 / (n - 1)) * (n - 2) / (n - 1) if corrected else size2
            self._matrix, self._size = kernel, np.sqrt(size2)
            return
        values = model.values
        if self._nuisance is not None:
            values = self._nuisance.residual
        elif self._centred:
            values = np.where(model.pairs, values - model.mean, 0.0)
        degree = values.sum(axis=1)
        if model.is_full:  # without a common distance, which centred features do not see, eigenvectors are fewer
            middle = values[0, 1] - model.values[0, 1] if self._nuisance is None else 0.0
            self._form = form(middle * (1 - np.eye(n)) - values, degree + middle, centred=True)
        else:
            self._form = form(-values, degree, centred=True)
        self._matrix, self._size = np.diag(degree) - values, np.sqrt(np.sum(values**2) / 2)
        if not model.is_full:
            pairs = model.pairs.astype(float)
            self._degree = pairs.sum(axis=1)
            self._pairs: Form = form(pairs, np.zeros(n), centred=False)

    def on(self, X: Any) -> SquaredScores:
        """The same model for other features."""
        other = copy(self)
        other._X, other.n_features = by_columns(X), X.shape[1]
        return other

    def take(self, columns: Any) -> SquaredScores:
        """The same of some features."""
        return self.on(self._X[:, columns])

    def observed(self, n_jobs: int = 1) -> np.ndarray:
        """Scores of all features, shape (V,); NaN for constant and non-finite ones."""
        identity = np.arange(len(self._model.values))[None]
        out = np.empty(self.n_features)

        def part(blocks: list[slice]) -> None:
            space = np.empty((3 if self._model.is_full else 4, len(self._model.values), self._step))
            for columns in blocks:
                out[columns] = self._scores(identity, self._powers(columns, space))[0]

        blocks = self._blocks()
        share = -(-len(blocks) // n_threads(n_jobs)) or 1
        with workers(n_jobs) as run:
            list(run(part, [blocks[start : start + share] for start in range(0, len(blocks), share)]))
        return out

    def __call__(self, index: np.ndarray, columns: slice) -> np.ndarray:
        """Scores under arrangements of the model's rows.

        Parameters
        ----------
        index : ndarray of int, shape (P, n)
        columns : slice

        Returns
        -------
        ndarray, shape (P, b)
        """
        return self._scores(index, self._powers(columns))

    @np.errstate(invalid="ignore", over="ignore")  # of features that are not finite
    def _scores(self, index: np.ndarray, powers: _Powers) -> np.ndarray:
        numerator = self._form.quadratic(index, powers.x, powers.x2, powers.s2)
        numerator /= powers.s2
        if self._whitened:
            numerator -= self._shift
            numerator /= self._size
        elif self._nuisance is not None:
            self._nuisance.remove(numerator, index, powers)
        elif self._model.is_full:
            numerator /= self._spread(powers.kurtosis) * self._size
        else:
            numerator /= self._masked_spread(index, powers) * self._size
        return numerator

    def moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation of every score over all n! arrangements, or None without a closed form.

        The centred-kernel form of Kazi-Aoual et al. (1995); a feature enters by its kurtosis alone.
        """
        if not self._model.is_full or self._nuisance is not None or len(self._matrix) < 4:
            return None
        s4 = np.concatenate([np.empty(0), *(self._powers(columns).kurtosis for columns in self._blocks())])
        mean, variance = kernel_moments(self._matrix, s4)
        size = self._size if self._whitened else self._size * self._spread(s4)
        shift = self._shift if self._whitened else 0.0
        return (mean - shift) / size, np.sqrt(variance) / size

    @property
    def _step(self) -> int:
        """Columns of a block."""
        return int(np.clip(_BLOCK // len(self._model.values), 64, 4096))

    def _blocks(self) -> list[slice]:
        return [slice(at, min(at + self._step, self.n_features)) for at in range(0, self.n_features, self._step)]

    def _powers(self, columns: slice, space: np.ndarray | None = None) -> _Powers:
        """Centred features, their squares and room for powers, in `space` (3 or 4 × n × columns)."""
        n, width = len(self._model.values), columns.stop - columns.start
        x, x2, *room = np.empty((4, n, width)) if space is None else space[:, :, :width]
        x[...] = self._X[:, columns] if isinstance(self._X, np.ndarray) else dense(self._X[:, columns])
        ones = np.ones(n)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = (ones / n) @ x
            x -= mean
            np.multiply(x, x, out=x2)
            s2 = ones @ x2
            raw = s2 + n * mean**2
            if not 1e-100 < raw.min() <= raw.max() < 1e100:
                extreme = (raw > 1e100) | ((raw < 1e-100) & (raw > 0))  # fourth powers would leave the range of numbers
                size = np.abs(x[:, extreme]).max(axis=0)
                x[:, extreme] /= np.where(size > 0, size, 1)
                x2[:, extreme] = x[:, extreme] ** 2
                raw[extreme] = ones @ x2[:, extreme] + n * (mean[extreme] / np.where(size > 0, size, 1)) ** 2
                s2[extreme] = ones @ x2[:, extreme]
            return _Powers(x, x2, np.where(np.isfinite(s2) & (s2 > NOISE**2 * raw), s2, np.nan), room)

    def _spread(self, kurtosis: np.ndarray) -> np.ndarray:
        """√Σ(d − d̄)², or √Σd², over all pairs, in units of S2."""
        n = len(self._model.values)
        squares = n * kurtosis + 3
        return np.sqrt(squares - 2 * n / (n - 1) if self._centred else squares)

    def _masked_spread(self, index: np.ndarray, powers: _Powers) -> np.ndarray:
        x, x2 = powers.x, powers.x2
        x3, x4 = np.multiply(x2, x, out=powers.room[0]), np.multiply(x2, x2, out=powers.room[1])
        squares = Form.weighted(index, self._degree, x4)
        squares -= 4 * self._pairs.bilinear(index, x3, x, x4)
        squares += 3 * self._pairs.quadratic(index, x2, x4)
        if self._centred:
            total = Form.weighted(index, self._degree, x2) - self._pairs.quadratic(index, x, x2)
            squares -= total**2 / self._model.n_pairs
        with np.errstate(invalid="ignore"):
            # No spread is left where the feature's distances are the same in all pairs that the model speaks of.
            return np.sqrt(np.where(squares > _FLAT * x4.sum(axis=0), squares, np.nan)) / powers.s2


class _Nuisance:
    """Models that are held constant, over all pairs; see the module."""

    def __init__(self, model: PairModel, others: Sequence[np.ndarray]) -> None:
        n = len(model.values)
        self._upper = np.triu_indices(n, 1)
        known = [pair_model(other, n) for other in others]
        columns = np.stack([np.ones(model.n_pairs), *(other.values[self._upper] for other in known)], axis=1)
        basis, triangle = np.linalg.qr(columns / np.linalg.norm(columns, axis=0))
        self._basis = basis[:, np.abs(np.diag(triangle)) > NOISE]
        vector = model.values[self._upper]
        left = vector - self._basis @ (self._basis.T @ vector)
        left -= self._basis @ (self._basis.T @ left)
        if np.linalg.norm(left) <= 1e-8 * np.linalg.norm(vector):
            raise InvalidInput(
                "partial RSA: the model follows from the nuisance models; nothing of it is left to test."
            )
        self.residual = self._square(left)
        self._left = self.residual
        self._forms = []
        for column in self._basis.T:
            values = self._square(column)
            self._forms.append(form(-values, values.sum(axis=1), centred=True))

    def _square(self, vector: np.ndarray) -> np.ndarray:
        n = int((1 + np.sqrt(1 + 8 * vector.size)) / 2)
        out = np.zeros((n, n))
        out[self._upper] = vector
        return out + out.T

    def remove(self, numerator: np.ndarray, index: np.ndarray, powers: _Powers) -> None:
        """Turn xᵀL_{πD⊥}x into the partial correlation, in place."""
        n = len(self.residual)
        identity = np.arange(n)[None]
        parts = (
            np.concatenate([one.quadratic(identity, powers.x, powers.x2) for one in self._forms]) / powers.s2
        )  # (k, b)
        rows, columns = self._upper
        moved = self._left[index[:, rows], index[:, columns]]  # (P, m)
        shared = moved @ self._basis  # (P, k)
        numerator -= shared @ parts
        size2 = np.sum(self._left[self._upper] ** 2) - np.sum(shared**2, axis=1)
        spread2 = n * powers.kurtosis + 3 - np.sum(parts**2, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            numerator /= np.sqrt(np.maximum(size2, 0))[:, None]
            numerator /= np.sqrt(np.where(spread2 > 1e-10, spread2, np.nan))


def kernel_moments(Q: np.ndarray, s4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of xᵀPᵀQPx over all permutations P, for centred x with Σx² = 1 and Σx⁴ = `s4`.

    Parameters
    ----------
    Q : ndarray, shape (n, n)
        Symmetric with row sums of 0; n ≥ 4.
    s4 : ndarray, shape (V,)

    Returns
    -------
    mean, variance : ndarray, shape (V,)

    Notes
    -----
    Kazi-Aoual, Hitier, Sabatier & Lebreton (1995), for the product of xxᵀ and Q, with t = tr Q, f = ‖Q‖², h = ΣQ_ii²:
    ``mean = t/(n − 1)`` and ``var = 2(n − 2)((n − 1)f − t²) / ((n − 1)²(n + 1)(n − 2)) +
    (n(n + 1)s4 − 3(n − 1)) (n(n + 1)h − (n − 1)(t² + 2f)) / ((n + 1)n(n − 1)(n − 2)(n − 3))``.

    Examples
    --------
    >>> kernel_moments(np.eye(4) - 1 / 4, np.array([0.5]))[0].tolist()
    [1.0]
    """
    n = len(Q)
    t, f, h = np.trace(Q), np.sum(Q**2), np.sum(np.diag(Q) ** 2)
    first = 2 * (n - 2) * ((n - 1) * f - t**2) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    second = (n * (n + 1) * s4 - 3 * (n - 1)) * (n * (n + 1) * h - (n - 1) * (t**2 + 2 * f))
    variance = first + second / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    floor = 1e-12 * max(f, t**2 / (n - 1))
    return np.full(s4.shape, t / (n - 1)), np.where(variance > floor, variance, np.where(np.isnan(s4), np.nan, 0.0))


def _check(model: PairModel, comparison: str, nuisance: Sequence[np.ndarray]) -> None:
    if not model.is_full and comparison.startswith("whitened"):
        raise InvalidInput(
            f"RSA: the comparison {comparison!r} needs a model of all pairs, but this one leaves out "
            f"{model.n_left_out} of them; use 'pearson'."
        )
    if nuisance and (not model.is_full or comparison not in ("pearson", "half_rank")):
        why = "this model leaves out pairs" if not model.is_full else f"the comparison is {comparison!r}"
        raise InvalidInput(
            f"partial RSA: nuisance models need a model of all pairs and the comparison 'pearson', but {why}."
        )
    if comparison != "cosine":
        model.refuse_constant()
