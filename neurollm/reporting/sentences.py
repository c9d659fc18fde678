"""The sentences at the top of a report, for every case the numbers can be in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting import contrast_sides
from neurollm.reporting.formatting import auroc, count, exact, is_number, p_sentence, plural

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult

CHANCE = 0.5
ALIKE = 0.02
"""AUROC values closer than this are called the same, if their intervals are narrow."""
NARROW = 0.15
"""Widest interval of an AUROC with which "as well" may be said."""
_KNOWN_CONTROLS = (
    ("token embedding", "the token embeddings alone"),
    ("random network", "the units of the untrained network"),
    ("random direction", "random directions"),
    ("raw unit", "the raw units of the model"),
)
_WORD_CONTROLS = ("token embedding", "random network")


@dataclass(frozen=True)
class Tally:
    """How many features a contrast tested and found."""

    positive: int
    negative: int
    tested: int
    untested: int
    smallest_p: float | None

    @property
    def found(self) -> int:
        """Significant features of both directions."""
        return self.positive + self.negative


def tally(result: ContrastResult, alpha: float) -> Tally:
    """Count the tested and the significant features of a contrast."""
    p, stat = np.asarray(result.p_fwer, float), np.asarray(result.stat, float)
    tested = np.asarray(result.valid, bool) & np.isfinite(p)
    hit = tested & (np.nan_to_num(p, nan=1.0) <= alpha)
    return Tally(
        positive=int((hit & (stat > 0)).sum()),
        negative=int((hit & (stat < 0)).sum()),
        tested=int(tested.sum()),
        untested=int((~tested).sum()),
        smallest_p=float(p[tested].min()) if tested.any() else None,
    )


def method_phrase(result: ContrastResult) -> str:
    """How the p values came about, e.g. ``10,000 sign-flips by item``."""
    what = {
        "sign_flip": "sign-flips by item",
        "within_item": "shufflings of the labels within items",
        "whole_item": "shufflings of whole items",
    }.get(result.shuffling_kind, "shufflings")
    number = f"all {count(result.n_possible)} possible" if result.exhaustive else count(result.n_perm)
    return f"{number} {what}"


def verdict(result: ContrastResult, alpha: float = 0.05) -> str:
    """One sentence that says what a contrast found.

    Parameters
    ----------
    result : ContrastResult
    alpha : float, default=0.05

    Returns
    -------
    str
        Plain text; ``p_FWER`` is written so and typeset by the page.
    """
    found = tally(result, alpha)
    positive, negative = contrast_sides(result)
    level = f"p_FWER ≤ {exact(alpha)}"
    method = f"(max-statistic over features, {method_phrase(result)}; {plural(result.n_items, 'item')})"
    if found.tested == 0:
        return f"No feature could be tested for {positive} against {negative}."
    if found.found == 0:
        direction = {
            "two-sided": f"differently to {positive} and {negative}",
            "greater": f"more to {positive} than {negative}",
            "less": f"more to {negative} than {positive}",
        }[result.alternative]
        return (
            f"No feature of {count(found.tested)} tested responds {direction} at {level} {method}; "
            f"smallest p_FWER {p_sentence(found.smallest_p, alpha)}."
        )
    up = f"more to {positive} than {negative}"
    down = f"more to {negative} than {positive}"
    of = f"{count(found.found)} of {plural(found.tested, 'tested feature')}"
    verb = "responds" if found.found == 1 else "respond"
    if found.positive and found.negative:
        both = f"{count(found.positive)} {up}, {count(found.negative)} {down}"
        return f"{of} {verb} differently at {level}: {both} {method}."
    return f"{of} {verb} {up if found.positive else down} at {level} {method}."


def control_verdict(rows: list[dict[str, Any]]) -> str:
    """Whether a control separates the conditions as well as the features do.

    The study is compared with the strongest control that knows the words but not the
    trained context (token embeddings, random network), or else with the strongest control.
    Intervals that do not overlap decide; otherwise the estimates are named as they are and
    nothing is claimed about their difference. The other controls follow in a list.
    """
    study = next((row for row in rows if row.get("kind") == "study"), None)
    controls = [row for row in rows if row.get("kind") != "study" and is_number(row.get("auroc"))]
    if not controls:
        return "No control was run, so nothing here says whether the words alone would separate these conditions."
    words = [row for row in controls if any(part in _simple(row) for part in _WORD_CONTROLS)]
    best = max(words or controls, key=lambda row: row["auroc"])
    rest = sorted((row for row in controls if row is not best), key=lambda row: -row["auroc"])
    others = "; ".join(f"{representation_name(row)} {auroc(row)}" for row in rest)
    return _compared(study, best) + (f" Other controls: {others}." if others else "")


def _compared(study: dict[str, Any] | None, best: dict[str, Any]) -> str:
    """The study beside one control."""
    name = _the(best)
    if study is None or not is_number(study.get("auroc")):
        return f"How well the features separate these conditions is not known; {name} reach AUROC {auroc(best)}."
    against = f"AUROC {auroc(best)} vs {auroc(study)} for the features"
    if not (_has_interval(study) and _has_interval(best)):
        return f"No interval could be computed, so the features and {name} cannot be compared: {against}."
    above = (study["ci_low"] > CHANCE, best["ci_low"] > CHANCE)
    if above == (False, False):
        return f"Neither the features nor {name} separate these conditions clearly above chance: {against}."
    if study["ci_high"] < best["ci_low"]:
        return f"{_first_upper(name)} separate these conditions better than the features do: {against}."
    if best["ci_high"] < study["ci_low"]:
        return f"The features separate these conditions better than {name}: {against}."
    if not all(above):
        only = "the features" if above[0] else name
        return f"Only {only} separate these conditions clearly above chance, but the intervals overlap: {against}."
    if abs(study["auroc"] - best["auroc"]) < ALIKE and _is_narrow(study) and _is_narrow(best):
        return f"{_first_upper(name)} separate these conditions as well: {against}."
    return f"{_first_upper(name)} separate these conditions too; no difference between the two is shown: {against}."


def representation_name(row: dict[str, Any]) -> str:
    """A representation as the page names it: ``token_embeddings`` becomes ``token embeddings``."""
    name = str(row.get("representation", "")).strip() or "unnamed"
    return name.replace("_", " ") if name.replace("_", "").isalpha() else name


def _simple(row: dict[str, Any]) -> str:
    return representation_name(row).lower().replace("-", " ")


def _the(row: dict[str, Any]) -> str:
    """The control as the plural subject of a sentence."""
    for part, words in _KNOWN_CONTROLS:
        if part in _simple(row):
            return words
    return f"the features of “{representation_name(row)}”"


def _has_interval(row: dict[str, Any]) -> bool:
    return is_number(row.get("ci_low")) and is_number(row.get("ci_high"))


def _is_narrow(row: dict[str, Any]) -> bool:
    """Whether the interval is narrow enough to speak of the same height."""
    return row["ci_high"] - row["ci_low"] <= NARROW


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
