"""The figure of a ladder shows what the table says."""

from __future__ import annotations

import numpy as np
import pytest

from neurollm.interactions import InteractionTraining, residual_ladder, simulate_codes
from neurollm.plotting.ladder import plot_ladder


@pytest.fixture(scope="module")
def ladder():
    data = simulate_codes(3000, 20, 4, 6, pairs=((0, 1, 0.2),), random_state=0)
    training = InteractionTraining(batch_size=128)
    return residual_ladder(data.rows, steps=("M3",), seeds=2, rank=4, n_tokens=20_000, training=training, verbose=0)


def test_every_step_has_its_gain_its_interval_and_its_controls(ladder):
    ax = plot_ladder(ladder)
    table = ladder.summary()
    error = 1 - table["r2_heldout"].iloc[0]
    points = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 1]
    drawn = np.sort(np.concatenate(points))
    shown = table[(table["step"] != "M0") & table["delta_r2"].notna()]
    expected = np.sort(shown["delta_r2"].to_numpy() / error * 100)
    assert np.isclose(expected[:, None], drawn[None]).any(1).all()
    assert [label.get_text()[:2] for label in ax.get_yticklabels()] == ["M1", "M2", "M3"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    controls = ["shuffled codes", "truth without pairs", "random pairs", "with curves of single features"]
    assert legend == ["held-out documents", *controls]


def test_seeds_are_dots(ladder):
    ax = plot_ladder(ladder)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [2, 2, 2]
