"""Partners of a feature: what an interaction model says that two features do together.

For features i and j, and the tokens on which both are among the `top_n` entries that count:

    H_ij = ‖ E[ ŷ(s) − ŷ(s∖i) − ŷ(s∖j) + ŷ(s∖ij) ] ‖

s∖i is the code without feature i; the code is cut to `top_n` entries first, so that no other entry moves up. What the
linear component says cancels, and of B remains s_i s_j v_i∘v_j: with a linear read-out H_ij is
E[s_i s_j] ‖(v_i∘v_j) A‖. For a read-out with a hidden layer the four codes go through it.

B∖j = B − s_j v_j ∘ (S − s_j v_j) gives the code without j of every token and every j from one pass.

H is a norm and therefore biased upwards. With D_t the vector of document t's summed differences and n_t its tokens,

    U_ij = Σ_{t≠u} D_t · D_u / Σ_{t≠u} n_t n_u

estimates H² without it, since different documents have independent errors. Documents are drawn anew for its interval,
pairs of a document with itself left out; with about 30 documents, and for the strongest six of 30 candidates, the
interval held the truth in 89 % of 360 simulated cases.

Null: the embeddings are permuted over the features in use, which leaves co-activation, values and the set of embeddings
as they are. The largest H over all candidates of each permutation gives family-wise p-values. A table of random
embeddings names a strongest partner of every feature too; there these p-values are uniform. They compare with features
in general: where a share f of all features has partners as strong, p is about f and not smaller.

H says what the model does, learned or noise. Whether it is so in the data, documents that the model was not trained on
can tell: with e = x − x̂ − ŷ and Δ the joint effect of i and j on a token,

    gain = 1 − Σ ‖e‖² / Σ ‖e + Δ‖²

over the tokens with both is the share of the error there that the joint effect takes away.

References
----------
Rendle (2010), Factorization Machines, ICDM. Phipson, Smyth (2010), Permutation p-values should never be zero, SAGMB.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.model import NFM, as_places, bi_interaction, hidden_layer
from neurollm.interactions.rows import CodedRows, coded
from neurollm.interactions.simulate import SimulatedCodes
from neurollm.interactions.training import check_counts
from neurollm.random import stream
from neurollm.stats.document_bootstrap import DocumentBootstrap, Estimate
from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.activations import ActivationStore
    from neurollm.dictionaries.base import Dictionary

BATCH = 4096
CHUNK_VALUES = 2**22  # numbers of one array of (token, partner) places


@dataclass(frozen=True, eq=False)
class PartnerTable:
    """The strongest partners of one feature, strongest first.

    Attributes
    ----------
    feature : int
    partner : ndarray of int, shape (n,)
    h : ndarray of float, shape (n,)
        H, in raw activation units.
    h_unbiased : ndarray of float, shape (n,)
        Root of U with its sign: negative where documents contradict each other.
    ci_low, ci_high : ndarray of float, shape (n,)
        95 % interval of `h_unbiased`, over documents.
    n_tokens, n_documents : ndarray of int, shape (n,)
        On and in which both are active.
    p, p_fwer : ndarray of float, shape (n,)
        Of permuted embeddings: of this candidate, and of the largest of all candidates.
    gain, gain_low, gain_high : ndarray of float, shape (n,)
        Share of the error on tokens with both that their joint effect takes away, and its 95 % interval over documents.
        On documents of the training it says little; see `seen`.
    h_random : ndarray of float, shape (n,)
        H in a model that has learned nothing.
    ranks : ndarray of int, shape (n, number of other models)
        Place of the partner among the candidates in each, 1 for the strongest.
    null_max : ndarray of float, shape (n_perm,)
        Largest H of each permutation.
    n_candidates, n_significant : int
        Features active together with it often enough, and how many of them have ``p_fwer <= alpha``.
    error_rms : float
        Root mean square of the norm of x − x̂.
    top : int
        Partners asked for, and the place up to which one counts as found again by another model.
    alpha : float
    seen : bool
        Whether the model was trained, or chosen, on some of the documents.
    """

    feature: int
    partner: np.ndarray
    h: np.ndarray
    h_unbiased: np.ndarray = field(repr=False)
    ci_low: np.ndarray = field(repr=False)
    ci_high: np.ndarray = field(repr=False)
    n_tokens: np.ndarray = field(repr=False)
    n_documents: np.ndarray = field(repr=False)
    p: np.ndarray = field(repr=False)
    p_fwer: np.ndarray
    gain: np.ndarray = field(repr=False)
    gain_low: np.ndarray = field(repr=False)
    gain_high: np.ndarray = field(repr=False)
    h_random: np.ndarray = field(repr=False)
    ranks: np.ndarray = field(repr=False)
    null_max: np.ndarray = field(repr=False)
    n_candidates: int
    n_significant: int
    error_rms: float
    top: int
    alpha: float
    seen: bool = False

    @property
    def replicated(self) -> np.ndarray:
        """Share of the other models that have the partner among their strongest `top`; NaN without others."""
        if not self.ranks.shape[1]:
            return np.full(len(self.partner), np.nan)
        return (self.ranks <= self.top).mean(1)

    def to_frame(self) -> pd.DataFrame:
        """One row for each partner; ``h_relative`` is H in units of `error_rms`."""
        import pandas as pd

        columns = ("partner", "h", "h_unbiased", "ci_low", "ci_high", "n_tokens", "n_documents", "p", "p_fwer")
        columns += ("gain", "gain_low", "gain_high", "h_random", "replicated")
        frame = pd.DataFrame({name: getattr(self, name) for name in columns})
        frame.insert(0, "feature", self.feature)
        frame.insert(3, "h_relative", self.h / self.error_rms)
        return frame

    def verdict(self) -> str:
        """The result: what stands out of the null, the strongest partner, and the one with the largest gain."""
        if not len(self.partner):
            return f"Feature {self.feature} is active with no other feature often enough to look for partners."
        lines = [self._strongest(), *self._largest_gain()] if self.h[0] else []
        if not lines:
            lines = [f"In this model feature {self.feature} interacts with none of {self.n_candidates} candidates."]
        elif self.n_significant < self.n_candidates:
            lines.append(
                "A partner can be hidden: where many features interact, permuted embeddings interact strongly too."
            )
        if self.seen:
            lines.append("Measured on documents that the model was trained on: gain and rank are optimistic.")
        return " ".join(lines)

    def _strongest(self) -> str:
        found = ""
        if self.ranks.shape[1]:
            again = np.sum(self.ranks[0] <= self.top)
            found = f"; {again} of {self.ranks.shape[1]} other models have it in their top {self.top}"
        share = 100 * self.h[0] / self.error_rms
        return (
            f"Of {self.n_candidates} candidates for feature {self.feature} {self.n_significant} stand out from "
            f"permuted embeddings at a family-wise {self.alpha:g} ({len(self.null_max)} permutations); the strongest "
            f"is feature {self.partner[0]} with H {self.h[0]:.3g}, {share:.2g} % of the error's norm (without bias "
            f"{self.h_unbiased[0]:.3g}, 95 % CI {self.ci_low[0]:.3g} to {self.ci_high[0]:.3g} over "
            f"{self.n_documents[0]} documents, p = {self.p_fwer[0]:.3g}, {self.h_random[0]:.3g} in a random model), "
            f"which takes {self._gain_of(0)} of the error away{found}."
        )

    def _largest_gain(self) -> list[str]:
        """The partner with the largest gain whose interval is above 0, if any."""
        confirmed = np.flatnonzero(np.nan_to_num(self.gain_low, nan=-1.0) > 0)
        if not len(confirmed):
            return []
        best = confirmed[np.argmax(self.gain[confirmed])]
        return [
            f"Of the {len(self.partner)} in the table feature {self.partner[best]} takes most of the error away: "
            f"{self._gain_of(best)}, not corrected for choosing it, with H {self.h[best]:.3g}, p = "
            f"{self.p_fwer[best]:.3g}."
        ]

    def _gain_of(self, place: int) -> str:
        gain, low, high = (100 * limit[place] for limit in (self.gain, self.gain_low, self.gain_high))
        return f"{gain:.2g} % (95 % CI {low:.2g} to {high:.2g})"


def interaction_partners(
    nfm: NFM,
    store: ActivationStore | CodedRows | SimulatedCodes,
    feature: int,
    dictionary: Dictionary | None = None,
    *,
    top: int = 10,
    min_coactive: int = 20,
    max_tokens: int = 20_000,
    n_perm: int = 199,
    n_boot: int = 999,
    others: Sequence[NFM] = (),
    alpha: float = 0.05,
    random_state: int = 0,
) -> PartnerTable:
    """Features that act together with one feature, in the eyes of an interaction model.

    Parameters
    ----------
    nfm : NFM
    store : ActivationStore, CodedRows or SimulatedCodes
        Better of documents the model was not trained on. An ActivationStore needs its `dictionary`.
    feature : int
    dictionary : Dictionary, optional
    top : int, default=10
        Partners in the table.
    min_coactive : int, default=20
        Tokens on which a candidate must be active together with `feature`; and on which a feature must be active for
        its embedding to take part in permutations.
    max_tokens : int, default=20000
        Tokens with `feature` to look at, drawn at random where there are more.
    n_perm : int, default=199
        19 or more, and 1 / alpha − 1 or more. With a hidden layer every permutation costs as much as all of H.
    n_boot : int, default=999
        100 or more.
    others : sequence of NFM
        Models of other training seeds, for replication.
    alpha : float, default=0.05
    random_state : int, default=0

    Returns
    -------
    PartnerTable

    Raises
    ------
    InvalidInput
        If the feature does not exist or a number is out of range.
    DataMismatch
        If the models and the data do not belong together.

    Examples
    --------
    >>> from neurollm.interactions.simulate import simulate_codes
    >>> V = torch.full((40, 1), 0.01)
    >>> V[:2] = 1
    >>> nfm = NFM({"V": V, "A": torch.ones(1, 8)}, top_n=20)
    >>> data = simulate_codes(2000, 40, 5, 8, pairs=1)
    >>> int(interaction_partners(nfm, data, 0, n_perm=19).partner[0])
    1
    """
    check_counts(top=top, min_coactive=min_coactive, max_tokens=max_tokens)
    check_counts(19, n_perm=n_perm)
    check_counts(100, n_boot=n_boot)
    check_counts(0, random_state=random_state)
    _check_alpha(alpha, n_perm)
    rows = store.rows if isinstance(store, SimulatedCodes) else coded(store, dictionary)
    _check(nfm, rows, feature, others)
    seen = nfm.saw(rows)
    nfm, *others = [model.to("cpu") for model in (nfm, *others)]
    scan = _Scan(rows, nfm, feature, max_tokens, min_coactive, random_state)
    places = _Places(scan)
    h = places.norms(nfm)
    order = np.argsort(-h, kind="stable")[:top]
    null = _null(places, nfm, scan.in_use, n_perm, random_state)
    null_max = null.max(1, initial=0.0) if len(h) else np.full(n_perm, np.nan)
    p = (1 + (null >= h).sum(0)) / (n_perm + 1)
    p_fwer = (1 + (null_max[:, None] >= h).sum(0)) / (n_perm + 1)
    unbiased, low, high = _over_documents(places, nfm, order, n_boot, random_state)
    gain = [_gain(places.only(one), nfm, n_boot, random_state) for one in order]
    ranks = [1 + (other[None, :] > other[order, None]).sum(1) for other in (places.norms(model) for model in others)]
    return PartnerTable(
        feature=int(feature),
        partner=places.candidates[order],
        h=h[order],
        h_unbiased=unbiased,
        ci_low=low,
        ci_high=high,
        n_tokens=places.n_tokens[order],
        n_documents=places.n_documents[order],
        p=p[order],
        p_fwer=p_fwer[order],
        gain=np.array([one.value for one in gain]),
        gain_low=np.array([one.low for one in gain]),
        gain_high=np.array([one.high for one in gain]),
        h_random=places.norms(NFM.random(nfm, random_state))[order],
        ranks=np.stack(ranks, axis=1) if ranks else np.zeros((len(order), 0), np.int64),
        null_max=null_max,
        n_candidates=len(h),
        n_significant=int((p_fwer <= alpha).sum()),
        error_rms=scan.error_rms,
        top=top,
        alpha=alpha,
        seen=seen,
    )


class _Scan:
    """The tokens on which a feature counts: the part of their codes that does, and what the model leaves of them."""

    def __init__(
        self, rows: CodedRows, nfm: NFM, feature: int, max_tokens: int, min_active: int, random_state: int
    ) -> None:
        found, seen, squared = [], 0, 0.0
        active, wanted = np.zeros(rows.n_features, np.int64), max_tokens
        for batch in rows.batches(BATCH, random_state, prefetch=False):
            active += np.bincount(batch.code.indices, minlength=rows.n_features)
            squared += float(batch.error.double().square().sum())
            seen += len(batch.rows)
            having = np.flatnonzero(batch.code[:, [feature]].toarray()[:, 0])
            whole = batch.code[having]
            code = nfm.truncate(whole)
            kept = np.flatnonzero(code[:, [feature]].toarray()[:, 0])[:wanted]
            left = batch.error[having[kept]] - nfm.predict(whole[kept])
            found.append((batch.rows[having[kept]], code[kept], left))
            wanted -= len(kept)
            if not wanted:
                break
        number = np.concatenate([part[0] for part in found])
        order = np.argsort(number)
        self.feature, self.min_active = feature, min_active
        self.code = sp.vstack([part[1] for part in found], format="csr")[order]
        self.left = torch.cat([part[2] for part in found])[torch.from_numpy(order)]
        self.documents = rows.documents[np.searchsorted(rows.rows, number[order])]
        self.in_use = np.flatnonzero(active >= min_active)
        self.error_rms = float(np.sqrt(squared / seen))


class _Places:
    """All (token, candidate) places: the candidate j is active together with the feature i on the token."""

    def __init__(self, scan: _Scan) -> None:
        code = scan.code
        counts = np.bincount(code.indices, minlength=code.shape[1])
        counts[scan.feature] = 0
        self.code, self.feature, self.left = code, scan.feature, scan.left
        self.candidates = np.flatnonzero(counts >= scan.min_active)
        place = np.full(code.shape[1], -1)
        place[self.candidates] = np.arange(len(self.candidates))
        rows = np.repeat(np.arange(code.shape[0]), np.diff(code.indptr))
        kept = place[code.indices] >= 0
        self.token, self.candidate, self.value = rows[kept], place[code.indices[kept]], code.data[kept]
        self.own = code[:, [scan.feature]].toarray()[:, 0]  # s_i
        self.n_tokens = counts[self.candidates]
        self.document_names, documents = np.unique(scan.documents, return_inverse=True)
        self.document = documents[self.token]
        self.n_documents = np.bincount(
            np.unique(self.document * len(place) + self.candidate) % len(place), minlength=len(self.candidates)
        )

    def only(self, candidate: int) -> _Places:
        """The places of one candidate."""
        other, kept = copy.copy(self), self.candidate == candidate
        tokens = self.token[kept]
        other.candidates = self.candidates[[candidate]]
        other.code, other.own, other.token = self.code[tokens], self.own[tokens], np.arange(len(tokens))
        other.candidate, other.value = np.zeros(len(tokens), np.int64), self.value[kept]
        other.document, other.left = self.document[kept], self.left[torch.from_numpy(tokens)]
        return other

    def norms(self, nfm: NFM) -> np.ndarray:
        """H of every candidate."""
        return np.linalg.norm(self.sums(nfm, self.candidate, self.n_tokens) @ _shape(nfm), axis=1)

    def sums(self, nfm: NFM, group: np.ndarray, divisor: np.ndarray) -> np.ndarray:
        """Sums of the joint effects over groups of places, divided; shape (groups, K or K + H), see `_shape`."""
        # What is left of B needs no forward pass: s_i s_j v_i∘v_j, whatever else is active.
        embeddings = nfm.weights["V"].double().numpy()
        together = embeddings[self.candidates] * embeddings[self.feature]
        products = self.own[self.token].astype(float) * self.value
        shape = (len(divisor), len(self.candidates))
        parts = [sp.csr_matrix((products, (group, self.candidate)), shape=shape) @ together]
        if nfm.readout == "mlp":
            hidden = np.zeros((len(divisor), nfm.weights["W1"].shape[1]))
            for part, differences in self._hidden(nfm):
                size = part.stop - part.start
                sums = sp.csr_matrix((np.ones(size), (group[part], np.arange(size))), shape=(len(divisor), size))
                hidden += sums @ differences.double().numpy()
            parts.append(hidden)
        return np.hstack(parts) / divisor[:, None]

    def _hidden(self, nfm: NFM) -> Iterator[tuple[slice, torch.Tensor]]:
        """Joint effects in the hidden layer, for runs of places."""
        embeddings, layer = nfm.weights["V"], (nfm.weights["W1"], nfm.weights["b1"])
        size = max(1, CHUNK_VALUES // max(layer[0].shape))
        edges = np.searchsorted(self.token, np.arange(0, self.code.shape[0] + 1))
        start = 0
        while start < self.code.shape[0]:
            # As many whole tokens as fit, one at least.
            stop = max(start + 1, int(np.searchsorted(edges, edges[start] + size, side="right")) - 1)
            part = slice(int(edges[start]), int(edges[stop]))
            total, pooled = bi_interaction(*as_places(self.code[start:stop]), embeddings)
            token = torch.from_numpy(self.token[part] - start)
            i = torch.from_numpy(self.own[start:stop])[:, None] * embeddings[self.feature]
            j = torch.from_numpy(self.value[part])[:, None] * embeddings[self.candidates[self.candidate[part]]]
            less_i = pooled - i * (total - i)
            less_j = pooled[token] - j * (total[token] - j)
            less_both = less_i[token] - j * (total[token] - i[token] - j)
            whole = hidden_layer(pooled, *layer) - hidden_layer(less_i, *layer)
            yield part, whole[token] - hidden_layer(less_j, *layer) + hidden_layer(less_both, *layer)
            start = stop


def _shape(nfm: NFM) -> np.ndarray:
    """R such that ‖v R‖ is the norm of v (A over W2): at most as many columns as v has entries."""
    return np.linalg.qr(_outward(nfm).T, mode="r").T


def _outward(nfm: NFM) -> np.ndarray:
    """A over W2, shape (K or K + H, d)."""
    return np.vstack([nfm.weights[name].double().numpy() for name in ("A", "W2") if name in nfm.weights])


def _null(places: _Places, nfm: NFM, in_use: np.ndarray, n_perm: int, random_state: int) -> np.ndarray:
    """H of every candidate with embeddings permuted over the features in use, shape (n_perm, candidates)."""
    null = np.empty((n_perm, len(places.candidates)))
    embeddings = nfm.weights["V"]
    for index in range(n_perm if null.size else 0):
        permuted = embeddings.clone()
        permuted[in_use] = embeddings[stream(random_state, "partners.permutation", index).permutation(in_use)]
        null[index] = places.norms(NFM({**nfm.weights, "V": permuted}, nfm.top_n))
    return null


def _over_documents(
    places: _Places, nfm: NFM, chosen: np.ndarray, n_boot: int, random_state: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed root of U of some candidates, and the limits of its 95 % interval."""
    n_documents = len(places.document_names)
    draw = stream(random_state, "partners.bootstrap")
    weights = draw.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_boot).astype(np.float32)
    weights = np.vstack([np.ones(n_documents, np.float32), weights])
    shape = _shape(nfm)
    figures = np.full((3, len(chosen)), np.nan)
    for place, candidate in enumerate(chosen):
        one = places.only(candidate)
        documents, group, counts = np.unique(one.document, return_inverse=True, return_counts=True)
        sums = one.sums(nfm, group, np.ones(len(documents))) @ shape
        some = weights[:, documents].astype(float)
        tokens = np.square(some @ counts) - np.square(some) @ np.square(counts)
        products = np.square(some @ sums).sum(1) - np.square(some) @ np.square(sums).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):  # one document has no pairs
            u = np.where(tokens > 0, products / tokens, np.nan)
        roots = np.sign(u) * np.sqrt(np.abs(u))
        figures[0, place] = roots[0]
        if np.isfinite(roots[1:]).mean() > 0.95:
            figures[1:, place] = np.nanquantile(roots[1:], [0.025, 0.975])
    return tuple(figures)


