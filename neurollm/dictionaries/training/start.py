"""Where a training starts: normalisation, bias, and weights of an existing dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from neurollm.dictionaries.normalisation import Normalisation, times
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training.learner import Learner
from neurollm.errors import DataMismatch, InvalidInput

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

SAMPLE = 65_536  # rows for the geometric median
FLAT = 1e-12  # of the mean variance: below it a dimension counts as constant


def normalisation(store: ActivationStore, kind: str = "mean_square") -> Normalisation:
    """The normalisation of a training, from the float64 statistics of the whole store.

    Parameters
    ----------
    store : ActivationStore
    kind : str
        See `Training.normalisation`.

    Raises
    ------
    InvalidInput
        If the activations do not vary, or are not finite.
    """
    mean = torch.as_tensor(store.mean, dtype=torch.float64)
    total = float(store.mean_squared_norm) - float(mean.square().sum())
    if not 0 < total < float("inf"):
        raise InvalidInput(f"the activation store has total variance {total}: all rows alike, or not finite")
    if kind == "none":
        return Normalisation()
    if kind in ("layer_norm", "unit_norm"):
        return Normalisation(per_token=kind)
    if kind == "mean_square":
        return Normalisation(mean.float(), (store.d / total) ** 0.5)
    covariance = covariance_of(store, mean)
    variance = covariance.diagonal()
    flat = variance <= FLAT * total / store.d  # constant dimensions get the common factor: they stay at zero
    if kind == "z_score":
        factors = torch.where(flat, total / store.d, variance).rsqrt()
        return Normalisation(mean.float(), factors)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    floor = 1e-6 * total / store.d  # directions without variance would be blown up to noise
    return Normalisation(mean.float(), (vectors * eigenvalues.clamp_min(floor).rsqrt()) @ vectors.T)


def covariance_of(store: ActivationStore, mean: torch.Tensor, rows: int = 8192) -> torch.Tensor:
    """Covariance (d, d) of all rows of a store, float64, in one pass."""
    products = torch.zeros(store.d, store.d, dtype=torch.float64)
    for start in range(0, store.n_rows, rows):
        centred = store.rows(start, min(start + rows, store.n_rows)).double() - mean
        products += centred.T @ centred
    return products / store.n_rows


def initial_bias(store: ActivationStore, norm: Normalisation, kind: str) -> torch.Tensor:
    """b_dec at the start, (d,), in normalised units."""
    if kind == "zero" or (kind == "mean" and norm.shift is not None):
        return torch.zeros(store.d)
    if kind == "mean" and norm.is_identity:
        return torch.as_tensor(store.mean, dtype=torch.float32)
    sample = torch.cat([norm.apply(piece) for piece in _sample(store)])
    return sample.double().mean(0).float() if kind == "mean" else geometric_median(sample)


def _sample(store: ActivationStore) -> list[torch.Tensor]:
    """Rows evenly spread over the store, in 64 pieces."""
    size = max(1, min(SAMPLE, store.n_rows) // 64)
    starts = np.unique(np.linspace(0, store.n_rows - size, 64).astype(int))
    return [store.rows(int(start), int(start) + size) for start in starts]


def geometric_median(rows: torch.Tensor, n_iter: int = 200, tolerance: float = 1e-7) -> torch.Tensor:
    """The point with the smallest sum of distances to the rows (n, d): Weiszfeld's algorithm, float64.

    Examples
    --------
    >>> rows = torch.tensor([[0.0], [1.0], [100.0]])
    >>> round(float(geometric_median(rows)), 3)
    1.0

    References
    ----------
    Vardi, Zhang (2000), PNAS 97:1423.
    """
    rows = rows.double()
    point, scale = rows.mean(0), rows.std(0).norm().clamp_min(1e-12)
    for _ in range(n_iter):
        distance = (rows - point).norm(dim=1)
        here = distance <= 1e-9 * scale  # rows at the very point: they hold it as strongly as there are of them
        weights = torch.where(here, 0.0, 1.0 / distance.clamp_min(1e-9 * scale))
        if not weights.any():
            break
        new = (rows * weights[:, None]).sum(0) / weights.sum()
        pull = ((rows - point) * weights[:, None]).sum(0).norm()
        hold = min(1.0, float(here.sum() / pull.clamp_min(1e-300)))
        new = (1 - hold) * new + hold * point
        done = (new - point).norm() <= tolerance * scale
        point = new
        if done:
            break
    return point.float()


def continue_from(learner: Learner, sae: SAE, norm: Normalisation) -> None:
    """Give a learner the weights of a dictionary, expressed in its normalised units: the inverse of folding.

    Raises
    ------
    DataMismatch
        If sizes or kind do not fit.
    """
    sae = sae.fold()
    wanted = (learner.d_in, learner.n_features)
    if (sae.d_in, sae.n_features) != wanted or type(sae) is not learner.dictionary or sae.is_transcoder:
        raise DataMismatch(
            f"init_from: {sae} has {sae.n_features} features of width {sae.d_in} and is trained further as "
            f"{sae.architecture!r}; this training has {wanted[1]} features of width {wanted[0]} and ends as "
            f"{learner.dictionary.architecture!r}"
        )
    if sae.normalisation.per_token != norm.per_token:
        advice = "set the option normalisation" if sae.normalisation.needs_input else "no training offers that"
        raise DataMismatch(
            f"init_from: {sae} normalises tokens by {sae.normalisation.per_token!r}, this training by "
            f"{norm.per_token!r}; {advice}"
        )
    if norm.foldable and not norm.is_identity:  # raw activations are x = (u + shift · A) · A⁻¹: fold that
        shift = torch.zeros(sae.d_in) if norm.shift is None else norm.shift.double()
        back = Normalisation(-times(shift.double()[None], norm.matrix)[0], norm.inverse)
        sae = sae.with_normalisation(back).fold()
    if learner.training.decoder_norm == "unit":
        try:
            sae = sae.unit_decoder()
        except InvalidInput as error:
            raise DataMismatch(f"init_from: {error}; set the option decoder_norm to 'free'") from error
    if learner.training.nonnegative and float(sae.weights["W_dec"].min()) < -1e-6:
        raise DataMismatch(f"init_from: {sae} has negative decoder weights; a nonnegative training would cut them off")
    learner.load(sae.with_input_bias())
