"""A factorial study: candidates are found on some items and tested on others.

With cell means m_ab over items, the effects of two-level factors are (first level minus last)

    main effect of F1:  L = ½[(m11 + m10) − (m01 + m00)]
    interaction:        L = m11 − m10 − m01 + m00

and, for more factors, Σ (product of the codes)·m. An effect of factors that vary within items is one contrast per item
(one-sample t, sign flips); between items it is a difference of groups with the other effects held constant (type III,
Freedman–Lane); see `neurollm.designs.effects`. A one-way test of the four cells is no test of the interaction: a main
effect alone makes it significant.

Two parts. The items, with everything that shares a text, are divided into *discovery* and *test* items. On discovery
every effect is estimated in all columns, and the `n_candidates` columns with the largest |t| of each effect become
candidates. Only the test items say anything about them. An estimate on the items that chose a column is too large,
and its p far too small, because it is the largest of many.

Many tests. For every effect and scale all candidates are one family, whatever they were chosen for: p_FWER from the
largest statistic of the family in every shuffling, q by Benjamini & Hochberg (1995). What is controlled is the chance
of any false finding of one effect on one scale; there is no correction over effects.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Contrast, FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.factorial.intervals import cell_frames
from neurollm.factorial.result import FactorialStudy
from neurollm.factorial.scales import SCALES, effect_on_scale, typical_size
from neurollm.factorial.units import SHAPES, Edges, on_all_scales, unit_frame
from neurollm.factorial.weightings import CellScores
from neurollm.glm import FeatureGLM
from neurollm.roi.splitting import folds
from neurollm.rsa.rows import check_whole, read_trials
from neurollm.stats.arrays import dense, take_rows
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.glm import ContrastResult

_RESERVED = ("column", "item", "mean", "ci_low", "ci_high", "n_items", "interval", "effect", "t", "p")
_OF_RESULT = {"estimate": "effect", "ci_low": "effect_low", "ci_high": "effect_high", "t": "stat"}
_OF_RESULT |= {name: name for name in ("df", "p", "p_fwer", "q")}
_MOST_PARTS = 20  # into which items are divided to reach the share of discovery
_LEAST_SHARE = 1 / _MOST_PARTS


def factorial_study(
    X: Any,
    obs: pd.DataFrame | None,
    design: FactorialDesign,
    *,
    n_candidates: int = 20,
    discovery: float = 0.5,
    n_perm: int = 5000,
    alpha: float = 0.05,
    preferred: Mapping[str, str] | None = None,
    min_active_items: int = 0,
    features: Sequence[Any] | None = None,
    random_state: int = 0,
) -> FactorialStudy:
    """Find columns that follow the factors on some items, and test main effects and interactions on the others.

    Parameters
    ----------
    X : array or AnnData, shape (n_trials, V)
        Features of a dictionary, dimensions of an interaction model, norms of components; may be signed.
    obs : DataFrame
        One row per trial: the factors, the item, and ``text``. None with an AnnData.
    design : FactorialDesign
        Two or more factors of two levels each, within or between items; with covariates, if any.
    n_candidates : int, default=20
        Columns per effect that go on to the test.
    discovery : float, default=0.5
        Share of the items in which candidates are sought, from .05 to .95; the result has the share that was reached.
    n_perm : int, default=5000
        Shufflings of each test; enough for p = 1/(n_perm + 1) to reach `alpha`.
    alpha : float, default=0.05
        Level of p_FWER at which an effect counts as significant.
    preferred : mapping from factor to level, optional
        The cell called ``m11``, for two factors. Default: for every column its largest cell in discovery.
    min_active_items : int, default=0
        Columns active in fewer items of discovery are no candidates: what is that rare would often be silent, and so
        untested, in the test items. The count does not look at labels.
    features : sequence, optional
        Ids of the columns; default 0 … V−1.
    random_state : int, default=0
        Two studies of the same trials with the same seed divide the items alike.

    Returns
    -------
    FactorialStudy

    Raises
    ------
    InvalidInput
        A factor has not two levels, too few items or shufflings, ids that repeat, or nothing can be tested.
    DataMismatch
        Rows or ids do not go with the activations.

    Examples
    --------
    >>> from neurollm.factorial import factorial_study, simulate_units
    >>> sim = simulate_units(40, {"none": 10, "sum": 2, "and": 2})
    >>> study = factorial_study(sim.X, sim.obs, sim.design, n_candidates=4, n_perm=200)
    >>> kinds = study.units().set_index("column")["kind"]
    >>> kinds[[10, 11, 12, 13]].tolist()
    ['additive', 'additive', 'and', 'and']
    """
    X, obs, features = read_trials(X, obs, features, "factorial_study")
    settings = _Settings(n_candidates, discovery, n_perm, alpha, min_active_items, random_state)
    settings.check()
    _check_columns(X, features)
    levels, effects = _checked_levels(design, obs), design.effects(obs)
    named = _named_cell(preferred, levels)
    found, tested = _parts(obs, design, settings)
    first = _Discovery.of(take_rows(X, found), obs.iloc[found], design, settings)
    columns = first.candidates()
    if not columns.size:
        raise InvalidInput(f"factorial_study: no column {first.lacks(min_active_items)}, so there are no candidates.")
    unit = typical_size(dense(take_rows(X, found)[:, columns]))
    second = _Test(
        dense(take_rows(X, tested)[:, columns]), obs.iloc[tested], design, features[columns], settings, effects, unit
    )
    chosen = {effect: np.isin(columns, best) for effect, best in first.best.items()}
    results = {key: second.test(*key) for key in itertools.product(chosen, SCALES)}
    tests = _tests(results, first, columns, features, chosen)
    verdicts = on_all_scales(tests, alpha)
    table = design.table(second.obs, second.X)
    cells, items = cell_frames(table, design, second.features)
    simple = units = None
    if len(levels) == 2:
        turn, *extremes = first.seen(columns)
        simple, edges = second.simple(levels, table, turn)
        if named is not None:
            extremes[0] = np.full(columns.size, named)
        units = unit_frame(verdicts, tests[tests["scale"] == "raw"], edges, tuple(extremes), levels, alpha)
    return FactorialStudy(
        tests=tests,
        verdicts=verdicts,
        unit_table=units,
        cell_table=cells,
        item_table=items,
        simple_table=simple,
        factors=levels,
        **_account(results, first, second),
        n_columns=len(features),
        n_candidates=int(n_candidates),
        min_active_items=int(min_active_items),
        n_perm=int(n_perm),
        alpha=float(alpha),
        random_state=int(random_state),
        signed=bool((second.X < 0).any()),
    )


@dataclass(frozen=True)
class _Settings:
    n_candidates: int
    discovery: float
    n_perm: int
    alpha: float
    min_active_items: int
    random_state: int

    def check(self) -> None:
        for name, least in (("n_candidates", 1), ("n_perm", 1), ("min_active_items", 0), ("random_state", 0)):
            check_whole("factorial_study", name, getattr(self, name), least)
        for name in ("discovery", "alpha"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < value < 1:
                raise InvalidInput(f"factorial_study: {name} must lie between 0 and 1, found {shown(value)}.")
        if not _LEAST_SHARE <= self.discovery <= 1 - _LEAST_SHARE:
            raise InvalidInput(f"factorial_study: discovery must lie between .05 and .95, found {self.discovery:g}.")
        if 1 / (self.n_perm + 1) > self.alpha:
            least = ceil(round(1 / self.alpha, 9)) - 1
            raise InvalidInput(
                f"factorial_study: with n_perm {self.n_perm} no p can reach alpha {self.alpha:g}; "
                f"n_perm must be at least {least}."
            )


def _check_columns(X: Any, features: np.ndarray) -> None:
    """Refuse no columns, and ids that do not name one column each."""
    if not X.shape[1]:
        raise InvalidInput("factorial_study: X has no columns.")
    ids = features.tolist()
    if len({str if isinstance(one, str) else type(one) for one in ids}) > 1:
        raise InvalidInput("factorial_study: features must be all texts or all numbers, found both.")
    for one in ids:
        if not isinstance(one, (str, int, float)) or one != one:
            raise InvalidInput(f"factorial_study: features must be texts or numbers, found {shown(one)}.")
    if len(set(ids)) < len(ids):
        twice = next(one for place, one in enumerate(ids) if one in ids[:place])
        raise InvalidInput(f"factorial_study: features must differ, but {shown(twice)} is given more than once.")


def _checked_levels(design: Any, obs: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The two levels of every factor."""
    if not isinstance(design, FactorialDesign):
        raise InvalidInput(f"factorial_study: expected a FactorialDesign, found {type(design).__name__}.")
    levels = design.levels(obs)
    for name, found in levels.items():
        if len(found) != 2:
            raise InvalidInput(f"factorial_study: '{name}' has the levels {listed(found)}; it must have two.")
        if name in (*_RESERVED, *SHAPES):
            raise InvalidInput(
                f"factorial_study: the name '{name}' of a factor stands for something else in the result; rename it."
            )
    return levels


