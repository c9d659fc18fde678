"""Running a model with something else in place of the activations at a site.

Every batch of sequences is run clean and once with each replacement: reconstructions,
their mean, zero. The positions of special tokens keep their activations in all of them
(ablating the start token alone wrecks a model and would flatter every dictionary), and only
ordinary tokens count as targets. Losses are summed by document, the unit of inference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.errors import InvalidInput, NeurollmError
from neurollm.models import Site, intervene, plan_batches, tokenize
from neurollm.models.forward import pad
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.models import LanguageModel

LOGIT_VALUES = 2**25  # logits held at a time


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A document, or a piece of a long one, as the model reads it.

    Attributes
    ----------
    ids : ndarray of int, shape (t,)
    special : ndarray of bool, shape (t,)
    document, piece : int
        Which document, and which piece of it; both from 0.
    first : int
        Number of its first ordinary token among those of all documents, in their order.
    """

    ids: np.ndarray
    special: np.ndarray
    document: int
    piece: int
    first: int

    @property
    def n_ordinary(self) -> int:
        """Tokens that are not special."""
        return int(np.sum(~self.special))

    @property
    def n_predicted(self) -> int:
        """Ordinary tokens that follow another token."""
        return int(np.sum(~self.special[1:]))


Replacements = Callable[[torch.Tensor, list[TokenSequence]], Iterable[tuple[Hashable, torch.Tensor]]]
"""Takes the activations (n, d) of the ordinary tokens of some sequences, float32, in the sequences' order, and
yields names and what is to stand in their place."""


@dataclass(frozen=True, eq=False)
class DocumentLosses:
    """Losses in nats, summed over the predicted tokens of each of D documents.

    Attributes
    ----------
    n_predicted : ndarray of int, shape (D,)
    clean : ndarray of float64, shape (D,)
        Cross-entropy of the model as it is.
    ce, kl : dict of hashable to ndarray of float64, shape (D,)
        Of every replacement: its cross-entropy and KL(clean ‖ replaced).
    """

    n_predicted: np.ndarray
    clean: np.ndarray
    ce: dict[Hashable, np.ndarray]
    kl: dict[Hashable, np.ndarray]


@dataclass(frozen=True)
class SplicedLoss:
    """Cross-entropies in nats per predicted token.

    Attributes
    ----------
    clean, spliced, mean, zero : float
        Of the model as it is, with reconstructions, with the mean, with zero at the site.
    kl, kl_mean, kl_zero : float
        Mean KL(clean ‖ changed) in nats: with reconstructions, with the mean, with zero.
    n_predicted : int
    """

    clean: float
    spliced: float
    mean: float
    zero: float
    kl: float
    kl_mean: float
    kl_zero: float
    n_predicted: int


def spliced_loss(
    lm: LanguageModel, dictionary: Dictionary, documents: Any, mean: torch.Tensor, *, verbose: int = 0
) -> SplicedLoss:
    """Cross-entropy of a causal model with a dictionary, the mean, or zero in place of its activations.

    Parameters
    ----------
    lm : LanguageModel
    dictionary : Dictionary
        Spliced in at its own site.
    documents : Corpus, or sequence of str or of token id arrays
        Longer ones are cut into sequences that fill the model's context.
    mean : Tensor, shape (d_in,)
    verbose : int, default=0

    Returns
    -------
    SplicedLoss

    Raises
    ------
    InvalidInput
        If the documents hold nothing to predict.
    """

    def replacements(rows: torch.Tensor, _sequences: list[TokenSequence]) -> Iterable[tuple[str, torch.Tensor]]:
        yield "spliced", torch.as_tensor(dictionary.reconstruct(rows))
        yield "mean", mean.to(rows).expand_as(rows)
        yield "zero", torch.zeros_like(rows)

    losses = document_losses(lm, dictionary.site, token_sequences(lm, documents), replacements, verbose=verbose)
    n_predicted = int(losses.n_predicted.sum())
    sums = [losses.clean, *losses.ce.values(), *losses.kl.values()]
    return SplicedLoss(*(float(column.sum() / n_predicted) for column in sums), n_predicted)


