"""Partners: the definition by brute force, planted pairs, and nulls that stay null."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm.activations import Corpus, harvest
from neurollm.datasets import demo_corpus_path
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.model import NFM
from neurollm.interactions.partners import interaction_partners
from neurollm.interactions.rows import CodedRows
from neurollm.interactions.simulate import simulate_codes
from neurollm.interactions.training import InteractionTraining, train_nfm

N_FEATURES, RANK, D = 40, 6, 10


@pytest.fixture(scope="module")
def simulated():
    return simulate_codes(3000, N_FEATURES, 6, D, pairs=((0, 1, 0.1), (2, 3, 0.1)), tokens_per_document=30)


def random_nfm(mlp=False, refit=False, top_n=5, seed=0):
    draw = np.random.default_rng(seed)
    sizes = {"V": (N_FEATURES, RANK), "A": (RANK, D)}
    sizes |= {"W1": (RANK, 7), "b1": (7,), "W2": (7, D)} if mlp else {}
    sizes |= {"W": (N_FEATURES, D), "b": (D,)} if refit else {}
    return NFM({name: torch.tensor(draw.normal(size=size)) for name, size in sizes.items()}, top_n)


@pytest.fixture(scope="module")
def learned():
    """Two planted pairs, two models trained on half of the documents, and the others."""
    data = simulate_codes(12_000, 200, 8, 16, coactivation=0.05)
    fit = data.rows.documents < 60
    options = InteractionTraining(batch_size=256, learning_rate=1e-2)
    models = [
        train_nfm(data.rows.subset(fit), rank=16, n_tokens=100_000, training=options, random_state=seed, verbose=0)
        for seed in (0, 1)
    ]
    return models, data.rows.subset(~fit)


def brute_force(nfm, codes, i, j):
    """H by four codes for each token, through `predict`; without the columns, not without the places."""
    code = nfm.truncate(codes).toarray()
    code = code[(code[:, i] != 0) & (code[:, j] != 0)]
    total = 0
    for sign, gone in ((1, []), (-1, [i]), (-1, [j]), (1, [i, j])):
        less = code.copy()
        less[:, gone] = 0
        total = total + sign * nfm.predict(sp.csr_matrix(less)).double().numpy()
    return total


@pytest.mark.parametrize(("mlp", "refit"), [(False, False), (False, True), (True, False), (True, True)])
def test_h_is_the_mean_of_four_forward_passes(simulated, mlp, refit):
    nfm = random_nfm(mlp, refit)
    table = interaction_partners(nfm, simulated, 1, top=50, n_perm=19, n_boot=100)
    assert len(table.partner) == table.n_candidates > 20
    assert np.all(np.diff(table.h) <= 0)
    for place in (0, 5, len(table.partner) - 1):
        joint = brute_force(nfm, simulated.codes, 1, table.partner[place])
        assert table.n_tokens[place] == len(joint)
        assert table.h[place] == pytest.approx(np.linalg.norm(joint.mean(0)), rel=2e-4)


def test_the_linear_component_cancels(simulated):
    with_refit = random_nfm(mlp=True, refit=True)
    without = NFM({k: w for k, w in with_refit.weights.items() if k not in "Wb"}, with_refit.top_n)
    tables = [interaction_partners(nfm, simulated, 0, n_perm=19, n_boot=100) for nfm in (with_refit, without)]
    assert np.array_equal(tables[0].h, tables[1].h)


def test_a_linear_readout_has_a_closed_form(simulated):
    nfm = random_nfm()
    table = interaction_partners(nfm, simulated, 4, n_perm=19, n_boot=100)
    dense = nfm.truncate(simulated.codes).toarray().astype(float)
    V, A = (nfm.weights[name].double().numpy() for name in "VA")
    for j, h in zip(table.partner, table.h, strict=True):
        both = (dense[:, 4] != 0) & (dense[:, j] != 0)
        assert h == pytest.approx(
            (dense[both, 4] * dense[both, j]).mean() * np.linalg.norm((V[4] * V[j]) @ A), rel=1e-6
        )


def test_removing_a_feature_lets_no_other_in(simulated):
    """Only tokens on which both are among the top_n count: fewer than those on which both are active."""
    narrow, wide = (
        interaction_partners(random_nfm(top_n=n), simulated, 0, top=50, n_perm=19, n_boot=100) for n in (3, 40)
    )
    tokens = dict(zip(wide.partner, wide.n_tokens, strict=True))
    assert all(n < tokens[j] for j, n in zip(narrow.partner, narrow.n_tokens, strict=True))


def test_u_and_its_units(simulated):
    nfm = random_nfm(mlp=True)
    table = interaction_partners(nfm, simulated, 1, top=3, n_perm=19, n_boot=100)
    code = nfm.truncate(simulated.codes)
    for place, j in enumerate(table.partner):
        both = (code[:, [1]].toarray()[:, 0] != 0) & (code[:, [int(j)]].toarray()[:, 0] != 0)
        joint, documents = brute_force(nfm, simulated.codes, 1, j), simulated.documents[both]
        different = documents[:, None] != documents
        u = (joint @ joint.T)[different].sum() / different.sum()
        assert table.n_documents[place] == len(np.unique(documents))
        assert table.h_unbiased[place] == pytest.approx(np.sign(u) * abs(u) ** 0.5, rel=1e-3)
        assert table.ci_low[place] < table.h_unbiased[place] < table.ci_high[place]
    error = simulated.activations - (simulated.codes @ simulated.reconstruction[:-1] + simulated.reconstruction[-1])
    assert table.error_rms == pytest.approx(np.sqrt((error**2).sum(1).mean()), rel=1e-4)
    assert table.to_frame().h_relative[0] == pytest.approx(table.h[0] / table.error_rms)


def test_planted_partners_come_first_survive_the_null_and_are_confirmed(learned):
    (nfm, other), held_out = learned
    for feature in range(4):
        table = interaction_partners(nfm, held_out, feature, others=[other], n_boot=199)
        assert table.partner[0] == feature ^ 1 and table.p_fwer[0] <= 0.05
        assert table.h[0] > 3 * table.h[1] and table.h[0] > 10 * table.h_random[0]
        assert table.ranks[0].tolist() == [1] and table.replicated[0] == 1
        assert table.ci_low[0] <= table.h_unbiased[0] <= table.ci_high[0]
        assert table.gain_low[0] > 0.5 and not np.any(table.gain_low[1:] > 0.1)
    assert "strongest is feature 2" in table.verdict() and "1 of 1 other models" in table.verdict()


def test_the_gain_is_a_share_of_the_error_that_is_left(learned):
    (nfm, _), held_out = learned
    table = interaction_partners(nfm, held_out, 0, top=2, n_perm=19, n_boot=100)
    batch = next(held_out.in_order(10_000))
    code = nfm.truncate(batch.code)
    for place, j in enumerate(table.partner):
        both = (code[:, [0]].toarray()[:, 0] != 0) & (code[:, [int(j)]].toarray()[:, 0] != 0)
        left = (batch.error - nfm.predict(batch.code)).double().numpy()[both]
        without = left + brute_force(nfm, batch.code, 0, j)
        assert table.gain[place] == pytest.approx(1 - (left**2).sum() / (without**2).sum(), abs=1e-4)
        assert table.gain_low[place] < table.gain[place] < table.gain_high[place]


def test_a_model_without_interactions_says_so(simulated):
    nfm = NFM({"V": random_nfm().weights["V"], "A": torch.zeros(RANK, D)}, 5)
    table = interaction_partners(nfm, simulated, 0, n_perm=19, n_boot=100)
    assert table.p_fwer.min() == 1 and table.n_significant == 0
    assert "interacts with none" in table.verdict()


def test_partners_of_a_model_without_training_are_not_significant(simulated):
    """Its table of shared weights names a strongest partner of every feature; with the null there are 5 % at most."""
    ps = []
    for seed in range(40):
        table = interaction_partners(random_nfm(seed=seed), simulated, seed % N_FEATURES, top=1, n_perm=39, n_boot=100)
        ps.append(table.p_fwer[0])
    assert np.mean(np.array(ps) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    assert 0.35 < np.mean(ps) < 0.65


def test_only_tokens_with_the_feature_are_used_and_no_more_than_asked(simulated):
    few = interaction_partners(random_nfm(), simulated, 0, max_tokens=200, min_coactive=5, n_perm=19, n_boot=100)
    assert few.n_tokens.max() <= 200
    again = interaction_partners(random_nfm(), simulated, 0, max_tokens=200, min_coactive=5, n_perm=19, n_boot=100)
    assert np.array_equal(few.h, again.h)


def test_a_feature_without_company():
    codes = sp.csr_matrix(np.eye(N_FEATURES, dtype=np.float32)[np.arange(400) % N_FEATURES])
    rows = CodedRows.from_arrays(codes, np.random.default_rng(0).normal(size=(400, D)))
    table = interaction_partners(random_nfm(), rows, 3, n_perm=19)
    assert table.n_candidates == 0 and len(table.to_frame()) == 0
    assert "no other feature" in table.verdict()


def test_a_store_needs_its_dictionary(demo_lm, demo_dictionary, tmp_path):
    documents = Corpus.read(demo_corpus_path()).documents[:6]
    store = harvest(demo_lm, Corpus(documents), demo_dictionary.site, tmp_path, verbose=0)
    sizes = {"V": (demo_dictionary.n_features, 4), "A": (4, 256)}
    draw = np.random.default_rng(0)
    weights = {name: torch.tensor(draw.normal(size=size)) for name, size in sizes.items()}
    nfm = NFM(weights, 16, demo_dictionary.fingerprint)
    rows = CodedRows.of(store, demo_dictionary, verbose=0)
    codes = next(rows.in_order(store.n_rows)).code
    feature = int(np.argmax(codes.getnnz(axis=0)))
    table = interaction_partners(nfm, store, feature, demo_dictionary, n_perm=19, n_boot=100)
    joint = brute_force(nfm, codes, feature, table.partner[0])
    assert table.h[0] == pytest.approx(np.linalg.norm(joint.mean(0)), rel=1e-3)
    assert np.array_equal(table.h, interaction_partners(nfm, rows, feature, n_perm=19, n_boot=100).h)
    with pytest.raises(InvalidInput, match="dictionary"):
        interaction_partners(nfm, store, feature)
    with pytest.raises(DataMismatch, match="another dictionary"):
        interaction_partners(NFM(weights, 16, "0" * 64), rows, feature)


def test_partners_hidden_below_the_null_are_not_denied(learned):
    """Every feature interacts as strongly: nothing stands out, although the data confirm the planted partner."""
    (nfm, _), held_out = learned
    table = interaction_partners(nfm, held_out, 0, n_perm=19, n_boot=100)
    hidden = dataclasses.replace(table, p_fwer=np.ones(len(table.partner)), n_significant=0)
    verdict = hidden.verdict()
    assert f"Of {table.n_candidates} candidates for feature 0 0 stand out from permuted embeddings" in verdict
    assert "A partner can be hidden" in verdict and "interact with feature" not in verdict
    assert "feature 1 takes most of the error away" in verdict
    gain = np.array([0.1, *table.gain[1:]])
    gain[2] = 0.7
    other = dataclasses.replace(table, gain=gain, gain_low=gain - 0.2, gain_high=gain + 0.2).verdict()
    assert f"feature {table.partner[2]} takes most of the error away: 70 % (95 % CI 50 to 90)" in other
    nothing = dataclasses.replace(table, gain_low=np.full(len(gain), np.nan)).verdict()
    assert "takes most of the error away" not in nothing


def test_documents_of_the_training_are_told(learned):
    (nfm, _), held_out = learned
    fresh = interaction_partners(nfm, held_out, 0, n_perm=19, n_boot=100)
    assert not fresh.seen and "trained on" not in fresh.verdict()
    ids = np.unique(held_out.documents)
    trained = NFM(nfm.weights, nfm.top_n)
    trained.provenance = nfm.provenance | {"documents": {"of": held_out.origin, "ids": ids[:1].tolist()}}
    table = interaction_partners(trained, held_out, 0, n_perm=19, n_boot=100)
    assert table.seen and table.verdict().endswith("trained on: gain and rank are optimistic.")


def test_what_a_model_was_fitted_on_is_seen():
    data = simulate_codes(2000, N_FEATURES, 6, D, tokens_per_document=50)
    fit = data.rows.documents < 20
    options = InteractionTraining(batch_size=256)
    nfm = train_nfm(data.rows.subset(fit), rank=4, n_tokens=1000, training=options, verbose=0)
    tables = [interaction_partners(nfm, rows, 0, n_perm=19, n_boot=100) for rows in (data, data.rows.subset(~fit))]
    assert [table.seen for table in tables] == [True, False]


@pytest.mark.parametrize("feature", [1.5, "a", True, None, -1, 40])
def test_a_feature_is_a_whole_number_in_range(simulated, feature):
    with pytest.raises(InvalidInput, match="features 0 to 39"):
        interaction_partners(random_nfm(), simulated, feature)


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("n_perm", (18, 19.0, "a", True), "n_perm must be a whole number of at least 19"),
        ("n_boot", (99, 200.5, "a"), "n_boot must be a whole number of at least 100"),
        ("top", (0, 1.5, "a", True), "top must be a whole number of at least 1"),
        ("min_coactive", (0, 2.5, "a"), "min_coactive must be a whole number of at least 1"),
        ("max_tokens", (0, 2.5, float("nan")), "max_tokens must be a whole number of at least 1"),
        ("random_state", (-1, 0.5, "a"), "random_state must be a whole number of at least 0"),
        ("alpha", (0, 1, -0.1, "a", float("nan"), True), "alpha must be above 0 and below 1"),
        ("alpha", (0.001,), "n_perm is 199: no p can be 0.001 or below; give at least 999"),
    ],
)
def test_numbers_out_of_range_are_refused(simulated, name, values, sentence):
    for value in values:
        with pytest.raises(InvalidInput, match=sentence) as error:
            interaction_partners(random_nfm(), simulated, 0, **{name: value})
        assert "\n" not in str(error.value)


def test_what_does_not_belong_together_is_refused(simulated):
    with pytest.raises(DataMismatch, match="does not belong"):
        interaction_partners(random_nfm(), simulated, 0, others=[random_nfm(top_n=7)])
