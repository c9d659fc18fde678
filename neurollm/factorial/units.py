"""What a column of a 2×2 design is: a unit of one factor, a sum of two, or one that integrates them.

Orientation. The sign of a column that takes both signs is arbitrary; what it is must not depend on it. Such a column
is turned so that the cell that differs most from the mean of the others, among the items of discovery, points up; a
column without positive values is turned too. Estimates in tables keep the column's own sign.

Cells. ``m11`` is the *preferred* cell: the one with the largest mean among the items of discovery, or the levels that
the user names; never a choice of the test items. ``m10`` has the preferred level of the first factor only, ``m01`` of
the second only, ``m00`` of none. All p below are from test items and of the turned column.

* Conjunction: max(p_F1, p_F2), the conjunction null of Nichols et al. (2005), with min |t|. Both factors matter;
  a plain sum passes.
* Super-additivity: m11 > m10, m11 > m01 and m11 − m00 > (m10 − m00) + (m01 − m00); the largest of three one-sided p
  (intersection–union test, Berger 1982), so no correction is needed.
* Little alone: either factor alone gives, up or down, less than a third of what both give,
  |m10 − m00| < (m11 − m00)/3 and |m01 − m00| < (m11 − m00)/3; the largest of four one-sided p (an equivalence test).
  It implies m11 > m00, so neither exclusive or nor a sum that grows faster and faster passes for want of power.
* Crossover: the effect of one factor has opposite signs at the two levels of the other (Gail & Simon 1985); the
  direction is that of the interaction in discovery, the p is the larger of two one-sided p, doubled for two
  factors. No monotone change of scale removes it.
* Order of a sum: m11 > m10 > m00 and m11 > m01 > m00, the largest of four one-sided p. An interaction with this order
  is removable in principle: some rising function of the activation makes the four means additive (Loftus 1978). A
  threshold or a saturation after a sum is of this kind.
* Sub-additivity: the cell that was lowest in discovery lies below each of the three others, and both factors together
  give less than the sum of either alone; the largest of four one-sided p.

Kinds, the first that applies; "significant" is p_FWER of the raw scale at the study's level:

==================  ==================================================================================================
not tested          ``untested``: constant or not finite in the test items
no interaction      ``none``, the name of the only factor with an effect, or ``additive`` (both, as a sum would give)
``crossover``       p_crossover ≤ α (exclusive or), after Holm's correction over the significant interactions
``removable``       not found with the same sign on log1p, or the order of a sum
``sub-additive``    p_subadditive ≤ α, or an interaction that opposes two significant main effects (or-like, saturation)
``and``             super-additive, and little alone
``interaction``     the rest: significant, of no shape that the tests can name
==================  ==================================================================================================

An interaction that is found on log1p but not on ranks keeps its kind and does not survive; the reason says so. A sum
whose threshold no single factor passes computes a conjunction: its cell means are those of an AND unit, and so is its
name. "additive" means that no interaction was found, not that there is none: see its interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.factorial.weightings import CellScores
from neurollm.stats import adjust

if TYPE_CHECKING:
    import pandas as pd

LITTLE = 1 / 3
"""Largest share of the joint effect that one factor alone may have in an AND unit."""
SHAPES = ("untested", "none", "additive", "and", "sub-additive", "crossover", "removable", "interaction")
"""Kinds besides the names of the two factors."""
LASTING = ("and", "crossover")
"""Kinds that neither a sum nor a rising function of one gives."""


@dataclass(frozen=True)
class Edges:
    """Tests between cells of a 2×2 design, for C columns that are turned (see the module).

    Cells are numbered 0 to 3 as (first, first), (first, last), (last, first), (last, last) level.

    Attributes
    ----------
    mean : ndarray, shape (4, C)
        Cell means of the test items.
    p : dict from (int, int) to ndarray of shape (C,)
        One-sided p that the first cell is larger than the second.
    interaction : dict from {1, -1} to ndarray of shape (C,)
        One-sided p that the interaction, first minus last, is positive or negative.
    scores : CellScores
        Of the columns as they are.
    turn : ndarray, shape (C,)
        −1 for columns that are turned, else 1.
    """

    mean: np.ndarray
    p: dict[tuple[int, int], np.ndarray]
    interaction: dict[int, np.ndarray]
    scores: CellScores
    turn: np.ndarray

    @classmethod
    def turned(
        cls,
        mean: np.ndarray,
        p: dict[tuple[int, int], np.ndarray],
        interaction: dict[int, np.ndarray],
        scores: CellScores,
        turn: np.ndarray,
    ) -> Edges:
        """From the tests of the columns as they are: turning one exchanges its two sides."""
        up = turn > 0
        return cls(
            turn * mean,
            {(a, b): np.where(up, p[a, b], p[b, a]) for a, b in p},
            {sign: np.where(up, interaction[sign], interaction[-sign]) for sign in (1, -1)},
            scores,
            turn,
        )

    def corners(self, preferred: np.ndarray) -> Corners:
        """The cells of every column seen from its preferred one."""
        columns = np.arange(self.mean.shape[1])
        m11, m10, m01, m00 = (self.mean[preferred ^ flip, columns] for flip in (0, 1, 2, 3))
        above = {
            names: self._between(preferred ^ high, preferred ^ low)
            for names, (high, low) in {"11>10": (0, 1), "11>01": (0, 2), "10>00": (1, 3), "01>00": (2, 3)}.items()
        }
        sign = np.where(np.isin(preferred, (0, 3)), 1, -1)
        positive = np.where(sign > 0, self.interaction[1], self.interaction[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            alone = (np.maximum(m10, m01) - m00) / (m11 - m00)
        exceeds = np.maximum(above["11>10"], above["11>01"])
        ordered = np.maximum(exceeds, np.maximum(above["10>00"], above["01>00"]))
        # either factor alone, c: LITTLE·(m11 − m00) ∓ (c − m00) > 0
        sides = [
            self._weighted(preferred, {0: LITTLE, flip: -side, 3: side - LITTLE}) for flip in (1, 2) for side in (1, -1)
        ]
        return Corners(sign, alone, np.maximum(exceeds, positive), ordered, np.max(sides, axis=0))

    def subadditive(self, lowest: np.ndarray) -> np.ndarray:
        """p that a cell lies below the three others, and both steps away from it give less than their sum."""
        sides = [self._between(lowest ^ flip, lowest) for flip in (1, 2)]
        sides.append(self._weighted(lowest, {3: 1.0, 0: -1.0}))
        sides.append(np.where(np.isin(lowest, (0, 3)), self.interaction[-1], self.interaction[1]))
        return np.max(sides, axis=0)

    def crossover(self, interaction_sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p that a factor's effect reverses as the sign of the interaction says, and which factor's (0 or 1)."""
        one = []
        for (a, b), (c, d) in (((0, 2), (1, 3)), ((0, 1), (2, 3))):  # the factor's effect at either level of the other
            rising = np.maximum(self.p[a, b], self.p[d, c])
            falling = np.maximum(self.p[b, a], self.p[c, d])
            one.append(np.where(interaction_sign > 0, rising, falling))
        p = np.minimum(1.0, 2 * np.minimum(*one))
        return np.where(np.isfinite(interaction_sign), p, np.nan), np.argmin(one, axis=0)

    def _weighted(self, cell: np.ndarray, weights: dict[int, float]) -> np.ndarray:
        """One-sided p of a weighted sum; cells are named by what differs from `cell` (1: second factor, 2: first)."""
        table, columns = np.zeros((4, cell.size)), np.arange(cell.size)
        for flip, weight in weights.items():
            table[cell ^ flip, columns] = weight
        return self.scores.p_positive(self.turn * table)

    def _between(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        return np.array([self.p[int(a), int(b)][column] for column, (a, b) in enumerate(zip(high, low, strict=True))])


@dataclass(frozen=True)
class Corners:
    """What the preferred cell has over the others, for C columns; each an ndarray of shape (C,).

    Attributes
    ----------
    sign : sign of the preferred cell in the interaction, first minus last.
    alone : share of the joint effect that the stronger factor has alone.
    p_superadditive, p_ordered, p_little : see the module.
    """

    sign: np.ndarray
    alone: np.ndarray
    p_superadditive: np.ndarray
    p_ordered: np.ndarray
    p_little: np.ndarray


def on_all_scales(tests: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Whether every effect is significant on the raw scale and has the same sign, with p ≤ alpha, on the others.

    Parameters
    ----------
    tests : DataFrame
        ``column, effect, order, scale, estimate, p, p_fwer`` and more, one row per column, effect and scale.
    alpha : float

    Returns
    -------
    DataFrame
        One row per column and effect, in their order: ``column, effect, order, estimate, ci_low, ci_high, p, p_fwer,
        significant, survives, vanishes_on`` (the other scales on which it is not found, joined).
    """
    raw = tests[tests["scale"] == "raw"].reset_index(drop=True)
    significant = (raw["p_fwer"] <= alpha).to_numpy()
    survives, gone = significant.copy(), [[] for _ in range(len(raw))]
    for scale, rows in tests[tests["scale"] != "raw"].groupby("scale", sort=False):
        same = (np.sign(rows["estimate"].to_numpy()) == np.sign(raw["estimate"].to_numpy())) & (rows["p"] <= alpha)
        survives &= same.to_numpy()
        for place in np.flatnonzero(significant & ~same.to_numpy()):
            gone[place].append(scale)
    kept = raw[["column", "effect", "order", "estimate", "ci_low", "ci_high", "p", "p_fwer"]]
    return kept.assign(significant=significant, survives=survives, vanishes_on=[", ".join(names) for names in gone])


def unit_frame(
    verdicts: pd.DataFrame,
    t: pd.DataFrame,
    edges: Edges,
    cells: tuple[np.ndarray, np.ndarray],
    design: dict[str, Any],
    alpha: float,
) -> pd.DataFrame:
    """One row per candidate: what it is and why.

    Parameters
    ----------
    verdicts : DataFrame
        Of `on_all_scales`.
    t : DataFrame
        Raw t of the test items, and of discovery as ``t_discovery``: rows column × effect, in the order of `verdicts`.
    edges : Edges
    cells : ndarray of int, ndarray of int, each of shape (C,)
        Numbers of each column's preferred cell and of its lowest one in discovery.
    design : dict from factor to its two levels
    alpha : float

    Returns
    -------
    DataFrame
    """
    import pandas as pd

    factors, levels = list(design), list(design.values())
    names = [*factors, ":".join(factors)]
    part = {name: verdicts[verdicts["effect"] == name].reset_index(drop=True) for name in names}
    stat = {name: t[t["effect"] == name].reset_index(drop=True) for name in names}
    both = part[names[2]]
    preferred, lowest = cells
    corners = edges.corners(preferred)
    direction = edges.turn * np.sign(stat[names[2]]["t_discovery"].to_numpy(float))
    p_crossover, reversed_factor = edges.crossover(direction)
    p_conjunction = np.maximum(part[factors[0]]["p"], part[factors[1]]["p"])
    significant = both["significant"].to_numpy()
    crossover = adjust(np.where(significant, p_crossover, np.nan), "holm") <= alpha
    on_log = ~both["vanishes_on"].str.contains("log1p").to_numpy()
    removable = significant & ~crossover & (~on_log | (corners.p_ordered <= alpha))
    opposed = edges.turn * np.prod([np.sign(part[name]["estimate"]) for name in names], axis=0) < 0
    opposed &= np.all([part[name]["significant"] for name in factors], axis=0)
    frame = pd.DataFrame(
        {
            "column": both["column"],
            f"preferred_{factors[0]}": [levels[0][cell // 2] for cell in preferred],
            f"preferred_{factors[1]}": [levels[1][cell % 2] for cell in preferred],
            "turned": edges.turn < 0,
            "interaction": corners.sign * both["estimate"],
            "significant": both["significant"],
            "survives": both["survives"],
            "removable": removable,
            "crossover": crossover,
            "p_crossover": p_crossover,
            "t_conjunction": np.minimum(stat[factors[0]]["t"].abs(), stat[factors[1]]["t"].abs()),
            "p_conjunction": p_conjunction,
            "q_conjunction": adjust(p_conjunction.to_numpy(float)),
            "p_superadditive": corners.p_superadditive,
            "p_little": corners.p_little,
            "p_ordered": corners.p_ordered,
            "p_subadditive": edges.subadditive(lowest),
            "share_alone": corners.alone,
        }
    )
    told = [
        _kind(_Facts.of(frame, part, factors, place, alpha, int(reversed_factor[place]), bool(opposed[place])))
        for place in range(len(frame))
    ]
    frame.insert(1, "kind", [kind for kind, _ in told])
    frame.insert(2, "reason", [reason for _, reason in told])
    return frame


@dataclass(frozen=True)
class _Facts:
    """What decides about one column."""

    row: Any
    tested: bool
    factors: list[str]
    found: list[str]  # factors with a main effect
    interaction: Any  # its row of `on_all_scales`
    alpha: float
    reversed_factor: str
    opposed: bool

    @classmethod
    def of(cls, frame, part, factors, place, alpha, reversed_factor, opposed) -> _Facts:
        both = part[":".join(factors)].iloc[place]
        found = [name for name in factors if part[name]["significant"].iloc[place]]
        tested = all(np.isfinite(one["p"].iloc[place]) for one in part.values())
        return cls(frame.iloc[place], tested, factors, found, both, alpha, factors[reversed_factor], opposed)


def _kind(facts: _Facts) -> tuple[str, str]:
    """The kind of a column, and why."""
    row, both, alpha = facts.row, facts.interaction, facts.alpha
    interval = f"{both['estimate']:.3g} [{both['ci_low']:.3g}, {both['ci_high']:.3g}]"
    if not both["significant"]:
        return _without_interaction(facts, interval)
    told = f"interaction {interval}, family-wise p = {both['p_fwer']:.2g}" + (", sign turned" if row["turned"] else "")
    if row["crossover"]:
        why = f"the effect of {facts.reversed_factor} changes its sign (p = {row['p_crossover']:.2g})"
        return "crossover", f"{told}; {why}, which no monotone scale removes"
    if row["removable"]:
        if row["p_ordered"] > alpha:
            return "removable", f"{told} on the raw scale, but it is not found on log1p"
        why = f"the cells have the order of a sum (p = {row['p_ordered']:.2g})"
        return "removable", f"{told}; {why}, so a monotone scale removes it, as of a threshold on a sum"
    if both["vanishes_on"]:
        told += f", not found on {both['vanishes_on']}s"
    if row["p_subadditive"] <= alpha:
        why = f"one cell lies below the three others (p = {row['p_subadditive']:.2g})"
        return "sub-additive", f"{told}; {why}: both factors give less than their sum"
    if facts.opposed:
        return "sub-additive", f"{told}; it opposes both main effects: both factors give less than their sum"
    return _super_additive(facts, told)


def _super_additive(facts: _Facts, told: str) -> tuple[str, str]:
    row, alpha = facts.row, facts.alpha
    share = f"one factor alone gives {row['share_alone']:.0%} of both"
    if not row["p_superadditive"] <= alpha:
        return "interaction", f"{told}; super-additivity was not found (p = {row['p_superadditive']:.2g})"
    if not row["p_little"] <= alpha:
        why = f"{share}, not less than {LITTLE:.0%} up and down by test (p = {row['p_little']:.2g})"
        return "interaction", f"{told}; {why}"
    why = f"super-additive (p = {row['p_superadditive']:.2g}), {share}, less than {LITTLE:.0%}"
    return "and", f"{told}; {why} (p = {row['p_little']:.2g})"


def _without_interaction(facts: _Facts, interval: str) -> tuple[str, str]:
    tail = f"interaction {interval}, not significant"
    if not facts.tested:
        return "untested", "an effect could not be tested: the column is constant or not finite in the test items"
    if len(facts.found) == 2:
        return "additive", f"an effect of both factors was found, no interaction: as a sum would give; {tail}"
    if facts.found:
        return facts.found[0], f"an effect of {facts.found[0]} only was found; {tail}"
    return "none", f"no effect was found; {tail}"
