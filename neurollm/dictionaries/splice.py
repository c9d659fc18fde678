"""Running a model with something else in place of the activations at a site.

Four runs of the same sequences: clean, reconstruction, mean ablation, zero ablation. The
positions of special tokens keep their activations in all of them (ablating the start
token alone wrecks a model and would flatter every dictionary), and only ordinary tokens
count as targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.errors import InvalidInput
from neurollm.models import intervene, plan_batches, tokenize
from neurollm.models.forward import pad
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.models import LanguageModel

LOGIT_VALUES = 2**25  # logits held at a time


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
    sequences = _sequences(lm, documents)
    vocabulary = lm.model.config.get_text_config().vocab_size
    sums = torch.zeros(7, dtype=torch.float64)
    n_predicted = 0
    replacements = {
        "spliced": lambda rows: torch.as_tensor(dictionary.reconstruct(rows)),
        "mean": lambda rows: mean.to(rows).expand_as(rows),
        "zero": torch.zeros_like,
    }
    lengths = [len(ids) for ids, _ in sequences]
    with Progress("cross-entropy", sum(lengths), "tokens", verbose) as progress:
        for batch in plan_batches(lengths, max(1, LOGIT_VALUES // vocabulary)):
            ids, _ = pad([sequences[index][0] for index in batch], lm)
            ordinary = _padded_mask([~sequences[index][1] for index in batch], ids.shape[1]).to(lm.device)
            losses = _batch_losses(lm, dictionary.site, ids, ordinary, replacements)
            sums += losses.sum(1)
            n_predicted += losses.shape[1]
            progress.advance(sum(lengths[index] for index in batch))
    if n_predicted == 0:
        raise InvalidInput("the documents hold no token to predict")
    return SplicedLoss(*(sums / n_predicted).tolist(), n_predicted)


def _batch_losses(
    lm: LanguageModel, site: Any, ids: torch.Tensor, ordinary: torch.Tensor, replacements: dict[str, Any]
) -> torch.Tensor:
    """Loss of every predicted token, float64: clean, each replacement, KL(clean ‖ each replacement)."""
    predicted = ordinary[:, 1:]
    targets = ids[:, 1:][predicted]

    def log_probabilities() -> torch.Tensor:
        logits = lm.model(input_ids=ids, use_cache=False).logits[:, :-1][predicted]
        return torch.log_softmax(logits.float(), dim=-1)

    def loss(log_p: torch.Tensor) -> torch.Tensor:
        return -log_p.gather(1, targets[:, None])[:, 0].double().cpu()

    with torch.no_grad():
        clean = log_probabilities()
        rows, kl = [loss(clean)], []
        for replace in replacements.values():
            with intervene(lm, site, lambda hidden, replace=replace: _replaced(hidden, ordinary, replace)):
                changed = log_probabilities()
            rows.append(loss(changed))
            kl.append((clean.exp() * (clean - changed)).sum(1).double().cpu())
    return torch.stack([*rows, *kl])


def _replaced(hidden: torch.Tensor, where: torch.Tensor, replace: Any) -> torch.Tensor:
    result = hidden.clone()
    result[where] = replace(hidden[where].float()).to(hidden)
    return result


def _sequences(lm: LanguageModel, documents: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and special mask of sequences that fit the model's context."""
    if hasattr(documents, "documents"):
        documents = documents.documents
    documents = [entry[1] if isinstance(entry, tuple) else entry for entry in documents]
    if documents and isinstance(documents[0], str):
        tokens = [(text.ids, text.special) for text in tokenize(lm, documents)]
    else:
        special = np.asarray(sorted(lm.tokenizer.all_special_ids))
        tokens = [(ids := np.asarray(document), np.isin(ids, special)) for document in documents]
    return [sequence for ids, special in tokens for sequence in _cut(ids, special, lm.context)]


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
