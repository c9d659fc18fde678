"""Codes and activations of the same tokens, side by side.

An interaction model learns from pairs: the sparse code of a token, and what the
dictionary leaves unexplained of its activation. Codes are found once and kept, in a
folder (a feature index, resumable) or in memory; activations stay where they are.
The error x − x̂ is computed when it is needed: it is as large as the activations, and
costs 2 k d multiplications.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.activations import FeatureIndex
from neurollm.activations.reader import BlockOrder, read_ahead, rows_per_block
from neurollm.dictionaries.base import Dictionary, as_tensor
from neurollm.dictionaries.held_out import text_digests
from neurollm.dictionaries.rows import check_rows, encode_rows
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore
    from neurollm.models import Site

MOST_IN_MEMORY = 4e9  # bytes of codes without a folder, and of codes with other errors
Decode = Callable[[sp.csr_matrix, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class CodedBatch:
    """Some tokens.

    Attributes
    ----------
    rows : ndarray of int, shape (n,)
        Their numbers in the store or arrays.
    code : scipy.sparse.csr_matrix of float32, shape (n, n_features)
    x : Tensor of float32, shape (n, d)
        Activations.
    error : Tensor of float32, shape (n, d)
        x − x̂: what the dictionary leaves unexplained.
    pairing : scipy.sparse.csr_matrix
        The code whose interactions shall explain the error: `code`, or after `CodedRows.shuffled` that of another
        token.
    """

    rows: np.ndarray
    code: sp.csr_matrix
    x: torch.Tensor
    error: torch.Tensor
    pairing: sp.csr_matrix


class _Source(Protocol):
    """Where rows lie."""

    scattered: bool  # whether rows anywhere are read as fast as consecutive ones

    def code(self, rows: np.ndarray) -> sp.csr_matrix: ...

    def activations(self, rows: np.ndarray) -> torch.Tensor: ...


class _Arrays:
    scattered = True

    def __init__(self, codes: sp.csr_matrix, x: torch.Tensor) -> None:
        self.codes, self.x = codes, x

    def code(self, rows: np.ndarray) -> sp.csr_matrix:
        return self.codes[rows]

    def activations(self, rows: np.ndarray) -> torch.Tensor:
        return self.x.index_select(0, torch.from_numpy(rows))


class _Stored:
    scattered = False

    def __init__(self, codes: FeatureIndex | sp.csr_matrix, store: ActivationStore) -> None:
        self.codes, self.store = codes, store

    def code(self, rows: np.ndarray) -> sp.csr_matrix:
        if isinstance(self.codes, FeatureIndex):
            return _narrow(self.codes.ranges(_runs(rows)))
        return _narrow(self.codes[rows])

    def activations(self, rows: np.ndarray) -> torch.Tensor:
        return self.store.ranges(_runs(rows), self.store.dtype)


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Consecutive rows: the first and the one after the last of each run."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def _narrow(code: sp.csr_matrix) -> sp.csr_matrix:
    """With indices of 32 bits, which take half the time."""
    index = np.int32 if max(code.nnz, *code.shape) < 2**31 else np.int64
    arrays = (code.data, code.indices.astype(index, copy=False), code.indptr.astype(index, copy=False))
    return sp.csr_matrix(arrays, shape=code.shape)


class CodedRows:
    """Codes and activations of the same tokens; make one with `of` or `from_arrays`.

    Attributes
    ----------
    n_rows, d, n_features : int
    documents : ndarray of int, shape (n_rows,)
        Document of each row: what is held out, and the unit of every interval.
    positions : ndarray of int, shape (n_rows,)
        Of the token in its document.
    dictionary : Dictionary or None
    site : Site or None
    model_fingerprint : str

    Examples
    --------
    >>> codes = sp.random(100, 20, 0.2, format="csr", dtype=np.float32, random_state=0)
    >>> rows = CodedRows.from_arrays(codes, codes @ np.ones((20, 4), np.float32))
    >>> batch = next(rows.in_order(10))
    >>> batch.code.shape, tuple(batch.error.shape)
    ((10, 20), (10, 4))
    """

    def __init__(
        self,
        source: _Source,
        decode: Decode | None,
        documents: np.ndarray,
        positions: np.ndarray,
        sizes: tuple[int, int],
        identity: str,
    ) -> None:
        self._source, self._decode = source, decode
        self._all_documents, self._all_positions = documents, positions
        self.d, self.n_features = sizes
        self._identity = self._origin = identity
        self._errors: Callable[[CodedBatch], torch.Tensor] | None = None  # instead of x − x̂
        self._kept, self._numbers = np.arange(len(documents)), np.arange(len(documents))
        self._partner: np.ndarray | None = None  # of each kept row, the row whose code stands in for its own
        self._unit: tuple[sp.dia_matrix, sp.dia_matrix] | None = None  # of widened rows, and its inverse
        self.dictionary: Dictionary | None = None
        self.site: Site | None = None
        self.model_name, self.model_fingerprint = "", ""

    @classmethod
    def of(
        cls,
        store: ActivationStore,
        dictionary: Dictionary,
        folder: str | os.PathLike | None = None,
        *,
        verbose: int = 1,
    ) -> CodedRows:
        """The rows of an activation store and their codes.

        Parameters
        ----------
        store : ActivationStore
        dictionary : Dictionary
            Of the store's site and model; no transcoder.
        folder : path-like, optional
            Where the codes are kept, as a `FeatureIndex`; found there, they are only read. Without it they are
            held in memory.
        verbose : int, default=1

        Raises
        ------
        InvalidInput
            If the dictionary is a transcoder, or the codes do not fit into memory.
        DataMismatch
            If store, dictionary and folder do not belong together.
        """
        check_rows(dictionary, store)
        if getattr(getattr(dictionary, "normalisation", None), "needs_input", False):
            raise InvalidInput(
                f"{dictionary} scales every token by itself ({dictionary.normalisation.per_token}): its error is a "
                "product of scale and features, which would pass for interactions; use a dictionary without that"
            )
        if dictionary.is_transcoder:
            raise InvalidInput(
                f"{dictionary} is a transcoder, which predicts {dictionary.target_site} and leaves no error at its site"
            )
        if folder is not None:
            codes = FeatureIndex.build(None, dictionary, store, folder, top=1, verbose=verbose)
        else:
            _refuse_large(store, dictionary)
            codes = encode_rows(dictionary, store, verbose=verbose)
        columns = store.columns(0, store.n_rows)
        rows = cls(
            _Stored(codes, store),
            lambda code, x: torch.from_numpy(dictionary.decode(code, x)),
            columns["doc_id"].astype(np.int64),
            columns["position"].astype(np.int64),
            (store.d, dictionary.n_features),
            f"{store.sha256} {dictionary.fingerprint}",
        )
        rows.dictionary, rows.site = dictionary, store.site
        rows.model_name = store.manifest.get("model", {}).get("name", "")
        rows.model_fingerprint = store.model_fingerprint
        return rows

    @classmethod
    def from_arrays(
        cls,
        codes: sp.csr_matrix,
        activations: np.ndarray | torch.Tensor,
        reconstruction: np.ndarray | torch.Tensor | None = None,
        documents: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> CodedRows:
        """Rows of arrays.

        Parameters
        ----------
        codes : scipy sparse matrix, shape (n, n_features)
            Entries of one place are summed, and zeros that are stored are dropped.
        activations : array, shape (n, d)
        reconstruction : array (n_features + 1, d), optional
            Decoder directions and, last, the bias: x̂ = code · W_dec + b. Default: x̂ = 0.
        documents : array-like of int, shape (n,), optional
            Default: every row is a document of its own.
        positions : array-like of int, shape (n,), optional
            Default: all 0.
        """
        codes = sp.csr_matrix(codes, dtype=np.float32, copy=True)
        codes.sum_duplicates()
        codes.eliminate_zeros()
        x = as_tensor(activations).float()
        n, n_features = codes.shape
        if x.ndim != 2 or len(x) != n or not n:
            raise InvalidInput(f"codes have shape {codes.shape} and activations {tuple(x.shape)}; expected (n, d)")
        if not (np.isfinite(codes.data).all() and torch.isfinite(x).all()):
            raise InvalidInput("codes or activations contain NaN or infinite values")
        decoder = np.zeros((n_features + 1, x.shape[1]), np.float32)
        if reconstruction is not None:
            decoder = np.asarray(reconstruction, np.float32)
            if decoder.shape != (n_features + 1, x.shape[1]):
                raise InvalidInput(
                    f"reconstruction has shape {decoder.shape}; expected {(n_features + 1, x.shape[1])}: a direction "
                    "for each feature, and the bias"
                )
            if not np.isfinite(decoder).all():
                raise InvalidInput("reconstruction contains NaN or infinite values")
        documents = np.arange(n) if documents is None else np.asarray(documents)
        positions = np.zeros(n, np.int64) if positions is None else np.asarray(positions)
        if documents.shape != (n,) or positions.shape != (n,):
            raise InvalidInput(
                f"documents and positions have shapes {documents.shape} and {positions.shape}; expected one number for "
                f"each of the {n} rows"
            )
        if documents.dtype.kind not in "iu" or positions.dtype.kind not in "iu":
            raise InvalidInput(
                f"documents and positions have dtypes {documents.dtype} and {positions.dtype}; expected whole numbers"
            )
        digest = hashlib.sha256()
        for part in (codes.indptr, codes.indices, codes.data, x.numpy(), decoder, documents):
            digest.update(np.ascontiguousarray(part).tobytes())
        return cls(
            _Arrays(codes, x),
            lambda code, _x: torch.from_numpy(code @ decoder[:-1] + decoder[-1]),
            documents,
            positions,
            (x.shape[1], n_features),
            digest.hexdigest(),
        )

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return len(self._kept)

    @property
    def rows(self) -> np.ndarray:
        """Their numbers in the store or arrays, increasing."""
        return self._numbers[self._kept]

    @property
    def documents(self) -> np.ndarray:
        """Document of each row."""
        return self._all_documents[self._kept]

    @property
    def positions(self) -> np.ndarray:
        """Position of each row in its document."""
        return self._all_positions[self._kept]

    @property
    def sha256(self) -> str:
        """Identifies these rows of this store under this dictionary."""
        digest = hashlib.sha256(self._identity.encode())
        digest.update(self._kept.tobytes())
        digest.update(b"" if self._partner is None else b"shuffled" + self._partner.tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"CodedRows({self.n_rows:,} tokens of {len(np.unique(self.documents)):,} documents, d {self.d})"

    @property
    def origin(self) -> str:
        """Identifies the store and the dictionary, or the arrays, that all rows come from."""
        return hashlib.sha256(self._origin.encode()).hexdigest()

    def shared_documents(self, other: CodedRows) -> list[str]:
        """Names of documents that are in both: of the same store or arrays, or with the same text or numbers."""
        if self._origin == other._origin:
            return [str(document) for document in np.intersect1d(self.documents, other.documents)]
        here, there = self._contents(), other._contents()
        return [name for content, name in there.items() if content in here]

    def _contents(self) -> dict[bytes, str]:
        """Hash of the text, or of the activations, of each document → its name."""
        store = getattr(self._source, "store", None)
        if store is not None:
            return {digest: name for name, digest in text_digests(store, np.unique(self.documents))}
        digests: dict[int, Any] = {}
        for batch in self.in_order():
            of = self._all_documents[np.searchsorted(self._numbers, batch.rows)]
            for document in np.unique(of):
                rows = np.ascontiguousarray(batch.x.numpy()[of == document])
                digests.setdefault(int(document), hashlib.sha256()).update(rows.tobytes())
        return {digest.digest(): str(document) for document, digest in digests.items()}

    def subset(self, mask: np.ndarray) -> CodedRows:
        """The rows where `mask` (n_rows,) is true."""
        mask = np.asarray(mask)
        if mask.shape != (self.n_rows,) or mask.dtype != bool:
            raise InvalidInput(f"mask has shape {mask.shape} and dtype {mask.dtype}; expected {self.n_rows} booleans")
        if not mask.any():
            raise InvalidInput("no row is left")
        other = copy.copy(self)
        other._kept = self._kept[mask]
        other._partner = None if self._partner is None else self._partner[mask]
        return other

    def of_documents(self, documents: np.ndarray) -> CodedRows:
        """The rows of some documents."""
        return self.subset(np.isin(self.documents, documents))

    def shuffled(self, random_state: int = 0) -> CodedRows:
        """The same rows, paired with codes of other documents: a control that keeps everything but the pairing.

        Documents are paired at random; the token at place p among the rows of one is paired with the code at place p
        of the other, counted from its start again where it is shorter. Each code stays what it is, so do the
        dictionary's error and everything that depends on the position.
        """
        shuffled = copy.copy(self)
        shuffled._partner = self._kept[self.partners(random_state)]
        return shuffled

    def partners(self, random_state: int = 0) -> np.ndarray:
        """Which of these rows each is paired with when documents are `shuffled`, (n_rows,)."""
        ids, here, count = np.unique(self.documents, return_inverse=True, return_counts=True)
        if len(ids) < 2:
            raise InvalidInput("to shuffle codes over documents there must be at least two documents")
        order = stream(random_state, "codes.documents").permutation(len(ids))
        other_of = np.empty(len(ids), np.int64)
        other_of[order] = np.roll(order, 1)  # one cycle: no document is paired with itself
        by_document = np.argsort(here, kind="stable")  # rows of a document need not lie together
        first = np.cumsum(count) - count
        place = np.empty(self.n_rows, np.int64)
        place[by_document] = np.arange(self.n_rows) - np.repeat(first, count)
        there = other_of[here]
        return by_document[first[there] + place % count[there]]

    def widened(self, units: np.ndarray) -> CodedRows:
        """The same rows with three columns of code for each feature: s, unit · [s ≠ 0] and s² / unit.

        A linear map of them is additive over features and curved in each. The `pairing` stays the code itself.

        Parameters
        ----------
        units : ndarray, shape (n_features,)
            Typical size of each feature's entries, so that its three columns are of about one size.
        """
        if self._partner is not None or self._unit is not None:
            raise InvalidInput("rows that are shuffled or widened cannot be widened")
        other = copy.copy(self)
        other._unit = (sp.diags(np.float32(units)), sp.diags(1 / np.float32(units)))
        other.n_features = 3 * self.n_features
        other._identity = f"{self._identity} widened"
        return other

    def with_errors(self, errors: Callable[[CodedBatch], torch.Tensor]) -> CodedRows:
        """The same rows with other errors, a function of a batch.

        Activations are forgotten: `x` of their batches is the error, as if a dictionary reconstructed nothing. Codes
        and errors are held in memory if they fit, so that learning need not compute them again and again.
        """
        other = copy.copy(self)
        before = self._errors
        other._errors = errors if before is None else lambda batch: errors(_with_error(batch, before(batch)))
        first = errors(next(iter(self.in_order(1024)))).numpy()
        other._identity = f"{self._identity} errors {hashlib.sha256(first.tobytes()).hexdigest()}"
        return other._held() if self.fits_in_memory else other

    @property
    def fits_in_memory(self) -> bool:
        """Whether codes and errors of these rows are held in memory on occasion."""
        sample = self._load(np.arange(min(self.n_rows, 1024)))[1]
        per_row = 4 * self.d + 8 * sample.nnz / sample.shape[0] * (1 if self._partner is None else 2)
        return per_row * self.n_rows <= MOST_IN_MEMORY

    def _held(self) -> CodedRows:
        """The same rows with codes and errors in memory."""
        errors = torch.empty(self.n_rows, self.d)
        codes, pairings, place = [], [], 0
        for batch in self.in_order():
            errors[place : place + len(batch.rows)] = batch.error
            codes.append(batch.code if self._unit is None else batch.pairing)
            pairings.append(batch.pairing)
            place += len(batch.rows)
        held = copy.copy(self)
        shuffled = self._partner is not None
        held._source = _Arrays(_joined(codes + pairings if shuffled else codes), errors)
        held._decode, held._errors = None, None
        held._all_documents, held._all_positions = self.documents, self.positions
        held._kept, held._numbers = np.arange(self.n_rows), self.rows
        held._partner = held._kept + self.n_rows if shuffled else None
        return held

    def in_order(self, batch_size: int = 8192) -> Iterator[CodedBatch]:
        """All rows once, in order."""
        for start in range(0, self.n_rows, batch_size):
            yield self._batch(*self._load(np.arange(start, min(start + batch_size, self.n_rows))))

    def batches(
        self, batch_size: int, random_state: int = 0, epoch: int = 0, start_batch: int = 0, prefetch: bool = True
    ) -> Generator[CodedBatch, None, None]:
        """All rows once, in a random order made of large reads, see `BlockOrder`.

        Starting at `start_batch` gives what an uninterrupted pass would have given from there on.

        Parameters
        ----------
        batch_size : int
        random_state, epoch : int, default=0
        start_batch : int, default=0
        prefetch : bool, default=True
            Read ahead in a thread.
        """
        step = rows_per_block(2 * self.d)
        blocks = [np.arange(start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)]
        order = BlockOrder([len(block) for block in blocks], batch_size, random_state, epoch)

        def load(chosen: np.ndarray) -> tuple:
            places = np.concatenate([blocks[block] for block in chosen])
            return (places,) if self._source.scattered else self._load(places)

        def take(buffer: tuple, places: np.ndarray) -> tuple:
            taken = tuple(_rows(part, places) for part in buffer)
            return self._load(*taken) if self._source.scattered else taken

        batches = order.read(load, take, lambda parts: tuple(map(_joined, zip(*parts, strict=True))), start_batch)
        made = (self._batch(*batch) for batch in batches)
        yield from (read_ahead(made, 4) if prefetch else made)

    def n_batches(self, batch_size: int) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-self.n_rows // batch_size)

    def _load(self, places: np.ndarray) -> tuple:
        """Row numbers, codes, activations and, if they are shuffled, the codes paired with them; of places in here."""
        rows = self._kept[places]
        loaded = (self._numbers[rows], self._source.code(rows), self._source.activations(rows))
        return loaded if self._partner is None else (*loaded, self._source.code(self._partner[places]))

    def _batch(
        self, rows: np.ndarray, code: sp.csr_matrix, x: torch.Tensor, pairing: sp.csr_matrix | None = None
    ) -> CodedBatch:
        x = x.float()
        error = x if self._decode is None else x - self._decode(code, x)
        batch = CodedBatch(rows, code, x, error, code if pairing is None else pairing)
        if self._unit is not None:
            parts = [code, code.sign() @ self._unit[0], code.power(2) @ self._unit[1]]
            batch = replace(batch, code=sp.csr_matrix(sp.hstack(parts, format="csr"), dtype=np.float32))
        return batch if self._errors is None else _with_error(batch, self._errors(batch))


def _with_error(batch: CodedBatch, error: torch.Tensor) -> CodedBatch:
    return replace(batch, x=error, error=error)


def _rows(part: np.ndarray | sp.csr_matrix | torch.Tensor, places: np.ndarray) -> Any:
    """Some rows of an array."""
    return part.index_select(0, torch.from_numpy(places)) if isinstance(part, torch.Tensor) else part[places]


def _joined(parts: Sequence) -> np.ndarray | sp.csr_matrix | torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    if sp.issparse(parts[0]):
        return sp.csr_matrix(sp.vstack(parts, format="csr"))
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)


def coded(store: ActivationStore | CodedRows, dictionary: Dictionary | None, *, verbose: int = 0) -> CodedRows:
    """Coded rows of what a caller gave: themselves, or those of a store and a dictionary.

    Raises
    ------
    InvalidInput
        If a dictionary is missing, or is one too many.
    """
    if isinstance(getattr(store, "rows", None), CodedRows):
        store = store.rows  # simulated
    if isinstance(store, CodedRows):
        known = store.dictionary
        if dictionary is not None and (known is None or known.fingerprint != dictionary.fingerprint):
            raise DataMismatch(f"the coded rows are not those of {dictionary}; give its own, or no dictionary")
        return store
    if not hasattr(store, "columns"):
        raise InvalidInput(
            f"expected an activation store or CodedRows, got a {type(store).__name__}; arrays become coded rows with "
            "CodedRows.from_arrays, a path a store with ActivationStore"
        )
    if dictionary is None:
        raise InvalidInput("a store needs the dictionary whose errors are to be explained")
    return CodedRows.of(store, dictionary, verbose=verbose)


def _refuse_large(store: ActivationStore, dictionary: Dictionary) -> None:
    sample = dictionary.encode_sparse(store.rows(0, min(store.n_rows, 1024)))
    size = sample.nnz / sample.shape[0] * 8 * store.n_rows
    if size > MOST_IN_MEMORY:
        raise InvalidInput(
            f"the codes of {store.n_rows:,} tokens would take about {size / 1e9:.0f} GB of memory; give a folder to "
            "keep them in: CodedRows.of(store, dictionary, folder)"
        )
