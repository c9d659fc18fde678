"""What differs between the levels of a factor besides what is meant to.

Every check gives a number, a threshold and a plain reason. ``pass`` and ``fail`` are about
surface tells that no language feature should be credited with; ``warn`` is for what a
reader must know but may have been intended, such as words that define a factor.

========================= ==================================================== ===== =====
check                     value                                                pass  fail
========================= ==================================================== ===== =====
length_*                  AUC of the length alone (worst pair of levels)       ≤.60  >.65
length_*_paired           mean / SD of the difference within items             ≤.30  >.50
length_* of a:b           the same for the 2x2 interaction                     ≤.30  >.50
punctuation, capitals,    largest distance between two levels' distributions   ≤.05  >.10
digits                    of counts per stimulus, over characters
the same of a:b           difference of these differences                      ≤.10  >.20
template                  total variation distance of template frequencies     ≤.05  >.10
pairing                   share of items complete in all levels (or cells)     1     <1
materials                 sets of words in which levels differ / such items    ≥.75  warn
balance                   smallest cell / largest cell                         ≥.90  <.80
duplicates                stimuli whose text occurred before                   0     >0
target                    share of stimuli with a target span                  1     warn
lexical_words, _bigrams   balanced accuracy of words alone, new items          see below
template_ngrams           n-grams in > 50 % of one level, 0 % of another       0     warn
========================= ==================================================== ===== =====

Why these numbers. With fifty stimuli per level an AUC of .60 is what chance gives in one
set of fifteen, and a feature that follows length alone with AUC .65 already has a
standardised effect of .54. Paired designs remove the noise between items, so a difference
of a third of its own SD is visible with the usual number of items. Punctuation is one
token with its own features, so five stimuli in a hundred are the most that is tolerated.
Lexical decodability warns where it exceeds chance by more than .05 with p ≤ .05
(permutation within items). Materials warns where items are told apart by the same words: won/lost in
four sentences is one observation of words, not four. Accuracy *below* chance is no tell: it is what counterbalanced
words give when the item left out uses the same words the other way round.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from neurollm.errors import InvalidInput
from neurollm.stimuli._lexical import LeaveOneItemOut, telltale_ngrams, words
from neurollm.stimuli._validation import quoted
from neurollm.validation import closest, several, shortened

if TYPE_CHECKING:
    from neurollm.stimuli.stimulus_set import StimulusSet

Status = Literal["pass", "warn", "fail"]
_ORDER = ("pass", "warn", "fail")
# (largest value that passes, largest value that only warns)
_AUC = (0.60, 0.65)
_PAIRED = (0.30, 0.50)
_RATE = (0.05, 0.10)
_RATE_INTERACTION = (0.10, 0.20)
_BALANCE = (0.90, 0.80)
_MATERIALS = 0.75
_LEXICAL_EXCESS, _LEXICAL_P = 0.05, 0.05
_NGRAM_SHARE = 0.5


@dataclass(frozen=True)
class Check:
    """One measured property of a stimulus set."""

    name: str
    """What was measured, for example ``length_words``."""
    factor: str
    """The factor, ``a:b`` for a crossing or interaction, or empty for the whole set."""
    status: Status
    """``pass``, ``warn`` or ``fail``."""
    value: float
    """The measurement."""
    threshold: float
    """The limit of ``pass``."""
    reason: str
    """One sentence a reader can act on."""


@dataclass(frozen=True)
class AuditReport:
    """The checks of one stimulus set.

    Examples
    --------
    >>> from neurollm.stimuli import StimulusSet
    >>> stimuli = StimulusSet.from_conditions({"calm": ["He sat.", "It lay."], "loud": ["He ran!", "It hit!"]})
    >>> report = stimuli.audit()
    >>> report.passed, report.worst
    (False, 'fail')
    >>> [check.name for check in report.checks if check.status == "fail"]
    ['punctuation']
    """

    name: str
    """The name of the set."""
    checks: tuple[Check, ...]

    @property
    def worst(self) -> Status:
        """The worst status of all checks."""
        return max((check.status for check in self.checks), key=_ORDER.index, default="pass")

    @property
    def passed(self) -> bool:
        """True if no check failed; warnings do not fail a set."""
        return self.worst != "fail"

    def to_frame(self) -> pd.DataFrame:
        """One row per check."""
        fields = ["name", "factor", "status", "value", "threshold", "reason"]
        return pd.DataFrame([[getattr(check, field) for field in fields] for check in self.checks], columns=fields)

    def __str__(self) -> str:
        counts = {status: sum(check.status == status for check in self.checks) for status in _ORDER}
        title = f"{self.name}: " + ", ".join(f"{counts[status]} {status}" for status in _ORDER)
        rows = [("status", "check", "factor", "value", "limit", "reason")]
        for c in self.checks:
            rows.append((c.status, c.name, c.factor or "-", f"{c.value:.2f}", f"{c.threshold:.2f}", c.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
        return "\n".join([title, *lines])


def audit(stimuli: StimulusSet, factors: Iterable[str] | None = None, item: str = "item") -> AuditReport:
    """Check a stimulus set for confounds before anything is tested on it.

    Parameters
    ----------
    stimuli : StimulusSet
    factors : iterable of str, optional
        Default: all factors of the set.
    item : str, default="item"
        The design's item column, if it is another one: items should differ in words of their own.

    Returns
    -------
    AuditReport
        Checks of the whole set, then of each factor, then of each pair of factors.
    """
    factors = stimuli.factors if factors is None else tuple(factors)
    for factor in factors:
        if factor not in stimuli.factors:
            raise InvalidInput(
                f"{stimuli.name}: cannot audit {factor!r}, which is not among the factors "
                f"{quoted(stimuli.factors)}{closest(factor, stimuli.factors)}"
            )
    table = stimuli.table
    if item not in table:
        raise InvalidInput(f"{stimuli.name}: the table has no column {item!r}{closest(item, table.columns)}")
    lengths, symbols = _lengths(table["text"]), _symbols(table["text"])
    decoders = {n: LeaveOneItemOut(table["text"], table["item"], n) for n in (1, 2)}
    checks = [_duplicates(table), *_target(table)]
    if factors:
        checks.append(_balance(stimuli, factors))
    for factor in factors:
        levels = stimuli.levels(factor)
        for unit, length in lengths.items():
            checks += _length(table, factor, levels, unit, length)
        for kind, counts in symbols.items():
            checks.append(_symbol(table, factor, levels, kind, counts))
        checks += [_template(table, factor, levels), _pairing(table, factor, levels)]
        checks += [*_materials(table, factor, levels, item), *_lexical(table, factor, levels, decoders)]
    checks += _crossing(table, factors)
    for a, b in itertools.combinations(factors, 2):
        if len(stimuli.levels(a)) == len(stimuli.levels(b)) == 2:
            checks += _interactions(table, stimuli, (a, b), lengths, symbols)
    return AuditReport(stimuli.name, tuple(checks))


# ---------------------------------------------------------------- measures per stimulus


def _lengths(texts: pd.Series) -> dict[str, np.ndarray]:
    return {
        "words": np.array([len(text.split()) for text in texts], dtype=float),
        "characters": np.array([len(text) for text in texts], dtype=float),
    }


def _symbols(texts: pd.Series) -> dict[str, dict[str, np.ndarray]]:
    """Counts per stimulus of each punctuation character, of capitals and of digits."""
    found = sorted({c for text in texts for c in text if unicodedata.category(c)[0] in "PS"})
    punctuation = {c: np.array([text.count(c) for text in texts]) for c in found}
    if found:
        punctuation["any of these"] = np.sum(list(punctuation.values()), axis=0)
    # Spaces that no reader sees: at either end, or more than one between two words.
    punctuation["extra space"] = np.array([len(text) - len(" ".join(text.split())) for text in texts])
    capitals = {"capital letter": np.array([sum(map(str.isupper, text)) for text in texts])}
    digits = {"digit": np.array([sum(map(str.isdigit, text)) for text in texts])}
    return {"punctuation": punctuation, "capitals": capitals, "digits": digits}


def _grade(value: float, limits: tuple[float, float]) -> Status:
    return "pass" if value <= limits[0] else "warn" if value <= limits[1] else "fail"


def _grid(values: np.ndarray, table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean of a measure per item (rows) and cell (columns), missing where an item lacks a cell."""
    keys = [table["item"], *(table[name] for name in by)]
    return pd.Series(values).groupby(keys).mean().unstack(list(range(1, len(by) + 1)))


