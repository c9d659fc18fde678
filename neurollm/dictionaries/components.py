"""PCA, ICA and NMF as dictionaries: what linear methods find in the same activations.

With centred activations c = x − mean:

    PCA    s = c · Vᵀ                          V (c, d): eigenvectors of the covariance, largest first
           x̂ = mean + s · V                    EV of the first k components = Σ_{i≤k} λ_i / Σ λ
    ICA    z = c · Vᵀ / sqrt(λ),  s = z · Rᵀ   R: the rotation of the whitened scores that FastICA finds
           x̂ = mean + s · A                    A = R · diag(sqrt(λ)) · V, so that nothing of PCA is lost
    NMF    a = [max(c, 0), max(−c, 0)]         (2d), non-negative, with c = a₊ − a₋
           f = argmin_{f ≥ 0} ‖a − f · H‖²     H (k, 2d) ≥ 0
           x̂ = mean + f · (H₊ − H₋)

Scores of PCA and ICA have signs. With ``rectified=True`` each component gives two
features that are never negative, max(s, 0) and max(−s, 0), which say the same; then
"active" means > 0 as in an SAE. With `k`, all but the k largest |s| of a token are set
to zero, so that a control has the L0 of the SAE it stands beside.

References
----------
Hyvärinen, Oja (2000), Independent component analysis: algorithms and applications.
Lee, Seung (1999), Learning the parts of objects by non-negative matrix factorization;
fitting in batches: Lefèvre, Bach, Févotte (2011), https://arxiv.org/abs/1106.4198.
Codes: coordinate descent, Cichocki, Phan (2009), Fast local algorithms.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.control_files import Control
from neurollm.dictionaries.kernels import topk_of_relu
from neurollm.dictionaries.rows import Rows, count_rows, row_batches
from neurollm.errors import InvalidInput
from neurollm.models import Site
from neurollm.random import stream

logger = logging.getLogger("neurollm")

BATCH = 8192
# Directions with less variance than this share of the largest cannot be told from rounding.
RANK_TOLERANCE = 1e-10
# A row's code is found when no entry moves the reconstruction by more than this share of the row.
CODE_TOLERANCE, MAX_SWEEPS = 1e-4, 1000


class LinearComponents(Control):
    """What PCA and ICA share: s = (x − centre) · encoder, x̂ = centre + s · decoder.

    Parameters
    ----------
    site : Site
    tensors : dict of Tensor
        ``centre`` (d,), ``encoder`` (d, c), ``decoder`` (c, d) and ``explained_variance_ratio`` (c,).
    rectified : bool, default=False
        Two non-negative features for each component: first all positive sides, then all negative ones.
    k : int, optional
        Only the k components with the largest |s| of a token are kept.
    model_name, model_fingerprint : str

    Raises
    ------
    InvalidInput
        If k is not between 1 and the number of components, or a shape does not fit.
    """

    def __init__(
        self,
        site: Site,
        tensors: dict[str, torch.Tensor],
        *,
        rectified: bool = False,
        k: int | None = None,
        model_name: str = "",
        model_fingerprint: str = "",
    ) -> None:
        self.tensors = {name: torch.as_tensor(tensor, dtype=torch.float32) for name, tensor in tensors.items()}
        n_components, d = self.tensors["decoder"].shape
        shapes = {"centre": (d,), "encoder": (d, n_components), "explained_variance_ratio": (n_components,)}
        _check_shapes(self.tensors, shapes)
        if k is not None and not 1 <= k <= n_components:
            raise InvalidInput(f"k: expected 1 to {n_components:,} (the number of components), got {k}")
        self.rectified, self.k = bool(rectified), k
        n_features = n_components * (2 if rectified else 1)
        super().__init__(site, d, n_features, model_name=model_name, model_fingerprint=model_fingerprint)

    @property
    def explained_variance_ratio(self) -> np.ndarray:
        """Share of the total variance of the rows it was fitted to that each component explains, float64."""
        return self.tensors["explained_variance_ratio"].double().numpy()

    @property
    def directions(self) -> torch.Tensor:
        """What a feature of 1 adds to the activations, shape (n_features, d_in)."""
        decoder = self.tensors["decoder"]
        return torch.cat([decoder, -decoder]) if self.rectified else decoder

    @property
    def centre(self) -> torch.Tensor:
        """Mean of the rows it was fitted to."""
        return self.tensors["centre"]

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x - self.centre) @ self.tensors["encoder"]
        if self.k is not None:
            indices = topk_of_relu(scores.abs(), self.k)[1]
            scores = torch.zeros_like(scores).scatter_(1, indices, scores.gather(1, indices))
        return torch.cat([scores.relu(), (-scores).relu()], 1) if self.rectified else scores

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self.centre + features @ self.directions

    def _identity(self) -> list[bytes]:
        names = ("centre", "decoder", "encoder")
        return [f"rectified={self.rectified} k={self.k}\n".encode(), *(_bytes(self.tensors[name]) for name in names)]

    def describe(self) -> dict[str, Any]:
        """What is written into results."""
        return {**super().describe(), "rectified": self.rectified, "k": self.k}

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {"rectified": self.rectified, "k": self.k}, self.tensors

    @classmethod
    def from_parameters(
        cls, site: Site, d_in: int, parameters: dict[str, Any], tensors: dict[str, torch.Tensor], **model: str
    ) -> LinearComponents:
        """Inverse of `save`."""
        return cls(site, tensors, **parameters, **model)


class PCADictionary(LinearComponents):
    """Principal components: orthonormal directions, features in raw activation units. See `LinearComponents`."""

    architecture = "pca"

    @classmethod
    def fit(
        cls,
        data: Rows,
        n_components: int | None = None,
        random_state: int = 0,
        *,
        n_rows: int | None = None,
        site: Site | None = None,
        **options: Any,
    ) -> PCADictionary:
        """Principal components from the exact covariance, summed in float64.

        Parameters
        ----------
        data : ActivationStore, Tensor or ndarray (n, d)
        n_components : int, optional
            Default: all d. Dimensions without variance are allowed.
        random_state : int, default=0
            Of the choice of rows; the components themselves need none.
        n_rows : int, optional
            Fit to so many rows chosen at random. Default: all.
        site : Site
            Where the activations come from; a store knows it.
        **options
            rectified, k, model_name, model_fingerprint: see `LinearComponents`.

        Returns
        -------
        PCADictionary
            Each component's largest weight is positive.

        Raises
        ------
        InvalidInput
            If there are fewer rows or dimensions than components, values are not finite, all rows are
            alike, or the site of an array is not given.

        Examples
        --------
        >>> x = np.random.default_rng(0).standard_normal((500, 8)) * np.arange(1, 9)
        >>> pca = PCADictionary.fit(x, 3, site=Site(2))
        >>> bool((pca.directions @ pca.directions.T - torch.eye(3)).abs().max() < 1e-6)
        True
        >>> round(float(pca.explained_variance_ratio.sum()), 1)
        0.7
        """
        origin = _origin(data, site, options)
        n_components = _n_components(n_components, data)
        mean, covariance, n = moments(chosen_rows(data, n_rows, random_state))
        _enough(n, n_components)
        values, vectors = eigenvectors(covariance)
        tensors = {
            "centre": torch.from_numpy(mean),
            "encoder": torch.from_numpy(vectors[:n_components].T.copy()),
            "decoder": torch.from_numpy(vectors[:n_components]),
            "explained_variance_ratio": torch.from_numpy(values[:n_components] / values.sum()),
        }
        dictionary = cls(tensors=tensors, **origin, **options)
        dictionary.provenance = _provenance("PCA", data, n, random_state)
        return dictionary


class ICADictionary(LinearComponents):
    """Independent components: features of variance 1; directions as long as what they explain. See `LinearComponents`.

    In the order of the variance they explain, each turned to the side of its longer tail.
    """

    architecture = "ica"

    @classmethod
    def fit(
        cls,
        data: Rows,
        n_components: int | None = None,
        random_state: int = 0,
        *,
        n_rows: int | None = 50_000,
        site: Site | None = None,
        max_iter: int = 200,
        **options: Any,
    ) -> ICADictionary:
        """Independent components: FastICA (log cosh, symmetric) of scikit-learn on whitened principal components.

        Parameters
        ----------
        data : ActivationStore, Tensor or ndarray (n, d)
        n_components : int, optional
            Default: as many as there are dimensions with variance.
        random_state : int, default=0
            Of the choice of rows and of the rotation FastICA starts from.
        n_rows : int, default=50_000
            Fit to so many rows chosen at random; None: all. They are held in memory.
        site : Site
            Where the activations come from; a store knows it.
        max_iter : int, default=200
            Of FastICA. That it stopped there is logged and told in ``provenance["converged"]``.
        **options
            rectified, k, model_name, model_fingerprint: see `LinearComponents`.

        Returns
        -------
        ICADictionary

        Raises
        ------
        InvalidInput
            As `PCADictionary.fit`, and if there are more components than dimensions with variance.

        Examples
        --------
        >>> sources = np.random.default_rng(0).laplace(size=(4000, 3))
        >>> ica = ICADictionary.fit(sources @ [[1, 2, 0], [0, 1, 1], [1, 0, 3]], site=Site(2))
        >>> found = np.abs(np.corrcoef(ica.encode(sources @ [[1, 2, 0], [0, 1, 1], [1, 0, 3]]).T, sources.T))[:3, 3:]
        >>> bool((found.max(1) > 0.98).all())
        True
        """
        origin = _origin(data, site, options)
        wanted = _n_components(n_components, data)
        x = sample_rows(data, n_rows, random_state).astype(np.float64)
        _enough(len(x), wanted if n_components else 2)
        mean, covariance, n = moments(iter([x]))
        values, vectors = eigenvectors(covariance)
        rank = min(int((values > RANK_TOLERANCE * values[0]).sum()), n - 1)
        if n_components and wanted > rank:
            raise InvalidInput(f"n_components: {n_components:,} asked for, but these activations have rank {rank:,}")
        count = min(wanted, rank)
        deviation, vectors, total = np.sqrt(values[:count]), vectors[:count], values.sum()
        whitened = (x - mean) @ (vectors.T / deviation)
        start = stream(random_state, "ica_rotation").standard_normal((count, count))
        rotation, converged = _independent_rotation(whitened, start, max_iter)
        # Turned to the longer tail: the third moment is positive.
        rotation *= np.where(np.mean((whitened @ rotation.T) ** 3, axis=0) < 0, -1.0, 1.0)[:, None]
        decoder = (rotation * deviation) @ vectors
        share = np.square(decoder).sum(1) / total
        order = np.argsort(-share, kind="stable")
        tensors = {
            "centre": torch.from_numpy(mean),
            "encoder": torch.from_numpy((vectors.T / deviation) @ rotation[order].T),
            "decoder": torch.from_numpy(decoder[order]),
            "explained_variance_ratio": torch.from_numpy(share[order]),
        }
        dictionary = cls(tensors=tensors, **origin, **options)
        dictionary.provenance = {**_provenance("ICA", data, n, random_state), "converged": converged}
        return dictionary


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

        origin = _origin(data, site, model)
        if n_components < 1:
            raise InvalidInput(f"n_components: expected at least 1, got {n_components}")
        x = sample_rows(data, n_rows, random_state)
        _enough(len(x), n_components)
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
        dictionary.provenance = _provenance("NMF", data, len(x), random_state)
        return dictionary

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        sides = _sides(x - self._centre)
        return non_negative_codes(sides @ self.parts.T, self._gram, sides.norm(dim=1))

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self._centre + features @ self._directions

    def _identity(self) -> list[bytes]:
        return [_bytes(self._centre), _bytes(self.parts)]

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


def chosen_rows(data: Rows, n_rows: int | None, random_state: int) -> Iterator[np.ndarray]:
    """Activations in float32 pieces: all rows in reading order, or `n_rows` of them chosen at random.

    Raises
    ------
    InvalidInput
        If a value is not finite, or `data` is neither a store nor an array (n, d).
    """
    n = count_rows(data)
    if n_rows is None or n_rows >= n:
        batches = row_batches(data, BATCH)
    elif isinstance(data, torch.Tensor | np.ndarray):
        chosen = np.sort(stream(random_state, "component_rows").choice(n, n_rows, replace=False))
        batches = row_batches(data[chosen], BATCH)
    else:
        batches = _first_rows(data.batches(min(BATCH, n_rows), random_state=random_state), n_rows)
    for batch in batches:
        if not torch.isfinite(batch).all():
            raise InvalidInput("the activations contain NaN or infinite values; components need finite ones")
        yield batch.detach().cpu().float().numpy()


def sample_rows(data: Rows, n_rows: int | None, random_state: int) -> np.ndarray:
    """The rows of `chosen_rows` as one array (n, d)."""
    parts = list(chosen_rows(data, n_rows, random_state))
    if not parts:
        raise InvalidInput("there are no activations")
    return np.concatenate(parts)


def moments(batches: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (d,), covariance (d, d; divided by n) and number of rows, in float64.

    Sums are of x minus the first batch's mean: with a mean far from zero the squares would swallow the variance.
    """
    n, shift, total, products = 0, 0.0, 0.0, 0.0
    for batch in batches:
        x = batch.astype(np.float64)
        shift = x.mean(0) if n == 0 else shift
        x -= shift
        n, total, products = n + len(x), total + x.sum(0), products + x.T @ x
    if n == 0:
        raise InvalidInput("there are no activations")
    return shift + total / n, products / n - np.outer(total, total) / n**2, n


def eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (d,), largest first, and eigenvectors in rows, the largest weight of each positive.

    Raises
    ------
    InvalidInput
        If there is no variance at all.
    """
    values, columns = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(0), columns.T[::-1].copy()
    if not values[0] > 0:
        raise InvalidInput("the activations have no variance: all rows are alike")
    largest = vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)]
    return values, vectors * np.sign(largest)[:, None]


def _independent_rotation(whitened: np.ndarray, start: np.ndarray, max_iter: int) -> tuple[np.ndarray, bool]:
    """The rotation (c, c) whose scores are as independent as can be, and whether FastICA converged."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    method = FastICA(whiten=False, w_init=start, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        method.fit(whitened)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in told)
    if not converged:
        logger.warning("FastICA did not converge in %d iterations; its components are those it had then", max_iter)
    return method.components_, converged


def _first_rows(batches: Iterator[torch.Tensor], n_rows: int) -> Iterator[torch.Tensor]:
    for batch in batches:
        yield batch[:n_rows]
        n_rows -= len(batch)
        if n_rows <= 0:
            return


def _sides(centred: torch.Tensor) -> torch.Tensor:
    return torch.cat([centred.relu(), (-centred).relu()], 1)


def _origin(data: Rows, site: Site | None, options: dict[str, Any]) -> dict[str, Any]:
    """Site and model of the activations, as far as `options` do not give the model."""
    if isinstance(data, torch.Tensor | np.ndarray):
        if site is None:
            raise InvalidInput("site: an array does not say where its activations come from; give site=Site(layer)")
        return {"site": site}
    if site not in (None, data.site):
        raise InvalidInput(f"site is {site}, but the activation store holds {data.site}")
    model = {"model_name": data.manifest["model"]["name"], "model_fingerprint": data.model_fingerprint}
    return {"site": data.site, **{name: value for name, value in model.items() if name not in options}}


def _provenance(method: str, data: Rows, n: int, random_state: int) -> dict[str, Any]:
    known = {} if isinstance(data, torch.Tensor | np.ndarray) else {"store_sha256": data.sha256}
    return {"control": method, "rows": n, "random_state": int(random_state), **known}


def _n_components(wanted: int | None, data: Rows) -> int:
    width = data.shape[-1] if isinstance(data, torch.Tensor | np.ndarray) else data.d
    if wanted is not None and not 1 <= wanted <= width:
        raise InvalidInput(f"n_components: expected 1 to {width:,} (the dimensions of the activations), got {wanted}")
    return wanted or width


def _enough(n: int, n_components: int) -> None:
    if n < n_components:
        raise InvalidInput(f"{n:,} rows are too few for {n_components:,} components; give at least as many rows")


def _check_shapes(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InvalidInput(f"{name}: expected shape {shape} to fit the decoder, got {tuple(tensors[name].shape)}")


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
