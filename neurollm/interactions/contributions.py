"""What the components of a prediction contribute on data.

With e = x − x̂, the linear component l = s·W + b and the interaction component g(B) of a token:

    energy              E‖l‖², E‖g‖², 2 E l·g                      of E‖ŷ‖² = their sum
    error explained     1 − Σ‖e − l‖² / Σ‖e‖², the same of g and of l + g
    unique              both − the other alone
    magnitude share     E‖g‖ / (E‖l‖ + E‖g‖) over tokens           how loud a component is, not what it explains

A quiet component may explain all that is explained, and a loud one nothing or less than nothing. The share of error
explained is not the variance explained: Σ‖e‖² is not centred, so that the bias b counts.

Of a feature i, per token:

    decoder E s_i² ‖d_i‖²    linear E s_i² ‖W_i‖²    interaction E‖g(B) − g(B − B_i)‖²,  B_i = s_i v_i ∘ (S − s_i v_i)

where B_i are the pairs of which i is one. Intervals: `neurollm.stats.document_bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.model import as_places
from neurollm.interactions.rows import coded
from neurollm.stats.document_bootstrap import DocumentBootstrap, Estimate, check_draws

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.dictionaries.base import Dictionary
    from neurollm.interactions.model import NFM
    from neurollm.interactions.rows import CodedBatch, CodedRows

FEWEST_DOCUMENTS = 10  # of an interval
ENTRIES = 2**22  # numbers of the removal of single features held at a time
CONSTANT = 1e-6  # of the largest value: a smaller range is rounding
SUMS = ("tokens", "error", "linear", "interaction", "cross", "no_linear", "no_interaction", "no_both", "l", "g")


@dataclass(frozen=True, eq=False)
class Contributions:
    """Result of `contributions`.

    Attributes
    ----------
    table : DataFrame
        One row per quantity: ``quantity``, ``component``, ``value``, ``ci_low``, ``ci_high``.
    features : DataFrame
        One row per feature: ``feature``, ``density`` (share of tokens), and, per token, ``decoder`` (NaN without a
        dictionary), ``linear``, ``interaction``. Features that are never active are NaN.
    n_tokens, n_documents, n_boot : int
    constant_columns : int
        Columns of g that are the same for all tokens, of `d`.
    constant_pooled : int
        Columns of B that are the same for all tokens, of `rank`.
    d, rank : int
    seen : bool
        Whether the model was trained, or chosen, on some of these documents.
    """

    table: pd.DataFrame
    features: pd.DataFrame
    n_tokens: int
    n_documents: int
    n_boot: int
    constant_columns: int
    constant_pooled: int
    d: int
    rank: int
    seen: bool = False

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity."""
        return self.table.copy()

    def value(self, quantity: str, component: str) -> float:
        """One number of the table."""
        found = self.table[(self.table["quantity"] == quantity) & (self.table["component"] == component)]
        if found.empty:
            raise InvalidInput(f"contributions have no quantity {quantity!r} of component {component!r}")
        return float(found["value"].iloc[0])

    def verdict(self) -> str:
        """The result in one sentence."""

        def told(component: str, quantity: str = "error explained") -> str:
            row = self.table[(self.table["quantity"] == quantity) & (self.table["component"] == component)].iloc[0]
            interval = f" [{row['ci_low']:.1%}, {row['ci_high']:.1%}]" if np.isfinite(row["ci_low"]) else ""
            return f"{row['value']:.1%}{interval}"

        constant = ""
        if self.constant_columns == self.d:
            constant = " The interaction component is the same for every token: it carries no information."
        elif self.constant_columns:
            constant = f" {self.constant_columns} of {self.d} columns of it are the same for every token."
        return (
            f"On {self.n_tokens:,} tokens of {self.n_documents:,} documents the linear component alone explains "
            f"{told('linear')} of the dictionary's error, the interaction component alone {told('interaction')}, both "
            f"{told('both')}; beyond the linear one the interaction adds {told('interaction', 'unique')}. It has "
            f"{self.value('magnitude share', 'interaction'):.1%} of the output's magnitude, which is no share of "
            f"anything explained.{constant}"
            + (" Measured on documents that the model was trained on: shares are optimistic." if self.seen else "")
        )


