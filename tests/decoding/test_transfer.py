"""Corpus transfer: both ends by name, independent labels, and the exploratory work's mistake about the direction."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score

from neurollm.decoding.transfer import _precision, corpus_transfer
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.proportions import wilson_interval


def fitted(names=("achievement", "failure"), seed=0):
    """A decoder of two names, from trials that differ in the first feature."""
    rng = np.random.default_rng(seed)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 4))
    X[:, 0] += 5 * y
    return RidgeClassifier().fit(X, np.array(names)[y])


def corpus(n_rows=600, share=0.1, rows_per_document=3, seed=0, shift=5.0):
    """Rows of which a share is of each class, all others of neither."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["achievement", "failure", "neither"], n_rows, p=[share, share, 1 - 2 * share])
    X = rng.normal(size=(n_rows, 4))
    X[:, 0] += 2.5 + shift / 2 * (np.array(kind == "failure", float) - (kind == "achievement"))
    return X, kind, np.arange(n_rows) // rows_per_document


def test_scoring_the_rows_of_one_class_against_the_name_of_the_other_is_seen_for_what_it_is():
    # The exploratory work took the rows with the highest P(class 1 = failure) and scored them for "achievements".
    X, kind, documents = corpus()
    decoder = fitted()
    highest = np.argsort(-decoder.decision_function(X))[:15]
    assert np.mean(kind[highest] == "achievement") == 0  # "the decoder does not transfer"
    found = corpus_transfer(decoder, X, kind, documents, n=15)
    table = found.to_frame().set_index("class")
    assert table["end"].to_dict() == {"achievement": "lowest scores", "failure": "highest scores"}
    assert set(found.top["failure"]["row"]) == set(highest)
    assert (table["precision"] > 0.9).all() and (table["precision_of_other"] == 0).all()
    assert found.direction > 0.95 and found.direction_low > 0.5
    assert found.verdict().startswith("The highest scores are the 'failure' end of the list and the lowest the 'achi")
    assert "labels agree with this direction" in found.verdict()


def test_swapped_names_are_called_the_wrong_way_round():
    X, kind, _ = corpus()
    found = corpus_transfer(fitted(names=("failure", "success")), X, np.where(kind == "achievement", "success", kind))
    table = found.to_frame().set_index("class")
    assert found.direction_high < 0.5 and "wrong way round" in found.verdict()
    assert (table["precision"] == 0).all() and (table["precision_of_other"] > 0.9).all()


def test_areas_and_shares_are_those_of_scikit_learn_and_of_counting():
    X, kind, documents = corpus(seed=3, shift=2.0)
    found = corpus_transfer(fitted(), X, kind, documents, n=25)
    table = found.to_frame().set_index("class")
    for name, sign in (("achievement", -1), ("failure", 1)):
        row, best = table.loc[name], np.argsort(-sign * found.scores)[:25]
        assert row["auroc"] == pytest.approx(roc_auc_score(kind == name, sign * found.scores))
        assert row["precision"] == np.mean(kind[best] == name) and row["base_rate"] == np.mean(kind == name)
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
        assert row["precision_low"] < row["precision"] < row["precision_high"]
        assert row["n_documents"] == np.unique(documents[best]).size
        assert found.top[name]["row"].tolist() == best.tolist()
        assert found.top[name]["label"].tolist() == kind[best].tolist()
    two = kind != "neither"
    assert found.direction == pytest.approx(roc_auc_score(kind[two] == "failure", found.scores[two]))


def test_resampled_precision_equals_taking_the_best_rows_of_copies():
    rng = np.random.default_rng(0)
    weights, hits = rng.integers(0, 3, (6, 20)).astype(float), rng.random(20) < 0.4
    copies = [np.repeat(hits, w.astype(int))[:7].mean() for w in weights]
    np.testing.assert_allclose(_precision(weights, hits, 7), copies)
    few = np.zeros((1, 20))
    few[0, 4] = 2
    assert _precision(few, hits, 7)[0] == hits[4] and np.isnan(_precision(few * 0, hits, 7)[0])


def test_variances_are_those_of_a_bootstrap_of_documents():
    X, kind, documents = corpus(600, share=0.3, seed=5, shift=1.5)
    X[:, 0] += np.random.default_rng(0).normal(size=200)[documents]  # rows of a document are alike
    scores, rng = fitted().decision_function(X), np.random.default_rng(1)
    areas, shares = [], []
    for _ in range(500):
        rows = (rng.integers(0, 200, 200)[:, None] * 3 + np.arange(3)).ravel()
        areas.append(roc_auc_score(kind[rows] == "failure", scores[rows]))
        shares.append(np.mean(kind[rows][np.argsort(-scores[rows])[:30]] == "failure"))
    found = corpus_transfer(fitted(), X, kind, documents, n=30).to_frame().iloc[1]
    for name, drawn, most in (("auroc", areas, 200), ("precision", shares, found["n_documents"])):
        worth = found[name] * (1 - found[name]) / np.var(drawn)
        low, high = wilson_interval(found[name], min(worth, most))
        assert found[f"{name}_low"] == pytest.approx(low, abs=0.03)
        assert found[f"{name}_high"] == pytest.approx(high, abs=0.03)


