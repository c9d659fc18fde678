"""NMF as a dictionary: non-negative parts of activations that have signs.

With centred activations c = x − mean:

    a = [max(c, 0), max(−c, 0)]            (2d), non-negative, with c = a₊ − a₋: nothing is lost
    f = argmin_{f ≥ 0} ‖a − f · H‖²        H (k, 2d) ≥ 0
    x̂ = mean + f · (H₊ − H₋)

References
----------
Lee, Seung (1999), Learning the parts of objects by non-negative matrix factorization.
Fitting in batches: Lefèvre, Bach, Févotte (2011), https://arxiv.org/abs/1106.4198.
Codes: Cichocki, Phan (2009), Fast local algorithms for large scale nonnegative matrix and
tensor factorizations.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.components import check_enough, origin_of, provenance_of, sample_rows, tensor_bytes
from neurollm.dictionaries.control_files import Control
from neurollm.dictionaries.rows import Rows
from neurollm.errors import InvalidInput
from neurollm.models import Site
from neurollm.random import stream

# A row's code is found when no entry moves the reconstruction by more than this share of the row.
CODE_TOLERANCE, MAX_SWEEPS = 1e-4, 1000


class NMFDictionary(Control):
    """Non-negative parts of the positive and negative sides of centred activations.

    Parameters
    ----------
    site : Site
    centre : Tensor, shape (d,)
    parts : Tensor, shape (k, 2d)
        H, not negative: what each part adds to the positive sides, then to the negative sides.
    model_name, model_fingerprint : str

    Raises
    ------
    InvalidInput
        If a shape does not fit, or a part is negative.
    """

    architecture = "nmf"

    def __init__(
        self,
        site: Site,
        centre: torch.Tensor,
        parts: torch.Tensor,
        *,
        model_name: str = "",
        model_fingerprint: str = "",
    ) -> None:
        self.parts = torch.as_tensor(parts, dtype=torch.float32)
        self._centre = torch.as_tensor(centre, dtype=torch.float32)
        if self.parts.ndim != 2 or self.parts.shape[1] != 2 * len(self._centre):
            found = tuple(self.parts.shape)
            raise InvalidInput(f"parts: expected shape (k, {2 * len(self._centre)}), twice the centre's, got {found}")
        if not (self.parts >= 0).all():
            raise InvalidInput("parts: expected numbers of at least 0, found negative ones or NaN")
        d = len(self._centre)
        super().__init__(site, d, len(self.parts), model_name=model_name, model_fingerprint=model_fingerprint)
        self._directions = self.parts[:, :d] - self.parts[:, d:]
        self._gram = self.parts @ self.parts.T

    @property
    def directions(self) -> torch.Tensor:
        """What a feature of 1 adds to the activations: H₊ − H₋, shape (n_features, d_in)."""
        return self._directions

    @property
    def centre(self) -> torch.Tensor:
        """Mean of the rows it was fitted to."""
        return self._centre

    @classmethod
    def fit(
        cls,
        data: Rows,
        n_components: int,
        random_state: int = 0,
        *,
        n_rows: int | None = 20_000,
        site: Site | None = None,
        max_iter: int = 200,
        **model: str,
    ) -> NMFDictionary:
        """Parts by scikit-learn's MiniBatchNMF (squared error, no penalty).

        Parameters
        ----------
        data : ActivationStore, Tensor or ndarray (n, d)
        n_components : int
            May be larger than d.
        random_state : int, default=0
            Of the choice of rows and of the parts it starts from.
        n_rows : int, default=20_000
            Fit to so many rows chosen at random; None: all. They are held in memory.
        site : Site
            Where the activations come from; a store knows it.
        max_iter : int, default=200
            Passes over the rows, at most.
        **model
            model_name, model_fingerprint.

        Returns
        -------
        NMFDictionary
            Parts have length 1 (one that went unused is zero).

        Raises
        ------
        InvalidInput
            If there are fewer rows than components, values are not finite, all rows are alike, or the
            site of an array is not given.

        Examples
        --------
        >>> nmf = NMFDictionary.fit(np.random.default_rng(0).standard_normal((300, 4)), 6, site=Site(2))
        >>> bool((nmf.encode(np.ones((2, 4))) >= 0).all())
        True
        """
        from sklearn.decomposition import MiniBatchNMF
        from sklearn.exceptions import ConvergenceWarning

        origin = origin_of(data, site, model)
        if n_components < 1:
            raise InvalidInput(f"n_components: expected at least 1, got {n_components}")
        x = sample_rows(data, n_rows, random_state)
        check_enough(len(x), n_components)
        mean = x.mean(0, dtype=np.float64)
        sides = _sides(torch.from_numpy((x - mean).astype(np.float32))).numpy()
        if not sides.any():
            raise InvalidInput("the activations have no variance: all rows are alike")
        draws = stream(random_state, "nmf_start")
        size = np.sqrt(sides.mean(dtype=np.float64) / n_components)
        start = {
            name: np.abs(size * draws.standard_normal(shape)).astype(np.float32)
            for name, shape in (("W", (len(sides), n_components)), ("H", (n_components, sides.shape[1])))
        }
        method = MiniBatchNMF(n_components, init="custom", batch_size=min(1024, len(sides)), max_iter=max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            method.fit_transform(sides, **start)
        lengths = np.linalg.norm(method.components_, axis=1, keepdims=True)
        parts = method.components_ / np.where(lengths > 0, lengths, 1)
        dictionary = cls(centre=torch.from_numpy(mean), parts=torch.from_numpy(parts), **origin, **model)
        dictionary.provenance = provenance_of("NMF", data, len(x), random_state)
        return dictionary

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        sides = _sides(x - self._centre)
        return non_negative_codes(sides @ self.parts.T, self._gram, sides.norm(dim=1))

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self._centre + features @ self._directions

    def _identity(self) -> list[bytes]:
        return [tensor_bytes(self._centre), tensor_bytes(self.parts)]

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {}, {"centre": self._centre, "parts": self.parts}

    @classmethod
    def from_parameters(
        cls, site: Site, d_in: int, parameters: dict[str, Any], tensors: dict[str, torch.Tensor], **model: str
    ) -> NMFDictionary:
        """Inverse of `save`."""
        return cls(site, tensors["centre"], tensors["parts"], **parameters, **model)


def non_negative_codes(products: torch.Tensor, gram: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The non-negative f that minimise ‖a − f · H‖² for every row a, by coordinate descent.

    A row stops by itself, so that its code does not depend on the rows beside it.

    Parameters
    ----------
    products : Tensor, shape (n, k)
        a · Hᵀ.
    gram : Tensor, shape (k, k)
        H · Hᵀ.
    lengths : Tensor, shape (n,)
        ‖a‖.

    Returns
    -------
    Tensor, shape (n, k)
    """
    codes = torch.zeros_like(products)
    diagonal = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny)
    rows = torch.arange(len(products))
    for _ in range(MAX_SWEEPS):
        if not len(rows):
            break
        f, wanted = codes[rows].T.contiguous(), products[rows].T.contiguous()
        moved = torch.zeros(len(rows))
        for j in range(len(gram)):
            new = (f[j] + (wanted[j] - gram[j] @ f) / diagonal[j]).clamp_min_(0)
            torch.maximum(moved, (new - f[j]).abs_() * diagonal[j].sqrt(), out=moved)
            f[j] = new
        codes[rows] = f.T
        rows = rows[moved > CODE_TOLERANCE * lengths[rows]]
    return codes


def _sides(centred: torch.Tensor) -> torch.Tensor:
    """[max(c, 0), max(−c, 0)], shape (n, 2d)."""
    return torch.cat([centred.relu(), (-centred).relu()], 1)