def contributions(
    nfm: NFM,
    rows: CodedRows,
    *,
    n_boot: int = 1000,
    batch_size: int = 4096,
    random_state: int = 0,
) -> Contributions:
    """Energy, covariance and error explained of the linear and the interaction component.

    Parameters
    ----------
    nfm : NFM
    rows : CodedRows
        Held-out tokens.
    n_boot : int, default=1000
        Draws of documents for the intervals, at least 19; they need at least 10 documents; 0 for none.
    batch_size : int, default=4096
    random_state : int, default=0

    Returns
    -------
    Contributions

    Raises
    ------
    InvalidInput
        If `n_boot` is neither 0 nor a whole number of at least 19.
    DataMismatch
        If the codes or activations are not those of the model.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from neurollm.interactions.model import NFM
    >>> from neurollm.interactions.rows import CodedRows
    >>> code = sp.csr_matrix(np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 0.0]], np.float32))
    >>> nfm = NFM({"V": torch.ones(2, 1), "A": torch.ones(1, 1)}, top_n=2)
    >>> found = contributions(nfm, CodedRows.from_arrays(code, nfm.predict(code).numpy()))
    >>> found.value("error explained", "interaction"), found.value("error explained", "linear")
    (1.0, 0.0)
    """
    check_draws(n_boot, "contributions: ")
    rows = coded(rows, None)
    if (rows.n_features, rows.d) != (nfm.n_features, nfm.d):
        raise DataMismatch(
            f"contributions: the rows have {rows.n_features:,} features and d {rows.d}; {nfm} has {nfm.n_features:,} "
            f"and d {nfm.d}"
        )
    if rows.dictionary is not None:
        nfm.check(rows.dictionary)
    names, place = np.unique(rows.documents, return_inverse=True)
    sums, features = np.zeros((len(names), len(SUMS))), _FeatureSums(nfm)
    columns, pooled = _Range(), _Range()
    start = 0
    for batch in rows.in_order(batch_size):
        B, linear, g = _components(nfm, batch)
        columns.add(g)
        pooled.add(B)
        np.add.at(sums, place[start : start + len(g)], _products(batch.error.double().numpy(), linear, g))
        features.add(batch)
        start += len(g)
    return Contributions(
        table=_table(sums, n_boot, random_state),
        features=features.table(rows.n_rows, rows.dictionary),
        n_tokens=rows.n_rows,
        n_documents=len(names),
        n_boot=n_boot if len(names) >= FEWEST_DOCUMENTS else 0,
        constant_columns=columns.constant(),
        constant_pooled=pooled.constant(),
        d=nfm.d,
        rank=nfm.rank,
        seen=nfm.saw(rows),
    )


