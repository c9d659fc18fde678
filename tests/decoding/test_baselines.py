"""Baselines from texts: scikit-learn and the audit as oracles, folds of the decoder, planted and absent tells."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from neurollm.decoding.baselines import ROWS, baselines
from neurollm.decoding.decoder import Decoder
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stimuli._lexical import LeaveOneItemOut, ngrams, words

NOUNS = ["cat", "dog", "sun", "sea", "car", "hat", "map", "pen", "cup", "key"]
NOUNS += ["box", "bag", "toy", "egg", "bus", "net", "jam", "log", "fan", "pot"]


def paired(ends=(".", "."), extra=("", ""), n_items=20, seed=0):
    """Two texts per item with random words; `extra` and `ends` are what the levels add."""
    rng = np.random.default_rng(seed)
    texts, labels, items = [], [], []
    for item in range(n_items):
        for level in (0, 1):
            chosen = " ".join(rng.choice(NOUNS, 5))
            texts.append(f"{chosen} {extra[level]}".strip() + ends[level])
            labels.append(("calm", "loud")[level])
            items.append(item)
    return texts, np.array(labels), np.array(items)


def test_words_and_bigrams_equal_scikit_learn_fitted_in_the_training_part():
    texts, labels, items = paired(extra=("the quiet end", "the loud end"))
    found = baselines(texts, labels, items, n_boot=100)
    texts = np.array(texts, dtype=object)
    for row, n in enumerate((1, 2)):
        for fold in range(5):
            test = found.folds == fold
            counter = CountVectorizer(analyzer=lambda text, n=n: ngrams(words(text), n)).fit(texts[~test])
            model = MultinomialNB(fit_prior=False).fit(counter.transform(texts[~test]), labels[~test])
            joint = model.predict_joint_log_proba(counter.transform(texts[test]))
            np.testing.assert_allclose(found.scores[row, test], joint[:, 1] - joint[:, 0], atol=1e-9)


def test_leaving_one_item_out_agrees_with_the_audit():
    texts, labels, items = paired(extra=("quiet end", "loud end"), seed=3)
    texts = [text.replace("quiet", NOUNS[i % 20]).replace("loud", NOUNS[i % 7]) for i, text in enumerate(texts)]
    found = baselines(texts, labels, items, folds=items, n_boot=100)
    right = [np.mean(np.where(s == 0, 0.5, (s > 0) == (labels == "loud"))) for s in found.scores[:2]]
    codes = (labels == "loud").astype(int)
    audit = [LeaveOneItemOut(texts, items, n).balanced_accuracy(codes) for n in (1, 2)]
    np.testing.assert_allclose(right, audit, atol=0.03)  # smoothed by all n-grams there, by those of training here


@pytest.mark.parametrize(
    ("design", "told"),
    [
        ({"extra": ("calmly", "loudly")}, "words"),
        ({"extra": ("is not so it is", "is it so not is")}, "bigrams"),  # the same words in another order
        ({"extra": ("cat", "cat dog sun sea car hat map")}, "length"),
        ({"ends": (".", "!")}, "punctuation"),
    ],
)
def test_a_planted_tell_is_found_by_its_row(design, told):
    found = baselines(*paired(**design), n_boot=200)
    frame = found.to_frame().set_index("baseline")
    assert frame["auroc"][told] > 0.9 and frame["ci_low"][told] > 0.5
    assert (frame["ci_low"] <= frame["auroc"]).all() and (frame["auroc"] <= frame["ci_high"]).all()
    assert told in found.verdict().split("above chance: ")[1]
    if told in ("words", "bigrams", "punctuation"):
        other = {"words": "punctuation", "bigrams": "words", "punctuation": "words"}[told]
        assert frame["ci_low"][other] < 0.5


def test_noise_is_near_one_half():
    areas, above = [], []
    for seed in range(40):
        found = baselines(*paired(seed=seed), n_boot=100, random_state=seed)
        areas.append(found.auroc)
        above.append(found.ci_low > 0.5)
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.06
    assert np.mean(above, axis=0).max() <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / 40)


def test_words_of_an_item_do_not_leak():
    # Each item repeats words of its own, and has one level: only a split that shares items could use them.
    rng, areas = np.random.default_rng(0), []
    for seed in range(10):
        items = np.repeat(np.arange(20), 3)
        texts = [f"own{item} own{item} {rng.choice(NOUNS)}" for item in items]
        areas.append(baselines(texts, items % 2, items, n_boot=100, random_state=seed).auroc[0])
    assert abs(np.mean(areas) - 0.5) < 0.2


def test_rows_stand_beside_a_decoder_with_the_same_folds():
    texts, labels, items = paired(n_items=24)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(48, 10))
    X[labels == "loud", 3] += 6
    decoder = Decoder("ridge", cv=4, n_perm=0, random_state=5).fit(X, labels, groups=items)
    found = baselines(texts, labels, items, cv=4, random_state=5)
    predictions = decoder.predictions_
    np.testing.assert_array_equal(found.folds, predictions["fold"])
    table = found.compare(predictions.sample(frac=1, random_state=0))
    assert table["baseline"].tolist() == list(ROWS)
    np.testing.assert_allclose(table["difference"], decoder.score_ - found.auroc)
    assert (table["p"] <= 0.05).all() and (table["ci_low"] > 0).all()
    itself = predictions.assign(decision=found.scores[0])
    assert found.compare(itself)["difference"][0] == 0 and found.compare(itself)["p"][0] == 1
    given = baselines(texts, labels, items, folds=predictions["fold"], random_state=5)
    np.testing.assert_allclose(given.scores[:2], found.scores[:2])


def test_texts_without_words_and_hostile_labels():
    texts = ["!", "?", "", "  ", "!!", "??", "", " "]
    found = baselines(texts, ["a\nb", "c" * 300] * 4, np.arange(8) // 2, cv=2, n_boot=100)
    assert found.auroc[0] == found.auroc[1] == 0.5 and np.isfinite(found.auroc).all()
    assert "\n" not in found.verdict() and len(found.verdict()) < 400


def test_wrong_calls_are_told():
    texts, labels, items = paired()
    with pytest.raises(DataMismatch, match=r"labels .* do not fit 39 trials"):
        baselines(texts[1:], labels, items)
    with pytest.raises(InvalidInput, match="text 0 is of type int"):
        baselines([1, *texts[1:]], labels, items)
    with pytest.raises(InvalidInput, match="exactly two levels"):
        baselines(texts, items, items)
    for place, told in ((1, "labels are missing"), (2, "groups are missing")):
        given = [texts, labels.astype(object), items.astype(object)]
        given[place][5] = None if place == 1 else np.nan
        with pytest.raises(InvalidInput, match=told):
            baselines(*given)
    with pytest.raises(InvalidInput, match="2 items of each level"):
        baselines(texts, labels, labels)
    with pytest.raises(DataMismatch, match="has the item"):
        baselines(texts, labels, items, folds=np.arange(40) % 2)
    with pytest.raises(DataMismatch, match="folds of shape"):
        baselines(texts, labels, items, folds=[0, 1])
    found = baselines(texts, labels, items, n_boot=100)
    predictions = Decoder("ridge", cv=3, n_perm=0).fit(np.eye(40), labels, groups=items).predictions_
    with pytest.raises(DataMismatch, match="other folds"):
        found.compare(predictions)
    with pytest.raises(DataMismatch, match="each of the 40 trials once"):
        found.compare(predictions[1:])
    with pytest.raises(DataMismatch, match="other labels"):
        found.compare(predictions.assign(label="calm"))


def test_high_scores_mean_the_same_level_as_those_of_a_decoder():
    texts, labels, items = paired(extra=("calmly", "loudly"))
    X = np.random.default_rng(0).normal(size=(40, 5)) + 4 * (labels == "calm")[:, None]
    for numbers in (np.where(labels == "calm", 9, 10), np.where(labels == "calm", 9.5, 10.5)):
        predictions = Decoder("ridge", n_perm=0).fit(X, numbers, groups=items).predictions_
        found = baselines(texts, numbers, items, n_boot=100)
        assert found.levels == tuple(map(str, np.unique(numbers)))
        table = found.compare(predictions)
        np.testing.assert_allclose(table["difference"], 1 - found.auroc)  # the decoder makes no error
        with pytest.raises(DataMismatch, match="give both the labels as numbers, or both as text"):
            baselines(texts, numbers.astype(str), items, n_boot=100).compare(predictions)
    with pytest.raises(DataMismatch, match="other folds"):  # half as many, each of them two of these
        found.compare(predictions.assign(fold=predictions["fold"] // 2))
