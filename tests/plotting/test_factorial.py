"""Figures of a factorial study show what the result says."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from neurollm.designs import FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.factorial import factorial_study, simulate_units
from neurollm.plotting.factorial import plot_cells, plot_interaction_lines, plot_units


def small(between=0, **kinds):
    sim = simulate_units(40, {"none": 8, **kinds}, between=between)
    return factorial_study(sim.X, sim.obs, sim.design, n_candidates=5, n_perm=99)


@pytest.fixture(scope="module")
def study():
    return small(**{"and": 3, "sum": 2})


@pytest.mark.parametrize("between", [0, 2])
def test_lines_join_the_cell_means_over_the_single_items(between):
    study = small(between, **{"and": 3})
    ax = plot_interaction_lines(study, 9)
    cells = study.cells().query("column == 9").set_index(["f1", "f2"])["mean"]
    for bars, level in zip(ax.containers, ("on", "off"), strict=True):
        assert bars.lines[0].get_ydata() == pytest.approx([cells["on", level], cells["off", level]])
    items = np.concatenate(
        [points.get_offsets()[:, 1].filled(np.nan) for points in ax.collections if len(points.get_offsets()) > 2]
    )
    expected = study.items().query("column == 9")["mean"]
    assert np.sort(items[np.isfinite(items)]) == pytest.approx(np.sort(expected))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["on", "off"]
    assert ax.get_legend().get_title().get_text() == "f2"
    ax.figure.savefig(io.BytesIO(), format="png")


def test_cells_begin_with_significant_interactions(study):
    axes = plot_cells(study, n=6)
    assert len(axes) == 6
    titles = [ax.get_title(loc="left") for ax in axes]
    assert sum(title.endswith(": and") for title in titles[:3]) == 3
    axes[0].figure.savefig(io.BytesIO(), format="svg")


def test_units_count_the_kinds_beside_the_control(study):
    control = small()
    ax = plot_units(study, control)
    kinds = [label.get_text() for label in ax.get_yticklabels()]
    shown = [int(text.get_text()) for text in ax.texts]
    for one, counts in zip((study, control), (shown[: len(kinds)], shown[len(kinds) :]), strict=True):
        assert counts == [one.kinds().get(kind, 0) for kind in kinds]
    assert [bar.get_width() for bar in ax.patches][: len(kinds)] == pytest.approx(
        [study.kinds().get(kind, 0) / len(study.candidates) for kind in kinds]
    )
    assert plot_units(study).get_legend() is None
    ax.figure.savefig(io.BytesIO(), format="png")


def test_names_from_data_are_drawn_literally():
    sim = simulate_units(30, {"and": 2})
    obs = sim.obs.rename(columns={"f1": "$a_1$", "f2": "<b>"}).replace("on", "$x^2$")
    study = factorial_study(sim.X, obs, FactorialDesign(["$a_1$", "<b>"]), n_perm=20)
    for ax in (plot_interaction_lines(study, 0), *plot_cells(study), plot_units(study)):
        assert not any(text.get_parse_math() for text in [ax.xaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()])
        ax.figure.savefig(io.BytesIO(), format="png")


def test_what_cannot_be_drawn_is_refused(study):
    with pytest.raises(InvalidInput, match="no candidate"):
        plot_interaction_lines(study, 10**6)
    cells = list(itertools.product(("on", "off"), repeat=3)) * 24
    obs = pd.DataFrame(cells, columns=list("abc")).assign(item=np.repeat(np.arange(24), 8))
    obs["text"] = obs.astype(str).agg(" ".join, axis=1)
    X = np.random.default_rng(0).normal(size=(192, 3))
    three = factorial_study(X, obs, FactorialDesign(list("abc")), n_perm=19)
    for draw in (plot_cells, plot_units, lambda one: plot_interaction_lines(one, 0)):
        with pytest.raises(InvalidInput, match="two factors"):
            draw(three)
