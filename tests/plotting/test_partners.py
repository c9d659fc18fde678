"""The figure of partners shows what the table says."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from neurollm.interactions.partners import PartnerTable
from neurollm.plotting.partners import plot_partners


def table_of(n):
    h = np.linspace(2.0, 0.4, n)
    gain = np.where(np.arange(n) < 1, 0.6, -0.1)
    return PartnerTable(
        feature=7,
        partner=np.arange(10, 10 + n),
        h=h,
        h_unbiased=h - 0.02,
        ci_low=h - 0.3,
        ci_high=h + 0.2,
        n_tokens=np.full(n, 100),
        n_documents=np.full(n, 30),
        p=np.full(n, 0.01),
        p_fwer=np.where(h > 1, 0.01, 0.4),
        gain=gain,
        gain_low=gain - 0.1,
        gain_high=gain + 0.1,
        h_random=np.full(n, 0.05),
        ranks=np.zeros((n, 0), int),
        null_max=np.linspace(0.2, 1.0, 99),
        n_candidates=50,
        n_significant=3,
        error_rms=3.0,
        top=10,
        alpha=0.05,
    )


def test_points_band_and_gains():
    table = table_of(6)
    ax = plot_partners(table)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(point.get_xdata()[0]) for point in points] == pytest.approx(list(table.h))
    assert [point.get_markerfacecolor() != "white" for point in points] == list(table.p_fwer <= 0.05)
    assert len({point.get_markeredgecolor() for point in points[1:]}) == 1 != points[0].get_markeredgecolor()
    assert points[0].get_markeredgecolor() != points[1].get_markeredgecolor()
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert 0.94 < band.x1 < 1.0
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"feature {j}" for j in table.partner]
    assert [text.get_text() for text in ax.texts].count("−10 %") == 5
    low, high = ax.get_xlim()
    assert low <= 0 and high > table.ci_high.max()
    ax.figure.savefig(io.BytesIO(), format="png")


def test_no_partner_and_unknown_intervals():
    assert "often enough" in plot_partners(table_of(0)).texts[0].get_text()
    unknown = np.full(4, np.nan)
    table = dataclasses.replace(table_of(4), ci_low=unknown, ci_high=unknown, gain=unknown, gain_low=unknown)
    ax = plot_partners(table)
    assert [text.get_text() for text in ax.texts].count("–") == 4
    ax.figure.savefig(io.BytesIO(), format="png")
