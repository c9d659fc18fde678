"""What a trial is about: its item and its text, in a form in which the same content is found again.

Two trials have the same content if their items have the same name or their texts are the same after Unicode NFKC
and case folding, with single spaces, without punctuation and characters that are not seen. Names of items are
compared in the same form but with their punctuation, whatever their column is called and whether a table reader took
them for numbers.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

TEXT = "text"


def normalised(text: object) -> str:
    """The form in which names of items are compared.

    Examples
    --------
    >>> normalised("  The \\u210cOUSE\\tfell. ")
    'the house fell.'
    >>> normalised(7.0) == normalised("7") == normalised("+7e0")
    True
    """
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = "".join(" " if mark.isspace() else mark for mark in folded if mark.isspace() or not _unseen(mark))
    plain = " ".join(folded.split())
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return plain
    short = number.is_finite() and abs(number.adjusted()) < 30  # not "1e999999999" written out
    return format(number.normalize(), "f") if short else plain


def _unseen(mark: str) -> bool:
    """Control and format characters, variation selectors."""
    unseen = unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Co", "Cn")
    return unseen or "VARIATION SELECTOR" in unicodedata.name(mark, "")


def text_hash(text: object) -> str:
    """SHA-256 of a normalised text without its punctuation, as 64 hex digits.

    Examples
    --------
    >>> text_hash("\u201cIt\u2019s over.\u201d") == text_hash("it's over")
    True
    """
    whole = normalised(text)
    words = " ".join("".join(mark for mark in whole if unicodedata.category(mark)[0] != "P").split())
    return hashlib.sha256((words or whole).encode("utf-8", "surrogatepass")).hexdigest()


def item_keys(obs: pd.DataFrame, item: str) -> np.ndarray:
    """Every trial's item, normalised.

    Raises
    ------
    InvalidInput
        The column is missing or incomplete.
    """
    return np.array([normalised(label) for label in _column(obs, item, "names the items")], dtype=object)


def text_keys(obs: pd.DataFrame) -> np.ndarray:
    """The hash of every trial's text.

    Raises
    ------
    InvalidInput
        The column ``text`` is missing or incomplete.
    """
    why = "holds the stimuli; without it nobody can tell whether two trials show the same text"
    return np.array([text_hash(text) for text in _column(obs, TEXT, why)], dtype=object)


def _column(obs: pd.DataFrame, name: str, why: str) -> list[Any]:
    if not hasattr(obs, "columns"):
        raise InvalidInput(f"roi: expected a trial table with one row per trial, found {type(obs).__name__}.")
    if name not in obs.columns:
        hint = closest(name, obs.columns) or "."
        raise InvalidInput(
            f"roi: the trial table has no column '{name}', which {why}{hint} Its columns are {listed(obs.columns)}."
        )
    column = obs[name]
    if not len(column):
        raise InvalidInput("roi: the trial table is empty.")
    if column.isna().any():
        raise InvalidInput(f"roi: column '{name}' is empty in {int(column.isna().sum())} trials; it {why}.")
    return column.tolist()


def linked(*keys: Iterable[object]) -> np.ndarray:
    """Number of the group of every trial, where trials that share a value of any key belong together.

    Parameters
    ----------
    *keys : sequences of one length
        Names of items, hashes of texts.

    Returns
    -------
    ndarray of int, shape (n_trials,)
        In the order of the smallest first key of each group, whatever the order of the trials.

    Examples
    --------
    >>> linked(["a", "a", "b", "c"], ["one", "two", "two", "three"]).tolist()
    [0, 0, 0, 1]
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    codes = [np.unique(np.asarray(list(key), dtype=str), return_inverse=True)[1] for key in keys]
    n, start, edges = len(codes[0]), len(codes[0]), []
    for code in codes:  # trials are vertices, and so is every value; a trial is joined to its values
        edges.append(start + code)
        start += code.max() + 1
    rows, columns = np.tile(np.arange(n), len(codes)), np.concatenate(edges)
    graph = sparse.coo_array((np.ones(rows.size, dtype=np.int8), (rows, columns)), shape=(start, start))
    label = np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1]
    least = np.full(label.max() + 1, n)
    np.minimum.at(least, label, codes[0])
    return np.unique(least[label], return_inverse=True)[1]
