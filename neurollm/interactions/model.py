"""Neural factorization machines: what pairs of active features add.

With the code s of a token, of which the `top_n` largest entries count, and an embedding
v_i of K dimensions for each feature:

    S = Σ s_i v_i,   Q = Σ (s_i v_i) ∘ (s_i v_i)
    B = ½ (S ∘ S − Q) = Σ_{i<j} s_i s_j v_i ∘ v_j
    g(B) = B·A                                              read-out "linear"
    g(B) = B·A + ReLU(B·W1 + b1)·W2 − ReLU(b1)·W2           read-out "mlp"
    ŷ = s·W + b + g(B)

ŷ predicts x − x̂, what a dictionary leaves unexplained, in raw activation units. A token
with fewer than two active features has B = 0 and, because constants belong to b, g(B) = 0
exactly. s·W + b is a refit of the dictionary's decoder: without it, main effects that the
decoder misses would pass for interactions.

There is one forward pass, in this module: training, inspection and interventions use it.

References
----------
Rendle (2010), Factorization Machines, ICDM (B in linear time, Lemma 3.1).
He, Chua (2017), Neural Factorization Machines, SIGIR (bi-interaction pooling, eq. 4).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.kernels import SparseCode
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json
from neurollm.random import stream

if TYPE_CHECKING:
    from neurollm.interactions.rows import CodedRows

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "nfm.json", "nfm_weights.safetensors"
SHAPES = {
    "V": ("F", "K"),
    "A": ("K", "d"),
    "W1": ("K", "H"),
    "b1": ("H",),
    "W2": ("H", "d"),
    "W": ("F", "d"),
    "b": ("d",),
}
MLP, REFIT = ("W1", "b1", "W2"), ("W", "b")

Code: TypeAlias = sp.csr_matrix | tuple[SparseCode, torch.Tensor]


class _Bags(torch.autograd.Function):
    """a · weight for the values of a sparse a; both gradients have only the products that exist."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, code: SparseCode) -> torch.Tensor:
        ctx.code = code
        ctx.save_for_backward(values, weight)
        return code.decode(values, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        values, weight = ctx.saved_tensors
        upstream = upstream.contiguous()
        d_values = ctx.code.dots(upstream, weight) if ctx.needs_input_grad[0] else None
        d_weight = ctx.code.gram(values, upstream) if ctx.needs_input_grad[1] else None
        return d_values, d_weight, None


class _Pairs(torch.autograd.Function):
    """S and B of a code; their gradients written out, in half the time of those that autograd puts together."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, embeddings: torch.Tensor, code: SparseCode
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, pooled = pool(code, (values, values.square()), embeddings, code.counts(values) < 2)
        ctx.code = code
        ctx.save_for_backward(values, embeddings, total)
        return total, pooled

    @staticmethod
    def backward(ctx: Any, d_total: torch.Tensor, d_pooled: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, embeddings, total = ctx.saved_tensors
        code, d_values, d_embeddings = ctx.code, None, None
        d_pooled, upstream = d_pooled.contiguous(), torch.addcmul(d_total, d_pooled, total)
        if ctx.needs_input_grad[0]:
            d_values = code.dots(upstream, embeddings) - values * code.dots(d_pooled, embeddings.square())
        if ctx.needs_input_grad[1]:
            powers = (values, values.square())
            d_embeddings = pool_gradient(code.gram, powers, upstream, d_pooled, embeddings)
        return d_values, d_embeddings, None


def pool(
    code: SparseCode, powers: tuple[torch.Tensor, torch.Tensor], embeddings: torch.Tensor, alone: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """S and B of the introduction, each (n, K).

    `powers` are the values of the code and their squares, `alone` says which tokens have fewer than two features.
    """
    total = code.decode(powers[0], embeddings)
    pooled = torch.addcmul(code.decode(powers[1], embeddings.square()), total, total, value=-1).mul_(-0.5)
    return total, pooled.masked_fill_(alone[:, None], 0.0) if bool(alone.any()) else pooled


def pool_gradient(
    gram: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    powers: tuple[torch.Tensor, torch.Tensor],
    upstream: torch.Tensor,
    d_pooled: torch.Tensor,
    embeddings: torch.Tensor,
) -> torch.Tensor:
    """Gradient with respect to the embeddings, given those with respect to S and B.

    `gram` multiplies the transpose of the matrix with the values it is given. B_k = ½ (S_k² − Σ s_i² v_ik²); a token
    with a single feature has the same S² and Q, and no gradient but rounding.
    """
    return gram(powers[0], upstream).addcmul_(embeddings, gram(powers[1], d_pooled), value=-1)


def bags(code: SparseCode, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of the rows of `weight` (F, K) with the values of a code, differentiable in both; shape (n, K)."""
    return _Bags.apply(values, weight, code)


def bi_interaction(
    code: SparseCode, values: torch.Tensor, embeddings: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """S and B of the introduction, each (n, K), of a code of n tokens; differentiable in values and embeddings.

    Tokens with one active feature get B = 0 exactly, not up to rounding.
    """
    return _Pairs.apply(values, embeddings, code)


class NFM:
    """An interaction model of the features of one dictionary.

    Parameters
    ----------
    weights : dict of Tensor
        ``V`` (F, K) and ``A`` (K, d); for the read-out "mlp" ``W1`` (K, H), ``b1`` (H,), ``W2`` (H, d); for the refit
        of the decoder ``W`` (F, d) and ``b`` (d,).
    top_n : int
        Entries of a code that count.
    dictionary_fingerprint : str
        Of the dictionary whose codes it takes; ``""`` when that is not known.

    Attributes
    ----------
    n_features, rank, d : int
        F, K, d.
    readout : {"linear", "mlp"}
    has_refit : bool
    provenance : dict

    Raises
    ------
    InvalidInput
        If a tensor is missing, too many, not finite, or its shape does not fit.

    Examples
    --------
    >>> nfm = NFM({"V": torch.tensor([[1.0], [2.0], [3.0]]), "A": torch.ones(1, 1)}, top_n=3)
    >>> code = sp.csr_matrix(np.array([[2.0, 5.0, 0.0], [0.0, 0.0, 7.0]]))
    >>> nfm.interactions(code).tolist()  # 2 · 5 · 1 · 2, and nothing for a single feature
    [[20.0], [0.0]]
    """

    def __init__(self, weights: dict[str, torch.Tensor], top_n: int, dictionary_fingerprint: str = "") -> None:
        self.weights, sizes = _checked(weights)
        self.n_features, self.rank, self.d = sizes["F"], sizes["K"], sizes["d"]
        if top_n < 2:
            raise InvalidInput(f"top_n is {top_n}; an interaction needs at least 2 entries of a code")
        self.top_n, self.dictionary_fingerprint = int(top_n), dictionary_fingerprint
        self.provenance: dict[str, Any] = {}

    @property
    def readout(self) -> str:
        """Whether g is linear or has a hidden layer."""
        return "mlp" if "W1" in self.weights else "linear"

    @property
    def has_refit(self) -> bool:
        """Whether the linear component s·W + b is part of the model."""
        return "W" in self.weights

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights["V"].device

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.weights.values())

    def __repr__(self) -> str:
        refit = "with refit" if self.has_refit else "without refit"
        return (
            f"NFM({self.n_features:,} features, rank {self.rank}, read-out {self.readout}, {refit}, top {self.top_n})"
        )

    def truncate(self, code: sp.csr_matrix) -> sp.csr_matrix:
        """The `top_n` entries of each row with the largest absolute values; of equal ones the lower columns."""
        return truncate(code, self.top_n)

    def embed(self, code: Code) -> tuple[torch.Tensor, torch.Tensor]:
        """S and B, each (n, rank).

        Parameters
        ----------
        code : scipy CSR (n, n_features), or a SparseCode with its values (which must have been truncated)
        """
        return bi_interaction(*self.places(code), self.weights["V"])

    def interactions(self, code: Code) -> torch.Tensor:
        """B, shape (n, rank)."""
        return self.embed(code)[1]

    def interaction(self, pooled: torch.Tensor) -> torch.Tensor:
        """g(B), shape (n, d): the interaction component of the reconstruction."""
        return readout(pooled, self.weights)

    def linear(self, code: Code) -> torch.Tensor:
        """s·W + b, shape (n, d): the refit of the decoder on all entries of a code; 0 without one."""
        places, values = self.places(code, truncated=False)
        if not self.has_refit:
            return values.new_zeros(places.n_rows, self.d)
        return bags(places, values, self.weights["W"]) + self.weights["b"]

    def predict(self, code: Code) -> torch.Tensor:
        """ŷ, shape (n, d): what the model says of x − x̂."""
        return self.linear(code) + self.interaction(self.interactions(code))

    def places(self, code: Code, truncated: bool = True) -> tuple[SparseCode, torch.Tensor]:
        """A code as places and values on the model's device.

        Raises
        ------
        InvalidInput
            If it has another number of features.
        """
        if not sp.issparse(code):
            places, values = code
        else:
            code = sp.csr_matrix(code)
            places, values = as_places(self.truncate(code) if truncated else code, self.device)
        if places.n_columns != self.n_features:
            raise InvalidInput(
                f"the code has {places.n_columns} features, the interaction model is of {self.n_features}"
            )
        return places, values

    def check(self, dictionary: Any) -> None:
        """Refuse a dictionary whose codes this model does not know, with DataMismatch."""
        known = self.dictionary_fingerprint and self.dictionary_fingerprint != dictionary.fingerprint
        if known or (self.n_features, self.d) != (dictionary.n_features, dictionary.d_out):
            raise DataMismatch(
                f"{self} was trained on the codes of another dictionary (fingerprint "
                f"{self.dictionary_fingerprint[:12] or 'unknown'}) than {dictionary} ({dictionary.fingerprint[:12]})"
            )

    def saw(self, rows: CodedRows) -> bool:
        """Whether the model was fitted, or chosen, on some document of these rows; False if that is not known."""
        seen = self.provenance.get("documents", {})
        return seen.get("of") == rows.origin and bool(np.isin(rows.documents, seen["ids"]).any())

    def to(self, device: str | torch.device) -> NFM:
        """The same with its weights on another device."""
        other = NFM({k: w.to(device) for k, w in self.weights.items()}, self.top_n, self.dictionary_fingerprint)
        other.provenance = dict(self.provenance)
        return other

    @classmethod
    def random(cls, like: NFM, random_state: int = 0) -> NFM:
        """A model of the same sizes that has learned nothing: the null of every statistic of weights.

        Every tensor is normal with mean 0 and the standard deviation that training begins with, or, where training
        begins with zeros, with the root mean square of the trained one; the refit of the decoder is left out.
        """
        weights = {}
        for name, weight in like.weights.items():
            if name not in REFIT:
                scale = {"V": like.embedding_scale, "W1": like.rank**-0.5}.get(name)
                scale = float(weight.square().mean().sqrt()) if scale is None else scale
                draw = stream(random_state, f"nfm.{name}").standard_normal(tuple(weight.shape), dtype=np.float32)
                weights[name] = torch.from_numpy(draw) * scale
        other = cls(weights, like.top_n, like.dictionary_fingerprint)
        other.provenance = {"control": "random_nfm", "random_state": random_state}
        return other

    @property
    def embedding_scale(self) -> float:
        """Standard deviation of the embeddings before training; without a record of it, their root mean square."""
        known = self.provenance.get("embedding_scale")
        return float(self.weights["V"].square().mean().sqrt()) if known is None else float(known)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of what they belong to."""
        digest = hashlib.sha256(f"{self.top_n} {self.dictionary_fingerprint}\n".encode())
        for name, weight in sorted(self.weights.items()):
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``nfm.json`` and ``nfm_weights.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / WEIGHTS_FILE) as partial:
            save_file({name: weight.cpu().contiguous() for name, weight in self.weights.items()}, partial)
        record = {
            "format_version": FORMAT_VERSION,
            "top_n": self.top_n,
            "dictionary_fingerprint": self.dictionary_fingerprint,
            "weights_sha256": sha256_file(folder / WEIGHTS_FILE),
            "provenance": self.provenance,
        }
        write_json(folder / CONFIG_FILE, record)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> NFM:
        """Inverse of `save`.

        Raises
        ------
        InvalidInput
            If there is no interaction model in the folder.
        DataMismatch
            If its files are damaged or do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise InvalidInput(f"{folder}: there is no interaction model here (no {CONFIG_FILE})")
        try:
            record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            version, sha256 = record["format_version"], record["weights_sha256"]
            top_n, fingerprint = int(record["top_n"]), str(record["dictionary_fingerprint"])
            provenance = dict(record["provenance"])
            weights = load_file(folder / WEIGHTS_FILE)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataMismatch(
                f"{folder}: the interaction model is damaged ({error}); restore it or train again"
            ) from None
        if version != FORMAT_VERSION:
            raise DataMismatch(
                f"{folder / CONFIG_FILE}: format_version is {version!r}; this edition reads {FORMAT_VERSION}"
            )
        if sha256 != sha256_file(folder / WEIGHTS_FILE):
            raise DataMismatch(f"{folder}: {CONFIG_FILE} describes other weights than {WEIGHTS_FILE} beside it")
        try:
            model = cls(weights, top_n, fingerprint)
        except InvalidInput as error:
            raise DataMismatch(f"{folder / CONFIG_FILE}: the interaction model is damaged ({error})") from None
        model.provenance = provenance
        return model


def readout(pooled: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """g(B) of the introduction."""
    out = pooled @ weights["A"]
    return out + hidden_layer(pooled, weights["W1"], weights["b1"]) @ weights["W2"] if "W1" in weights else out


def hidden_layer(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """ReLU(x·W + b) − ReLU(b): 0 for x = 0."""
    return torch.relu(torch.addmm(bias, inputs, weight)) - torch.relu(bias)


def truncate(code: sp.csr_matrix, top_n: int) -> sp.csr_matrix:
    """The `top_n` entries of each row with the largest absolute values; of equal ones the lower columns.

    Parameters
    ----------
    code : scipy CSR, shape (n, F)
    top_n : int
    """
    counts = np.diff(code.indptr)
    if not counts.size or counts.max() <= top_n:
        return code
    rows = np.repeat(np.arange(code.shape[0]), counts)
    order = np.lexsort((code.indices, -np.abs(code.data), rows))
    place = np.arange(len(order)) - np.repeat(code.indptr[:-1], counts)  # in its row, by size
    kept = np.sort(order[place < top_n])
    offsets = np.r_[0, np.cumsum(np.minimum(counts, top_n))]
    return sp.csr_matrix((code.data[kept], code.indices[kept], offsets), shape=code.shape)


def as_places(code: sp.csr_matrix, device: torch.device | str = "cpu") -> tuple[SparseCode, torch.Tensor]:
    """A CSR matrix as places and values."""
    columns = torch.from_numpy(code.indices.astype(np.int64)).to(device)
    offsets = torch.from_numpy(code.indptr.astype(np.int64)).to(device)
    values = torch.from_numpy(np.ascontiguousarray(code.data, dtype=np.float32)).to(device)
    return SparseCode(columns, offsets, code.shape[1]), values


def _checked(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    wanted = {"V", "A"} | {name for group in (MLP, REFIT) for name in group if set(group) & set(weights)}
    for problem, names in (("is missing", wanted - set(weights)), ("does not belong there", set(weights) - wanted)):
        if names:
            raise InvalidInput(f"interaction model: weight {sorted(names)[0]} {problem}")
    checked = {name: torch.as_tensor(weights[name]).detach().float().contiguous() for name in SHAPES if name in weights}
    sizes: dict[str, int] = {}
    for name, tensor in checked.items():
        letters = SHAPES[name]
        known = [sizes.get(letter, size) for letter, size in zip(letters, tensor.shape, strict=False)]
        if tensor.ndim != len(letters) or known != list(tensor.shape) or 0 in tensor.shape:
            raise InvalidInput(
                f"interaction model: {name} has shape {tuple(tensor.shape)}, expected ({', '.join(letters)})"
                + (f" with {', '.join(f'{key} = {value}' for key, value in sizes.items())}" if sizes else "")
            )
        if not torch.isfinite(tensor).all():
            raise InvalidInput(f"interaction model: {name} contains NaN or infinite values")
        sizes.update(zip(letters, tensor.shape, strict=True))
    return checked, sizes
