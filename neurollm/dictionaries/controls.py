"""Control dictionaries: what an analysis finds without any learned feature."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.kernels import topk_of_relu
from neurollm.errors import InvalidInput
from neurollm.files import write_json
from neurollm.models import Site
from neurollm.random import stream


class RawUnits(Dictionary):
    """The units of the site themselves: encode and decode are the identity.

    Parameters
    ----------
    site : Site
    d_in : int
    model_name, model_fingerprint : str
    """

    architecture = "raw_units"

    def __init__(self, site: Site, d_in: int, *, model_name: str = "", model_fingerprint: str = "") -> None:
        super().__init__(site, d_in, d_in, model_name=model_name, model_fingerprint=model_fingerprint)

    @property
    def directions(self) -> torch.Tensor:
        """The unit vectors."""
        return torch.eye(self.d_in)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def _decode(self, features: torch.Tensor) -> torch.Tensor:
        return features.clone()

    def _identity(self) -> list[bytes]:
        return []

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``neurollm.json``."""
        write_control(self, folder, {})

    @classmethod
    def from_parameters(cls, site: Site, d_in: int, parameters: dict[str, Any], **model: str) -> RawUnits:
        """Inverse of `save`."""
        return cls(site, d_in, **model)


class RandomDirections(Dictionary):
    """Random directions read like features: f_i = ReLU(u_i · (x − mean)), optionally only the k largest.

    The u_i are independent and uniform on the sphere. Decoding scales the weighted
    sum v = Σ f_i u_i so that its projections fit the active features in the sense
    of least squares: x̂ = mean + c v with c = ‖v‖² / Σ_{active} (u_i · v)².

    Parameters
    ----------
    site : Site
    d_in, n_features : int
    random_state : int, default=0
    mean : Tensor, shape (d_in,), optional
        Centre of the activations. Without it most features tell on which side of the
        origin the mean lies.
    k : int, optional
        As many features per token as the SAE it is compared with.
    model_name, model_fingerprint : str

    Examples
    --------
    >>> control = RandomDirections(Site(3), 8, 32, k=4)
    >>> int((control.encode(torch.randn(5, 8)) > 0).sum(1).max()) <= 4
    True
    """

    architecture = "random_directions"

    def __init__(
        self,
        site: Site,
        d_in: int,
        n_features: int,
        random_state: int = 0,
        *,
        mean: torch.Tensor | None = None,
        k: int | None = None,
        model_name: str = "",
        model_fingerprint: str = "",
    ) -> None:
        super().__init__(site, d_in, n_features, model_name=model_name, model_fingerprint=model_fingerprint)
        if k is not None and not 1 <= k <= n_features:
            raise InvalidInput(f"k: expected 1 to {n_features:,} (the number of features), got {k}")
        self.random_state, self.k = int(random_state), k
        self.mean = torch.zeros(d_in) if mean is None else torch.as_tensor(mean, dtype=torch.float32).cpu()
        if self.mean.shape != (d_in,):
            raise InvalidInput(f"mean: expected shape ({d_in},), got {tuple(self.mean.shape)}")
        self._directions = torch.from_numpy(unit_rows(random_state, "random_directions", n_features, d_in))

    @classmethod
    def matching(cls, dictionary: Dictionary, random_state: int = 0) -> RandomDirections:
        """The control of a dictionary: same site, number of features, k and centre."""
        return cls(
            dictionary.site,
            dictionary.d_in,
            dictionary.n_features,
            random_state,
            mean=getattr(dictionary, "_offset", None),
            k=getattr(dictionary, "k", None),
            model_name=dictionary.model_name,
            model_fingerprint=dictionary.model_fingerprint,
        )

    @property
    def directions(self) -> torch.Tensor:
        """The random unit vectors, shape (n_features, d_in)."""
        return self._directions

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        pre = (x - self.mean) @ self._directions.T
        if self.k is None:
            return pre.relu()
        values, indices = topk_of_relu(pre, self.k)
        return torch.zeros_like(pre).scatter_(1, indices, values)

    def _decode(self, features: torch.Tensor) -> torch.Tensor:
        v = features @ self._directions
        projections = (v @ self._directions.T) * (features != 0)
        factor = v.square().sum(1) / projections.square().sum(1).clamp_min(torch.finfo(v.dtype).tiny)
        return self.mean + factor[:, None] * v

    def _identity(self) -> list[bytes]:
        return [f"k={self.k}\n".encode(), self._directions.numpy().tobytes(), self.mean.numpy().tobytes()]

    def describe(self) -> dict[str, Any]:
        """What is written into results."""
        return {**super().describe(), "k": self.k, "random_state": self.random_state}

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``neurollm.json``: the directions are drawn anew from `random_state`."""
        parameters = {"n_features": self.n_features, "random_state": self.random_state, "k": self.k}
        write_control(self, folder, {**parameters, "mean": self.mean.tolist()})

    @classmethod
    def from_parameters(cls, site: Site, d_in: int, parameters: dict[str, Any], **model: str) -> RandomDirections:
        """Inverse of `save`."""
        return cls(site, d_in, **{**parameters, "mean": torch.tensor(parameters["mean"])}, **model)


def unit_rows(random_state: int, purpose: str, n: int, d: int) -> np.ndarray:
    """`n` independent directions, uniform on the sphere in `d` dimensions, float32."""
    rows = stream(random_state, purpose).standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_control(dictionary: Dictionary, folder: str | os.PathLike, parameters: dict[str, Any]) -> None:
    """Write the ``neurollm.json`` of a dictionary without stored weights."""
    from neurollm.dictionaries.saelens import FORMAT_VERSION, SIDE_FILE

    write_json(
        os.path.join(folder, SIDE_FILE),
        {
            "format_version": FORMAT_VERSION,
            "architecture": dictionary.architecture,
            "site": dictionary.site.to_dict(),
            "model": {"name": dictionary.model_name, "fingerprint": dictionary.model_fingerprint},
            "d_in": dictionary.d_in,
            "parameters": parameters,
            "metrics": dictionary.metrics,
        },
    )
