"""The parts of a decoder against scikit-learn and plain formulas: classifiers, panels, patterns, direction."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC, LinearSVC

from neurollm.decoding import check_direction
from neurollm.decoding.classifiers import CLASSIFIERS
from neurollm.decoding.l1_logistic import l1_logistic_path
from neurollm.decoding.panels import Plan, fit_part
from neurollm.decoding.patterns import activation_patterns
from neurollm.decoding.scores import jaccard
from neurollm.errors import DataMismatch, InvalidInput


def two_classes(n=60, k=6, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    y = np.arange(n) < share * n
    Z = rng.normal(size=(n, k))
    Z[y] += np.linspace(0, 1.2, k)
    return (Z - Z.mean(axis=0)) / Z.std(axis=0), y


def theirs(name, strength, y):
    C = 1 / (strength * len(y))
    weights = np.where(y, 0.5 / y.mean(), 0.5 / (~y).mean())
    even = [0.5, 0.5]
    return {
        "logistic_l1": lambda Z: LogisticRegression(
            C=C, l1_ratio=1, solver="saga", class_weight="balanced", tol=1e-8, max_iter=100_000
        ).fit(Z, y),
        "logistic_l2": lambda Z: LogisticRegression(C=C, class_weight="balanced", tol=1e-10).fit(Z, y),
        "svc_linear": lambda Z: LinearSVC(
            C=C, class_weight="balanced", dual=False, intercept_scaling=1e3, tol=1e-8
        ).fit(Z, y),
        "ridge": lambda Z: Ridge(strength * len(y)).fit(Z, 2.0 * y - 1, sample_weight=weights),
        "lda": lambda Z: LinearDiscriminantAnalysis("eigen", shrinkage=strength, priors=even).fit(Z, y),
        "naive_bayes": lambda Z: GaussianNB(priors=even, var_smoothing=strength).fit(Z, y),
        "svc_rbf": lambda Z: SVC(C=1 / strength, gamma=1 / Z.shape[1], class_weight="balanced").fit(Z, y),
    }[name]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_are_those_of_scikit_learn(name):
    Z, y = two_classes()
    classifier = CLASSIFIERS[name]
    for strength in classifier.strengths[1:3]:
        ours = classifier.fit(Z, y, [strength], 0)[0]
        model = theirs(name, strength, y)(Z)
        if name == "naive_bayes":
            logs = model.predict_log_proba(Z)
            expected = logs[:, 1] - logs[:, 0]
        else:
            expected = getattr(model, "decision_function", model.predict)(Z)
        loose = 0.01 if name == "svc_linear" else 1e-4  # liblinear penalises the intercept a little
        np.testing.assert_allclose(ours.decide(Z), expected, atol=loose)
        if classifier.linear:
            np.testing.assert_allclose(Z @ ours.coef + ours.intercept, ours.decide(Z))


@pytest.mark.parametrize(("k", "loose"), [(12, 2e-6), (300, 2e-3)])
def test_l1_path_is_optimal(k, loose):
    Z, y = two_classes(50, k)
    weights = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    strengths = [0.2, 0.05, 0.02]
    for coef, intercept, strength in zip(*l1_logistic_path(Z, y, strengths), strengths, strict=True):
        slope = Z.T @ (weights * (1 / (1 + np.exp(-Z @ coef - intercept)) - y))
        np.testing.assert_allclose(slope[coef != 0], -strength * np.sign(coef[coef != 0]), atol=loose)
        assert np.abs(slope).max() <= strength + loose and 0 < (coef != 0).sum() < 50


@pytest.mark.parametrize("name", [name for name, kind in CLASSIFIERS.items() if kind.rotates])
def test_many_features_are_fitted_in_few_coordinates(name):
    Z, y = two_classes(30, 80, share=0.5)
    own = CLASSIFIERS[name].fit_all(Z, y, [0.1], 0)[0]
    plain = CLASSIFIERS[name].fit(Z / 80**0.5, y, [0.1], 0)[0]
    if name == "lda":  # its sphere has as many dimensions as there are coordinates: same direction
        assert np.corrcoef(own.decide(Z), plain.decide(Z / 80**0.5))[0, 1] > 0.99
    else:
        np.testing.assert_allclose(own.coef * 80**0.5, plain.coef, atol=1e-3)
        np.testing.assert_allclose(own.decide(Z), plain.decide(Z / 80**0.5), atol=1e-3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_copies_of_all_trials_change_no_classifier(name):
    Z, y = two_classes()
    copies = np.repeat(np.arange(len(y)), 5)
    kind = CLASSIFIERS[name]
    one, five = (kind.fit(Z[rows], y[rows], kind.strengths[1:2], 0)[0].decide(Z) for rows in (slice(None), copies))
    if name == "svc_rbf":
        assert np.corrcoef(one, five)[0, 1] > 0.9  # its C is per trial
    else:
        np.testing.assert_allclose(one, five, atol=0.02)


def test_panel_weights_are_in_units_of_the_features():
    Z, y = two_classes(80, 20)
    X = 3 * Z + 5
    part = fit_part(X, y, np.arange(80), Plan((("logistic_l2", "welch_t"),), (2, 5), 0))
    coef, intercept = part.coef(20)
    np.testing.assert_allclose(X @ coef + intercept, part.decide(X), atol=1e-9)
    assert set(np.flatnonzero(coef)) == set(part.features) and part.features.size in (2, 5)


def test_patterns_are_haufes_formula_and_show_the_signal_not_the_noise():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 500))
    values = np.stack([signal + noise, noise, rng.normal(size=500)], axis=1)
    weights = np.array([1.0, -1.0, 0.0])  # the second feature only cancels noise
    pattern = activation_patterns(values, weights)
    decision = values @ weights
    expected = [np.cov(column, decision)[0, 1] / np.var(decision, ddof=1) for column in values.T]
    np.testing.assert_allclose(pattern, expected)
    covariance = np.cov(values.T)
    np.testing.assert_allclose(pattern, covariance @ weights / (weights @ covariance @ weights))
    assert pattern[0] == pytest.approx(1, abs=0.1) and abs(pattern[1]) < 0.1
    assert np.isnan(activation_patterns(values, np.zeros(3))).all()


def test_jaccard_beside_chance():
    rng = np.random.default_rng(0)
    panels = [rng.choice(30, size, replace=False) for size in (6, 9) * 400]
    pairs = [jaccard(panels[k : k + 2], 30) for k in range(0, 800, 2)]
    observed, chance = np.mean(pairs, axis=0)
    assert observed == pytest.approx(chance, abs=0.01)
    assert jaccard([np.arange(5)] * 3, 30)[0] == 1


def test_direction_is_checked_and_the_class_named():
    labels = np.array(["success"] * 10 + ["failure"] * 10)
    scores = np.r_[np.linspace(1, 2, 10), np.linspace(0, 0.9, 10)]
    assert check_direction(scores, labels, "success") == (1.0, 0.0)
    with pytest.raises(DataMismatch, match="said to mean 'failure', but of the 4 highest rows 0% are 'failure' and of"):
        check_direction(scores, labels, "failure")
    with pytest.raises(DataMismatch, match="say nothing about this class"):
        check_direction(np.ones(20), labels, "success")
    assert check_direction([3, 2, 2, 2, 0, 0], list("aabbbb"), "a", n_rows=2) == (pytest.approx(2 / 3), 0)
    with pytest.raises(InvalidInput, match="'victory' is the label of 0 of 20 rows"):
        check_direction(scores, labels, "victory")
    with pytest.raises(InvalidInput, match="n_rows must be 1 to 10"):
        check_direction(scores, labels, "success", n_rows=11)
    for n_rows in ("x", 2.5, True):
        with pytest.raises(InvalidInput, match="n_rows must be 1 to 10"):
            check_direction(scores, labels, "success", n_rows=n_rows)
    with pytest.raises(InvalidInput, match="scores must be numbers"):
        check_direction(labels, labels, "success")
    with pytest.raises(InvalidInput, match="one finite score"):
        check_direction(scores[1:], labels, "success")