def _gain(one: _Places, nfm: NFM, n_boot: int, random_state: int) -> Estimate:
    """Share of the error on the tokens of one candidate that the joint effect takes away."""
    tokens = len(one.token)
    joint = one.sums(nfm, np.arange(tokens), np.ones(tokens)) @ _outward(nfm)
    left = one.left.double().numpy()
    without = np.square(left + joint).sum(1)
    taken = without - np.square(left).sum(1)
    documents, index = np.unique(one.document, return_inverse=True)
    sums = [np.bincount(index, values) for values in (taken, without)]
    return DocumentBootstrap(len(documents), n_boot, random_state).estimate([sums[0]], [sums[1]])


def _check_alpha(alpha: float, n_perm: int) -> None:
    if not isinstance(alpha, float | np.floating) or not 0 < alpha < 1:
        raise InvalidInput(f"alpha must be above 0 and below 1, got {shown(alpha)}")
    if 1 / (n_perm + 1) > alpha:
        raise InvalidInput(
            f"n_perm is {n_perm}: no p can be {alpha:g} or below; give at least {int(np.ceil(1 / alpha)) - 1}"
        )


def _check(nfm: NFM, rows: CodedRows, feature: int, others: Sequence[NFM]) -> None:
    whole = isinstance(feature, int | np.integer) and not isinstance(feature, bool)
    if not whole or not 0 <= feature < nfm.n_features:
        raise InvalidInput(f"feature is {shown(feature)}; {nfm} has features 0 to {nfm.n_features - 1}")
    for model in (nfm, *others):
        if rows.dictionary is not None:
            model.check(rows.dictionary)
        if (model.n_features, model.d, model.top_n) != (rows.n_features, rows.d, nfm.top_n):
            raise DataMismatch(
                f"{model} with {model.d} dimensions does not belong to {nfm} and codes of {rows.n_features} "
                f"features and {rows.d} dimensions"
            )
