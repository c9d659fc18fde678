"""The sentences at the top of a report, for every case the numbers can be in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.sides import compares_cells, contrast_sides, decisive_p, has_sides, joined
from neurollm.reporting.formatting import auroc, count, exact, is_number, p_sentence, plural
from neurollm.validation import several

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


P_METHODS = {
    "pearson3": "the Pearson type III distribution with the exact first three moments of the permutation distribution",
    "beta": "the beta distribution with the exact mean and variance of the permutation distribution",
    "saddlepoint": "the permutation distribution itself, exact for few active items and by a saddlepoint approximation "
    "for more",
    "robust": "the larger of the t distribution with the degrees of freedom of the statistic and the permutation "
    "distribution of the pooled one",
    "t": "the t distribution",
    "F": "the F distribution",
}
"""Where an uncorrected p comes from."""
FDR_NAMES = {"bh": "Benjamini–Hochberg", "by": "Benjamini–Yekutieli", "bky": "Benjamini–Krieger–Yekutieli"}


@dataclass(frozen=True)
class Tally:
    """How many features a contrast tested and found; an F contrast knows no direction, so all count as positive."""

    positive: int
    negative: int
    tested: int
    untested: int
    smallest_p: float | None
    stepping_down: int

    @property
    def found(self) -> int:
        """Significant features of both directions."""
        return self.positive + self.negative


def tally(result: ContrastResult, alpha: float) -> Tally:
    """Count the tested and the significant features of a contrast."""
    p, stat = decisive_p(result)[0], np.asarray(result.stat, float)
    tested = np.asarray(result.valid, bool) & np.isfinite(p)
    hit = tested & (np.nan_to_num(p, nan=1.0) <= alpha)
    return Tally(
        positive=int((hit & (stat > 0)).sum()),
        negative=int((hit & (stat < 0)).sum()),
        tested=int(tested.sum()),
        untested=int((~tested).sum()),
        smallest_p=float(p[tested].min()) if tested.any() else None,
        stepping_down=int((tested & ~hit & (np.nan_to_num(result.p_step_down, nan=1.0) <= alpha)).sum()),
    )


def method_phrase(result: ContrastResult) -> str:
    """How the corrected p values came about, e.g. ``10,000 sign-flips by item``."""
    exchange = result.exchange
    if not exchange.n_perm:
        return "no permutations"
    what = {
        "sign_flip": f"sign-flips by {exchange.unit}",
        "within_item": f"shufflings of the labels within {several(exchange.unit)}",
        "whole_item": f"shufflings of whole {several(exchange.unit)}",
    }.get(exchange.kind, "shufflings")
    number = f"all {count(exchange.n_possible)} possible" if exchange.exhaustive else count(exchange.n_perm)
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
    found, symbol = tally(result, alpha), decisive_p(result)[1]
    if found.tested == 0:
        return f"No feature could be tested for {_question(result)}."
    level = f"{symbol} ≤ {exact(alpha)}"
    corrected = "max-statistic over features" if result.exchange.n_perm else f"{FDR_NAMES[result.fdr]} over features"
    method = f"({corrected}, {method_phrase(result)}; {plural(result.n_items, result.exchange.unit)})"
    one, many, ways = _answer(result)
    if found.found == 0:
        return (
            f"No feature of {count(found.tested)} tested {one} at {level} {method}; "
            f"smallest {symbol} {p_sentence(found.smallest_p, alpha)}."
        )
    of = f"{count(found.found)} of {plural(found.tested, 'tested feature')}"
    verb = one if found.found == 1 else many
    if result.is_f:
        return f"{of} {verb} at {level} {method}."
    up, down = ways
    if found.positive and found.negative:
        both = f"{count(found.positive)} {up}, {count(found.negative)} {down}"
        return f"{of} {_undirected(result)} at {level}: {both} {method}."
    if has_sides(result):
        verb = f"{'responds' if found.found == 1 else 'respond'} {up if found.positive else down}"
        return f"{of} {verb} at {level} {method}."
    return f"{of} {verb} at {level}, {up if found.positive else down} {method}."


def _question(result: ContrastResult) -> str:
    """What was asked, after "for"."""
    return " against ".join(contrast_sides(result.contrast)) if has_sides(result) else result.name


def _answer(result: ContrastResult) -> tuple[str, str, tuple[str, str]]:
    """What a significant feature does, what several do, and the two directions."""
    contrast = result.contrast
    if has_sides(result):
        positive, negative = contrast_sides(contrast)
        up, down = f"more to {positive} than {negative}", f"more to {negative} than {positive}"
        told = {"two-sided": f"differently to {positive} and {negative}", "greater": up, "less": down}
        return f"responds {told[result.alternative]}", f"respond {told[result.alternative]}", (up, down)
    if not compares_cells(result):
        ways = ("with a positive estimate", "with a negative estimate")
        return f"depends on {result.name}", f"depend on {result.name}", ways
    if len(contrast.factors) > 1:
        what = f"the interaction of {joined(contrast.factors)}"
        return f"shows {what}", f"show {what}", ("", "")
    if contrast.factors:
        what = f"to the levels of {contrast.factors[0]}"
    else:
        used = contrast.matrix.any(axis=0)
        names = [name for name, weighed in zip(contrast.parameters, used, strict=True) if weighed]
        what = f"to {joined(names)}"
    return f"responds differently {what}", f"respond differently {what}", ("", "")


def _undirected(result: ContrastResult) -> str:
    """What features of both directions do together."""
    return "respond differently" if has_sides(result) else f"depend on {result.name}"


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
        return _counted(rows) or (
            "No control was run, so nothing here says whether the words alone would separate these conditions."
        )
    words = [row for row in controls if any(part in _simple(row) for part in _WORD_CONTROLS)]
    best = max(words or controls, key=lambda row: row["auroc"])
    rest = sorted((row for row in controls if row is not best), key=lambda row: -row["auroc"])
    others = "; ".join(f"{representation_name(row)} {auroc(row)}" for row in rest)
    return _compared(study, best) + (f" Other controls: {others}." if others else "")


def _counted(rows: list[dict[str, Any]]) -> str:
    """Controls without an AUROC: how much of each is significant; empty if none was run."""
    reason = next((str(row["reason"]) for row in rows if row.get("reason")), "")
    controls = [row for row in rows if row.get("kind") != "study" and row.get("reason")]
    if not controls:
        return ""
    told = "; ".join(
        f"{representation_name(row)} {count(row.get('n_significant'))} of {count(row.get('n_tests'))}"
        for row in controls
    )
    return f"No AUROC is given, because {reason}. Significant in the controls: {told}."


def _compared(study: dict[str, Any] | None, best: dict[str, Any]) -> str:
    """The study beside one control."""
    name = control_name(best)
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


def control_name(row: dict[str, Any]) -> str:
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
