"""Figures draw what the result says, keep names literal and leave nothing behind."""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.results import changed, contrast_result

from neurollm.designs import Contrast
from neurollm.plotting import contrast_sides, plot_controls, plot_design_matrix, plot_null_max, plot_volcano
from neurollm.plotting.canvas import NEGATIVE, POSITIVE, literal, new_axes
from neurollm.reporting.svg import figure_svg

HOSTILE = "$\\frac{</text><script>alert(1)</script>&amp;"


def made(stat, p, p_fwer, null_max, **changes):
    """A result of a paired contrast with these statistics."""
    numbers = {"effect_size": stat / 5, "stat": stat, "p": p, "q": p_fwer, "p_fwer": p_fwer, "null_max": null_max}
    return changed(contrast_result(), **numbers, feature=np.arange(len(stat)), df=np.full(len(stat), 13.0), **changes)


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    stat = np.concatenate([[6.0, 5.0, -5.5], rng.normal(0, 1, 500), [np.nan]])
    p = np.clip(2 * np.exp(-(stat**2) / 2), 1e-4, 1)
    p_fwer = np.where(np.isnan(stat), np.nan, np.where(np.abs(stat) > 4, 0.01, 1.0))
    return made(stat, p, p_fwer, np.concatenate([np.full(50, 4.0), np.full(949, 2.5)]))


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def points(ax, color) -> int:
    from matplotlib.colors import to_hex

    drawn = [c for c in ax.collections if len(c.get_facecolor()) and to_hex(c.get_facecolor()[0]) == color]
    return sum(len(c.get_offsets()) for c in drawn)


def test_volcano_colours_and_labels_the_significant(result):
    ax = plot_volcano(result)
    assert points(ax, POSITIVE) == 2 and points(ax, NEGATIVE) == 1
    assert {"0", "1", "2", "more to success →", "← more to failure"} <= set(texts(ax))
    assert ax.get_ylim()[1] >= 4


def test_volcano_follows_alpha_and_the_p_asked_for(result):
    assert points(plot_volcano(result, alpha=0.001), POSITIVE) == 0
    assert plot_volcano(result, y="p_fwer").get_ylabel() == "−log₁₀ p FWER"


def test_volcano_labels_do_not_overlap():
    stat = np.linspace(5, 6, 60)
    ax = plot_volcano(made(stat, np.full(60, 1e-4), np.full(60, 0.01), np.ones(5)))
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts if text.get_text().isdigit()]
    assert 2 <= len(boxes) <= 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_null_shows_threshold_and_observed_maximum(result):
    ax = plot_null_max(result)
    assert sorted(line.get_xdata()[0] for line in ax.lines) == pytest.approx([4.0, 6.0], rel=1e-3)
    assert sum(patch.get_height() for patch in ax.patches) == 999
    assert ax.get_xlim()[1] > 6.0


def test_null_of_one_sided_tests_looks_in_their_direction(result):
    less = changed(result, alternative="less")
    assert 5.5 in {line.get_xdata()[0] for line in plot_null_max(less).lines}


@pytest.mark.parametrize("kind", ["levels", "main effect", "interaction"])
def test_f_contrasts_have_no_direction(kind):
    found = contrast_result(kind)
    ax = plot_volcano(found)
    assert ax.get_xlabel() == "effect size (partial η²)" and not any("more to" in text for text in texts(ax))
    assert points(ax, POSITIVE) == (found.p_fwer <= 0.05).sum() > 0 and points(ax, NEGATIVE) == 0
    assert plot_null_max(found).get_xlabel() == "largest F over features"


def test_a_coefficient_has_a_sign_but_no_sides():
    ax = plot_volcano(contrast_result("coefficient"))
    assert points(ax, POSITIVE) > 0 and not any("more to" in text for text in texts(ax))


def test_without_permutations_q_decides():
    found = contrast_result("paired", n_perm=0)
    assert points(plot_volcano(found), POSITIVE) == ((found.q <= 0.05) & (found.stat > 0)).sum() > 0
    assert "nothing was permuted" in texts(plot_null_max(found))


