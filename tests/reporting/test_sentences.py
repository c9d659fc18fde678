"""The sentences at the top of the report, case by case."""

from __future__ import annotations

import numpy as np
import pytest
from support.results import changed, contrast_result

from neurollm.designs import Contrast
from neurollm.reporting.sensitivity import detectable
from neurollm.reporting.sentences import control_verdict, tally, verdict

METHOD = "(max-statistic over features, 10,000 sign-flips by item; 56 items)"


def made(p_fwer, stat, kind="paired", **changes):
    """A result with these numbers."""
    numbers = {"p_fwer": p_fwer, "stat": stat, "n_items": 56}
    return changed(contrast_result(kind), **numbers | {"exchange": {"n_perm": 10_000}} | changes)


def test_features_of_one_direction():
    said = verdict(made([0.01, 0.02, 0.5], [5.0, 4.0, -1.0]))
    assert said == f"2 of 3 tested features respond more to success than failure at p_FWER ≤ .05 {METHOD}."


def test_features_of_both_directions():
    said = verdict(made([0.01, 0.02, 0.5], [5.0, -4.0, -1.0]))
    assert said == (
        "2 of 3 tested features respond differently at p_FWER ≤ .05: "
        f"1 more to success than failure, 1 more to failure than success {METHOD}."
    )


def test_one_feature_is_singular():
    assert verdict(made([0.01, 0.9], [-5.0, 1.0])).startswith(
        "1 of 2 tested features responds more to failure than success"
    )


def test_nothing_found_names_the_smallest_p():
    said = verdict(made([0.31, 0.9, np.nan], [2.0, 1.0, np.nan]))
    assert said.startswith("No feature of 2 tested responds differently to success and failure at p_FWER ≤ .05")
    assert said.endswith("smallest p_FWER = .31.")


@pytest.mark.parametrize("alpha", [0.001, 0.005, 0.025, 0.05, 0.1])
def test_the_level_is_the_declared_one(alpha):
    assert f"p_FWER ≤ {str(alpha)[1:]} " in verdict(made([0.4], [1.0]), alpha)


def test_rounding_does_not_cross_the_level():
    assert verdict(made([0.0504, 0.9], [2.0, 1.0])).endswith("smallest p_FWER = .0504.")
    assert verdict(made([0.0052, 0.9], [2.0, 1.0]), 0.005).endswith("smallest p_FWER = .0052.")
    assert verdict(made([0.0007, 0.9], [2.0, 1.0]), 0.0005).endswith("smallest p_FWER = .00070.")


def test_nothing_testable():
    assert verdict(made([np.nan], [np.nan])).startswith("No feature could be tested")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("sign_flip", "sign-flips by item"),
        ("whole_item", "shufflings of whole items"),
        ("within_item", "shufflings of the labels within items"),
    ],
)
def test_exhaustive_shufflings_are_named(kind, what):
    exchange = {"kind": kind, "n_perm": 1024, "n_possible": 1024, "exhaustive": True}
    assert f"all 1,024 possible {what}" in verdict(made([0.01], [5.0], exchange=exchange))


def test_one_sided_tests_ask_in_one_direction():
    assert "responds more to success than failure" in verdict(made([0.2], [1.0], alternative="greater"))
    assert "responds more to failure than success" in verdict(made([0.2], [1.0], alternative="less"))


def test_sides_with_several_levels_or_none():
    contrast = Contrast.parse("0.5*a - b + 0.5*c", list("abc"))
    assert "more to a and c than b" in verdict(made([0.01], [5.0], contrast=contrast, conditions=tuple("abc")))
    alone = Contrast.parse("a", "ab", sums_to_zero=False)
    assert "more to a than zero" in verdict(made([0.01], [5.0], contrast=alone, conditions=("a",)))


@pytest.mark.parametrize(
    ("kind", "one", "both"),
    [
        ("levels", "1 of 2 tested features responds differently to the levels of emotion at", "2 of 2 tested features"),
        ("main effect", "responds differently to the levels of emotion at", "respond differently to the levels"),
        ("interaction", "shows the interaction of outcome and emotion at", "show the interaction of"),
        ("coefficient", "depends on n_words at p_FWER ≤ .05, with a positive estimate (", "1 with a negative estimate"),
        ("two levels", "responds more to failure than success at", "1 more to failure than success, 1 more to success"),
        ("several", "responds more to joy than anger and fear at", "1 more to anger and fear than joy"),
    ],
)
def test_every_kind_of_contrast_has_its_words(kind, one, both):
    sign = 1.0 if contrast_result(kind).is_f else -1.0
    assert one in verdict(made([0.01, 0.9], [5.0, 1.0], kind))
    assert both in verdict(made([0.01, 0.01], [5.0, 5.0 * sign], kind))
    assert verdict(made([0.3], [2.0], kind)).startswith("No feature of 1 tested ")
    assert verdict(made([np.nan], [np.nan], kind)).startswith("No feature could be tested for ")


def test_an_f_contrast_of_chosen_levels_names_them():
    contrast = Contrast.parse("anger - fear, fear - joy", ["anger", "fear", "joy"])
    assert "responds differently to anger, fear and joy at" in verdict(made([0.01], [5.0], "levels", contrast=contrast))


