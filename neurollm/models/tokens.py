"""Texts to tokens, with the character span and the special status of every token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput

if TYPE_CHECKING:
    from neurollm.models.loading import LanguageModel


_flat = itertools.chain.from_iterable


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text.

    Attributes
    ----------
    ids : ndarray of int32, shape (n,)
    special : ndarray of bool, shape (n,)
        True for tokens that stand for no text (start, end, separator).
    starts, ends : ndarray of int32, shape (n,)
        Character span of each token in the text; ``(0, 0)`` for special tokens.
    """

    ids: np.ndarray
    special: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(lm: LanguageModel, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[TokenizedText]:
    """Tokenise texts; nothing is ever truncated.

    A model whose tokenizer has a start token but does not add it (GPT-2) gets it
    here: the first position of a causal model is an outlier, and it must never be
    a word of a stimulus.

    Text that spells a special token (``"<|endoftext|>"``) would silently become one;
    such tokens are marked special, and so are left out like every other.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
    add_special_tokens : bool, default=True

    Returns
    -------
    list of TokenizedText

    Raises
    ------
    InvalidInput
        If the tokenizer cannot give character offsets.
    """
    if not texts:
        return []
    tokenizer = lm.tokenizer
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"the tokenizer of model {lm.name!r} gives no character offsets; use a model with a fast tokenizer"
        )
    encoded = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    start = [tokenizer.bos_token_id] if add_special_tokens and lm.prepends_bos else []
    no_text = [(0, 0)] * len(start)
    counts = [len(start) + len(ids) for ids in encoded["input_ids"]]
    ids = np.fromiter(_flat(start + ids for ids in encoded["input_ids"]), np.int32, sum(counts))
    special = np.isin(ids, _special_ids(tokenizer))
    spans = _flat(no_text + offsets for offsets in encoded["offset_mapping"])
    starts, ends = np.where(special, 0, np.fromiter(_flat(spans), np.int32, 2 * len(ids)).reshape(-1, 2).T)
    edges = itertools.pairwise([0, *itertools.accumulate(counts)])
    return [TokenizedText(*(column[begin:end] for column in (ids, special, starts, ends))) for begin, end in edges]


def _special_ids(tokenizer: Any) -> np.ndarray:
    """Ids that stand for no text; a dedicated unknown token stands for a piece of it and is ordinary."""
    markers = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id}
    ordinary = {tokenizer.unk_token_id} - markers
    return np.asarray(sorted(set(tokenizer.all_special_ids) - ordinary), dtype=np.int32)
