"""Contrast texts: what they mean, and how each mistake is answered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurollm.designs import Contrast
from neurollm.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "levels", "weights"),
    [
        ("success - failure", ["failure", "success"], (-1, 1)),
        ("a - 0.5*b - .5*c", "abc", (1, -0.5, -0.5)),
        ("a - (b + c)/2", "abc", (1, -0.5, -0.5)),
        ("2*a - b - c", "abc", (2, -1, -1)),
        ("a = b", "abc", (1, -1, 0)),
        ("1e-3*a - 1E-3*b", "abc", (0.001, -0.001, 0)),
        ("very bad - bad", ["bad", "very bad"], (-1, 1)),
        ("non-word - word", ["word", "non-word"], (-1, 1)),
        ("don't - do", ["do", "don't"], (-1, 1)),
        ("not-A (x) - 3rd", ["not-A (x)", "3rd"], (1, -1)),
        ("`1` - '2'", ["1", "2"], (1, -1)),
        ("e - 2nd", ["e", "2nd"], (1, -1)),
        ("b +a - 2*`+a`", ["a", "b", "+a"], (1, 1, -2)),
        ("très_bon - 不好", ["très_bon", "不好"], (1, -1)),
        ({"b": 1, "a": -1}, "abc", (-1, 1, 0)),
        ([1, 0, -1], "abc", (1, 0, -1)),
        (np.array([1, -1]), [True, False], (1, -1)),
        ("a:x - b:x", ["a:x", "a:y", "b:x", "b:y"], (1, 0, -1, 0)),
        ("a = b, b = c", "abc", ((1, -1, 0), (0, 1, -1))),
        (["a - b", "b - c"], "abc", ((1, -1, 0), (0, 1, -1))),
        ([[1, -1, 0], [0, 1, -1]], "abc", ((1, -1, 0), (0, 1, -1))),
    ],
)
def test_weights(text, levels, weights):
    contrast = Contrast.parse(text, list(levels))
    assert contrast.matrix == pytest.approx(np.atleast_2d(weights))
    again = Contrast.parse(contrast.expression, list(levels), "again")
    assert again.matrix == pytest.approx(np.atleast_2d(weights)) and again.name == "again"
    assert Contrast.parse(contrast, list(levels)) == Contrast.parse(contrast.expression, levels) or contrast.name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sucess - b", "unknown name 'sucess'; did you mean 'success'?"),
        ("x - b", "Known are 'success', 'b', 'c'"),
        ({"sucess": 1, "b": -1}, "did you mean 'success'?"),
        ("success", "sum to zero"),
        ("success - 0.5*b", "sum to zero"),
        ("b - b", "nothing is compared"),
        ("success - b, b - success", "follows from the others"),
        ("1 - 2", "multiplies no level"),
        ("b +* c", "not a linear combination"),
        ("b * c", "not a linear combination"),
        ("", "not a linear combination"),
        ("__import__('os')", "unknown name"),
        ([1, -1], "one weight for each of the 3 parameters"),
        ([1, np.nan, -1], "finite"),
        ([{}, "b", "c"], "must be numbers"),
        (["success - b", "x - b"], "unknown name 'x'"),
        (3, "one weight for each"),
    ],
)
def test_mistakes_are_answered(spec, words):
    with pytest.raises(InvalidInput, match="contrast") as caught:
        Contrast.parse(spec, ["success", "b", "c"])
    assert words in str(caught.value)


def test_an_empty_name_is_a_name():
    assert Contrast.parse("a - b", "ab", "").name == ""
    assert Contrast.parse(Contrast.parse("a - b", "ab", "x"), "ab", "").name == ""


@pytest.mark.parametrize("spec", ["x" * 5000, "l1 - " * 2000 + "l2", {"y" * 5000: 1}, list(range(5000)), "l1"])
def test_long_texts_are_cut(spec):
    with pytest.raises(InvalidInput) as caught:
        Contrast.parse(spec, [f"l{index}" for index in range(500)])
    assert len(str(caught.value)) < 700


EXACT = [(1, -1 / 3, -2 / 3), (1e-7, 1, -1 - 1e-7), (1234567.25, -1234567.25, 0), (2, -1, -1)]


@pytest.mark.parametrize("weights", EXACT)
def test_the_text_of_weights_reads_back_exactly(weights):
    contrast = Contrast.parse(weights, "abc")
    assert Contrast.parse(contrast.expression, "abc").weights == contrast.weights


LEVEL = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters="`"), min_size=1, max_size=8)


def test_a_backtick_in_a_name_is_quoted_otherwise():
    contrast = Contrast.parse([1, -1], ["`a", "b'"])
    assert contrast.expression == "'`a' - `b'`"
    assert Contrast.parse(contrast.expression, contrast.parameters).weights == contrast.weights


@given(st.lists(LEVEL.map(str.strip).filter(bool), min_size=2, max_size=5, unique=True), st.data())
def test_any_level_name_works_in_backticks(levels, data):
    a, b = data.draw(st.permutations(levels))[:2]
    contrast = Contrast.parse(f"`{a}` - `{b}`", levels)
    expected = [float(level == a) - float(level == b) for level in levels]
    assert contrast.weights == (tuple(expected),)
    from_weights = Contrast.parse(expected, levels)
    assert Contrast.parse(from_weights.expression, levels).weights == contrast.weights
