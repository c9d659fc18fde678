"""What is done to activations before a sparse autoencoder sees them, and undone after it.

A linear part, u = (x − shift) · A, can be taken into the weights (`SAE.fold`). A part
that depends on the token cannot: the dictionary needs the token's own activations to
undo it.

    centre       x − mean(x)                        residual streams with centred writing weights
    layer_norm   (x − mean(x)) / (SD(x) + 1e-5)     Gao et al. 2024, SAELens "layer_norm"
    unit_norm    x · sqrt(d) / ‖x‖                  SAELens "constant_norm_rescale"

mean and SD (n − 1 in its denominator) are over the dimensions of one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neurollm.errors import InvalidInput

PER_TOKEN = ("none", "centre", "layer_norm", "unit_norm")
EPSILON = 1e-5  # of layer_norm; undo leaves it out, as both implementations do (an error of 1e-5 / SD)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """u = (t(x) − shift) · A, where t is the per-token part.

    Parameters
    ----------
    shift : Tensor, shape (d,), optional
        Default: zero.
    matrix : float or Tensor, default=1.0
        A: a factor, one factor for each dimension (d,), or a matrix (d, d).
    per_token : {"none", "centre", "layer_norm", "unit_norm"}

    Raises
    ------
    InvalidInput
        If a factor is zero or not finite, the matrix is singular, or `per_token` is unknown.

    Examples
    --------
    >>> x = torch.randn(5, 3)
    >>> norm = Normalisation(torch.ones(3), 2.0)
    >>> torch.allclose(norm.undo(norm.apply(x), x), x)
    True
    """

    shift: torch.Tensor | None = None
    matrix: float | torch.Tensor = 1.0
    per_token: str = "none"

    def __post_init__(self) -> None:
        if self.per_token not in PER_TOKEN:
            raise InvalidInput(f"normalisation: per_token {self.per_token!r}; use one of {', '.join(PER_TOKEN)}")
        if not isinstance(self.matrix, torch.Tensor):
            object.__setattr__(self, "matrix", torch.tensor(float(self.matrix), dtype=torch.float64))
        matrix = self.matrix
        usable = matrix.ndim == 2 or bool((matrix != 0).all())
        if not (torch.isfinite(matrix).all() and usable):
            raise InvalidInput("normalisation: a factor is zero, infinite or NaN")
        if matrix.ndim == 2 and torch.linalg.matrix_rank(matrix.double()) < len(matrix):
            raise InvalidInput("normalisation: the matrix is singular, so it cannot be undone")

    @property
    def foldable(self) -> bool:
        """Whether all of it can be taken into weights."""
        return self.per_token == "none"

    @property
    def needs_input(self) -> bool:
        """Whether undoing it needs the activations it was applied to."""
        return self.per_token in ("layer_norm", "unit_norm")

    @property
    def is_identity(self) -> bool:
        """Whether it does nothing at all."""
        plain = self.matrix.ndim == 0 and float(self.matrix) == 1.0
        return self.foldable and plain and (self.shift is None or not self.shift.any())

    @property
    def unit(self) -> float:
        """Raw size of one normalised unit: RMS of the singular values of A⁻¹; the folded features are in it."""
        inverse = self.inverse
        if inverse.ndim == 0:
            return float(inverse.abs())
        return float(inverse.square().sum().sqrt() / len(inverse) ** 0.5)

    @property
    def inverse(self) -> torch.Tensor:
        """A⁻¹ in the form of `matrix`, float64."""
        matrix = self.matrix.double()
        return torch.linalg.inv(matrix) if matrix.ndim == 2 else 1.0 / matrix

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised activations (n, d)."""
        u = self._per_token(x)
        if self.shift is not None:
            u = u - self.shift
        return times(u, self.matrix)

    def undo(self, u: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """Raw activations of normalised ones; `x` are the activations that belong to them.

        Raises
        ------
        InvalidInput
            If `x` is missing and cannot be done without.
        """
        raw = times(u, self.inverse)
        if self.shift is not None:
            raw = raw + self.shift
        if self.foldable or (x is None and not self.needs_input):
            return raw
        if x is None:
            raise InvalidInput(
                f"this dictionary normalises every token by itself ({self.per_token}): decode needs the activations "
                "the features come from as its second argument"
            )
        if self.per_token == "unit_norm":
            return raw * (x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5)
        if self.per_token == "layer_norm":
            raw = raw * x.std(dim=1, keepdim=True)  # without EPSILON, as in both implementations
        return raw + x.mean(1, keepdim=True)

    def to(self, device: str | torch.device) -> Normalisation:
        """The same on another device."""
        shift = None if self.shift is None else self.shift.to(device)
        return Normalisation(shift, self.matrix.to(device), self.per_token)

    def _per_token(self, x: torch.Tensor) -> torch.Tensor:
        if self.per_token == "none":
            return x
        if self.per_token == "unit_norm":
            return x * (x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny))
        centred = x - x.mean(1, keepdim=True)
        return centred if self.per_token == "centre" else centred / (x.std(dim=1, keepdim=True) + EPSILON)


def times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows · A for a factor, a factor for each column, or a matrix, in the dtype of `rows`."""
    matrix = matrix.to(rows.dtype)
    return rows @ matrix if matrix.ndim == 2 else rows * matrix
