"""Training a TopK SAE and the interactions of its features together.

x̃ (n, d) are normalised activations, z = x̃ − b, a the k largest positive entries of z W_e + c, and

    S = Σ a_i v_i,   B = ½ (S ∘ S − Σ a_i² v_i ∘ v_i)
    x̂ = a W_d + b + B A,   r = x̂ − x̃,   L = ‖r‖² / (n d) + AuxK

All k active features take part in the interactions (top_n = k). Gradients are written out, with products only
where features are active, as in `neurollm.dictionaries.training.learner`; ∘ is by elements:

    G = 2 r / (n d),   ∂A = Bᵀ G,   g = G Aᵀ
    ∂v_i = Σ_tokens a_i (g ∘ S − a_i g ∘ v_i)
    ∂a_i = G · d_i + Σ_k g_k v_ik (S_k − a_i v_ik)

**Where it begins.** A = 0, so the model begins as the SAE alone with the same seed. Over independent v_ik of
standard deviation σ, E B_k² = σ⁴ Σ_{i<j} a_i² a_j²; σ is chosen so that its mean over the first batch is 1. About
orthogonal directions of length 1 give Σ a_i² ≈ d and σ ≈ 1.2 / √d: entries of V are as large as those of
W_d. An A that explains a share p of the variance with K terms has entries of √(p / K), again of that order. Adam's
step is as large as the learning rate whatever the gradient, so V and A need no rate of their own.

**What cannot be said.** a W_d and B A are learned together and only their sum is fitted: the error of a W_d + b is
that of no model, because without B A the decoder would have been another one. Nothing here computes it. What the
interactions bring is the difference to an SAE trained alone, see `neurollm.interactions.joint_comparison`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from neurollm._version import __version__
from neurollm.dictionaries import Plan, TopKSAE, TopKTraining, load_dictionary
from neurollm.dictionaries.kernels import SparseCode, product
from neurollm.dictionaries.normalisation import Normalisation, times
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training.distributed import Group
from neurollm.dictionaries.training.loop import Run, train_runs
from neurollm.dictionaries.training.selected import TopKLearner
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.model import CONFIG_FILE, NFM, REFIT, bi_interaction
from neurollm.random import stream

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

INTERACTIONS = ("paired", "shuffled", "none")
NFM_FOLDER = "nfm"
SMALLEST = 1e-12  # mean of Σ a_i² a_j²: below it no two features are active together


class JointLearner(TopKLearner):
    """Learns a TopK SAE and the interactions of its features.

    Parameters
    ----------
    d_in, n_features, k, training, random_state, group
        See `Learner`.
    rank : int
        Dimensions of an embedding.
    shuffled : bool, default=False
        Take B from the codes of other tokens, as a constant: V and A learn, the code does not learn from B.
    """

    shared = (*TopKLearner.shared, "A")

    def __init__(
        self,
        d_in: int,
        n_features: int,
        k: int,
        training: TopKTraining,
        random_state: int = 0,
        group: Group | None = None,
        *,
        rank: int,
        shuffled: bool = False,
    ) -> None:
        self.rank, self.shuffled = rank, shuffled
        super().__init__(d_in, n_features, k, training, random_state, group)

    def _initial(self) -> dict[str, torch.Tensor]:
        draw = stream(self.random_state, "joint.V").standard_normal((self.n_features, self.rank), dtype=np.float32)
        return {**super()._initial(), "V": torch.from_numpy(draw), "A": torch.zeros(self.rank, self.d_in)}

    def _carried(self) -> dict[str, torch.Tensor]:
        return {"embedding_scale": torch.ones(())}

    def calibrate(self, x: torch.Tensor) -> None:
        """See `Learner.calibrate`; embeddings get the size with which B has a mean square of 1."""
        super().calibrate(x)
        _, acts = self.find(x - self.parameters["b_dec"])
        squares = acts.reshape(len(x), self.k).square()
        pairs = 0.5 * (squares.sum(1).square() - squares.square().sum(1)).mean()
        scale = pairs.clamp_min(SMALLEST) ** -0.25
        self.parameters["V"] *= scale
        self.carried["embedding_scale"].copy_(scale)

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        decoder, embeddings = self.parameters["W_dec"], self.parameters["V"]
        z = x - self.parameters["b_dec"]
        code, acts = self.find(z)
        pairing, values = self.pairing(code, acts)
        total, pooled = bi_interaction(pairing, values, embeddings)
        residual = self._reconstruction(code, acts, pooled).sub_(x)
        self.count(x, residual, code, acts)
        upstream = self.upstream(residual)
        d_pooled = product(upstream, self.parameters["A"].T)
        d_acts = code.dots(upstream, decoder)
        if not self.shuffled:
            d_acts += code.dots(d_pooled * total, embeddings) - acts * code.dots(d_pooled, embeddings.square())
        gradients = self.assemble(code, z, acts, d_acts * (acts > 0), upstream)
        own = pairing.gram(values.square(), d_pooled)
        gradients["V"] = pairing.gram(values, d_pooled * total) - embeddings * own
        gradients["A"] = product(pooled.T, upstream)
        self.add_auxk(gradients, z, -residual)
        return gradients

    def pairing(self, code: SparseCode, acts: torch.Tensor) -> tuple[SparseCode, torch.Tensor]:
        """The code from which B is computed, and its values."""
        if not self.shuffled:
            return code, acts
        others = torch.from_numpy(other_rows(code.n_rows)).to(acts.device)
        columns, values = (part.reshape(-1, self.k)[others] for part in (code.columns, acts))
        return SparseCode.regular(columns, code.n_columns), values.reshape(-1)

    def _reconstruction(self, code: SparseCode, acts: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """x̂ in normalised units."""
        linear = code.decode(acts, self.parameters["W_dec"]).add_(self.parameters["b_dec"])
        return linear.add_(product(pooled, self.parameters["A"]))

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        code, acts = self.find(x - self.parameters["b_dec"])
        pooled = bi_interaction(*self.pairing(code, acts), self.parameters["V"])[1]
        return self._reconstruction(code, acts, pooled) - x

    def _fresh(self, alive: torch.Tensor) -> dict[str, torch.Tensor]:
        draw = stream(self.random_state, "joint.V", int(self.carried["steps"]))
        new = draw.standard_normal((int((~alive).sum()), self.rank), dtype=np.float32)
        scaled = torch.from_numpy(new).to(self.device) * self.carried["embedding_scale"].to(self.device)
        return {**super()._fresh(alive), "V": scaled}

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the dictionary, see `Learner.weights`."""
        return {name: weight for name, weight in super().weights().items() if name not in ("V", "A")}

    def nfm(self, norm: Normalisation, dictionary_fingerprint: str) -> NFM:
        """The interactions between the codes of the folded dictionary, in raw activation units.

        Folding multiplies codes by the raw size u of a normalised unit: with V / u, B stays what it was, and A goes
        the way of the decoder.
        """
        norm = norm.to("cpu")
        embeddings, readout = (self.parameters[name].detach().cpu().double() for name in ("V", "A"))
        weights = {"V": (embeddings / norm.unit).float(), "A": times(readout, norm.inverse).float()}
        model = NFM(weights, self.k, dictionary_fingerprint)
        model.provenance = {
            "made_by": f"neurollm {__version__}, torch {torch.__version__}",
            "interaction": "shuffled" if self.shuffled else "paired",
            "embedding_scale": float(self.carried["embedding_scale"]) / norm.unit,
        }
        return model


