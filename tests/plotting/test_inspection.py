"""The figure of weights draws the numbers of the report."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from neurollm.dictionaries import RandomDirections
from neurollm.interactions.inspection import inspect_weights
from neurollm.interactions.model import NFM
from neurollm.models import Site
from neurollm.plotting.canvas import POSITIVE
from neurollm.plotting.inspection import plot_weight_report
from neurollm.random import stream


class Lengths(RandomDirections):
    """Random directions with different norms."""

    @property
    def directions(self) -> torch.Tensor:
        """Directions times 0.2 to 0.7."""
        return self._directions * torch.linspace(0.2, 0.7, self.n_features)[:, None]


def model(n: int = 60) -> NFM:
    shapes = {"V": (n, 8), "A": (8, 6), "W": (n, 6), "b": (6,)}
    weights = {name: stream(0, name).standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return NFM({name: torch.from_numpy(weight) for name, weight in weights.items()}, top_n=4)


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def trained(ax) -> list:
    return [line for line in ax.lines if to_hex(line.get_color()) == POSITIVE]


@pytest.fixture(scope="module")
def report():
    return inspect_weights(model(), Lengths(Site(3), 6, 60), n_random=5)


def test_every_panel_draws_the_trained_model_beside_random_ones(report):
    figure = plot_weight_report(report)
    figure.savefig(io.BytesIO(), format="png")
    gini, norm, spectrum, coupling = figure.axes
    values = np.sort(report.features()["V_gini"])
    assert trained(gini)[0].get_xdata()[[0, -1]] == pytest.approx(values[[0, -1]])
    assert trained(norm)[0].get_xdata()[100] == pytest.approx(report.features()["V_l2"].median())
    assert trained(spectrum)[0].get_ydata().sum() == pytest.approx(1) and len(trained(spectrum)[0].get_xdata()) == 8
    shown = [float(line.get_xdata()[0]) for line in trained(coupling)]
    assert sorted(shown) == pytest.approx(sorted(report.coupling.query("method == 'pearson'")["r"]))
    assert len(gini.collections) == len(spectrum.collections) == 1
    assert "5 random models" in texts(figure) and "mathdefault" not in texts(figure)


def test_panels_without_anything_to_show_say_so():
    nothing = model()
    nothing.weights["V"][:] = 0
    shown = texts(plot_weight_report(inspect_weights(nothing, n_random=2)))
    assert "no dictionary was given" in shown and shown.count("all embeddings are zero") >= 2
    unit = inspect_weights(model(), RandomDirections(Site(3), 6, 60), n_random=2)
    assert "do not vary" in texts(plot_weight_report(unit))