def _parts(obs: pd.DataFrame, design: FactorialDesign, settings: _Settings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of discovery and of test, in rising order; they share no item and no text."""
    parts = Fraction(settings.discovery).limit_denominator(_MOST_PARTS).denominator
    first = round(settings.discovery * parts)
    fold = folds(obs, design.item, parts, settings.random_state, design.cells(obs)[1])
    return np.flatnonzero(fold < first), np.flatnonzero(fold >= first)


@dataclass(frozen=True)
class _Discovery:
    """All columns on the items of discovery."""

    t: dict[str, np.ndarray]
    best: dict[str, np.ndarray]  # columns chosen for each effect
    not_tested: dict[str, dict[str, int]]
    n_items: int
    table: Any

    @classmethod
    def of(cls, X: Any, obs: pd.DataFrame, design: FactorialDesign, settings: _Settings) -> _Discovery:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about p, of which discovery has none
            glm = FeatureGLM(design, n_perm=0, min_active_items=settings.min_active_items).fit(X, obs)
            results = glm.compute_contrasts()
        t = {name: result.stat for name, result in results.items()}
        best = {}
        for name, stat in t.items():
            tested = np.flatnonzero(~np.isnan(stat))
            order = np.argsort(-np.abs(stat[tested]), kind="stable")
            best[name] = tested[order[: settings.n_candidates]]
        reasons = {name: {why: n for why, n in result.not_tested.items() if n} for name, result in results.items()}
        return cls(t, best, reasons, len(glm.table_.items), glm.table_)

    def candidates(self) -> np.ndarray:
        """Columns chosen for any effect, in the order in which they were."""
        return np.array(list(dict.fromkeys(np.concatenate(list(self.best.values())).tolist())), dtype=int)

    def lacks(self, min_active_items: int) -> str:
        """What no column does."""
        counts = [reason for reasons in self.not_tested.values() for reason in reasons]
        active = f"is active in {min_active_items} or more items of discovery"
        if "too few active items" not in counts:
            return "varies in the items of discovery"
        return active if set(counts) == {"too few active items"} else f"varies and {active}"

    def seen(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Turn of every column (1 or −1, see `neurollm.factorial.units`), its largest cell then, and its lowest."""
        values, codes = dense(self.table.values[:, columns]), self.table.cell_codes
        means = np.stack([values[codes == cell].mean(axis=0) for cell in range(len(self.table.cells))])
        apart = means - means.mean(axis=0)
        most = np.take_along_axis(apart, np.abs(apart).argmax(axis=0)[None], axis=0)[0]
        turn = np.where((values >= 0).all(axis=0) | ((values > 0).any(axis=0) & (most >= 0)), 1, -1)
        return turn, (turn * means).argmax(axis=0), (turn * means).argmin(axis=0)


@dataclass(frozen=True)
class _Test:
    """The candidates on the test items."""

    X: np.ndarray
    obs: pd.DataFrame
    design: FactorialDesign
    features: np.ndarray
    settings: _Settings
    effects: dict[str, Contrast]
    unit: np.ndarray  # typical size in discovery

    def test(self, effect: str, scale: str) -> ContrastResult:
        """One effect on one scale in all candidates."""
        return effect_on_scale(
            self.X,
            self.obs,
            self.design,
            self.effects[effect],
            scale,
            unit=self.unit,
            features=self.features,
            n_perm=self.settings.n_perm,
            random_state=self.settings.random_state,
        )

    def simple(self, levels: dict[str, tuple[str, ...]], table: Any, turn: np.ndarray) -> tuple[pd.DataFrame, Edges]:
        """The effects of each factor at either level of the other, on the raw scale."""
        import pandas as pd

        names, (one, two) = list(levels), list(levels.values())
        edges = [(0, 2, two[0]), (1, 3, two[1]), (0, 1, one[0]), (2, 3, one[1])]
        questions = {
            (high, low): Contrast.parse({table.cells[high]: 1.0, table.cells[low]: -1.0}, table.cells)
            for high, low, _ in edges
        }
        questions["interaction"] = self.effects[":".join(names)]
        up, down = self._one_sided(questions, "greater"), self._one_sided(questions, "less")
        frames, p = [], {}
        for number, (high, low, at) in enumerate(edges):
            found, p[high, low], p[low, high] = up[high, low][0], up[high, low][1], down[high, low][1]
            told = {"column": self.features, "factor": names[number // 2], "at": at, "estimate": found.effect}
            rest = {"ci_low": found.effect_low, "ci_high": found.effect_high, "t": found.stat}
            two_sided = np.minimum(1.0, 2 * np.minimum(p[high, low], p[low, high]))
            frames.append(pd.DataFrame({**told, **rest, "p": two_sided}))
        values = dense(table.values)
        means = np.stack([values[table.cell_codes == cell].mean(axis=0) for cell in range(4)])
        signs = {1: up["interaction"][1], -1: down["interaction"][1]}
        return pd.concat(frames, ignore_index=True), Edges.turned(means, p, signs, CellScores.of(table), turn)

    def _one_sided(self, questions: dict[Any, Contrast], alternative: str) -> dict[Any, tuple]:
        """Results and one-sided p of contrasts."""
        finite = np.isfinite(self.X).all(axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            glm = FeatureGLM(self.design, n_perm=0, alternative=alternative).fit(self.X, self.obs)
            results = {}
            for name, contrast in questions.items():
                two_groups = self.design.plan(glm.table_, contrast).group_codes is not None
                results[name] = glm.set_params(stat="welch" if two_groups else "t").compute_contrast(contrast)
        # Two cells without any variation do not differ: that is no evidence for a direction, and it is not unknown.
        return {
            name: (result, np.where(np.isnan(result.p) & finite, 1.0, result.p)) for name, result in results.items()
        }


def _named_cell(named: Mapping[str, str] | None, levels: dict[str, tuple[str, ...]]) -> int | None:
    """Number of the cell that the user prefers."""
    if named is None:
        return None
    if len(levels) != 2:
        raise InvalidInput(f"factorial_study: preferred is for two factors; the design has {len(levels)}.")
    if not isinstance(named, Mapping):
        raise InvalidInput(
            f"factorial_study: preferred must name a level of each factor, such as {{'a': 'x'}}, found {shown(named)}."
        )
    if set(named) != set(levels) or any(str(named[name]) not in found for name, found in levels.items()):
        wanted = f"one level of each of {listed(levels)}"
        raise InvalidInput(f"factorial_study: preferred must name {wanted}, found {shown(dict(named))}.")
    one, two = (found.index(str(named[name])) for name, found in levels.items())
    return 2 * one + two


def _tests(
    results: dict[tuple, ContrastResult],
    first: _Discovery,
    columns: np.ndarray,
    features: np.ndarray,
    chosen: dict[str, np.ndarray],
) -> pd.DataFrame:
    """One row per candidate, effect and scale: by effect, then scale, then in the order of the candidates."""
    import pandas as pd

    reasons = [", ".join(effect for effect, mask in chosen.items() if mask[place]) for place in range(columns.size)]
    frames = []
    for effect, scale in itertools.product(chosen, SCALES):
        frame = pd.DataFrame({"column": features[columns], "effect": effect, "order": effect.count(":") + 1})
        frame = frame.assign(
            scale=scale, chosen=chosen[effect], chosen_for=reasons, t_discovery=first.t[effect][columns]
        )
        result = results[effect, scale]
        frames.append(frame.assign(**{name: getattr(result, attribute) for name, attribute in _OF_RESULT.items()}))
    return pd.concat(frames, ignore_index=True)


def _account(results: dict[tuple, ContrastResult], first: _Discovery, second: _Test) -> dict[str, Any]:
    """What was exchanged, counted and left out."""
    own = {effect: result for (effect, scale), result in results.items() if scale == "raw"}
    told = dict.fromkeys(text for result in own.values() for text in result.warnings)
    for text in told:
        warnings.warn(text, stacklevel=3)
    untested = {effect: {why: n for why, n in result.not_tested.items() if n} for effect, result in own.items()}
    one, n_test = next(iter(own.values())), len(set(second.design.item_labels(second.obs)))
    return {
        "discovery": first.n_items / (first.n_items + n_test),
        "n_items_discovery": first.n_items,
        "n_items_test": n_test,
        "n_items_dropped": max(result.n_items_dropped for result in own.values()),
        "not_tested": {"discovery": first.not_tested, "test": untested},
        "exchange": {effect: result.exchange.sentence for effect, result in own.items()},
        "n_perm_used": {effect: result.exchange.n_perm for effect, result in own.items()},
        "p_methods": {effect: result.p_method for effect, result in own.items()},
        "trials": one.trials,
        "warnings": tuple(told),
    }
