"""The component panels draw the numbers of the studies."""

from __future__ import annotations

import io

import numpy as np
import pytest

from neurollm.errors import InvalidInput
from neurollm.factorial import factorial_study, simulate_units
from neurollm.plotting.components import effect_counts, in_order, plot_components


@pytest.fixture(scope="module")
def sizes():
    sim = simulate_units(24, {"sum": 1, "and": 1, "none": 1})
    names = ["interaction", "dictionary", "linear"]
    return factorial_study(sim.X, sim.obs, sim.design, features=names, n_candidates=3, n_perm=99)


@pytest.fixture(scope="module")
def units():
    sim = simulate_units(24, {"main": 3, "and": 3, "none": 6})
    return factorial_study(sim.X, sim.obs, sim.design, n_candidates=4, n_perm=99)


def test_sizes_above_and_shares_below(sizes, units):
    axes = plot_components(sizes, {"linear": units})
    axes[0].figure.savefig(io.BytesIO(), format="png")
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["dictionary  ‖x̂‖²", "linear  ‖s·W + b‖²", "interaction  ‖g(B)‖²", ""]
    cells = sizes.cells().set_index(["column", "f1", "f2"])
    lines = [line for line in axes[2].lines if line.get_marker() == "o"]
    drawn = np.concatenate([line.get_ydata() for line in lines])
    expected = [cells.loc[("interaction", level, "on"), "mean"] for level in ("on", "off")]
    assert drawn == pytest.approx(expected)
    counts = effect_counts(units)
    assert list(counts) == ["f1", "f2", "f1:f2"] and counts["f1"][0] >= 3
    shares = [bar.get_width() for bar in axes[3].patches]
    assert shares == pytest.approx([found / chosen for found, chosen in counts.values()])
    assert [text.get_text() for text in axes[3].texts] == [f"{n} of {of}" for n, of in counts.values()]


def test_counts_are_those_of_the_verdict(units):
    told = ", ".join(f"{effect} in {found} of {chosen}" for effect, (found, chosen) in effect_counts(units).items())
    assert told in units.verdict()


def test_components_stand_in_the_order_in_which_they_are_added(sizes):
    assert in_order(["rest", "interaction", "dictionary", "interaction"]) == ["dictionary", "interaction", "rest"]
    assert len(plot_components(sizes)) == 3


def test_what_does_not_belong_together_is_refused(sizes, units):
    with pytest.raises(InvalidInput, match="the study of 'bias' is of no component"):
        plot_components(sizes, {"bias": units})