def test_design_matrix_keeps_a_covariate_visible():
    frame = pd.DataFrame({"a": [1.0, 0, 1, 0], "b": [0.0, 1, 0, 1], "length": [10.0, 20, 30, 40]}, index=list("wxyz"))
    ax = plot_design_matrix(frame)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "length"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list("wxyz")
    alpha = np.asarray(ax.images[0].get_array())[:, [0, 40, 80], 3]
    assert (np.diff(alpha[:, 2]) > 0).all() and alpha[0, 0] == 1.0 and alpha[1, 0] < 0.2


def test_controls_put_the_study_on_top():
    rows = [
        {"representation": "token embeddings", "kind": "control", "auroc": 0.7, "ci_low": 0.6, "ci_high": 0.8},
        {"representation": "features", "kind": "study", "auroc": 0.9, "ci_low": 0.8, "ci_high": 0.95},
        {"representation": "failed", "kind": "control", "auroc": None, "ci_low": None, "ci_high": None},
    ]
    ax = plot_controls(rows)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["features", "token embeddings", "failed"]
    assert "not estimable" in texts(ax)
    assert next(iter(ax.get_xticklabels())).get_text() == ".4"


def test_empty_results_have_a_note():
    nothing = np.full(3, np.nan)
    empty = made(nothing, nothing, nothing, np.array([]))
    assert "no feature could be tested" in texts(plot_volcano(empty))
    assert "nothing was permuted" in texts(plot_null_max(empty))
    assert "no control was run" in texts(plot_controls([]))
    assert "the design matrix is empty" in texts(plot_design_matrix(pd.DataFrame()))


def test_figures_can_share_axes_given_to_them(result):
    ax = new_axes(3, 3)
    assert plot_volcano(result, ax=ax) is ax


def test_no_global_state_and_no_leak(result):
    assert isinstance(plot_volcano(result).figure, Figure)
    alive = [weakref.ref(plot_volcano(result).figure) for _ in range(3)]
    gc.collect()
    assert not any(reference() for reference in alive)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        assert pyplot.get_fignums() == []


def test_hostile_names_are_drawn_as_text(result):
    names = (HOSTILE, "a\nb\x00c\u202ed\ud800")
    result = changed(result, contrast=Contrast("c", "c", names, ((-1.0, 1.0),)), conditions=names)
    frame = pd.DataFrame([[1.0, 0.0]], columns=[HOSTILE, "x"], index=["$bad_$"])
    row = {"representation": HOSTILE, "kind": "study", "auroc": 0.9, "ci_low": 0.8, "ci_high": 0.95}
    for ax in (plot_volcano(result), plot_design_matrix(frame), plot_controls([row])):
        svg = figure_svg(ax, "k", HOSTILE)
        assert "<script" not in svg and "&lt;" in svg
        assert "$\\frac{" in svg


def test_svg_has_no_addresses_and_follows_the_page_colours(result):
    svg = figure_svg(plot_volcano(result), "v1", "a volcano")
    assert "http" not in svg and "<style" not in svg and "metadata" not in svg
    assert "var(--positive)" in svg and POSITIVE not in svg
    assert svg.startswith('<svg viewBox="0 0 ') and 'aria-label="a volcano"' in svg
    assert len(svg) < 120_000
    other = figure_svg(plot_volcano(result), "v2", "a volcano")
    assert 'id="v2-' in other and 'id="v1-' not in other


def test_svg_of_many_significant_features_stays_small():
    stat = np.linspace(4, 9, 20_000)
    many = made(stat, np.full(stat.size, 1e-4), np.full(stat.size, 0.01), np.ones(5))
    assert len(figure_svg(plot_volcano(many), "v", "many")) < 200_000


def test_sides():
    many = Contrast.parse("0.3*a + 0.3*b + 0.4*c - d", list("abcd"))
    assert contrast_sides(many) == ("a, b and c", "d")
    assert contrast_sides(contrast_result("several").contrast) == ("joy", "anger and fear")
    assert contrast_sides(contrast_result("two levels").contrast) == ("failure", "success")
    assert contrast_sides(Contrast.parse("a", "ab", sums_to_zero=False)) == ("a", "zero")


def test_literal_is_one_line():
    assert literal("a\nb") == "a b" and len(literal("x" * 99)) == 28