def document_losses(
    lm: LanguageModel, site: Site, sequences: list[TokenSequence], replacements: Replacements, *, verbose: int = 0
) -> DocumentLosses:
    """Cross-entropies and KL divergences of a causal model with named replacements at a site, by document.

    Parameters
    ----------
    lm : LanguageModel
    site : Site
    sequences : list of TokenSequence
        From `token_sequences`.
    replacements : callable
        Takes the activations (n, d) of the ordinary tokens of some of the sequences, float32, and those
        sequences; yields pairs (name, activations (n, d)), the same names in the same order each time.
    verbose : int, default=0

    Returns
    -------
    DocumentLosses

    Raises
    ------
    InvalidInput
        If the documents hold nothing to predict.
    NeurollmError
        If a replacement changed activations that a prediction depends on, and no prediction changed.
    """
    if sum(sequence.n_predicted for sequence in sequences) == 0:
        raise InvalidInput("the documents hold no token to predict")
    vocabulary = lm.model.config.get_text_config().vocab_size
    sums = _Sums(1 + max(sequence.document for sequence in sequences))
    lengths = [len(sequence.ids) for sequence in sequences]
    with Progress("cross-entropy", sum(lengths), "tokens", verbose) as progress:
        for batch in plan_batches(lengths, max(1, LOGIT_VALUES // vocabulary)):
            _run_batch(lm, site, [sequences[index] for index in batch], replacements, sums)
            progress.advance(sum(lengths[index] for index in batch))
    sums.check(site)
    return DocumentLosses(sums.n_predicted, sums.clean, sums.ce, sums.kl)


class _Sums:
    """Losses summed by document, and which replacements did something."""

    def __init__(self, n_documents: int) -> None:
        self.n_predicted, self.clean = np.zeros(n_documents, dtype=np.int64), np.zeros(n_documents)
        self.ce: dict[Hashable, np.ndarray] = {}
        self.kl: dict[Hashable, np.ndarray] = {}
        self.edited: set[Hashable] = set()
        self.effective: set[Hashable] = set()

    def by_document(self, documents: np.ndarray, loss: torch.Tensor) -> np.ndarray:
        """Losses of tokens, summed by the documents of the tokens."""
        return np.bincount(documents, weights=loss.double().cpu().numpy(), minlength=len(self.clean))

    def check(self, site: Site) -> None:
        """Refuse replacements that changed activations and no prediction."""
        for name in self.edited - self.effective:
            raise NeurollmError(
                f"replacing the activations at {site} by {name!r} changed no prediction: the model does not use what "
                "the hook returns"
            )


def _run_batch(
    lm: LanguageModel, site: Site, sequences: list[TokenSequence], replacements: Replacements, sums: _Sums
) -> None:
    """One batch: clean, and with each replacement."""
    ids, _ = pad([sequence.ids for sequence in sequences], lm)
    ordinary = _padded_mask([~sequence.special for sequence in sequences], ids.shape[1]).to(lm.device)
    predicted = ordinary[:, 1:]
    # What stands at the last ordinary token of a sequence can change no prediction.
    followed = ordinary.flip(1).cumsum(1).flip(1)[ordinary] > 1
    targets = ids[:, 1:][predicted]
    documents = np.repeat([s.document for s in sequences], [s.n_predicted for s in sequences])
    seen: list[torch.Tensor] = []

    def log_probabilities(edit: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with intervene(lm, site, edit):
            logits = lm.model(input_ids=ids, use_cache=False).logits[:, :-1][predicted]
        return torch.log_softmax(logits.float(), dim=-1)

    def look(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden[ordinary])
        return hidden

    def loss(log_p: torch.Tensor) -> np.ndarray:
        return sums.by_document(documents, -log_p.gather(1, targets[:, None])[:, 0])

    with torch.no_grad():
        clean = log_probabilities(look)
        sums.n_predicted += np.bincount(documents, minlength=len(sums.clean))
        sums.clean += loss(clean)
        for name, rows in replacements(seen[0].float(), sequences):
            new = rows.to(seen[0])
            changed = log_probabilities(lambda hidden, new=new: _replaced(hidden, ordinary, new))
            kl = (clean.exp() * (clean - changed)).sum(1)
            sums.ce[name] = sums.ce.get(name, 0.0) + loss(changed)
            sums.kl[name] = sums.kl.get(name, 0.0) + sums.by_document(documents, kl)
            if not torch.equal(new[followed], seen[0][followed]):
                sums.edited.add(name)
            if not torch.equal(clean, changed):
                sums.effective.add(name)


def _replaced(hidden: torch.Tensor, where: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    result = hidden.clone()
    result[where] = rows
    return result


def token_sequences(lm: LanguageModel, documents: Any) -> list[TokenSequence]:
    """Token sequences that fit the model's context.

    Parameters
    ----------
    lm : LanguageModel
    documents : Corpus, or sequence of str or of token id arrays

    Returns
    -------
    list of TokenSequence
        In the order of the documents; a long document gives several.
    """
    if hasattr(documents, "documents"):
        documents = documents.documents
    documents = [entry[1] if isinstance(entry, tuple) else entry for entry in documents]
    if documents and isinstance(documents[0], str):
        tokens = [(text.ids, text.special) for text in tokenize(lm, documents)]
    else:
        special = np.asarray(sorted(lm.tokenizer.all_special_ids))
        tokens = [(ids := np.asarray(document), np.isin(ids, special)) for document in documents]
    sequences: list[TokenSequence] = []
    first = 0
    for document, (ids, special) in enumerate(tokens):
        for piece, part in enumerate(_cut(ids, special, lm.context)):
            sequences.append(TokenSequence(*part, document, piece, first))
            first += sequences[-1].n_ordinary
    return sequences


def _cut(ids: np.ndarray, special: np.ndarray, context: int) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Cut a long document; every piece begins with the special tokens that the document begins with."""
    if len(ids) <= context:
        return [(ids, special)]
    lead = int(np.argmin(special)) if not special.all() else 0
    step = context - lead
    pieces = [np.r_[0:lead, start : min(start + step, len(ids))] for start in range(lead, len(ids), step)]
    return [(ids[piece], special[piece]) for piece in pieces]


def _padded_mask(masks: list[np.ndarray], width: int) -> torch.Tensor:
    padded = np.zeros((len(masks), width), dtype=bool)
    for row, mask in zip(padded, masks, strict=True):
        row[: len(mask)] = mask
    return torch.from_numpy(padded)
