"""The course over positions shows the scores, the threshold and the control of the result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from neurollm.designs import CategoricalDesign
from neurollm.errors import InvalidInput
from neurollm.plotting.temporal import plot_time_course
from neurollm.rsa.temporal import TimeResolvedRSA
from neurollm.rsa.windows import Windows


@pytest.fixture(scope="module")
def trials():
    rng = np.random.default_rng(0)
    rows = [(f"s{i}", f"i{i}", "ab"[i % 2], p) for i in range(20) for p in range(5)]
    obs = pd.DataFrame(rows, columns=["stimulus_id", "item", "outcome", "position"])
    X = rng.normal(5, 1, (len(obs), 2))
    X[(obs["position"] == 2) & (obs["outcome"] == "a"), 1] += 4
    X[obs["position"] == 4, 1] = 0
    X[7 * 5 + 4, 1] = 1  # varies, but is active once
    return AnnData(X, obs=obs.set_index(obs.index.astype(str)))


@pytest.fixture(scope="module")
def result(trials):
    return TimeResolvedRSA(CategoricalDesign("outcome"), n_perm=99).fit(trials).result_


def test_course_of_the_peak(trials, result):
    windows = Windows.from_trials(trials).shuffled(1)
    control = TimeResolvedRSA(CategoricalDesign("outcome"), n_perm=99).fit(windows).result_
    ax = plot_time_course(result, control=control)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["feature 1"].get_ydata(), result.r[:, 1])
    np.testing.assert_array_equal(lines["control"].get_ydata(), control.r[:, 1])
    threshold = result.mean[:, 1] + result.critical_value() * result.sd[:, 1]
    np.testing.assert_allclose(lines["family-wise .05"].get_ydata(), threshold)
    other = result.mean[:, 1] - result.critical_value() * result.sd[:, 1]  # two-sided: below as well
    assert any(len(line.get_ydata()) == 5 and np.allclose(line.get_ydata()[:4], other[:4]) for line in ax.lines)
    filled, empty, untested = ax.collections
    assert filled.get_offsets()[:, 0].tolist() == [2]
    assert empty.get_offsets()[:, 0].tolist() == [0, 1, 3] and untested.get_offsets()[:, 0].tolist() == [4]
    assert ax.get_xticklabels()[0].get_text() == "0\n20" and "start" in ax.get_xlabel()
    ax.figure.canvas.draw()


def test_other_features_nothing_tested_and_wrong_calls(result):
    ax = plot_time_course(result, 0)
    assert "feature 0" in {line.get_label() for line in ax.lines}
    nothing = dataclasses.replace(result, z=np.full_like(result.z, np.nan), null_max=np.empty(0))
    assert plot_time_course(nothing).texts[0].get_text() == "nothing could be tested"
    with pytest.raises(InvalidInput, match="'x' is no feature"):
        plot_time_course(result, "x")
    with pytest.raises(InvalidInput, match="no course"):
        plot_time_course(dataclasses.replace(result, positions=np.array(["0:4"])))


def test_names_are_drawn_literally(result):
    hostile = dataclasses.replace(result, model="$\\frac{<script>", feature=np.array(["$a$", "$b$"]))
    plot_time_course(hostile).figure.canvas.draw()
