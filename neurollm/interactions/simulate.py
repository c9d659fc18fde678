"""Sparse codes and activations with known interactions.

    x = b + Σ s_i w_i + Σ_pairs c (s_i s_j)⊥ u_ij + Σ_triples c (s_i s_j s_k)⊥ u_ijk + noise

⊥ is what is left of a product after the least-squares fit, on the sample, of everything of lower order: of all
features and a constant for a pair, of these and the three pairs inside for a triple. Lower orders therefore hold
nothing of a planted effect: additive truth is exactly additive, third-order truth has no pairs in it, and a pair is
exactly what a model of pairs with a refit decoder can learn, since (s_i s_j)⊥ = s_i s_j − Σ β_f s_f − constant.

Tokens are not independent: features come in groups that documents prefer, documents differ in how often a planted
set is active, and part of the noise is one draw for each document.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from neurollm.errors import InvalidInput
from neurollm.interactions.rows import CodedRows
from neurollm.random import stream

BLOCK = 4096  # tokens whose active features are drawn at once
GROUP = 10  # features that documents prefer together
DOCUMENT_SPREAD = 1.0  # standard deviation of a document's log preference for a group
VALUE_SPREAD = 0.5  # standard deviation of the log of a value
KINDS = ("product", "threshold", "gaussian")

Effects = int | Sequence[tuple]


@dataclass(frozen=True, eq=False)
class SimulatedCodes:
    """Codes, activations and what was planted in them.

    Attributes
    ----------
    codes : scipy.sparse.csr_matrix of float32, shape (n, n_features)
    activations : ndarray of float32, shape (n, d)
    documents, positions : ndarray of int, shape (n,)
    reconstruction : ndarray of float32, shape (n_features + 1, d)
        The dictionary: decoder directions and, last, the bias, as `CodedRows.from_arrays` takes them.
    pairs : tuple of (i, j, share)
        Planted pairs with their share of the total variance.
    triples : tuple of (i, j, k, share)
    truth : dict of str to float
        Variances in shares of the variance of x, measured on this sample: ``linear``, ``pairwise``, ``higher``,
        ``noise`` and, in it, ``document_noise``; ``decoder_error`` (what a refit of the decoder gains; not part of
        x) and ``error`` (mean square of x − x̂).
    """

    codes: sp.csr_matrix = field(repr=False)
    activations: np.ndarray = field(repr=False)
    documents: np.ndarray = field(repr=False)
    positions: np.ndarray = field(repr=False)
    reconstruction: np.ndarray = field(repr=False)
    pairs: tuple[tuple, ...]
    triples: tuple[tuple, ...]
    truth: dict[str, float]

    @cached_property
    def rows(self) -> CodedRows:
        """Codes and activations side by side."""
        return CodedRows.from_arrays(self.codes, self.activations, self.reconstruction, self.documents, self.positions)

    def verdict(self) -> str:
        """One sentence."""
        share = {name: f"{100 * value:.3g} %" for name, value in self.truth.items()}
        return (
            f"{self.codes.shape[0]:,} tokens of {self.documents[-1] + 1:,} documents: of the variance "
            f"{share['linear']} is linear, {share['pairwise']} in {len(self.pairs)} pairs, {share['higher']} in "
            f"{len(self.triples)} triples and {share['noise']} noise; the dictionary leaves {share['error']} "
            f"unexplained, {share['decoder_error']} because its decoder is off."
        )


def simulate_codes(
    n_tokens: int = 20_000,
    n_features: int = 200,
    k: int = 8,
    d: int = 32,
    *,
    kind: str = "product",
    pairs: Effects | None = None,
    triples: Effects = 0,
    strength: float = 0.05,
    decoder_error: float = 0.1,
    noise: float = 0.1,
    document_noise: float = 0.3,
    coactivation: float = 0.03,
    tokens_per_document: int = 100,
    random_state: int = 0,
) -> SimulatedCodes:
    """Codes and activations with planted interactions.

    Every share is of the total variance and holds exactly on the sample, part by part; parts that are independent
    (signal and noise, effects of different sets when there are more of them than dimensions) correlate by chance, so
    that shares add up to 1 only nearly. What is not planted, wrong or noise is linear.

    Parameters
    ----------
    n_tokens, n_features : int
    k : int
        Active features of a token, on average.
    d : int
        Width of the activations.
    kind : {"product", "threshold", "gaussian"}
        ``"product"``: pairs act through s_i s_j. ``"threshold"``: through ReLU(s_i + s_j − θ), the joint effect of a
        sum, which a monotone change of scale removes (``truth`` calls it pairwise). ``"gaussian"``: codes are dense
        and normal, without pairs unless they are asked for: the control with nothing beyond a linear map.
    pairs : int or sequence of (i, j) or (i, j, share), optional
        Planted pairs; a number takes features 0 and 1, 2 and 3, … Default: 2, and 0 for ``"gaussian"``.
    triples : int or sequence of (i, j, k) or (i, j, k, share), default=0
        Planted products of three; a number takes features after those of the pairs.
    strength : float, default=0.05
        Share of the variance of each effect that does not bring its own.
    decoder_error : float, default=0.1
        Variance of the error that comes from wrong decoder directions, as a share of that of x.
    noise : float, default=0.1
    document_noise : float, default=0.3
        Share of the noise that is common to all tokens of a document.
    coactivation : float, default=0.03
        Share of tokens on which the features of a planted set are made active together; and each smaller set of them,
        on others.
    tokens_per_document : int, default=100
    random_state : int, default=0

    Returns
    -------
    SimulatedCodes

    Raises
    ------
    InvalidInput
        If sizes or shares are impossible, or features of an effect do not exist or repeat.

    Examples
    --------
    >>> simulated = simulate_codes(2000, 40, 5, 8, pairs=((0, 1, 0.2),))
    >>> round(simulated.truth["pairwise"], 3), round(simulated.truth["higher"], 3)
    (0.2, 0.0)
    """
    if kind not in KINDS:
        raise InvalidInput(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if n_tokens < 20 or n_features < 2 or min(k, d, tokens_per_document) < 1:
        raise InvalidInput(
            f"{n_tokens} tokens, {n_features} features, k {k}, d {d}, {tokens_per_document} tokens a document; "
            "expected at least 20 tokens, 2 features, and 1 of the others"
        )
    default = 0 if kind == "gaussian" else 2
    pairs = _effects(default if pairs is None else pairs, 2, 0, strength, n_features)
    first = max((max(pair[:2]) + 1 for pair in pairs), default=0)
    triples = _effects(triples, 3, first, strength, n_features)
    linear = 1 - noise - sum(effect[-1] for effect in pairs + triples)
    if min(linear, noise, decoder_error, document_noise, 1 - document_noise) < 0 or not 0 < coactivation < 1:
        raise InvalidInput(
            f"shares of variance cannot be: noise {noise}, decoder error {decoder_error}, effects "
            f"{1 - noise - linear:.3g}, document noise {document_noise}, coactivation {coactivation}; noise and "
            "effects add up to 1 at most, none is negative"
        )
    documents, positions = np.divmod(np.arange(n_tokens), tokens_per_document)
    if kind == "gaussian":
        codes = _gaussian_codes(documents, n_features, random_state)
    else:
        codes = _sparse_codes(documents, n_features, k, pairs + triples, coactivation, random_state)
    draw = stream(random_state, "simulate.directions")
    decoder = draw.standard_normal((n_features, d)) * np.exp(0.5 * draw.standard_normal((n_features, 1)))
    decoder *= _scale(codes @ decoder, linear * d)
    offset = draw.standard_normal(d)
    wrong = draw.standard_normal((n_features, d))
    wrong *= _scale(codes @ wrong, decoder_error * d)
    directions = _directions(len(pairs + triples), d, draw)
    directions *= np.sqrt([d * effect[-1] for effect in pairs + triples])[:, None]
    products = _products(codes, [pair[:2] for pair in pairs], [triple[:3] for triple in triples], kind)
    parts = {
        "linear": codes @ decoder,
        "pairwise": products[:, : len(pairs)] @ directions[: len(pairs)],
        "higher": products[:, len(pairs) :] @ directions[len(pairs) :],
        **_noise(documents, d, noise, document_noise, random_state),
    }
    x = offset + sum(part for name, part in parts.items() if name != "document_noise")
    total = _variance(x)
    reconstruction = np.vstack([decoder + wrong, offset])
    truth = {name: _variance(part) / total for name, part in parts.items()}
    truth["decoder_error"] = _variance(codes @ wrong) / total
    truth["error"] = float(np.square(x - codes @ reconstruction[:-1] - offset).sum(1).mean() / total)
    return SimulatedCodes(
        codes.astype(np.float32),
        x.astype(np.float32),
        documents,
        positions,
        reconstruction.astype(np.float32),
        pairs,
        triples,
        truth,
    )


def _effects(given: Effects, order: int, first: int, strength: float, n_features: int) -> tuple[tuple, ...]:
    """Features and share of each effect."""
    if isinstance(given, int):
        given = [tuple(range(first + order * i, first + order * (i + 1))) for i in range(given)]
    effects = tuple((*effect, strength) if len(effect) == order else tuple(effect) for effect in given)
    for effect in effects:
        features = effect[:order]
        valid = len(effect) == order + 1 and all(isinstance(f, int | np.integer) for f in features)
        if not valid or len(set(features)) < order or not all(0 <= f < n_features for f in features) or effect[-1] < 0:
            raise InvalidInput(
                f"planted effect {effect}: expected {order} different features below {n_features} and, if wanted, a "
                "share of the variance"
            )
    return effects


def _gaussian_codes(documents: np.ndarray, n_features: int, random_state: int) -> sp.csr_matrix:
    draw = stream(random_state, "simulate.gaussian")
    shared = draw.standard_normal((documents[-1] + 1, n_features))[documents]
    own = draw.standard_normal((len(documents), n_features))
    return sp.csr_matrix(np.sqrt(0.2) * shared + np.sqrt(0.8) * own)


def _sparse_codes(
    documents: np.ndarray, n_features: int, k: int, effects: tuple, coactivation: float, random_state: int
) -> sp.csr_matrix:
    """Non-negative codes, about k features a token, with planted sets active together."""
    n = len(documents)
    draw = stream(random_state, "simulate.codes")
    commonness = -0.5 * np.log(1 + draw.permutation(n_features))
    planted = sorted({feature for effect in effects for feature in effect[:-1]})
    commonness[planted] = commonness.mean()
    group = draw.permutation(n_features) // GROUP
    liking = DOCUMENT_SPREAD * draw.standard_normal((documents[-1] + 1, group.max() + 1))
    counts = np.minimum(1 + draw.poisson(k - 1, n), n_features)
    forced = _forced(documents, n_features, effects, coactivation, draw)
    counts = np.maximum(counts, np.asarray(forced.sum(1)).ravel())
    active = []
    for start in range(0, n, BLOCK):
        part = slice(start, min(start + BLOCK, n))
        score = commonness + liking[documents[part]][:, group]
        # The largest of log weights with Gumbel noise are a sample without replacement.
        score += stream(random_state, "simulate.active", start // BLOCK).gumbel(size=score.shape)
        score[forced[part].nonzero()] = np.inf
        order = np.argsort(-score, axis=1)[:, : counts[part].max()]
        active.append([np.sort(row[:count]) for row, count in zip(order, counts[part], strict=True)])
    columns = np.concatenate([row for block in active for row in block])
    size = np.exp(0.3 * draw.standard_normal(n_features))
    values = size[columns] * np.exp(VALUE_SPREAD * draw.standard_normal(len(columns)))
    return sp.csr_matrix((values, columns, np.r_[0, np.cumsum(counts)]), shape=(n, n_features))


def _forced(
    documents: np.ndarray, n_features: int, effects: tuple, coactivation: float, draw: np.random.Generator
) -> sp.csr_matrix:
    """Where features are active because an effect needs them: each set, and each smaller one, on tokens of its own.

    Without tokens on which they are active alone, features of a set could not be told from their product.
    """
    n = len(documents)
    number = min(n, max(20, int(np.ceil(coactivation * n))))
    mask = sp.lil_matrix((n, n_features), dtype=np.int64)
    for effect in effects:
        features = effect[:-1]
        for size in range(1, len(features) + 1):
            for some in itertools.combinations(features, size):
                often = DOCUMENT_SPREAD * draw.standard_normal(documents[-1] + 1)
                tokens = np.argsort(-(often[documents] + draw.gumbel(size=n)))[:number]
                mask[np.ix_(tokens, some)] = 1
    return mask.tocsr()


def _products(codes: sp.csr_matrix, pairs: list[tuple], triples: list[tuple], kind: str) -> np.ndarray:
    """What each planted set adds beyond lower orders, with variance 1, shape (n, number of sets)."""
    if not pairs and not triples:
        return np.zeros((codes.shape[0], 0))
    column = {f: codes[:, [f]].toarray()[:, 0] for effect in pairs + triples for f in effect}

    def multiplied(sets: list[tuple]) -> np.ndarray:
        return np.stack([np.prod([column[f] for f in features], axis=0) for features in sets], axis=-1)

    def thresholded(pair: tuple) -> np.ndarray:
        summed = column[pair[0]] + column[pair[1]]
        together = (column[pair[0]] != 0) & (column[pair[1]] != 0)
        return np.maximum(summed - np.median(summed[together]), 0)

    parts = []
    lower = sp.hstack([np.ones((codes.shape[0], 1)), codes], format="csr")
    if pairs:
        acting = multiplied(pairs) if kind != "threshold" else np.stack([thresholded(pair) for pair in pairs], axis=-1)
        parts.append(_residuals(acting, lower))
    if triples:
        inside = sorted({two for triple in triples for two in itertools.combinations(sorted(triple), 2)})
        parts.append(_residuals(multiplied(triples), sp.hstack([lower, *parts, multiplied(inside)], format="csr")))
    return np.hstack(parts)


def _residuals(columns: np.ndarray, design: sp.csr_matrix) -> np.ndarray:
    """Columns (n, m) less their least-squares fit by a design with an intercept, with variance 1."""
    from scipy.linalg import cho_factor, cho_solve

    length = np.sqrt(np.asarray(design.multiply(design).sum(0)).ravel())
    live = np.flatnonzero(length)
    design = (design.tocsc()[:, live] @ sp.diags(1 / length[live])).tocsr()
    factor = cho_factor((design.T @ design).toarray() + 1e-9 * np.eye(len(live)))
    for _ in range(3):  # the second and third pass remove what rounding and the small diagonal left
        columns = columns - design @ cho_solve(factor, design.T @ columns)
    return columns / columns.std(0)


def _noise(
    documents: np.ndarray, d: int, share: float, document_share: float, random_state: int
) -> dict[str, np.ndarray]:
    """Noise of tokens and documents together, and the documents' part of it."""
    draw = stream(random_state, "simulate.noise")
    common = draw.standard_normal((documents[-1] + 1, d))[documents]
    common *= _scale(common, share * document_share * d)
    own = draw.standard_normal((len(documents), d))
    own *= _scale(own, share * (1 - document_share) * d)
    return {"noise": common + own, "document_noise": common}


def _directions(number: int, d: int, draw: np.random.Generator) -> np.ndarray:
    """Unit vectors (number, d), orthogonal as long as there are no more than dimensions."""
    directions = draw.standard_normal((number, d))
    if number <= d:
        return np.linalg.qr(directions.T)[0].T
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _variance(part: np.ndarray) -> float:
    return float(part.var(0).sum())


def _scale(part: np.ndarray, variance: float) -> float:
    """The factor that gives a part this variance."""
    had = _variance(part)
    return float(np.sqrt(variance / had)) if had > 0 else 0.0
