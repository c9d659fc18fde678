"""Features of the interaction space: a sparse dictionary trained on B.

    x → code of the dictionary → B of the interaction model → secondary code

The secondary dictionary is trained on, and later applied to, the very same B: one forward pass, the dictionary's own
code, the model's own `top_n`; centring and scaling of B belong to the SAE. How much it explains says little by itself,
so it stands beside two nulls on held-out documents, each a dictionary trained in the same way:

    shuffled   on B whose columns are permuted independently over the tokens of a batch: the same distribution of
               every dimension, and no structure between dimensions
    random     on the B of an interaction model that has learned nothing: the structure that codes have of themselves

FVU = Σ ‖B − B̂‖² / Σ ‖B − mean‖², the mean being that of the held-out tokens. Shuffling mixes the documents of a batch:
the interval of the shuffled FVU by itself treats rows as belonging to the document whose place they took.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training import train_dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.derived import DerivedStore
from neurollm.interactions.features import SECONDARY, FeaturesOfCode
from neurollm.interactions.model import NFM
from neurollm.interactions.rows import CodedBatch, CodedRows, coded
from neurollm.random import stream
from neurollm.stats.document_bootstrap import METHOD, DocumentBootstrap, Estimate, check_draws

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.activations import ActivationStore
    from neurollm.dictionaries.base import Dictionary
    from neurollm.interactions.simulate import SimulatedCodes

NULLS = ("shuffled", "random")


class SecondaryDictionary(FeaturesOfCode):
    """Sparse features of interaction dimensions; decoding gives g(B̂) in raw activation units.

    Parameters
    ----------
    dictionary : Dictionary
    nfm : NFM
    sae : SAE
        Of B: its `d_in` is the rank of the interaction model.

    Raises
    ------
    DataMismatch
        If they do not belong together.
    """

    architecture = "secondary"

    def __init__(self, dictionary: Dictionary, nfm: NFM, sae: SAE) -> None:
        if sae.d_in != nfm.rank:
            raise DataMismatch(f"the secondary {sae} takes {sae.d_in} dimensions; {nfm} has {nfm.rank}")
        super().__init__(dictionary, nfm, sae.n_features)
        self.sae = sae

    @property
    def directions(self) -> torch.Tensor | None:
        """What a feature of 1 adds, (n_features, d_in); None for a read-out with a hidden layer."""
        if self.nfm.readout == "mlp" or self.sae.directions is None:
            return None
        return self.sae.directions.to(self.device) @ self.nfm.weights["A"]

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.sae.encode(self.interactions(x))

    def _encode_csr(self, x: torch.Tensor) -> sp.csr_matrix:
        return self.sae.encode_sparse(self.interactions(x))

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self.nfm.interaction(self.sae.decode(features))

    def save(self, folder: str | os.PathLike) -> None:
        """Write dictionary, interaction model and SAE; `load_interaction_features` reads them."""
        super().save(folder)
        self.sae.save(Path(folder) / SECONDARY)

    def _parameters(self) -> dict[str, Any]:
        return {"sae": self.sae.fingerprint}


@dataclass(frozen=True, eq=False)
class SecondaryFit:
    """A secondary dictionary and what it explains on held-out documents.

    Attributes
    ----------
    sae : SAE
        Of B.
    dictionary : SecondaryDictionary or None
        None where the codes came from arrays: there is no dictionary to encode activations with.
    fvu : dict of str to Estimate
        Of ``"trained"``, ``"shuffled"`` and ``"random"``, each on its own held-out B.
    gain : dict of str to Estimate
        FVU of each null less that of the trained: positive where B has structure that the null has not.
    l0 : dict of str to float
        Active features per token.
    dead : dict of str to float
        Share of features that no held-out token activates.
    n_documents, n_tokens : int
        Held out.
    n_boot : int
    """

    sae: SAE
    dictionary: SecondaryDictionary | None
    fvu: dict[str, Estimate]
    gain: dict[str, Estimate]
    l0: dict[str, float]
    dead: dict[str, float]
    n_documents: int
    n_tokens: int
    n_boot: int

    def to_frame(self) -> pd.DataFrame:
        """One row for the trained model and each null."""
        import pandas as pd

        records = []
        for name, fvu in self.fvu.items():
            record = {"model": name, "fvu": fvu.value, "fvu_low": fvu.low, "fvu_high": fvu.high}
            gain = self.gain.get(name, Estimate(float("nan")))
            record |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high, "p": gain.p}
            records.append(record | {"l0": self.l0[name], "dead": self.dead[name]})
        return pd.DataFrame.from_records(records)

    def verdict(self) -> str:
        """One sentence."""
        own, told = self.fvu["trained"].value, []
        for name, what in (("shuffled", "shuffled columns"), ("random", "a random interaction model")):
            gain = self.gain[name]
            interval = f"difference {gain.value:.3g}, 95 % CI {gain.low:.3g} to {gain.high:.3g}"
            told.append(f"{self.fvu[name].value:.3g} for {what} ({interval})")
        return (
            f"{self.sae.n_features} secondary features, {self.l0['trained']:.3g} active per token, leave {own:.3g} of "
            f"the variance of B unexplained on {self.n_documents} held-out documents, against {' and '.join(told)}; "
            f"{METHOD}, {self.n_boot} draws."
        )


def train_secondary(
    nfm: NFM,
    store: ActivationStore | CodedRows | SimulatedCodes,
    dictionary: Dictionary | None = None,
    n_features: int = 512,
    k: int = 8,
    n_tokens: int = 1_000_000,
    *,
    held_out: float = 0.2,
    n_boot: int = 999,
    random_state: int = 0,
    out: str | os.PathLike | None = None,
    verbose: int = 1,
    **plan: Any,
) -> SecondaryFit:
    """Train a TopK dictionary on B, and the same on two nulls.

    Parameters
    ----------
    nfm : NFM
    store : ActivationStore, CodedRows or SimulatedCodes
        An ActivationStore needs its `dictionary`.
    dictionary : Dictionary, optional
    n_features, k, n_tokens : int
        Of the secondary dictionary; tokens may be seen more than once.
    held_out : float, default=0.2
        Share of the documents on which it is measured.
    n_boot : int, default=999
    random_state : int, default=0
    out : path-like, optional
        Folder of the three trainings, which are then resumable: ``trained``, ``shuffled``, ``random``.
    verbose : int, default=1
    **plan
        ``training``: see `neurollm.dictionaries.train_dictionary`.

    Returns
    -------
    SecondaryFit

    Raises
    ------
    InvalidInput
        If an argument is out of range, there are fewer than two documents on a side, or B does not vary.
    DataMismatch
        If model, dictionary and data do not belong together.
    """
    check_draws(n_boot, "train_secondary: ")
    rows = coded(store, dictionary)
    if (nfm.n_features, nfm.d) != (rows.n_features, rows.d):
        raise DataMismatch(f"{nfm} with {nfm.d} dimensions does not belong to {rows}, {rows.n_features} features")
    dictionary = rows.dictionary
    if dictionary is not None:
        nfm.check(dictionary)
    sides = _sides(rows, held_out, random_state)
    models = {"trained": nfm, "shuffled": nfm, "random": NFM.random(nfm, random_state)}
    saes, sums = {}, {}
    for name, model in models.items():
        pooled = pooled_rows(model, random_state if name == "shuffled" else None)
        label = f"{name} B of {model.fingerprint}, {random_state}"
        fit, test = (DerivedStore(side, pooled, nfm.rank, label) for side in sides)
        folder = None if out is None else Path(out) / name
        saes[name] = train_dictionary(
            fit, "topk", n_features, k, n_tokens, random_state, out=folder, verbose=verbose, **plan
        )
        sums[name] = _measure(saes[name], test)
    bootstrap = DocumentBootstrap(len(sums["trained"].error), n_boot, random_state)
    fvu = {name: bootstrap.estimate([one.error], [one.total]) for name, one in sums.items()}
    own = sums["trained"]
    gain = {
        name: bootstrap.estimate([sums[name].error, own.error], [sums[name].total, own.total], signs=(1, -1))
        for name in NULLS
    }
    return SecondaryFit(
        sae=saes["trained"],
        dictionary=None if dictionary is None else SecondaryDictionary(dictionary, nfm, saes["trained"]),
        fvu=fvu,
        gain=gain,
        l0={name: one.l0 for name, one in sums.items()},
        dead={name: one.dead for name, one in sums.items()},
        n_documents=len(own.error),
        n_tokens=sides[1].n_rows,
        n_boot=n_boot,
    )


def pooled_rows(nfm: NFM, shuffle: int | None = None) -> Callable[[CodedBatch], torch.Tensor]:
    """B of a batch; with `shuffle`, a seed, every column permuted by itself over the batch."""

    def pooled(batch: CodedBatch) -> torch.Tensor:
        values = nfm.interactions(batch.code).cpu()
        if shuffle is None:
            return values
        # Rows differ from batch to batch, and so do the permutations; the same batch is always permuted alike.
        draw = stream(shuffle, "secondary.shuffled", int(batch.rows[0])).random(values.shape)
        return values.gather(0, torch.from_numpy(np.argsort(draw, axis=0)))

    return pooled


@dataclass(frozen=True)
class _Sums:
    """Squares of each document, and the use of features."""

    error: np.ndarray
    total: np.ndarray
    l0: float
    dead: float


def _sides(rows: CodedRows, held_out: float, random_state: int) -> tuple[CodedRows, CodedRows]:
    """Rows to train on and rows of other documents."""
    names = np.unique(rows.documents)
    number = round(held_out * len(names))
    if not 2 <= number <= len(names) - 2:
        raise InvalidInput(
            f"held_out {held_out} of {len(names)} documents is {number}; at least 2 documents are needed on each side"
        )
    names = stream(random_state, "secondary.held_out").permutation(names)
    test = np.isin(rows.documents, names[:number])
    return rows.subset(~test), rows.subset(test)


def _measure(sae: SAE, store: DerivedStore) -> _Sums:
    documents, index = np.unique(store.documents, return_inverse=True)
    error, total = np.zeros(len(documents)), np.zeros(len(documents))
    active, mean, start = np.zeros(sae.n_features), torch.from_numpy(store.mean), 0
    while start < store.n_rows:
        values = store.rows(start, min(start + 8192, store.n_rows))
        codes = sae.encode_sparse(values)
        rest = values - torch.from_numpy(sae.decode(codes, values))
        here = index[start : start + len(values)]
        error += np.bincount(here, rest.double().square().sum(1).numpy(), len(documents))
        total += np.bincount(here, (values.double() - mean).square().sum(1).numpy(), len(documents))
        active += codes.getnnz(axis=0)
        start += len(values)
    return _Sums(error, total, float(active.sum() / store.n_rows), float((active == 0).mean()))