def other_rows(n: int) -> np.ndarray:
    """For each of n tokens another one, half of them away.

    In training the tokens of a batch are in random order; of tokens in their order the other one belongs to another
    document unless one fills half of them.
    """
    return (np.arange(n) + n // 2) % n


@dataclass(frozen=True, eq=False)
class JointModel:
    """A dictionary and the interactions of its features, in raw activation units.

    Attributes
    ----------
    sae : TopKSAE
        It gives the code. Its own reconstruction is a summand that was never fitted by itself; only `reconstruct`
        is the model.
    nfm : NFM or None
        Takes the codes of `sae`; None: a dictionary alone.
    """

    sae: TopKSAE
    nfm: NFM | None = None

    def __post_init__(self) -> None:
        if self.nfm is not None:
            self.nfm.check(self.sae)

    @property
    def interaction(self) -> str:
        """``"paired"``, ``"shuffled"`` (interactions are those of another token), or ``"none"``."""
        return "none" if self.nfm is None else self.nfm.provenance.get("interaction", "paired")

    @property
    def n_parameters(self) -> int:
        """Number of weights; a refit of the decoder takes the decoder's place and adds none."""
        weights = dict(self.sae.weights) if self.nfm is None else {**self.sae.weights, **self.nfm.weights}
        return sum(weight.numel() for name, weight in weights.items() if name not in REFIT)

    def __repr__(self) -> str:
        return f"JointModel({self.sae}, k {self.sae.k}, {self.nfm or 'no interactions'})"

    def encode(self, x: torch.Tensor | np.ndarray) -> sp.csr_matrix:
        """The code of raw activations (n, d), scipy CSR (n, n_features)."""
        return self.sae.encode_sparse(x)

    def decode(self, code: sp.csr_matrix) -> torch.Tensor:
        """Raw activations (n, d) of codes (n, n_features).

        After training on shuffled codes the interactions are those of the row half of all rows away.
        """
        linear = torch.from_numpy(self.sae.decode(code))
        if self.nfm is None:
            return linear
        pairing = code[other_rows(code.shape[0])] if self.interaction == "shuffled" else code
        return linear + self.nfm.predict(pairing).cpu()

    def reconstruct(self, x: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        """x̂ of raw activations (n, d), both terms; the same kind as `x` and on its device."""
        found = self.decode(self.encode(x))
        return found.to(x.device) if isinstance(x, torch.Tensor) else found.numpy()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the dictionary into a folder, and the interactions into ``nfm`` in it."""
        if self.nfm is not None:
            self.nfm.save(Path(folder) / NFM_FOLDER)
        self.sae.save(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> JointModel:
        """Inverse of `save`; also reads the folder of a finished training.

        Raises
        ------
        InvalidInput
            If there is no TopK dictionary in the folder.
        DataMismatch
            If files are missing, damaged, or do not belong together.
        """
        folder = Path(folder)
        sae = load_dictionary(folder)
        if not isinstance(sae, TopKSAE):
            raise InvalidInput(
                f"{folder} holds a {sae.architecture!r} dictionary; a joint model has one of class TopKSAE"
            )
        has_nfm = (folder / NFM_FOLDER / CONFIG_FILE).is_file()
        if "joint" in sae.provenance.get("run", {}) and not has_nfm:
            raise DataMismatch(f"{folder}: the interactions are missing: there is no {NFM_FOLDER}/{CONFIG_FILE}")
        return cls(sae, NFM.load(folder / NFM_FOLDER) if has_nfm else None)


class JointRun(Run):
    """A joint training on its way.

    Parameters
    ----------
    store, plan, order, group
        See `Run`.
    rank : int
    interaction : {"paired", "shuffled", "none"}
        ``"none"`` is the training of the dictionary alone, bit for bit.
    """

    def __init__(
        self, store: ActivationStore, plan: Plan, order: int, group: Group, *, rank: int, interaction: str
    ) -> None:
        self.rank, self.interaction = rank, interaction
        super().__init__(store, plan, order, group)
        self.was_finished = self.result is not None

    def _described(self) -> dict[str, Any]:
        return {} if self.interaction == "none" else {"joint": {"rank": self.rank, "interaction": self.interaction}}

    def _new_learner(self, d: int) -> TopKLearner:
        if self.interaction == "none":
            return super()._new_learner(d)
        plan, shuffled = self.plan, self.interaction == "shuffled"
        return JointLearner(
            d, plan.n_features, plan.k, self.training, plan.random_state, self.group, rank=self.rank, shuffled=shuffled
        )

    def _write(self, sae: SAE) -> None:
        self._model(sae).save(self.folder)

    def _model(self, sae: SAE) -> JointModel:
        return JointModel(sae, None if self.interaction == "none" else self.learner.nfm(self.norm, sae.fingerprint))

    def learned(self) -> JointModel:
        """What a finished run has learned."""
        return JointModel.load(self.folder) if self.was_finished else self._model(self.result)


def train_joint(
    store: ActivationStore,
    n_features: int = 4096,
    k: int = 32,
    rank: int = 64,
    n_tokens: int = 5_000_000,
    random_state: int = 0,
    *,
    interaction: str = "paired",
    training: TopKTraining | None = None,
    order: int = 0,
    out: str | os.PathLike | None = None,
    verbose: int = 1,
) -> JointModel:
    """Train a TopK SAE and the interactions of its features on one loss.

    Checkpoints, resuming, dead features, precision and seeds are those of `train_dictionary`: with `out`, a
    training that was interrupted goes on when the same call is made again, and ends with the same files.

    Parameters
    ----------
    store : ActivationStore
    n_features, k, n_tokens, random_state
        See `Plan`. All k active features take part in the interactions.
    rank : int, default=64
        Dimensions of an embedding.
    interaction : {"paired", "shuffled", "none"}
        ``"shuffled"``: interactions of the codes of other tokens, the control with the same parameters and nothing
        to tell; the code does not learn from them. ``"none"``: the dictionary alone, what `train_dictionary` gives.
    training : TopKTraining, optional
    order : int, default=0
        Seed of the order of the data.
    out : path-like, optional
    verbose : int, default=1

    Returns
    -------
    JointModel

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the store contains NaN or infinite values.
    DataMismatch
        If `out` holds another training.
    """
    run = joint_run(
        store,
        Plan(n_features=n_features, k=k, n_tokens=n_tokens, random_state=random_state, training=training, out=out),
        rank,
        interaction,
        order,
    )
    train_runs(store, [run], verbose=verbose)
    return run.learned()


def joint_run(store: ActivationStore, plan: Plan, rank: int, interaction: str, order: int) -> JointRun:
    """A run of a checked plan; see `train_joint`."""
    if interaction not in INTERACTIONS:
        raise InvalidInput(f"interaction {interaction!r} is unknown; use one of {', '.join(INTERACTIONS)}")
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise InvalidInput(f"rank must be a whole number of at least 1, got {rank!r}")
    if interaction != "none" and plan.k < 2:
        raise InvalidInput(f"k is {plan.k}; interactions need at least 2 active features on a token")
    kind = (plan.training or TopKTraining()).normalisation
    if interaction != "none" and kind in ("layer_norm", "unit_norm"):
        raise InvalidInput(
            f"training: normalisation {kind!r} is another for every token, so interactions learned in it cannot be "
            "told in raw units; use mean_square, z_score, whiten or none"
        )
    return JointRun(store, plan, order, Group(), rank=int(rank), interaction=interaction)
