"""Token windows (which tokens of a stimulus count) and pooling (how they become one trial)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput

if TYPE_CHECKING:
    from neurollm.models import TokenizedText

POOLS = ("mean", "max", "sum", "last", "none")
_FORM = re.compile(r"(content|all|last|target)|(left|centre):([1-9]\d*)")


@dataclass(frozen=True)
class Window:
    """The tokens of a stimulus that enter its trial.

    Parameters
    ----------
    spec : str
        ``"content"``: every token but the special ones (the default everywhere);
        ``"last"``: the last of these; ``"target"``: those that overlap the stimulus's
        target span; ``"left:n"``: the first `n`; ``"centre:n"``: the `n` in the middle
        (fewer when the text is shorter; the number is kept with the trial);
        ``"all"``: special tokens too.

    Raises
    ------
    InvalidInput
        If the text is none of these.

    Examples
    --------
    >>> Window("left:5").spec
    'left:5'
    """

    spec: str = "content"

    def __post_init__(self) -> None:
        if not isinstance(self.spec, str) or _FORM.fullmatch(self.spec) is None:
            raise InvalidInput(
                f"tokens: {self.spec!r} is not a token window; use content, last, target, left:n, centre:n or all"
            )

    def positions(self, tokens: TokenizedText, target: tuple[int, int] | None = None) -> np.ndarray:
        """Positions, within the token sequence, of the tokens in the window.

        Parameters
        ----------
        tokens : TokenizedText
        target : (int, int), optional
            Character span, needed for the ``target`` window.

        Returns
        -------
        ndarray of int
            Increasing; empty when the window catches no token.
        """
        content = np.flatnonzero(~tokens.special)
        kind, _, count = self.spec.partition(":")
        if kind == "all":
            return np.arange(len(tokens))
        if kind == "last":
            return content[-1:]
        if kind == "left":
            return content[: int(count)]
        if kind == "centre":
            spare = max(0, len(content) - int(count))
            return content[spare // 2 : spare // 2 + int(count)]
        if kind == "target":
            if target is None:
                return content[:0]
            return content[(tokens.starts[content] < target[1]) & (tokens.ends[content] > target[0])]
        return content


def pool_rows(codes: sparse.csr_matrix, owners: np.ndarray, n_trials: int, how: str) -> sparse.csr_matrix:
    """Pool token rows into trial rows.

    Parameters
    ----------
    codes : CSR, shape (n_tokens, n_features)
    owners : ndarray of int, shape (n_tokens,)
        Trial of each token, non-decreasing.
    n_trials : int
    how : {"mean", "max", "sum", "last"}

    Returns
    -------
    CSR of float32, shape (n_trials, n_features)
        Trials without tokens are zero rows.
    """
    counts = np.bincount(owners, minlength=n_trials)
    if how == "last":
        last = np.cumsum(counts)[counts > 0] - 1
        gather = sparse.csr_matrix(
            (np.ones(len(last), np.float32), (np.flatnonzero(counts), last)), shape=(n_trials, len(owners))
        )
        return (gather @ codes).tocsr()
    if how == "max":
        return _pool_max(codes, owners, counts)
    weights = np.ones(len(owners)) if how == "sum" else 1.0 / counts[owners]
    gather = sparse.csr_matrix((weights, (owners, np.arange(len(owners)))), shape=(n_trials, len(owners)))
    return (gather @ codes.astype(np.float64)).astype(np.float32).tocsr()


def _pool_max(codes: sparse.csr_matrix, owners: np.ndarray, counts: np.ndarray) -> sparse.csr_matrix:
    """Largest value per trial and feature; a value that is not stored counts as zero."""
    entries = codes.tocoo()
    keys = owners[entries.row].astype(np.int64) * codes.shape[1] + entries.col
    order = np.argsort(keys, kind="stable")
    unique, first, stored = np.unique(keys[order], return_index=True, return_counts=True)
    rows, columns = np.divmod(unique, codes.shape[1])
    if len(unique) == 0:
        return sparse.csr_matrix((len(counts), codes.shape[1]), dtype=np.float32)
    largest = np.maximum.reduceat(entries.data[order], first)
    largest = np.where(stored < counts[rows], np.maximum(largest, 0), largest)
    pooled = sparse.csr_matrix((largest, (rows, columns)), shape=(len(counts), codes.shape[1]), dtype=np.float32)
    pooled.eliminate_zeros()
    return pooled