def test_without_permutations_q_decides():
    found = contrast_result("paired", n_perm=0)
    said, count = verdict(found), int((found.q <= 0.05).sum())
    assert count > 0 and said.startswith(f"{count} of 80 tested features respond")
    assert "at q ≤ .05 (Benjamini–Hochberg over features, no permutations; 14 items)" in said


def test_features_found_by_stepping_down_are_counted_apart():
    result = made([0.01, 0.06, np.nan], [5.0, 4.0, np.nan], p_step_down=[0.01, 0.04, np.nan])
    assert tally(result, 0.05).found == 1 and tally(result, 0.05).stepping_down == 1


def test_detectable_effects_have_that_power():
    rng = np.random.default_rng(0)
    size = detectable(3.0, 19, 20**-0.5, "greater")
    scores = rng.normal(size, 1, (20, 20_000))
    t = scores.mean(axis=0) / (scores.std(axis=0, ddof=1) / 20**0.5)
    assert np.mean(t > 3.0) == pytest.approx(0.8, abs=0.01)
    assert detectable(np.inf, 19, 1.0, "two-sided") == np.inf


def rows(study, control, name="token embeddings"):
    keys = ("auroc", "ci_low", "ci_high")
    return [
        {"representation": "features", "kind": "study", **dict(zip(keys, study, strict=True))},
        {"representation": name, "kind": "control", **dict(zip(keys, control, strict=True))},
    ]


TOKENS = "The token embeddings alone"


@pytest.mark.parametrize(
    ("study", "control", "said"),
    [
        (
            (0.88, 0.84, 0.92),
            (0.89, 0.85, 0.93),
            TOKENS + " separate these conditions as well: AUROC .89 [.85, .93] vs .88 [.84, .92] for the features.",
        ),
        ((0.80, 0.75, 0.84), (0.95, 0.91, 0.98), TOKENS + " separate these conditions better than the features do"),
        ((0.95, 0.91, 0.98), (0.80, 0.75, 0.84), "separate these conditions better than the token embeddings alone: "),
        ((0.90, 0.84, 0.95), (0.83, 0.76, 0.89), "too; no difference between the two is shown"),
        ((0.83, 0.76, 0.89), (0.90, 0.84, 0.95), "too; no difference between the two is shown"),
        ((0.52, 0.45, 0.60), (0.51, 0.43, 0.58), "Neither the features nor the token embeddings alone separate"),
        ((0.57, 0.50, 0.63), (0.57, 0.51, 0.64), "Only the token embeddings alone separate these conditions clearly"),
        ((0.70, 0.48, 0.90), (0.62, 0.52, 0.72), "Only the token embeddings alone separate these conditions clearly"),
        ((0.60, 0.51, 0.69), (0.59, 0.49, 0.69), "Only the features separate these conditions clearly above chance"),
        ((0.80, 0.60, 0.98), (0.785, 0.55, 0.99), "too; no difference between the two is shown"),
        ((0.52, 0.45, 0.60), (0.70, 0.63, 0.78), TOKENS + " separate these conditions better than the features do"),
        (
            (0.70, 0.63, 0.78),
            (0.60, 0.49, 0.71),
            "Only the features separate these conditions clearly above chance, but",
        ),
        (
            (0.60, 0.49, 0.71),
            (0.70, 0.63, 0.78),
            "Only the token embeddings alone separate these conditions clearly above",
        ),
        ((None, None, None), (0.70, 0.63, 0.78), "How well the features separate these conditions is not known"),
        ((0.70, 0.63, 0.78), (None, None, None), "No control was run"),
        ((0.70, 0.63, 0.78), (float("nan"), None, None), "No control was run"),
        (
            (1.0, None, None),
            (1.0, None, None),
            "No interval could be computed, so the features and the token embeddings alone cannot be compared: "
            "AUROC 1.00 vs 1.00",
        ),
        ((0.9, 0.8, 0.95), (0.5, None, None), "cannot be compared: AUROC .50 vs .90 [.80, .95] for the features."),
    ],
)
def test_control_sentence(study, control, said):
    assert said in control_verdict(rows(study, control))


def test_words_come_first_and_the_others_are_listed():
    table = rows((0.9, 0.85, 0.95), (0.6, 0.55, 0.66), name="token_embeddings")
    table += rows((0, 0, 0), (0.91, 0.86, 0.95), name="raw_units")[1:]
    said = control_verdict(table)
    assert said.startswith("The features separate these conditions better than the token embeddings alone: ")
    assert said.endswith(" Other controls: raw units .91 [.86, .95].")


def test_without_word_controls_the_strongest_is_named():
    table = rows((0.9, 0.85, 0.95), (0.6, 0.55, 0.66), name="other")
    table += rows((0, 0, 0), (0.9, 0.84, 0.94), name="my <control>")[1:]
    assert control_verdict(table).startswith("The features of “my <control>” separate these conditions as well")
    assert control_verdict([]).startswith("No control was run")


def test_contrasts_without_sides_count_what_the_controls_find():
    table = [
        {"representation": "features", "kind": "study", "auroc": None, "reason": "an F contrast has no two sides"},
        {"representation": "token_embeddings", "kind": "control", "auroc": None, "n_significant": 9, "n_tests": 128,
         "reason": "an F contrast has no two sides"},
    ]  # fmt: skip
    assert control_verdict(table) == (
        "No AUROC is given, because an F contrast has no two sides. Significant in the controls: "
        "token embeddings 9 of 128."
    )
    assert control_verdict(table[:1]).startswith("No control was run")