def _standardised(differences: np.ndarray) -> float:
    mean, spread = differences.mean(), differences.std(ddof=1)
    if abs(mean) < 1e-12:
        return 0.0
    return float(abs(mean) / spread) if spread > 1e-12 else float("inf")


# ---------------------------------------------------------------- checks of the whole set


def _duplicates(table: pd.DataFrame) -> Check:
    folded = table["text"].map(lambda text: " ".join(text.casefold().split()))
    again = folded.duplicated()
    if not again.any():
        return Check("duplicates", "", "pass", 0.0, 0.0, "every text is unique")
    first = folded[again].iloc[0]
    ids = table["stimulus_id"][folded == first]
    reason = f"{again.sum()} texts occur more than once, for example stimuli {quoted(ids)}; keep one of each"
    return Check("duplicates", "", "fail", float(again.sum()), 0.0, reason)


def _target(table: pd.DataFrame) -> list[Check]:
    if "target" not in table:
        return []
    share = float((table["target"] != "").mean())
    missing = table["stimulus_id"][table["target"] == ""]
    reason = "every stimulus has a target span"
    if len(missing):
        reason = f"stimuli without a target span ({quoted(missing[:3])}, ...) are dropped by the target window"
    return [Check("target", "", "pass" if share == 1 else "warn", share, 1.0, reason)]


