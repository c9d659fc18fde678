"""The index of every feature's occurrences in a corpus, and the passages where it is strongest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.activations.corpus import Corpus
from neurollm.activations.documents import Documents, pieces
from neurollm.activations.folder import DOCUMENTS, open_complete, verify
from neurollm.activations.index_build import COMMAND, KIND, SUMMARY, build_index
from neurollm.activations.index_summary import Entries, keep_top
from neurollm.activations.store import ActivationStore, RowMap
from neurollm.activations.tensorfile import TensorFile
from neurollm.errors import InvalidInput
from neurollm.models import LanguageModel, Site


@dataclass(frozen=True)
class Context:
    """A passage in which a feature fires.

    Attributes
    ----------
    document : str
        Name of the document.
    tokens : list of (str, float)
        Pieces of text with the feature's activation at each; joined they are an exact
        passage of the document.
    peak : int
        Which piece the occurrence is.
    activation : float
        Of the occurrence.
    row : int
        Its row in the index.
    """

    document: str
    tokens: list[tuple[str, float]]
    peak: int
    activation: float
    row: int

    @property
    def text(self) -> str:
        """The passage."""
        return "".join(piece for piece, _ in self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"tokens": [list(token) for token in self.tokens]}


class FeatureIndex:
    """Where in a corpus each feature of a dictionary fires.

    Parameters
    ----------
    path : path-like
        Folder written by `FeatureIndex.build`.

    Attributes
    ----------
    manifest : dict
    site : Site
    n_rows, n_features : int
    fires : ndarray of int64, shape (n_features,)
        Number of tokens at which each feature is above zero.
    density : ndarray of float64, shape (n_features,)
        The same as a share of all tokens.
    max_activation : ndarray of float32, shape (n_features,)
        Largest activation; 0 for a feature that never fires.

    Raises
    ------
    InvalidInput
        If the folder holds no index.
    DataMismatch
        If the index is not finished, or a file is missing or truncated.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.manifest, files = open_complete(self.path, KIND, COMMAND)
        summary = TensorFile(self.path / SUMMARY, f"delete it and run {COMMAND} again to restore it")
        self.site = Site.from_dict(self.manifest["site"])
        self.n_features: int = self.manifest["n_features"]
        self.top: int = self.manifest["settings"]["top"]
        self.documents = Documents(self.path / DOCUMENTS)
        self._rows = RowMap(self.manifest["shards"], files)
        self.n_rows = self._rows.n_rows
        self.fires = summary.array("fires").copy()
        self.max_activation = summary.array("maximum").copy()
        self._top = {name: summary.array(name) for name in ("top_indptr", "top_row", "top_value")}

    def __repr__(self) -> str:
        return f"FeatureIndex({str(self.path)!r}, {self.site}, {self.n_features:,} features, {self.n_rows:,} tokens)"

    @classmethod
    def build(
        cls,
        lm: LanguageModel | None,
        dictionary: Any,
        source: Corpus | ActivationStore,
        out: str | os.PathLike,
        *,
        top: int = 20,
        context: int | None = None,
        verbose: int = 1,
    ) -> FeatureIndex:
        """Index all features in one pass; resumable like `harvest`.

        Parameters
        ----------
        lm : LanguageModel or None
            Not needed with a store.
        dictionary : Dictionary
            Anything with ``site``, ``n_features`` and ``encode_sparse``.
        source : Corpus or ActivationStore
            With a corpus the activations are computed and not kept.
        out : path-like
        top : int, default=20
            Strongest occurrences to have ready for each feature.
        context : int, optional
            Longest context in tokens; only with a corpus.
        verbose : int, default=1

        Returns
        -------
        FeatureIndex

        Raises
        ------
        InvalidInput
            If an argument is wrong, or the disk is full or may not be written.
        DataMismatch
            If dictionary, model and store do not belong together, or the folder holds
            something else.
        """
        build_index(lm, dictionary, source, out, top, context, verbose)
        return cls(out)

    @property
    def density(self) -> np.ndarray:
        """Share of tokens at which each feature is above zero."""
        return self.fires / self.n_rows

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest."""
        verify(self.path, self.manifest, COMMAND)

    def rows(self, start: int, stop: int) -> sparse.csr_array:
        """Features of the tokens `start` to `stop`, (n, n_features), float32."""
        return self.ranges([(start, stop)])

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> sparse.csr_array:
        """Features of the tokens of several ranges (`start`, `stop`), one after the other."""
        values, indices, counts = [np.empty(0, np.float32)], [np.empty(0, np.int32)], []
        for shard, begin, end in (span for edges in ranges for span in self._rows.spans(*edges)):
            file = self._rows.files[shard]
            indptr = file.array("indptr")[begin : end + 1]
            entries = slice(int(indptr[0]), int(indptr[-1]))
            values.append(file.array("values")[entries])
            indices.append(file.array("indices")[entries])
            counts.append(np.diff(indptr))
        indptr = np.concatenate([np.zeros(1, np.int64), *counts]).cumsum()
        arrays = (np.concatenate(values), np.concatenate(indices), indptr)
        return sparse.csr_array(arrays, shape=(len(indptr) - 1, self.n_features))

    def occurrences(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """All tokens at which a feature is not zero.

        Parameters
        ----------
        feature : int

        Returns
        -------
        rows : ndarray of int64
            Ascending.
        values : ndarray of float32
        """
        self._check(feature)
        rows, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for first, file in zip(self._rows.first, self._rows.files, strict=True):
            present = file.array("features")
            at = int(np.searchsorted(present, feature))
            if at < len(present) and present[at] == feature:
                entries = file.array("entries")[slice(*file.array("feature_indptr")[at : at + 2])]
                rows.append(np.searchsorted(file.array("indptr"), entries, side="right") - 1 + first)
                values.append(file.array("values")[entries])
        return np.concatenate(rows), np.concatenate(values)

    def top_contexts(self, feature: int, n: int = 10, window: int = 20) -> list[Context]:
        """The passages in which a feature is strongest, each from another document.

        Parameters
        ----------
        feature : int
        n : int, default=10
            At most this many; fewer when fewer documents make it fire.
        window : int, default=20
            Tokens to show on either side, within the document.

        Returns
        -------
        list of Context
            Strongest first.
        """
        rows, values = self._strongest(feature, n)
        return [self.passage(feature, int(row), float(value), window) for row, value in zip(rows, values, strict=True)]

    def _strongest(self, feature: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        self._check(feature)
        begin, end = (int(bound) for bound in self._top["top_indptr"][feature : feature + 2])
        if n <= self.top or end - begin < self.top:
            kept = slice(begin, min(end, begin + n))
            return self._top["top_row"][kept], self._top["top_value"][kept]
        rows, values = self.occurrences(feature)
        rows, values = rows[values > 0], values[values > 0]
        documents = np.array([self._document_of(row) for row in rows], dtype=np.int64)
        best = keep_top(Entries(np.zeros(len(rows), np.int64), values, rows, documents), n)
        return best.row, best.value

    def _document_of(self, row: int) -> int:
        shard, place = self._rows.locate(int(row))
        return int(self._rows.files[shard].array("doc_id")[place])

    def passage(self, feature: int, row: int, activation: float, window: int = 20) -> Context:
        """The text around a token, with the activation of a feature at each token of it."""
        start, stop = max(0, row - window), min(self.n_rows, row + window + 1)
        inside = np.flatnonzero(self._rows.column("doc_id", start, stop) == self._document_of(row))
        start, stop = start + int(inside[0]), start + int(inside[-1]) + 1
        name, text = self.documents[self._document_of(row)]
        starts, ends = (self._rows.column(column, start, stop) for column in ("char_start", "char_end"))
        values = np.zeros(stop - start, np.float32)
        here = self.rows(start, stop).tocoo()
        of_feature = here.col == feature
        values[here.row[of_feature]] = here.data[of_feature]
        tokens = list(zip(pieces(text, starts, ends), values.tolist(), strict=True))
        return Context(document=name, tokens=tokens, peak=row - start, activation=activation, row=row)

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.n_features:
            raise InvalidInput(f"feature {feature} does not exist; the features are 0 to {self.n_features - 1}")
