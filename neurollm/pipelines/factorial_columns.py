"""What a factorial study looks at: columns of several representations from one pass of the model, and shuffled labels.

Components of the reconstruction are compared by their squared norm per token, ‖x̂‖², ‖s·W + b‖², ‖g(B)‖², beside that
of the dictionary's error, ‖x − x̂‖², and of what is left of it, ‖x − x̂ − ŷ‖².
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.errors import InvalidInput
from neurollm.interactions.features import FeaturesOfCode
from neurollm.random import stream

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.designs import FactorialDesign
    from neurollm.interactions.model import NFM
    from neurollm.models import LanguageModel, Site

ERROR, REST = "error", "rest"


class ComponentSizes(FeaturesOfCode):
    """Squared norms of the components of the reconstruction, of the dictionary's error, and of what is left of it.

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM

    Attributes
    ----------
    names : tuple of str
        Of the columns: the components that the model has, then ``error`` and ``rest``.
    """

    architecture = "component_sizes"

    def __init__(self, dictionary: Dictionary, nfm: NFM) -> None:
        self.names = ("dictionary", *(("linear",) if nfm.has_refit else ()), "interaction", ERROR, REST)
        super().__init__(dictionary, nfm, len(self.names))

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        code, restored = self.dictionary.encode_sparse(x), self.dictionary.reconstruct(x)
        linear, interaction = self.nfm.linear(code), self.nfm.interaction(self.nfm.interactions(code))
        error = x - restored
        rest = error - (linear + interaction).to(error.device)
        parts = {"dictionary": restored, "linear": linear, "interaction": interaction, ERROR: error, REST: rest}
        return torch.stack([parts[name].square().sum(1).to(self.device) for name in self.names], dim=1)

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        raise InvalidInput("squared norms cannot be decoded")

    def _parameters(self) -> dict[str, Any]:
        return {}


class Stacked(Dictionary):
    """Columns of several dictionaries of one site side by side, so that the model runs once.

    Parameters
    ----------
    parts : mapping from str to Dictionary
    """

    architecture = "stacked"

    def __init__(self, parts: Mapping[str, Dictionary]) -> None:
        first = next(iter(parts.values()))
        self.parts = dict(parts)
        super().__init__(first.site, first.d_in, sum(part.n_features for part in parts.values()))

    @property
    def device(self) -> torch.device:
        """Where the first one is."""
        return next(iter(self.parts.values())).device

    def check(self, lm: LanguageModel, site: Site | None = None) -> None:
        """Refuse a model or a site that one of them was not made for."""
        for part in self.parts.values():
            part.check(lm, site)

    def labels(self) -> tuple[list[str], list[str]]:
        """Of every column: the name of its dictionary, and its own (a number if it has none)."""
        owners, names = [], []
        for name, part in self.parts.items():
            owners += [name] * part.n_features
            names += getattr(part, "names", map(str, range(part.n_features)))
        return owners, names

    def save(self, folder: str | os.PathLike) -> None:
        """There is nothing of its own to save."""
        raise InvalidInput("stacked dictionaries are saved one by one")

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.encode(x).to(x.device) for part in self.parts.values()], dim=1)

    def _encode_csr(self, x: torch.Tensor) -> sp.csr_matrix:
        return sp.csr_matrix(sp.hstack([part.encode_sparse(x) for part in self.parts.values()], format="csr"))

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        raise InvalidInput("stacked dictionaries are decoded one by one")

    def _identity(self) -> list[bytes]:
        return [f"{name} {part.fingerprint}\n".encode() for name, part in self.parts.items()]


def exchange_labels(obs: pd.DataFrame, design: FactorialDesign, seed: int, index: int) -> pd.DataFrame:
    """Labels exchanged as the design allows: shuffling number `index`.

    Where a factor varies within an item, its two levels change places there or do not, by a coin for each item; whole
    items with the same factors within change places with their levels of the others, inside their block.

    Parameters
    ----------
    obs : DataFrame
        One row per trial.
    design : FactorialDesign
        Of two-level factors.
    seed, index : int

    Returns
    -------
    DataFrame
        With other values of the factors.

    Examples
    --------
    >>> import pandas as pd
    >>> from neurollm.designs import FactorialDesign
    >>> cells = [("formal", "sad"), ("formal", "glad"), ("casual", "sad"), ("casual", "glad")]
    >>> obs = pd.DataFrame(cells * 3, columns=["formality", "emotion"]).assign(item=[i // 4 for i in range(12)])
    >>> shuffled = exchange_labels(obs, FactorialDesign(["formality", "emotion"]), seed=0, index=0)
    >>> shuffled.groupby("item")["formality"].value_counts().tolist()
    [2, 2, 2, 2, 2, 2]
    """
    import pandas as pd

    rng = stream(seed, "factorial.shuffled_labels", index)
    items, item = np.unique(design.item_labels(obs), return_inverse=True)
    count, levels = np.bincount(item), design.levels(obs)
    first = {name: (obs[name].astype(str) == names[0]).to_numpy() for name, names in levels.items()}
    share = {name: np.bincount(item, found) / count for name, found in first.items()}
    within = np.stack([(share[name] > 0) & (share[name] < 1) for name in levels], axis=1)
    block = np.zeros(len(items), int)
    if design.blocks is not None:
        block[item] = np.unique(obs[design.blocks].astype(str), return_inverse=True)[1]
    alike = np.unique(np.column_stack([block, within]), axis=0, return_inverse=True)[1].ravel()
    partner = np.empty(len(items), int)
    for group in range(alike.max() + 1):
        members = np.flatnonzero(alike == group)
        partner[members] = rng.permutation(members)
    shuffled = obs.copy()
    for place, (name, (one, two)) in enumerate(levels.items()):
        coin = rng.random(len(items)) < 0.5
        flipped = np.where(within[item, place], first[name] ^ coin[item], share[name][partner[item]] == 1)
        shuffled[name] = pd.Categorical(np.where(flipped, one, two), categories=[one, two])
    return shuffled
