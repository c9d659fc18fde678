"""Learned non-linear columns of a code: what the steps of the ladder differ in.

    pairs       B(s)                                       K columns
    pairs_mlp   B(s), ReLU(B·W1 + b1) − ReLU(b1)           K + H columns
    code_mlp    ReLU(s·V + b1) − ReLU(b1)                  H columns, for any order of interaction

All are 0 for the empty code, and take the code divided by its root mean squared length, so that one learning rate
suits dictionaries of any unit.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.kernels import SparseCode
from neurollm.interactions.model import as_places, bags, bi_interaction, hidden_layer, truncate
from neurollm.random import stream

KINDS = ("pairs", "pairs_mlp", "code_mlp")
# Of the embeddings at the start. Those of a thousand pairs that mean nothing add up to noise, which with 1 took longer
# to unlearn than the rest to learn.
EMBEDDING_SCALE = 0.1


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

    def places(self, code: sp.csr_matrix) -> tuple[SparseCode, torch.Tensor]:
        """The code as the expansion takes it."""
        code = code if self.kind == "code_mlp" else truncate(code, self.top_n)
        places, values = as_places(code, self.embeddings.device)
        return places, values / self.code_length

    def columns(self, code: sp.csr_matrix) -> torch.Tensor:
        """φ, shape (n, n_columns)."""
        with torch.no_grad():
            return self.forward(*self.places(code), self.embeddings)

    def forward(self, places: SparseCode, values: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """φ of places whose columns number the rows of `embeddings`."""
        if self.kind == "code_mlp":
            b1 = self.weights["b1"]
            return torch.relu(bags(places, values, embeddings) + b1) - torch.relu(b1)
        pooled = bi_interaction(places, values, embeddings)[1]
        if self.kind == "pairs":
            return pooled
        return torch.cat([pooled, hidden_layer(pooled, self.weights["W1"], self.weights["b1"])], dim=1)
