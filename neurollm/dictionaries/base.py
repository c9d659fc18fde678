"""The interface of every dictionary: raw activations in, features out, and back."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

if TYPE_CHECKING:
    from neurollm.models import LanguageModel

# A batch is encoded densely in pieces of at most this many values (64 MB in float32).
MAX_DENSE_VALUES = 2**24


class Dictionary(ABC):
    """A map between the activations at one site and a set of features.

    Every dictionary takes *raw* activations and gives back raw activations: centring
    and scaling are its own affair. Trained SAEs and controls share this interface,
    so any analysis can be repeated on its control.

    Attributes
    ----------
    architecture : str
    site : Site
        Where the activations come from.
    model_name, model_fingerprint : str
        The model it belongs to; the fingerprint is ``""`` when it is not known.
    d_in, n_features : int
    d_out : int
    target_site : Site
    is_transcoder : bool
        `d_out` and `target_site` differ from `d_in` and `site` in transcoders only, which
        predict the activations of another site.
    dtype : str
        The dtype of the stored weights. Computation is in float32.
    provenance : dict
        How it was made (training configuration, data), as plain data.
    metrics : dict
        Quality figures measured on held-out data, as plain data.
    """

    architecture: ClassVar[str]

    def __init__(
        self,
        site: Site,
        d_in: int,
        n_features: int,
        *,
        model_name: str = "",
        model_fingerprint: str = "",
        dtype: str = "float32",
    ) -> None:
        self.site, self.d_in, self.n_features, self.dtype = site, int(d_in), int(n_features), dtype
        self.d_out, self.target_site, self.is_transcoder = self.d_in, site, False
        self.model_name, self.model_fingerprint = model_name, model_fingerprint
        self.provenance: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}

    @property
    def directions(self) -> torch.Tensor | None:
        """Decoder directions, shape (n_features, d_in), in raw activation units; None if there are none."""
        return None

    @property
    def centre(self) -> torch.Tensor | None:
        """The point (d_in,) that counts as the origin of the activations; None if there is none."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device("cpu")

    @abstractmethod
    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) of valid float32 activations (n, d_in)."""

    @abstractmethod
    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        """Raw activations of float32 features (n, n_features); `x` (n, d_in) where they come from, if it is known."""

    @abstractmethod
    def save(self, folder: str | os.PathLike) -> None:
        """Write the dictionary into a folder that `load_dictionary` reads."""

    @abstractmethod
    def _identity(self) -> list[bytes]:
        """What, beside architecture and site, makes this dictionary the one it is."""

    def encode(self, x: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        """Features of raw activations.

        Parameters
        ----------
        x : Tensor or ndarray, shape (n, d_in)

        Returns
        -------
        Tensor or ndarray, shape (n, n_features)
            float32, the same kind as `x` and on its device.
        """
        rows = self._as_rows(x, self.d_in, "activations")
        parts = [self._encode(rows[piece]) for piece in self._pieces(len(rows))]
        return _like(torch.cat(parts) if parts else rows.new_zeros(0, self.n_features), x)

    def encode_sparse(self, x: torch.Tensor | np.ndarray) -> sp.csr_matrix:
        """Features of raw activations as a sparse matrix; equal to ``encode`` value for value.

        Never more than one batch is held densely.

        Parameters
        ----------
        x : Tensor or ndarray, shape (n, d_in)

        Returns
        -------
        scipy.sparse.csr_matrix of float32, shape (n, n_features)
            Column indices are sorted; no zero is stored.
        """
        rows = self._as_rows(x, self.d_in, "activations")
        parts = [self._encode_csr(rows[piece]) for piece in self._pieces(len(rows))]
        if not parts:
            return sp.csr_matrix((0, self.n_features), dtype=np.float32)
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def decode(
        self, features: torch.Tensor | np.ndarray | sp.csr_matrix, x: torch.Tensor | np.ndarray | None = None
    ) -> torch.Tensor | np.ndarray:
        """Raw activations of features.

        Parameters
        ----------
        features : Tensor, ndarray or scipy CSR, shape (n, n_features)
        x : Tensor or ndarray, shape (n, d_in), optional
            The activations the features come from. Only dictionaries that normalise
            every token by itself, or have a skip connection, need them.

        Returns
        -------
        Tensor or ndarray, shape (n, d_in)
            float32, the same kind as the input (ndarray for a sparse matrix).

        Raises
        ------
        InvalidInput
            If a shape is wrong, or `x` is needed and missing.
        """
        rows = None if x is None else self._as_rows(x, self.d_in, "activations")
        if rows is not None and len(rows) != features.shape[0]:
            raise InvalidInput(f"decode: {features.shape[0]} rows of features and {len(rows)} of activations")
        if sp.issparse(features):
            if features.shape[1] != self.n_features:
                raise InvalidInput(f"features: expected shape (n, {self.n_features}), got {features.shape}")
            csr = features.tocsr().astype(np.float32, copy=False)
            pieces = self._pieces(csr.shape[0])
            if len(pieces) == 1:
                return self._decode_csr(csr, rows).cpu().numpy()
            parts = [self._decode_csr(csr[piece], None if rows is None else rows[piece]) for piece in pieces]
            return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, self.d_out), np.float32)
        return _like(self._decode(self._as_rows(features, self.n_features, "features"), rows), features)

    def reconstruct(self, x: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        """``decode(encode(x), x)`` without holding all features at once.

        Parameters
        ----------
        x : Tensor or ndarray, shape (n, d_in)

        Returns
        -------
        Tensor or ndarray, shape (n, d_in)
            float32, the same kind as `x` and on its device.
        """
        rows = self._as_rows(x, self.d_in, "activations")
        parts = [self._reconstruct(rows[piece]) for piece in self._pieces(len(rows))]
        return _like(torch.cat(parts) if parts else rows.new_zeros(0, self.d_out), x)

    def _reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self._decode(self._encode(x), x)

    def _encode_csr(self, x: torch.Tensor) -> sp.csr_matrix:
        return sp.csr_matrix(self._encode(x).cpu().numpy())

    def _decode_csr(self, features: sp.csr_matrix, x: torch.Tensor | None) -> torch.Tensor:
        return self._decode(torch.from_numpy(features.toarray()).to(self.device), x)

    def check(self, lm: LanguageModel, site: Site | None = None) -> None:
        """Refuse a model, or a site, that this dictionary was not made for.

        Parameters
        ----------
        lm : LanguageModel
        site : Site, optional
            Where activations are about to be read.

        Raises
        ------
        DataMismatch
            If the site, the model's fingerprint, its depth or its width does not fit, or the dictionary is
            known to be of the output of a module (``provenance["module"]``) that is not its site in this model.
        """
        mine = f"model {self.model_name!r}" if self.model_name else "another model"
        if site is not None and site != self.site:
            raise DataMismatch(f"{self} was made at {self.site}; it cannot read activations of {site}")
        if self.model_fingerprint and self.model_fingerprint != lm.fingerprint:
            raise DataMismatch(
                f"{self} was trained on {mine} (fingerprint {self.model_fingerprint[:12]}) at {self.site}; this is "
                f"model {lm.name!r} (fingerprint {lm.fingerprint[:12]})"
            )
        if self.site.layer >= lm.n_layers:
            raise DataMismatch(
                f"{self} was trained on {mine} at {self.site}; model {lm.name!r} has only {lm.n_layers} blocks"
            )
        if self.d_in != lm.d_model:
            raise DataMismatch(
                f"{self} was trained on {mine} with width {self.d_in}; model {lm.name!r} has width {lm.d_model}"
            )
        module = self.provenance.get("module")
        native = lm.module_named(module) if isinstance(module, str) else None
        if native is not None and native is not lm.module_at(self.target_site):
            raise DataMismatch(
                f"{self} was trained on the output of module {module!r}; in model {lm.name!r} that is not "
                f"{self.target_site}, which is what the block adds to the residual stream"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, of architecture, site and weights."""
        digest = hashlib.sha256(f"{self.architecture}\n{self.site}\n{self.d_in} {self.n_features}\n".encode())
        for part in self._identity():
            digest.update(part)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What is written into results: identity, origin and quality."""
        return {
            "architecture": self.architecture,
            "site": self.site.to_dict(),
            "model_name": self.model_name,
            "model_fingerprint": self.model_fingerprint,
            "d_in": self.d_in,
            "n_features": self.n_features,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
            **({"target_site": self.target_site.to_dict()} if self.is_transcoder else {}),
            "provenance": {key: value for key, value in self.provenance.items() if key != "history"},
            "metrics": self.metrics,
        }

    def __repr__(self) -> str:
        return f"dictionary {self.architecture} ({self.n_features:,} features at {self.site})"

    def _as_rows(self, x: torch.Tensor | np.ndarray, width: int, what: str) -> torch.Tensor:
        rows = as_tensor(x).to(self.device, torch.float32)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InvalidInput(f"{what}: expected shape (n, {width}), got {tuple(rows.shape)}")
        if not torch.isfinite(rows.sum()):  # a sum is far cheaper than a mask, and rarely overflows
            bad = torch.nonzero(~torch.isfinite(rows).all(1))
            if len(bad):
                raise InvalidInput(f"{what}: row {int(bad[0])} contains NaN or infinite values")
        return rows.detach()

    def _pieces(self, n_rows: int) -> list[slice]:
        size = min(4096, max(64, MAX_DENSE_VALUES // self.n_features))
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def as_tensor(x: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The same numbers as a tensor; arrays torch does not take as they are (reversed, foreign, read-only) are copied.

    Raises
    ------
    InvalidInput
        If it holds something else than real numbers.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise InvalidInput(f"an array holds {x.dtype} values; expected real numbers")
        x = np.require(x, x.dtype.newbyteorder("=") if x.dtype.itemsize <= 8 else np.float64, ["C", "W"])
    return torch.as_tensor(x)


def _like(result: torch.Tensor, x: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    return result.to(x.device) if isinstance(x, torch.Tensor) else result.cpu().numpy()
