"""PCA and ICA as dictionaries: what linear methods find in the same activations.

With centred activations c = x − mean:

    PCA    s = c · Vᵀ                          V (c, d): eigenvectors of the covariance, largest first
           x̂ = mean + s · V                    EV of the first k components = Σ_{i≤k} λ_i / Σ λ
    ICA    z = c · Vᵀ / sqrt(λ),  s = z · Rᵀ   R: the rotation of the whitened scores that FastICA finds
           x̂ = mean + s · A                    A = R · diag(sqrt(λ)) · V: all that PCA keeps

The scores have signs. With ``rectified=True`` each component gives two features that are
never negative, max(s, 0) and max(−s, 0), which together say the same; then "active" means
> 0 as in an SAE. With `k`, all but the k largest |s| of a token are set to zero, so that a
control has the L0 of the SAE it stands beside.

References
----------
Hyvärinen, Oja (2000), Independent component analysis: algorithms and applications.
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
ICA_ROWS = 50_000
# Directions with less variance than this share of the largest cannot be told from rounding.
RANK_TOLERANCE = 1e-10


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
        return [
            f"rectified={self.rectified} k={self.k}\n".encode(),
            *(tensor_bytes(self.tensors[name]) for name in names),
        ]

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
        origin = origin_of(data, site, options)
        n_components = _n_components(n_components, data)
        mean, covariance, n = moments(chosen_rows(data, n_rows, random_state))
        check_enough(n, n_components)
        values, vectors = eigenvectors(covariance)
        tensors = {
            "centre": torch.from_numpy(mean),
            "encoder": torch.from_numpy(vectors[:n_components].T.copy()),
            "decoder": torch.from_numpy(vectors[:n_components]),
            "explained_variance_ratio": torch.from_numpy(values[:n_components] / values.sum()),
        }
        dictionary = cls(tensors=tensors, **origin, **options)
        dictionary.provenance = provenance_of("PCA", data, n, random_state)
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
        n_rows: int | None = ICA_ROWS,
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
        origin = origin_of(data, site, options)
        wanted = _n_components(n_components, data)
        x = sample_rows(data, n_rows, random_state).astype(np.float64)
        check_enough(len(x), wanted if n_components else 2)
        mean, covariance, n = moments(iter([x]))
        values, vectors = eigenvectors(covariance)
        rank = _rank(values, n)
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
        dictionary.provenance = {**provenance_of("ICA", data, n, random_state), "converged": converged}
        return dictionary


def chosen_rows(data: Rows, n_rows: int | None, random_state: int) -> Iterator[np.ndarray]:
    """Activations in float32 pieces: all rows in reading order, or `n_rows` of them chosen at random.

    Raises
    ------
    InvalidInput
        If a value is not finite, or `data` is neither a store nor an array (n, d).
    """
    n = count_rows(data)
    if n_rows is not None and n_rows < 1:
        raise InvalidInput(f"n_rows: expected at least 1, got {n_rows}")
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


def rank_of(data: Rows, n_rows: int | None, random_state: int) -> int:
    """Number of directions with variance in the rows of `chosen_rows`: the most components ICA can find in them."""
    _, covariance, n = moments(chosen_rows(data, n_rows, random_state))
    return _rank(eigenvectors(covariance)[0], n)


def _rank(values: np.ndarray, n: int) -> int:
    return min(int((values > RANK_TOLERANCE * values[0]).sum()), n - 1)


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


def origin_of(data: Rows, site: Site | None, options: dict[str, Any]) -> dict[str, Any]:
    """Site and model of the activations, as far as `options` do not give the model."""
    if isinstance(data, torch.Tensor | np.ndarray):
        if site is None:
            raise InvalidInput("site: an array does not say where its activations come from; give site=Site(layer)")
        return {"site": site}
    if site not in (None, data.site):
        raise InvalidInput(f"site is {site}, but the activation store holds {data.site}")
    model = {"model_name": data.manifest["model"]["name"], "model_fingerprint": data.model_fingerprint}
    return {"site": data.site, **{name: value for name, value in model.items() if name not in options}}


def provenance_of(method: str, data: Rows, n: int, random_state: int) -> dict[str, Any]:
    """What a fit to `n` rows of `data` writes into `Dictionary.provenance`."""
    known = {} if isinstance(data, torch.Tensor | np.ndarray) else {"store_sha256": data.sha256}
    return {"control": method, "rows": n, "random_state": int(random_state), **known}


def _n_components(wanted: int | None, data: Rows) -> int:
    width = data.shape[-1] if isinstance(data, torch.Tensor | np.ndarray) else data.d
    if wanted is not None and not 1 <= wanted <= width:
        raise InvalidInput(f"n_components: expected 1 to {width:,} (the dimensions of the activations), got {wanted}")
    return wanted or width


def check_enough(n: int, n_components: int) -> None:
    """Refuse fewer rows than components."""
    if n < n_components:
        raise InvalidInput(f"{n:,} rows are too few for {n_components:,} components; give at least as many rows")


def _check_shapes(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InvalidInput(f"{name}: expected shape {shape} to fit the decoder, got {tuple(tensors[name].shape)}")


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The numbers of a tensor as bytes, for a fingerprint."""
    return tensor.contiguous().numpy().tobytes()
