"""Figures of dictionaries draw the numbers they are given."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from neurollm.dictionaries import RandomDirections, evaluate_dictionary
from neurollm.dictionaries.cosines import decoder_cosines, random_quantile
from neurollm.dictionaries.geometry import anisotropy_report
from neurollm.dictionaries.stability import seed_stability
from neurollm.errors import InvalidInput
from neurollm.models import Site
from neurollm.plotting.canvas import NEGATIVE, POSITIVE
from neurollm.plotting.dictionaries import (
    plot_anisotropy,
    plot_decoder_cosines,
    plot_density,
    plot_stability,
    plot_training,
)

HISTORY = [{"tokens": 5e5 * n, "explained_variance": 1 - 0.5 / n, "l0": 32.0, "dead": 3 * n} for n in range(1, 9)]


def texts(ax) -> str:
    return "\n".join(text.get_text() for text in ax.findobj(Text))


def drawn(ax) -> None:
    """Everything can be drawn, and no label is left as mathtext."""
    ax.figure.savefig(io.BytesIO(), format="png")
    assert "mathdefault" not in texts(ax) and not any(text.get_parse_math() for text in ax.texts)


@pytest.fixture(scope="module")
def metrics():
    x = np.random.default_rng(0).standard_normal((3_000, 16)).astype(np.float32)
    made = evaluate_dictionary(RandomDirections(Site(1), 16, 200, k=6), x)
    density = np.r_[
        np.full(5, 0.5), np.full(20, 0.03), np.full(60, 1e-3), np.full(9, 3e-6), np.full(6, 3e-7), [0] * 100
    ]
    return dataclasses.replace(
        made, density=density, dense=0.025, frequent=0.125, rare=0.075, ultra_rare=0.03, dead=0.5
    )


def test_density_counts_the_living_and_names_the_dead(metrics):
    ax = plot_density(metrics)
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar for bar in ax.patches}
    assert sum(bar.get_height() for bar in bars.values()) == 100
    dense = [bar for bar in ax.patches if to_hex(bar.get_facecolor()) == POSITIVE]
    assert sum(bar.get_height() for bar in dense) == 5
    assert {"> 10%: 2.5%", "> 1%: 12.5%", "< 1e-5: 7.5%", "< 1e-6: 3.0%"} <= set(texts(ax).split("\n"))
    assert "dead on 3,000 tokens: 50.0%" in texts(ax)
    assert [line.get_xdata()[0] for line in ax.lines] == [-1, -2, -5, -6]
    drawn(ax)


def test_density_of_a_dictionary_that_is_never_active_says_so(metrics):
    ax = plot_density(dataclasses.replace(metrics, density=np.zeros(7)))
    assert "no feature is active" in texts(ax)
    drawn(ax)


def test_decoder_cosines_lie_on_their_reference_if_directions_are_independent():
    cosines = decoder_cosines(RandomDirections(Site(1), 32, 600))
    ax = plot_decoder_cosines(cosines)
    found, reference = (patch.get_data() for patch in ax.patches)
    assert found.values.sum() == pytest.approx(1) and np.nansum(reference.values) == pytest.approx(1)
    np.testing.assert_allclose(found.values, np.nan_to_num(reference.values), atol=0.003)
    assert to_hex(ax.patches[1].get_edgecolor()) == NEGATIVE
    assert ax.lines[0].get_xdata()[0] == cosines.p95
    assert f"independent: p95 {random_quantile(0.95, 32):.2f}".replace("0.", ".") in texts(ax)
    drawn(ax)


def test_stability_draws_every_pair_and_the_null():
    hostile = "$\\frac{</text>"
    found = seed_stability({hostile: RandomDirections(Site(1), 16, 60, 0)} | {
        name: RandomDirections(Site(1), 16, 60, seed) for name, seed in (("same", 0), ("other", 1))
    })  # fmt: skip
    ax = plot_stability(found)
    same, one, two, null, threshold = ax.lines
    assert threshold.get_xdata()[0] == 0.7
    pairs = found.features.groupby(["a", "b"], sort=False)["cosine"]
    for line, (_, cosines) in zip((same, one, two), pairs, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.sort(cosines))
    for line in (one, two):  # the first has ties: all its cosines are 1
        above = [np.mean(line.get_xdata() > value) for value in line.get_xdata()]
        np.testing.assert_allclose(line.get_ydata(), above, atol=1e-12)
    np.testing.assert_array_equal(null.get_xdata(), np.sort(found.null_cosines))
    assert f"same – other: {found.pairs['shared'].iloc[2]:.0%}" in texts(ax) and "$" in texts(ax)
    drawn(ax)


def test_training_is_drawn_over_tokens():
    axes = plot_training(HISTORY)
    for ax, key in zip(axes, ("explained_variance", "l0", "dead"), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_xdata(), [entry["tokens"] / 1e6 for entry in HISTORY])
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [entry[key] for entry in HISTORY])
        low, high = ax.get_ylim()
        assert low <= min(ax.lines[0].get_ydata()) and high >= max(ax.lines[0].get_ydata())
        drawn(ax)
    assert axes[-1].get_xlabel() == "million tokens" and ".938" in texts(axes[0])


def test_training_of_a_dictionary(demo_dictionary):
    axes = plot_training(demo_dictionary)
    last = demo_dictionary.provenance["history"][-1]
    assert axes[0].lines[0].get_ydata()[-1] == last["explained_variance"]
    assert axes[2].lines[0].get_ydata()[-1] == last["dead"]
    with pytest.raises(InvalidInput, match="no training history"):
        plot_training(RandomDirections(Site(1), 8, 10))
    without = [{key: value for key, value in entry.items() if key != "l0"} for entry in HISTORY]
    assert "not recorded" in texts(plot_training(without)[1])


def test_anisotropy_names_massive_dimensions():
    x = np.random.default_rng(0).standard_normal((500, 50))
    x[:, [7, 45]] *= 40
    report = anisotropy_report(x)
    ax = plot_anisotropy(report)
    ordinary, massive = (np.asarray(points.get_offsets()) for points in ax.collections)
    assert massive[:, 0].tolist() == [7, 45] and len(ordinary) == 48
    np.testing.assert_allclose(massive[:, 1], report.to_frame()["share"][[7, 45]])
    assert {"7", "45"} <= {text.get_text() for text in ax.texts} and "of 50" in texts(ax)
    drawn(ax)
    still = plot_anisotropy(anisotropy_report(np.ones((5, 3))))
    assert "do not vary" in texts(still)


@pytest.mark.parametrize("rarest", [1.0, 1e-3, 10**-7.2])
def test_features_that_are_always_active_are_drawn(metrics, rarest):
    ax = plot_density(dataclasses.replace(metrics, density=np.array([1.0, 1.0, rarest])))
    assert sum(bar.get_height() for bar in ax.patches) == 3
    last = ax.patches[-1]
    assert last.get_height() >= 2 and last.get_x() + last.get_width() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [0.1, 123.456])
def test_geometry_of_what_does_not_vary_is_not_drawn(value):
    assert "the activations do not vary" in texts(plot_anisotropy(anisotropy_report(np.full((1000, 6), value))))


def test_cosines_that_do_not_exist_are_refused():
    with pytest.raises(InvalidInput, match="there are no cosines"):
        plot_decoder_cosines(None)
