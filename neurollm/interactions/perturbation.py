"""Is what a reconstruction loses worse for the model than random errors of the same length?

With a reconstruction x̂_A in place of the activations x at a site, every ordinary token has an error e = x̂_A − x. Each
condition A is compared with perturbations ε of the very same length for the same token, ‖ε‖ = ‖e‖ (Gurnee 2024,
https://www.lesswrong.com/posts/rZPiuFxESMxCDHe4B, with one kind of noise; here for each condition its own):

* isotropic: ε = ‖e‖ g/‖g‖ with g ~ N(0, I);
* covariance: the same with g ~ N(0, Σ), Σ the covariance of this condition's errors;
* shuffled: g is the error of a token of another document, which keeps the mean error too.

The ratio KL_A / KL_ε(A), each Σ KL(clean ‖ replaced) over tokens, is above 1 when the error points where the model is
more sensitive than noise of its length does. A condition with smaller errors has smaller noise beside it, so a
smaller KL alone does not lower its ratio (as long as KL is quadratic in the length; compare the lengths too). The
fraction of the loss recovered is (CE_abl − CE_A) / (CE_abl − CE), with the mean activation of these documents, and
with zero, in place of the activations. All from log-softmax.

Documents are the unit of all intervals and tests, see `neurollm.stats.document_bootstrap`; the same draws of
documents serve all conditions and noises, so that differences and ratios are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.splice import TokenSequence, document_losses, token_sequences
from neurollm.errors import InvalidInput
from neurollm.interactions.perturbation_result import PerturbationResult
from neurollm.models import iter_activations
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.stats.document_bootstrap import check_draws
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    from neurollm.models import LanguageModel, Site

NOISES = ("isotropic", "covariance", "shuffled")
FEWEST_DOCUMENTS = 10  # of fewer, no interval over documents can be trusted
FEWEST_DRAWS = 100
POOL_VALUES = 2**26  # of errors kept for shuffling, for each condition
NEGLIGIBLE = 1e-12  # share of the errors' squared length that cannot be told from rounding
_OWN, _ABLATION = "reconstruction", "ablation"

Reconstruction = Callable[[torch.Tensor], Any]


def perturbation_test(
    lm: LanguageModel,
    site: Site,
    reconstructions: Mapping[str, Reconstruction],
    documents: Any,
    *,
    noises: Sequence[str] = NOISES,
    n_draws: int = 2,
    n_boot: int = 2000,
    random_state: int = 0,
    verbose: int = 1,
) -> PerturbationResult:
    """KL and cross-entropy with reconstructions spliced in, beside random errors of the same length.

    The noise of a token depends on `random_state`, the names of condition and noise, the draw, the number of the
    document and the token's place in it, not on how tokens are batched. Special tokens keep their activations.

    Parameters
    ----------
    lm : LanguageModel
        A causal one.
    site : Site
    reconstructions : mapping of str to callable
        Each takes activations (n, d), a float32 tensor of its own, and returns their reconstruction (n, d), always the
        same.
    documents : Corpus, or sequence of str or of token id arrays
        Held-out ones, each once. The model runs 3 + C (1 + `n_draws` N) times over them, and once up to the site.
    noises : sequence of {"isotropic", "covariance", "shuffled"}
    n_draws : int, default=2
        Noises per token. More make the mean over draws more precise, not the documents more.
    n_boot : int, default=2000
        Draws of documents, at least 100; with 0 there are no intervals, and fewer than 10 documents will do.
    random_state : int, default=0
    verbose : int, default=1

    Returns
    -------
    PerturbationResult
        A noise that is not defined (errors that are the same for all tokens have no covariance) is NaN.

    Raises
    ------
    InvalidInput
        Something of the above is not so, a reconstruction has another shape or is not finite, or, with intervals,
        fewer than 10 documents hold a predicted token or two of them are the same text.
    NeurollmError
        A replacement did not reach the model's predictions.

    Examples
    --------
    >>> from neurollm.models import Site, load_model
    >>> lm = load_model("demo", device="cpu", dtype="float32")
    >>> halves = {"half": lambda x: 0.5 * x}
    >>> texts = [f"The {word} was old." for word in "dog cat car tree house king road book man hat".split()]
    >>> result = perturbation_test(lm, Site(3), halves, texts, noises=["isotropic"], n_draws=1, verbose=0)
    >>> result.to_frame()[["condition", "noise", "n_documents"]].values.tolist()
    [['half', 'isotropic', 10]]
    """
    _check(lm, reconstructions, documents, noises, n_draws, n_boot)
    sequences = token_sequences(lm, documents)
    kept = sorted({sequence.document for sequence in sequences if sequence.n_predicted})
    if n_boot and len(kept) < FEWEST_DOCUMENTS:
        raise InvalidInput(
            f"perturbation_test: intervals need at least {FEWEST_DOCUMENTS} documents with a predicted token, found "
            f"{len(kept)}; give more documents, or n_boot=0 for no intervals"
        )
    if n_boot:
        _refuse_repeated(sequences, kept)
    perturbed = _Perturbed(dict(reconstructions), tuple(noises), n_draws, random_state)
    perturbed.measure(lm, site, sequences, verbose)
    losses = document_losses(lm, site, sequences, perturbed, verbose=verbose)
    return PerturbationResult(
        tuple(reconstructions),
        tuple(noises),
        np.array(kept),
        losses.n_predicted[kept],
        losses.clean[kept],
        np.stack([losses.ce[_ABLATION, name, 0] for name in ("mean", "zero")])[:, kept],
        perturbed.collected(losses.ce)[..., kept],
        perturbed.collected(losses.kl)[..., kept],
        np.array([errors.mean_length for errors in perturbed.errors.values()]),
        int(n_draws),
        int(n_boot),
        random_state,
        str(site),
        lm.name,
    )


def _check(
    lm: LanguageModel, reconstructions: Any, documents: Any, noises: Sequence[str], n_draws: int, n_boot: int
) -> None:
    if not lm.is_causal:
        raise InvalidInput(f"perturbation_test: model {lm.name!r} is an encoder: it predicts no next token")
    if not isinstance(reconstructions, Mapping) or not reconstructions:
        raise InvalidInput("perturbation_test: reconstructions must be a mapping of names to functions, at least one")
    for name, function in reconstructions.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise InvalidInput(
                f"perturbation_test: a reconstruction is called {shown(name)}; expected one line of text"
            )
        if not callable(function):
            raise InvalidInput(
                f"perturbation_test: reconstruction {shown(name)} is {shown(function)}; expected a function of "
                "activations, such as dictionary.reconstruct"
            )
    if isinstance(documents, str):
        raise InvalidInput("perturbation_test: documents is a single text; give a sequence of texts")
    if isinstance(noises, str) or not noises or len(set(noises)) < len(noises) or not set(noises) <= set(NOISES):
        raise InvalidInput(
            f"perturbation_test: noises is {shown(noises)}; expected a list of some of {listed(NOISES)}, each once"
        )
    if isinstance(n_draws, bool) or not isinstance(n_draws, int | np.integer) or n_draws < 1:
        raise InvalidInput(f"perturbation_test: n_draws must be a whole number of at least 1, found {shown(n_draws)}")
    check_draws(n_boot, "perturbation_test: ", FEWEST_DRAWS)


def _refuse_repeated(sequences: list[TokenSequence], kept: list[int]) -> None:
    """Refuse documents with the very same tokens: intervals take documents for independent."""
    tokens: dict[int, list[bytes]] = {}
    for sequence in sequences:
        tokens.setdefault(sequence.document, []).append(sequence.ids.astype(np.int64).tobytes())
    first: dict[tuple[bytes, ...], int] = {}
    repeated = [(one, before) for one in kept if (before := first.setdefault(tuple(tokens[one]), one)) != one]
    if repeated:
        one, before = repeated[0]
        raise InvalidInput(
            f"perturbation_test: {len(repeated)} of {len(kept)} documents repeat another one (number {one} is the same "
            f"text as number {before}, from 0), and intervals take documents for independent; give each once, or "
            "n_boot=0 for no intervals"
        )


class _Perturbed:
    """The replacements of the test: ablations, reconstructions, and noise as long as their errors."""

    def __init__(
        self, reconstructions: dict[str, Reconstruction], noises: tuple[str, ...], n_draws: int, random_state: int
    ) -> None:
        self.reconstructions, self.noises = reconstructions, noises
        self.n_draws, self.random_state = n_draws, random_state
        self.errors: dict[str, _Errors] = {}
        self.mean: np.ndarray | None = None

    def measure(self, lm: LanguageModel, site: Site, sequences: list[TokenSequence], verbose: int) -> None:
        """The mean of the activations, and what the noises need to know about the errors."""
        total: Any = 0.0
        documents = np.repeat([s.document for s in sequences], [s.n_ordinary for s in sequences])
        lengths = [len(sequence.ids) for sequence in sequences]
        with Progress("errors", sum(lengths), "tokens", verbose) as progress, torch.no_grad():
            for batch, hidden, _ in iter_activations(lm, [sequence.ids for sequence in sequences], site):
                here = [sequences[index] for index in batch]
                rows = torch.cat([hidden[i, : len(s.ids)][torch.from_numpy(~s.special)] for i, s in enumerate(here)])
                rows = rows.float()
                numbers = np.concatenate([np.arange(s.first, s.first + s.n_ordinary) for s in here])
                total = total + rows.double().sum(0).cpu().numpy()
                for name in self.reconstructions:
                    if name not in self.errors:
                        self.errors[name] = _Errors(documents, rows.shape[1], self.noises, self.random_state)
                    self.errors[name].add(numbers, _as_array(self._reconstructed(name, rows) - rows))
                progress.advance(sum(lengths[index] for index in batch))
        for errors in self.errors.values():
            errors.finish()
        self.mean = total / len(documents)

    def __call__(
        self, rows: torch.Tensor, sequences: list[TokenSequence]
    ) -> Iterator[tuple[tuple[str, str, int], torch.Tensor]]:
        """What is to stand in place of the rows, one after the other."""
        yield (_ABLATION, "mean", 0), torch.from_numpy(self.mean).to(rows).expand_as(rows)
        yield (_ABLATION, "zero", 0), torch.zeros_like(rows)
        for name in self.reconstructions:
            reconstruction = self._reconstructed(name, rows)
            yield (name, _OWN, 0), reconstruction
            lengths = np.linalg.norm(_as_array(reconstruction - rows), axis=1)
            for noise in self.noises:
                for draw in range(self.n_draws):
                    perturbation = self.noise(name, noise, draw, lengths, sequences)
                    yield (name, noise, draw), (rows.double() + torch.from_numpy(perturbation).to(rows.device)).float()

    def noise(
        self, name: str, noise: str, draw: int, lengths: np.ndarray, sequences: list[TokenSequence]
    ) -> np.ndarray:
        """Perturbations (n, d) of the given lengths (n,) for the ordinary tokens of some sequences, float64."""
        errors, parts = self.errors[name], []
        for sequence in sequences:
            purpose = f"perturbation {noise} {name} {draw} {sequence.document}"
            parts.append(errors.directions(noise, stream(self.random_state, purpose, sequence.piece), sequence))
        g = np.concatenate(parts)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = g * (lengths / np.linalg.norm(g, axis=1))[:, None]
        return np.where(lengths[:, None] > 0, scaled, 0.0)

    def collected(self, losses: dict[Any, np.ndarray]) -> np.ndarray:
        """Losses (C, 1 + N, D) of reconstructions and noises, mean over draws."""
        return np.stack(
            [
                [losses[name, _OWN, 0]]
                + [
                    np.mean([losses[name, noise, draw] for draw in range(self.n_draws)], axis=0)
                    for noise in self.noises
                ]
                for name in self.reconstructions
            ]
        )

    def _reconstructed(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        found = torch.as_tensor(self.reconstructions[name](rows.clone())).to(rows)  # it may work in place
        if found.shape != rows.shape:
            raise InvalidInput(
                f"perturbation_test: reconstruction {shown(name)} of activations of shape {tuple(rows.shape)} has "
                f"shape {tuple(found.shape)}; expected the same"
            )
        if not torch.isfinite(found).all():
            raise InvalidInput(f"perturbation_test: reconstruction {shown(name)} holds values that are not finite")
        return found


class _Errors:
    """The errors of one condition: their covariance, and a pool to draw them from."""

    def __init__(self, documents: np.ndarray, d: int, noises: tuple[str, ...], random_state: int) -> None:
        self.d, self.noises = d, noises
        self.n, self.length, self.total, self.products = 0, 0.0, np.zeros(d), np.zeros((d, d))
        self.numbers = np.zeros(0, dtype=np.int64)
        if "shuffled" in noises:
            size = min(len(documents), max(POOL_VALUES // d, 1))
            drawn = stream(random_state, "perturbation pool").choice(len(documents), size, replace=False)
            self.numbers = np.sort(drawn)
        self.pool, self.documents = np.zeros((len(self.numbers), d), dtype=np.float32), documents[self.numbers]

    @property
    def mean_length(self) -> float:
        """Mean length of an error."""
        return self.length / self.n

    def add(self, numbers: np.ndarray, errors: np.ndarray) -> None:
        """Add errors (n, d), float64, of the ordinary tokens with these numbers."""
        self.n += len(errors)
        self.length += float(np.linalg.norm(errors, axis=1).sum())
        if "covariance" in self.noises:
            self.total += errors.sum(0)
            self.products += errors.T @ errors
        if len(self.numbers):
            place = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
            pooled = self.numbers[place] == numbers
            self.pool[place[pooled]] = errors[pooled]

    def finish(self) -> None:
        """The square root of the covariance; errors without a direction leave the pool."""
        if "covariance" in self.noises:
            mean = self.total / self.n
            second = self.products / self.n
            values, vectors = np.linalg.eigh(second - np.outer(mean, mean))
            values[values <= NEGLIGIBLE * np.trace(second)] = 0
            # The symmetric root: unlike other ones it does not jump with the last digits of the covariance.
            self.root = (vectors * np.sqrt(values)) @ vectors.T
        directed = self.pool.any(axis=1)
        self.pool, self.documents, self.numbers = self.pool[directed], self.documents[directed], self.numbers[directed]

    def directions(self, noise: str, rng: np.random.Generator, sequence: TokenSequence) -> np.ndarray:
        """Random vectors (n, d) of any length for the ordinary tokens of a sequence, float64."""
        if noise == "shuffled":
            return self._shuffled(rng, sequence)
        g = rng.standard_normal((sequence.n_ordinary, self.d))
        return g if noise == "isotropic" else g @ self.root

    def _shuffled(self, rng: np.random.Generator, sequence: TokenSequence) -> np.ndarray:
        """Errors of tokens of other documents, or, where there are none, of other tokens."""
        n = sequence.n_ordinary
        first, last = np.searchsorted(self.documents, [sequence.document, sequence.document + 1])
        if last - first < len(self.documents):
            left_out, skip = np.full(n, first), np.full(n, last - first)
        else:
            tokens = np.arange(sequence.first, sequence.first + n)
            left_out = np.searchsorted(self.numbers, tokens)
            skip = np.isin(tokens, self.numbers).astype(np.int64)
        left = len(self.pool) - skip
        if np.any(left < 1):
            return np.full((n, self.d), np.nan)
        donors = rng.integers(left)
        return self.pool[donors + np.where(donors >= left_out, skip, 0)].astype(np.float64)


def _as_array(rows: torch.Tensor) -> np.ndarray:
    return rows.double().cpu().numpy()
