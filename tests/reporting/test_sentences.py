"""The sentences at the top of the report, case by case."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from neurollm.reporting.sentences import control_verdict, verdict


@dataclass
class Result:
    """Only what a verdict reads."""

    p_fwer: list[float]
    stat: list[float]
    levels: tuple = ("failure", "success")
    weights: tuple = (-1.0, 1.0)
    alternative: str = "two-sided"
    n_items: int = 56
    n_perm: int = 10_000
    n_possible: int = 2**56
    exhaustive: bool = False
    shuffling_kind: str = "sign_flip"
    valid: np.ndarray = field(init=False)

    def __post_init__(self):
        self.valid = np.isfinite(self.p_fwer)


METHOD = "(max-statistic over features, 10,000 sign-flips by item; 56 items)"


def test_features_of_one_direction():
    said = verdict(Result([0.01, 0.02, 0.5], [5.0, 4.0, -1.0]))
    assert said == f"2 of 3 tested features respond more to success than failure at p_FWER ≤ .05 {METHOD}."


def test_features_of_both_directions():
    said = verdict(Result([0.01, 0.02, 0.5], [5.0, -4.0, -1.0]))
    assert said == (
        "2 of 3 tested features respond differently at p_FWER ≤ .05: "
        f"1 more to success than failure, 1 more to failure than success {METHOD}."
    )


def test_one_feature_is_singular():
    assert verdict(Result([0.01, 0.9], [-5.0, 1.0])).startswith(
        "1 of 2 tested features responds more to failure than success"
    )


def test_nothing_found_names_the_smallest_p():
    said = verdict(Result([0.31, 0.9, np.nan], [2.0, 1.0, np.nan]))
    assert said.startswith("No feature of 2 tested responds differently to success and failure at p_FWER ≤ .05")
    assert said.endswith("smallest p_FWER = .31.")


@pytest.mark.parametrize("alpha", [0.001, 0.005, 0.025, 0.05, 0.1])
def test_the_level_is_the_declared_one(alpha):
    assert f"p_FWER ≤ {str(alpha)[1:]} " in verdict(Result([0.4], [1.0]), alpha)


def test_rounding_does_not_cross_the_level():
    assert verdict(Result([0.0504, 0.9], [2.0, 1.0])).endswith("smallest p_FWER = .0504.")
    assert verdict(Result([0.0052, 0.9], [2.0, 1.0]), 0.005).endswith("smallest p_FWER = .0052.")
    assert verdict(Result([0.0007, 0.9], [2.0, 1.0]), 0.0005).endswith("smallest p_FWER = .00070.")


def test_nothing_testable():
    assert verdict(Result([np.nan], [np.nan])).startswith("No feature could be tested")


def test_exhaustive_shufflings_and_other_kinds_are_named():
    result = Result([0.01], [5.0], exhaustive=True, n_possible=1024, n_perm=1024, alternative="greater")
    result.shuffling_kind = "whole_item"
    assert "all 1,024 possible shufflings of whole items" in verdict(result)
    result.shuffling_kind = "within_item"
    assert "all 1,024 possible shufflings of the labels within items" in verdict(result)
    nothing = Result([0.2], [1.0], alternative="greater")
    assert "responds more to success than failure" in verdict(nothing)


def test_sides_with_several_levels_or_none():
    result = Result([0.01], [5.0], levels=("a", "b", "c"), weights=(0.5, -1.0, 0.5))
    assert "more to a and c than b" in verdict(result)
    assert "more to a than zero" in verdict(Result([0.01], [5.0], levels=("a",), weights=(1.0,)))


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
