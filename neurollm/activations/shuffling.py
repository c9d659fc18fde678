"""The same texts without their order: a control for everything that needs context."""

from __future__ import annotations

import re

from neurollm.activations.corpus import Corpus
from neurollm.errors import InvalidInput
from neurollm.random import stream

_PIECE = re.compile(r"\s+\S+")


def shuffled_words(corpus: Corpus, random_state: int = 0) -> Corpus:
    """The same corpus with the words of each document in random order.

    What a model computes over these texts, and what an SAE learns from it (the
    "shuffled-token SAE"), can only come from the words themselves and from the company of
    words in a document: grammar, phrases and all other order are gone, word frequencies
    are as they were.

    A word is what stands between white space. It is moved together with the white space
    before it, and the first word of a document, which has none, stays. So tokenizers that
    never join the end of a word with the space after it (those of GPT-2, Llama and BERT
    models) find the same tokens in each document, in another order. Tokens within a word
    keep theirs.

    Parameters
    ----------
    corpus : Corpus
    random_state : int, default=0
        A document's order depends on this and on the document's number.

    Returns
    -------
    Corpus
        The same document names.

    Raises
    ------
    InvalidInput
        If no document has three words, as in languages that are written without spaces.

    Examples
    --------
    >>> corpus = Corpus([("tale", "Once upon a time there was a king.")])
    >>> shuffled_words(corpus, random_state=1).documents
    [('tale', 'Once was there upon a a time king.')]
    """
    documents, movable = [], False
    for number, (label, text) in enumerate(corpus):
        pieces = _PIECE.findall(text)
        first = _PIECE.search(text)
        movable |= len(pieces) > 1
        if first is not None:
            order = stream(random_state, "shuffled_words", number).permutation(len(pieces))
            end = first.start() + sum(map(len, pieces))
            text = text[: first.start()] + "".join(pieces[place] for place in order) + text[end:]
        documents.append((label, text))
    if not movable:
        raise InvalidInput(
            f"{corpus.name}: no document has three words with spaces between them, so there is no order to shuffle"
        )
    return Corpus(documents, f"{corpus.name}, words shuffled (random_state {random_state})")