def test_intervals_hold_the_truth_and_documents_widen_them():
    truth = corpus_transfer(fitted(), *corpus(20_000, seed=99, shift=2.0)[:2], n=1, n_boot=100).direction
    held, widths = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X, kind, _ = corpus(150, share=0.3, seed=seed, shift=2.0)
        found = corpus_transfer(fitted(), X, kind, n=10, n_boot=100)
        held.append(found.direction_low <= truth <= found.direction_high)
        copies = np.repeat(np.arange(150), 4)  # every row four times is no more than once
        X4 = X[copies] + 1e-9 * rng.normal(size=(600, 4))
        again = corpus_transfer(fitted(), X4, kind[copies], copies, n=10, n_boot=100)
        naive = corpus_transfer(fitted(), X4, kind[copies], n=10, n_boot=100)
        widths.append([one.direction_high - one.direction_low for one in (found, again, naive)])
    plain, by_document, naive = np.mean(widths, axis=0)
    assert np.mean(held) >= 0.9
    assert by_document == pytest.approx(plain, rel=0.1) and naive < 0.65 * plain


def test_noise_decides_no_direction():
    decided = []
    for seed in range(50):
        X, kind, documents = corpus(120, share=0.3, seed=seed, shift=0.0)
        found = corpus_transfer(fitted(), X, kind, documents, n=10, n_boot=100)
        decided.append(not found.direction_low <= 0.5 <= found.direction_high)
    assert np.mean(decided) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 50)
    assert "do not decide the direction" in found.verdict()


def test_without_labels_there_are_lists_only_and_unlabelled_rows_stay_out_of_the_shares():
    X, kind, documents = corpus()
    found = corpus_transfer(fitted(), X, documents=documents, n=5)
    assert found.n_labelled == 0 and np.isnan(found.to_frame()["auroc"]).all() and len(found.top["failure"]) == 5
    assert "without labels" in found.verdict() and (found.top["failure"]["label"] == "").all()
    some = kind.astype(object)
    some[::2] = None
    found = corpus_transfer(fitted(), X, some, documents, n=5)
    alone = corpus_transfer(fitted(), X[1::2], kind[1::2], documents[1::2], n=5)
    assert found.n_labelled == 300
    columns = ["precision", "base_rate", "auroc", "auroc_low"]
    np.testing.assert_allclose(found.to_frame()[columns], alone.to_frame()[columns])


def test_ties_are_not_broken_by_the_order_of_the_corpus():
    X = np.tile([2.5, 0, 0, 0], (100, 1)).astype(float)
    kind = np.repeat(["failure", "neither"], 50)  # sorted: the first rows would all be hits
    found = [corpus_transfer(fitted(), X, kind, n=20, n_boot=100, random_state=seed) for seed in range(30)]
    assert 0.4 < np.mean([one.to_frame()["precision"][1] for one in found]) < 0.6
    assert (found[0].to_frame()["n_tied"] == 100).all() and (found[0].to_frame()["auroc"].dropna() == 0.5).all()
    assert "cannot be checked" in found[0].verdict()


def test_hostile_names_stay_on_one_line_and_results_repeat():
    decoder = fitted(names=("a\nb", "c" * 500))
    one, two = (corpus_transfer(decoder, corpus()[0], n=3) for _ in range(2))
    assert "\n" not in one.verdict() and len(one.verdict()) < 300
    assert one.top["a\nb"].equals(two.top["a\nb"])


def test_wrong_calls_are_told():
    X, kind, documents = corpus()
    with pytest.raises(InvalidInput, match="not a fitted classifier"):
        corpus_transfer(RidgeClassifier(), X)
    with pytest.raises(InvalidInput, match="3 classes"):
        corpus_transfer(RidgeClassifier().fit(X[:3], ["a", "b", "c"]), X)
    with pytest.raises(InvalidInput, match="no row is labelled 'achievement' or 'failure'"):
        corpus_transfer(fitted(), X, np.full(600, "success"))
    with pytest.raises(DataMismatch, match="documents of shape"):
        corpus_transfer(fitted(), X, kind, documents[1:])
    with pytest.raises(InvalidInput, match="n is 0"):
        corpus_transfer(fitted(), X, n=0)
    broken = fitted()
    broken.intercept_[:] = np.inf
    with pytest.raises(DataMismatch, match="not finite"):
        corpus_transfer(broken, X)
