"""Numbers and hostile characters in text."""

from __future__ import annotations

import doctest
import math

import pytest
from markupsafe import Markup

from neurollm.reporting import contexts, formatting


@pytest.mark.parametrize("module", [formatting, contexts])
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "3"])
def test_what_is_not_a_number_is_a_dash(value):
    for show in ("decimal", "significant", "proportion", "p_number", "percent"):
        assert getattr(formatting, show)(value) == "–"


def test_a_permutation_p_is_never_shown_as_zero():
    assert formatting.p_number(1e-12).endswith(".001")
    assert formatting.p_sentence(1e-12) == "< .001"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0000123, "1.2 × 10⁻⁵"), (-0.5, "−0.500"), (123456.0, "123,456"), (9.999, "10.00")]
)
def test_significant_digits(value, shown):
    assert formatting.significant(value) == shown


def test_direction_overrides_and_controls_become_visible():
    shown = formatting.visible("a\u202eb\x00c\x07d\ud800e\n\tf\u200dg")
    assert shown == "a�b�c�d�e\n\tf\u200dg"
    shown.encode()


def test_statistics_escapes_before_it_typesets():
    html = formatting.statistics("<b>x</b> p_FWER < .05")
    assert isinstance(html, Markup)
    assert html == "&lt;b&gt;x&lt;/b&gt; <i>p</i><sub>FWER</sub> &lt; .05"