def _components(nfm: NFM, batch: CodedBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B, l and g of some tokens, float64."""
    with torch.no_grad():
        B = nfm.interactions(batch.code)
        parts = (B, nfm.linear(batch.code), nfm.interaction(B))
    return tuple(part.cpu().double().numpy() for part in parts)


def _products(e: np.ndarray, linear: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The columns `SUMS` of each token."""

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("nd,nd->n", a, b)

    rests = [dot(rest, rest) for rest in (e - linear, e - g, e - linear - g)]
    ll, gg = dot(linear, linear), dot(g, g)
    return np.column_stack([np.ones(len(e)), dot(e, e), ll, gg, dot(linear, g), *rests, np.sqrt(ll), np.sqrt(gg)])


def _table(sums: np.ndarray, n_boot: int, random_state: int) -> pd.DataFrame:
    import pandas as pd

    n = len(sums)
    bootstrap = DocumentBootstrap(n, n_boot if n >= FEWEST_DOCUMENTS else 0, random_state)
    rows = []
    for (quantity, component), (numerator, denominator) in _ratios(dict(zip(SUMS, sums.T, strict=True))).items():
        found = bootstrap.estimate([numerator], [denominator]) if denominator.any() else Estimate(float("nan"))
        rows.append(
            {"quantity": quantity, "component": component, "value": found.value}
            | {"ci_low": found.low, "ci_high": found.high}
        )
    return pd.DataFrame(rows)


def _ratios(t: dict[str, np.ndarray]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Every figure as numerator and denominator of each document."""
    n, error, loud = t["tokens"], t["error"], t["l"] + t["g"]
    return {
        ("energy", "error"): (error, n),
        ("energy", "linear"): (t["linear"], n),
        ("energy", "interaction"): (t["interaction"], n),
        ("energy", "covariance"): (2 * t["cross"], n),
        ("error explained", "linear"): (error - t["no_linear"], error),
        ("error explained", "interaction"): (error - t["no_interaction"], error),
        ("error explained", "both"): (error - t["no_both"], error),
        ("unique", "linear"): (t["no_interaction"] - t["no_both"], error),
        ("unique", "interaction"): (t["no_linear"] - t["no_both"], error),
        ("magnitude share", "linear"): (t["l"], loud),
        ("magnitude share", "interaction"): (t["g"], loud),
    }


class _Range:
    """Smallest and largest value of every column."""

    def __init__(self) -> None:
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def add(self, values: np.ndarray) -> None:
        self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))

    def constant(self) -> int:
        """Number of columns that do not vary."""
        return int((self.high - self.low <= CONSTANT * np.maximum(np.abs(self.low), np.abs(self.high))).sum())


class _FeatureSums:
    """Energies of single features."""

    def __init__(self, nfm: NFM) -> None:
        self.nfm = nfm
        self.active = np.zeros(nfm.n_features, np.int64)
        self.squares, self.removed = np.zeros((2, nfm.n_features))

    def add(self, batch: CodedBatch) -> None:
        code, n_features = batch.code, self.nfm.n_features
        self.active += np.bincount(code.indices[code.data != 0], minlength=n_features)
        self.squares += np.bincount(code.indices, code.data.astype(float) ** 2, minlength=n_features)
        counted = self.nfm.truncate(code)
        width = max(self.nfm.d, self.nfm.rank)
        step = max(1, int(ENTRIES / (width * max(1, self.nfm.top_n))))
        for start in range(0, counted.shape[0], step):
            part = counted[start : start + step]
            self.removed += np.bincount(part.indices, self._without_each(part), minlength=n_features)

    def _without_each(self, code: Any) -> np.ndarray:
        """‖g(B) − g(B − B_i)‖² for every entry of a truncated code."""
        places, values = as_places(code, self.nfm.device)
        with torch.no_grad():
            total, B = self.nfm.embed((places, values))
            own = values[:, None] * self.nfm.weights["V"][places.columns]
            several = (places.offsets.diff() > 1)[places.rows][:, None]
            pairs = torch.where(several, own * (total[places.rows] - own), 0.0)
            change = self.nfm.interaction(B)[places.rows] - self.nfm.interaction(B[places.rows] - pairs)
        return change.double().square().sum(1).cpu().numpy()

    def table(self, n_tokens: int, dictionary: Dictionary | None) -> pd.DataFrame:
        import pandas as pd

        def norms(rows: torch.Tensor | None) -> np.ndarray | float:
            return np.nan if rows is None else rows.double().square().sum(1).cpu().numpy()

        decoder = norms(None if dictionary is None else dictionary.directions)
        linear = norms(self.nfm.weights["W"]) if self.nfm.has_refit else 0.0
        alive = np.where(self.active > 0, 1.0, np.nan) / n_tokens
        return pd.DataFrame(
            {
                "feature": np.arange(self.nfm.n_features),
                "density": self.active / n_tokens,
                "decoder": alive * self.squares * decoder,
                "linear": alive * self.squares * linear,
                "interaction": alive * self.removed,
            }
        )