def _balance(stimuli: StimulusSet, factors: tuple[str, ...]) -> Check:
    counts = stimuli.cells.sum(axis=1).groupby(level=list(factors), sort=False).sum()
    ratio = float(counts.min() / counts.max())
    status = "pass" if ratio >= _BALANCE[0] else "warn" if ratio >= _BALANCE[1] else "fail"
    small = counts.idxmin()
    cell = ", ".join(small) if isinstance(small, tuple) else small
    reason = f"every cell has {counts.min()} to {counts.max()} stimuli"
    if status != "pass":
        reason = f"cell ({cell}) has {counts.min()} stimuli, the largest cell {counts.max()}"
    return Check("balance", ":".join(factors), status, ratio, _BALANCE[0], reason)


# ---------------------------------------------------------------- checks of one factor


def _length(table: pd.DataFrame, factor: str, levels: tuple[str, ...], unit: str, length: np.ndarray) -> list[Check]:
    label = table[factor].to_numpy()
    worst, reason = 0.5, f"the number of {unit} does not tell the levels apart"
    for a, b in itertools.combinations(levels, 2):
        auc = _auc(length[label == a], length[label == b])
        if max(auc, 1 - auc) > worst:
            worst = max(auc, 1 - auc)
            longer, shorter = (a, b) if auc > 0.5 else (b, a)
            reason = f"{longer} has more {unit} than {shorter} with probability {worst:.2f} (chance .50)"
    checks = [Check(f"length_{unit}", factor, _grade(worst, _AUC), worst, _AUC[0], reason)]
    worst, reason = -1.0, ""
    grid = _grid(length, table, [factor])
    for a, b in itertools.combinations(levels, 2):
        pairs = grid[[a, b]].dropna()
        if len(pairs) < 2:
            continue
        differences = (pairs[a] - pairs[b]).to_numpy()
        size = _standardised(differences)
        if size > worst:
            worst = size
            reason = f"within items, {a} minus {b} is {differences.mean():+.2f} {unit} on average"
    if worst >= 0:
        checks.append(Check(f"length_{unit}_paired", factor, _grade(worst, _PAIRED), worst, _PAIRED[0], reason))
    return checks


