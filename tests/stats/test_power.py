"""Power against statsmodels, SciPy's noncentral t and the closed form of Westfall, Kenny and Judd."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from neurollm.errors import InvalidInput
from neurollm.stats.power import Variances, crossed_power, smallest_detectable

VARIANCES = Variances(item=0.2, item_condition=0.1, template=0.1, template_condition=0.1, residual=0.4)


@pytest.mark.parametrize("n", [5, 20, 150])
@pytest.mark.parametrize(("alternative", "theirs"), [("two-sided", "two-sided"), ("greater", "larger")])
@pytest.mark.parametrize("power", [0.3, 0.5, 0.8])
def test_plain_threshold_equals_statsmodels(n, alternative, theirs, power):
    quantile = 0.975 if alternative == "two-sided" else 0.95
    ours = smallest_detectable(stats.t.ppf(quantile, n - 1), n - 1, n**-0.5, power, alternative)
    solved = TTestPower().solve_power(None, n, 0.05, power, theirs)
    np.testing.assert_allclose(ours, solved, rtol=1e-4)
    df, unit = 3 * n - 2, np.sqrt(1 / n + 1 / (2 * n))
    ours = smallest_detectable(stats.t.ppf(quantile, df), df, unit, power, alternative)
    solved = TTestIndPower().solve_power(None, n, 0.05, power, ratio=2, alternative=theirs)
    np.testing.assert_allclose(ours, solved, rtol=1e-4)


@pytest.mark.parametrize("df", [2, 19, 400])
def test_any_threshold_is_passed_with_the_power(df):
    critical = np.array([0.5, 3.0, 6.5, 12.0])
    noncentrality = smallest_detectable(critical, df, 1.0, power=0.9)
    rng = np.random.default_rng(0)
    t = (rng.normal(size=100_000) + noncentrality[:, None]) / np.sqrt(rng.chisquare(df, 100_000) / df)
    np.testing.assert_allclose((np.abs(t) > critical[:, None]).mean(axis=1), 0.9, atol=0.005)
    np.testing.assert_array_equal(
        -smallest_detectable(critical, df, 1.0, alternative="less"),
        smallest_detectable(critical, df, 1.0, alternative="greater"),
    )


def test_edges():
    np.testing.assert_array_equal(
        smallest_detectable(np.array([0.0, 0.01, np.inf, np.nan]), 10, 0.2), [0, 0, np.inf, np.nan]
    )
    huge = smallest_detectable(np.array([1e3, 1e6]), 19, 1.0)
    np.testing.assert_allclose(huge, np.array([1e3, 1e6]) * np.sqrt(stats.chi2.ppf(0.8, 19) / 19), rtol=1e-3)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("n_items", "n_templates"), [(16, 16), (40, 6)])
def test_quasi_f_has_the_power_of_the_closed_form(nested, n_items, n_templates):
    power = crossed_power(n_items, n_templates, 0.7, VARIANCES, nested=nested, n_simulations=2000)
    assert 0.3 < power.closed_form < 0.95
    assert abs(power.quasi_f - power.closed_form) < 0.05
    assert power.min_f <= power.quasi_f
    assert power.both <= min(power.by_items, power.by_templates)


@pytest.mark.parametrize("nested", [False, True])
def test_closed_form_is_the_noncentral_t_of_the_simulated_differences(nested):
    """Without template × condition variance it is the plain t test by items of the item means."""
    variances = Variances(item=0.3, item_condition=0.2, template=0.2, template_condition=0, residual=1e-9)
    power = crossed_power(20, 4, 0.8, variances, nested=nested, n_simulations=100)
    if nested:
        exact = TTestIndPower().power(0.8 / np.sqrt(0.5), 10, 0.05)
    else:
        exact = TTestPower().power(0.8 / np.sqrt(4 * 0.2), 20, 0.05)
    np.testing.assert_allclose(power.closed_form, exact, rtol=1e-5)


def test_without_an_effect_only_the_tests_over_both_hold_their_level():
    power = crossed_power(16, 16, 0.0, VARIANCES, n_simulations=4000)
    assert min(power.by_items, power.by_templates) > 0.12
    assert power.both > 0.08  # requiring both does not make them valid
    assert power.min_f < 0.06 and 0.035 < power.quasi_f < 0.065
    np.testing.assert_allclose(power.closed_form, 0.05)


def test_more_templates_not_more_items_help_where_templates_vary():
    few = crossed_power(200, 4, 0.8, VARIANCES, n_simulations=1)
    assert crossed_power(20, 16, 0.8, VARIANCES, n_simulations=1).closed_form > few.closed_form + 0.2


def test_first_simulations_do_not_depend_on_their_number():
    found = [n * crossed_power(8, 4, 0.5, VARIANCES, n_simulations=n).by_items for n in range(90, 120)]
    assert set(np.diff(np.round(found))) == {0.0, 1.0}
    few = crossed_power(8, 4, 0.5, VARIANCES, n_simulations=100, random_state=3)
    again = crossed_power(8, 4, 0.5, VARIANCES, n_simulations=100, random_state=3)
    assert again == few != crossed_power(8, 4, 0.5, VARIANCES, n_simulations=100, random_state=4)


def test_refusals():
    with pytest.raises(InvalidInput, match="threshold"):
        smallest_detectable(np.array([-1.0]), 9, 0.3)
    with pytest.raises(InvalidInput, match="power"):
        smallest_detectable(np.array([2.0]), 9, 0.3, power=80)
    with pytest.raises(InvalidInput, match="alternative"):
        smallest_detectable(np.array([2.0]), 9, 0.3, alternative="larger")
    with pytest.raises(InvalidInput, match="even number"):
        crossed_power(7, 4, 0.5, VARIANCES, nested=True)
    with pytest.raises(InvalidInput, match="at least two"):
        crossed_power(8, 1, 0.5, VARIANCES)
    with pytest.raises(InvalidInput, match="variances"):
        crossed_power(8, 4, 0.5, Variances(0.1, -0.1, 0, 0, 1))
    with pytest.raises(InvalidInput, match="alpha"):
        crossed_power(8, 4, 0.5, VARIANCES, alpha=0)
