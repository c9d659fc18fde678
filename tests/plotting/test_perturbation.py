"""The figure of perturbations shows the numbers of the table."""

from __future__ import annotations

import numpy as np
import pytest

from neurollm.interactions.perturbation_result import PerturbationResult
from neurollm.plotting.perturbation import plot_perturbation

NOISES = ("isotropic", "covariance", "shuffled")


def made(conditions=("a", "b"), scale=1.0, n_boot=200):
    rng = np.random.default_rng(0)
    n = rng.integers(20, 60, 12)
    size = (len(conditions), 4, 12)
    return PerturbationResult(
        conditions=conditions,
        noises=NOISES,
        documents=np.arange(12),
        n_predicted=n,
        clean=3.0 * n,
        ablated=np.stack([8.0 * n, 9.0 * n]),
        ce=3.2 * n * rng.uniform(0.9, 1.1, size),
        kl=scale * 0.1 * n * rng.uniform(0.5, 2.0, size),
        error_length=np.ones(len(conditions)),
        n_draws=2,
        n_boot=n_boot,
        random_state=0,
        site="resid_post.3",
        model="demo",
    )


def test_points_and_intervals_are_those_of_the_table():
    result = made()
    frame = result.to_frame()
    kl, ratio = plot_perturbation(result)
    points = {line.get_label(): line.get_xdata() for line in kl.lines}
    np.testing.assert_allclose(points["reconstruction"], frame["kl"][::3])
    for place, noise in enumerate(NOISES):
        of = frame[frame["noise"] == noise]
        np.testing.assert_allclose(points[f"{noise} noise"], of["kl_noise"])
        drawn = [segment[:, 0] for segment in ratio.collections[place].get_segments()]
        np.testing.assert_allclose(drawn, of[["ratio_low", "ratio_high"]])
    heights = np.sort(np.concatenate([line.get_ydata() for line in kl.lines if line.get_label() in points])[:8])
    assert len(set(heights.round(6))) == 8  # nothing hides another
    assert [label.get_text() for label in kl.get_yticklabels()] == ["a", "b"]
    kl.figure.canvas.draw()


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"n_boot": 0}, {"conditions": ("$\\frac{<b>",)}])
def test_nothing_to_draw_no_intervals_and_hostile_names(options):
    kl, ratio = plot_perturbation(made(**options))
    kl.figure.canvas.draw()
    assert ("no ratio is defined" in [text.get_text() for text in ratio.texts]) == (options.get("scale") == 0.0)