def _auc(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that a value of `a` exceeds one of `b`, ties counted half."""
    ordered = np.sort(b)
    below, upto = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    return float((below + upto).mean() / (2 * len(b)))


def _symbol(
    table: pd.DataFrame, factor: str, levels: tuple[str, ...], kind: str, counts: dict[str, np.ndarray]
) -> Check:
    """The count of which character is distributed most differently in two levels."""
    label = table[factor].to_numpy()
    worst, reason = 0.0, "no difference between levels"
    for character, count in counts.items():
        for a, b in itertools.combinations(levels, 2):
            for least in np.unique(count[count > 0]):
                rates = [float((count[label == level] >= least).mean()) for level in (a, b)]
                if abs(rates[0] - rates[1]) > worst:
                    worst = abs(rates[0] - rates[1])
                    amount = "" if least == 1 else f" ({least} or more)"
                    reason = f"{character}{amount} occurs in {rates[0]:.0%} of {a} and {rates[1]:.0%} of {b}"
    return Check(kind, factor, _grade(worst, _RATE), worst, _RATE[0], reason)


def _template(table: pd.DataFrame, factor: str, levels: tuple[str, ...]) -> Check:
    rates = pd.crosstab(table[factor], table["template"], normalize="index")
    worst, reason = 0.0, "templates are equally frequent in all levels"
    for a, b in itertools.combinations(levels, 2):
        difference = rates.loc[a] - rates.loc[b]
        distance = float(difference.abs().sum() / 2)
        if distance > worst:
            worst, most = distance, difference.abs().idxmax()
            reason = f"template {most} makes up {rates.loc[a, most]:.0%} of {a} and {rates.loc[b, most]:.0%} of {b}"
    return Check("template", factor, _grade(worst, _RATE), worst, _RATE[0], reason)


def _complete(table: pd.DataFrame, by: list[str], n_cells: int) -> pd.Series:
    """For each item, whether it has the same positive number of stimuli in every cell."""
    counts = table.groupby(["item", *by]).size().groupby("item").agg(["size", "min", "max"])
    return (counts["size"] == n_cells) & (counts["min"] == counts["max"])


def _pairing(table: pd.DataFrame, factor: str, levels: tuple[str, ...]) -> Check:
    if (table.groupby("item")[factor].nunique() == 1).all():
        reason = "no item occurs in two levels: what an item is about may explain any difference"
        return Check("pairing", factor, "warn", 0.0, 1.0, reason)
    return _completeness(table, [factor], len(levels))


def _completeness(table: pd.DataFrame, by: list[str], n_cells: int) -> Check:
    complete = _complete(table, by, n_cells)
    share, name = float(complete.mean()), ":".join(by)
    if share == 1:
        return Check("pairing", name, "pass", 1.0, 1.0, "every item occurs equally often in every level")
    broken = complete.index[~complete]
    reason = f"{len(broken)} of {len(complete)} items are incomplete, for example {quoted(broken[:3])}"
    return Check("pairing", name, "fail", share, 1.0, reason)


def _materials(table: pd.DataFrame, factor: str, levels: tuple[str, ...], item: str) -> list[Check]:
    """Whether the words in which the levels of an item differ are its own; nothing if none has all levels."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, level, text in zip(table[item], table[factor], table["text"], strict=True):
        found.setdefault(name, {}).setdefault(level, set()).update(words(text))
    sets: dict[tuple, int] = {}
    for used in found.values():
        everywhere = set.intersection(*used.values())
        if len(used) == len(levels) and any(used[level] - everywhere for level in levels):
            own = tuple(tuple(sorted(used[level] - everywhere)) for level in levels)
            sets[own] = sets.get(own, 0) + 1
    n_items = sum(sets.values())
    if n_items < 2:
        return []
    share, name = len(sets) / n_items, several(item)
    if share >= _MATERIALS:
        return [Check("materials", factor, "pass", share, _MATERIALS, f"{name} differ in words of their own")]
    most = max(sets, key=lambda own: sets[own])
    shown = shortened(" / ".join(" ".join(own) or "no word" for own in most))
    number = "one set of words" if len(sets) == 1 else f"only {len(sets)} sets of words"
    reason = (
        f"{n_items} {name} differ in {number} ({shown} in {sets[most]} of them): a difference may be one between these "
        "words; to conclude about others, take more of them, and make the words the item of the design"
    )
    return [Check("materials", factor, "warn", share, _MATERIALS, reason)]


def _lexical(
    table: pd.DataFrame, factor: str, levels: tuple[str, ...], decoders: dict[int, LeaveOneItemOut]
) -> list[Check]:
    labels = pd.Categorical(table[factor], categories=list(levels)).codes.astype(np.int64)
    chance = 1 / len(levels)
    limit, against = chance + _LEXICAL_EXCESS, " vs ".join(levels)
    checks = []
    for n, decoder in decoders.items():
        unit = {1: "words", 2: "bigrams"}[n]
        accuracy, p = decoder.test(labels)
        told = accuracy > limit and p <= _LEXICAL_P
        reason = f"{unit} alone do not decode {against} on new items (p = {p:.3f}, chance {chance:.2f})"
        if told:
            reason = f"{unit} alone decode {against} on new items at {accuracy:.2f}: the words may decide differences"
        elif accuracy < chance - _LEXICAL_EXCESS:
            reason = f"{unit} decode {against} below chance: they are counterbalanced over items"
        checks.append(Check(f"lexical_{unit}", factor, "warn" if told else "pass", accuracy, limit, reason))
    found = telltale_ngrams(table["text"], labels, _NGRAM_SHARE)
    reason = "no n-gram marks a level"
    if found:
        named = ", ".join(f"{gram!r} ({levels[level]})" for gram, level in found[:5])
        reason = f"in more than half of one level and never in another: {named}"
    checks.append(Check("template_ngrams", factor, "warn" if found else "pass", float(len(found)), 0.0, reason))
    return checks


# ---------------------------------------------------------------- checks of crossed factors


def _crossing(table: pd.DataFrame, factors: tuple[str, ...]) -> list[Check]:
    """Completeness of the crossing of all factors that vary within items."""
    within = [f for f in factors if (table.groupby("item")[f].nunique() > 1).any()]
    if len(within) < 2:
        return []
    return [_completeness(table, within, int(np.prod([table[f].nunique() for f in within])))]


def _interactions(
    table: pd.DataFrame,
    stimuli: StimulusSet,
    pair: tuple[str, str],
    lengths: dict[str, np.ndarray],
    symbols: dict[str, dict[str, np.ndarray]],
) -> list[Check]:
    """The 2x2 interaction of each surface measure: a tell in one cell only is an interaction."""
    a, b = pair
    name = f"{a}:{b}"
    signs = [np.where(table[f] == stimuli.levels(f)[0], 1, -1) for f in pair]
    sign = signs[0] * signs[1]
    cell = table[a].to_numpy() + "\t" + table[b].to_numpy()
    cells = {key: (cell == key, sign[cell == key][0]) for key in dict.fromkeys(cell)}
    if len(cells) < 4:
        return []

    def contrast(measure: np.ndarray) -> float:
        return float(sum(s * measure[rows].mean() for rows, s in cells.values()))

    checks = []
    for unit, length in lengths.items():
        grid = _grid(length, table, [a, b]).dropna()
        if len(grid) >= 2 and grid.shape[1] == 4:
            weights = [stimuli.levels(a).index(x) == stimuli.levels(b).index(y) for x, y in grid.columns]
            size = _standardised(grid.to_numpy() @ np.where(weights, 1.0, -1.0))
        else:
            spread = np.sqrt(np.mean([length[rows].var() for rows, _ in cells.values()]))
            # Half the contrast is the difference of the two simple effects' means, as in a main effect.
            size = 0.0 if contrast(length) == 0 else abs(contrast(length)) / 2 / spread if spread else float("inf")
        reason = f"the effect of {a} on the number of {unit} changes by {contrast(length):+.2f} with {b}"
        checks.append(Check(f"length_{unit}", name, _grade(size, _PAIRED), size, _PAIRED[0], reason))
    for kind, counts in symbols.items():
        worst, reason = 0.0, "no difference between cells"
        for character, count in counts.items():
            for least in np.unique(count[count > 0]):
                size = abs(contrast(count >= least))
                if size > worst + 1e-12:
                    worst = size
                    reason = f"the effect of {a} on the rate of {character} changes by {size:.0%} with {b}"
        checks.append(Check(kind, name, _grade(worst, _RATE_INTERACTION), worst, _RATE_INTERACTION[0], reason))
    return checks
