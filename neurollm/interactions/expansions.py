"""Learned non-linear columns of a code: what the steps of the ladder differ in.

    pairs       B(s)                                       K columns
    pairs_mlp   B(s), ReLU(B·W1 + b1) − ReLU(b1)           K + H columns
    code_mlp    ReLU(s·V + b1) − ReLU(b1)                  H columns, for any order of interaction

All are 0 for the empty code, and take the code divided by its root mean squared length, so that one learning rate
suits dictionaries of any unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.kernels import SparseCode
from neurollm.interactions.model import hidden_layer, pool, pool_gradient, truncate
from neurollm.random import stream

KINDS = ("pairs", "pairs_mlp", "code_mlp")
# Of the embeddings at the start. Those of a thousand pairs that mean nothing add up to noise, which with 1 took longer
# to unlearn than the rest to learn.
EMBEDDING_SCALE = 0.1


@dataclass(frozen=True, eq=False)
class ActiveCode:
    """A code in terms of the features that occur in it.

    Attributes
    ----------
    present : LongTensor, shape (c,)
        These features.
    places, powers
        The code, its columns numbering `present`: where it is not zero, and there its values and their squares.
    alone : BoolTensor, shape (n,)
        Tokens with fewer than two features.
    transpose, transpose_powers
        The same feature by feature: a matrix of c rows.
    """

    present: torch.Tensor
    places: SparseCode
    powers: tuple[torch.Tensor, torch.Tensor]
    alone: torch.Tensor
    transpose: SparseCode
    transpose_powers: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, code: sp.csr_matrix, unit: float, device: torch.device | str) -> ActiveCode:
        """Those of a matrix divided by `unit`.

        Made of torch's operations where they take long: they leave Python to the thread that learns.
        """
        code = code.astype(np.float32, copy=False)
        by_feature = code.tocsc()
        present = np.flatnonzero(np.diff(by_feature.indptr))
        number = torch.zeros(code.shape[1], dtype=torch.from_numpy(code.indices).dtype)
        number[present] = torch.arange(len(present), dtype=number.dtype)
        offsets = np.append(by_feature.indptr[present], by_feature.indptr[-1:])
        indices, indptr, data = map(torch.from_numpy, (code.indices, code.indptr, code.data))
        rows = torch.from_numpy(by_feature.indices)
        places = SparseCode(number.index_select(0, indices).to(device), indptr.to(device), len(present))
        values, transposed = ((part / unit).to(device) for part in (data, torch.from_numpy(by_feature.data)))
        return cls(
            torch.from_numpy(present).to(device),
            places,
            (values, values.square()),
            places.counts(values) < 2,
            SparseCode(rows.to(device), torch.from_numpy(offsets).to(device), code.shape[0]),
            (transposed, transposed.square()),
        )


class Expansion:
    """Learned columns of a code.

    Parameters
    ----------
    kind : {"pairs", "pairs_mlp", "code_mlp"}
    sizes : (int, int, int)
        Features F, rank K (of code_mlp its hidden units), hidden units H of pairs_mlp.
    top_n : int
        Entries of a code that enter pairs.
    code_length : float
        Root mean square over tokens of the Euclidean length of a code.
    random_state : int
    device : torch.device

    Attributes
    ----------
    embeddings : Tensor, shape (F, K)
        V. Learned row by row, only where features are active.
    weights : dict of Tensor
        Of the hidden layer.
    """

    def __init__(
        self,
        kind: str,
        sizes: tuple[int, int, int],
        top_n: int,
        code_length: float,
        random_state: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.kind, self.top_n, self.code_length = kind, top_n, code_length
        self.n_features, self.rank, hidden = sizes
        self.hidden = hidden if kind == "pairs_mlp" else 0

        def normal(name: str, *shape: int) -> torch.Tensor:
            draw = stream(random_state, f"nfm.{name}").standard_normal(shape, dtype=np.float32)
            return torch.from_numpy(draw).to(device)

        self.embeddings = normal("V", self.n_features, self.rank) * EMBEDDING_SCALE
        self.weights: dict[str, torch.Tensor] = {}
        if kind == "pairs_mlp":
            self.weights["W1"] = normal("W1", self.rank, hidden) * self.rank**-0.5
        if kind != "pairs":
            self.weights["b1"] = torch.zeros(self.n_columns - (self.rank if self.hidden else 0), device=device)

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return self.rank + self.hidden

    @property
    def n_parameters(self) -> int:
        """Number of learned weights."""
        return self.embeddings.numel() + sum(weight.numel() for weight in self.weights.values())

    def active(self, code: sp.csr_matrix) -> ActiveCode:
        """The code as the expansion takes it, in terms of the features that occur."""
        code = code if self.kind == "code_mlp" else truncate(code, self.top_n)
        return ActiveCode.of(code, self.code_length, self.embeddings.device)

    def columns(self, code: sp.csr_matrix) -> torch.Tensor:
        """φ, shape (n, n_columns)."""
        active = self.active(code)
        embeddings = self.embeddings.index_select(0, active.present)
        with torch.no_grad():
            return self.of_sums(self.sums(active, embeddings)[-1])

    def sums(self, code: ActiveCode, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """S, and B of pairs, given the embeddings of the features present; φ is a function of the last."""
        if self.kind == "code_mlp":
            return (code.places.decode(code.powers[0], embeddings),)
        return pool(code.places, code.powers, embeddings, code.alone)

    def of_sums(self, inputs: torch.Tensor, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """φ of S or B, differentiable in them and in the `weights` (default: those of the expansion)."""
        weights = self.weights if weights is None else weights
        if self.kind == "pairs":
            return inputs
        if self.kind == "code_mlp":
            return torch.relu(inputs + weights["b1"]) - torch.relu(weights["b1"])
        return torch.cat([inputs, hidden_layer(inputs, weights["W1"], weights["b1"])], dim=1)

    def embedding_gradient(
        self, code: ActiveCode, sums: tuple[torch.Tensor, ...], upstream: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """Gradient with respect to the embeddings of the features present, given that of the last of `sums`."""
        if len(sums) == 1:
            return code.transpose.decode(code.transpose_powers[0], upstream)
        return pool_gradient(code.transpose.decode, code.transpose_powers, upstream * sums[0], upstream, embeddings)
