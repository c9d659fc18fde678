"""A dictionary of B: trained on what it is used on, and better than its nulls where B has structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurollm.dictionaries import TopKTraining, train_dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.derived import DerivedStore
from neurollm.interactions.features import load_interaction_features
from neurollm.interactions.model import NFM
from neurollm.interactions.rows import CodedRows
from neurollm.interactions.secondary import SecondaryDictionary, pooled_rows, train_secondary
from neurollm.interactions.simulate import simulate_codes
from neurollm.models import Site
from neurollm.random import stream

RANK, F, D = 8, 40, 12
OPTIONS = TopKTraining(batch_size=256)


@pytest.fixture(scope="module")
def simulated():
    return simulate_codes(5000, F, 6, D, tokens_per_document=50)


def nfm_of(seed=0, n_features=F, d=D):
    draw = np.random.default_rng(seed)
    shapes = {"V": (n_features, RANK), "A": (RANK, d)}
    return NFM({name: torch.tensor(draw.normal(size=shape)) for name, shape in shapes.items()}, 6)


def shared_nfm():
    """Pairs of dimensions that are active together, because they belong to the same few features."""
    weights = nfm_of().weights
    V = torch.zeros(F, RANK)
    for pair in range(4):
        V[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = 1
    return NFM({"V": V, "A": weights["A"]}, 20)


@pytest.fixture(scope="module")
def fit(simulated):
    data = simulate_codes(5000, F, 6, D, pairs=4, tokens_per_document=25)
    return train_secondary(shared_nfm(), data, None, 16, 2, 20_000, held_out=0.4, verbose=0, training=OPTIONS)


def test_a_derived_store_has_the_rows_of_its_function(simulated):
    nfm = nfm_of()
    store = DerivedStore(simulated.rows, pooled_rows(nfm), RANK, "B")
    pooled = nfm.interactions(simulated.codes).numpy()
    assert np.array_equal(store.rows(17, 1234).numpy(), pooled[17:1234]) and len(store.rows(5, 5)) == 0
    assert np.allclose(store.mean, pooled.astype(float).mean(0))
    assert store.mean_squared_norm == pytest.approx(np.square(pooled.astype(float)).sum(1).mean())
    epoch = torch.cat(list(store.batches(300, random_state=1, epoch=2))).numpy()
    assert not np.array_equal(epoch, pooled)
    assert np.array_equal(np.sort(epoch, axis=0), np.sort(pooled, axis=0))
    later = list(store.batches(300, random_state=1, epoch=2, start_batch=10))
    assert np.array_equal(torch.cat(later).numpy(), epoch[3000:])
    assert store.sha256 != DerivedStore(simulated.rows, pooled_rows(nfm), RANK, "other").sha256


def test_any_dictionary_trains_on_a_derived_store(simulated):
    """Also on the errors themselves, with statistics that need all rows."""
    store = DerivedStore(simulated.rows, lambda batch: batch.error, D, "errors")
    options = TopKTraining(batch_size=256, normalisation="z_score", bias_init="geometric_median")
    sae = train_dictionary(store, "topk", 24, 3, 5000, training=options, verbose=0)
    error = store.rows(0, store.n_rows)
    left = (error - sae.reconstruct(error)).square().sum() / (error - error.mean(0)).square().sum()
    assert 0 < left < 0.9 and sae.site == Site(0)


def test_shuffled_columns_keep_their_values_and_lose_their_company(simulated):
    nfm = nfm_of()
    batch = next(simulated.rows.in_order(2000))
    own, shuffled = pooled_rows(nfm)(batch).numpy(), pooled_rows(nfm, 3)(batch).numpy()
    assert np.array_equal(np.sort(own, axis=0), np.sort(shuffled, axis=0))
    strongest = np.abs(np.corrcoef(own.T) - np.eye(RANK)).max()
    assert np.abs(np.corrcoef(shuffled.T) - np.eye(RANK)).max() < 0.1 < strongest
    assert np.array_equal(shuffled, pooled_rows(nfm, 3)(batch).numpy())


def test_structure_between_dimensions_beats_the_nulls(fit):
    frame = fit.to_frame().set_index("model")
    assert frame.fvu["trained"] < 0.5 * frame.fvu["shuffled"]
    assert frame.gain_low["shuffled"] > 0 and frame.p["shuffled"] <= 0.05
    assert frame.gain["random"] == pytest.approx(frame.fvu["random"] - frame.fvu["trained"])
    assert (frame.l0 <= 2).all() and fit.n_documents == 80 and fit.n_tokens == 2000
    assert fit.dictionary is None and "80 held-out documents" in fit.verdict()


def test_dimensions_without_structure_do_not_beat_the_shuffled(simulated):
    """Every dimension belongs to one pair of features of its own."""
    V = torch.zeros(F, RANK)
    for pair in range(RANK):
        V[2 * pair : 2 * pair + 2, pair] = 1
    data = simulate_codes(5000, F, 6, D, pairs=RANK, tokens_per_document=50)
    nfm = NFM({"V": V, "A": torch.ones(RANK, D)}, 20)
    fit = train_secondary(nfm, data, None, 16, 2, 15_000, n_boot=99, verbose=0, training=OPTIONS)
    assert abs(fit.gain["shuffled"].value) < 0.15


def test_figures_are_those_of_the_held_out_documents(simulated):
    nfm = nfm_of()
    fit = train_secondary(nfm, simulated, None, 16, 2, 2000, held_out=0.1, n_boot=19, verbose=0, training=OPTIONS)
    pooled = nfm.interactions(simulated.codes)
    chosen = stream(0, "secondary.held_out").permutation(np.unique(simulated.documents))[:10]
    pooled = pooled[np.isin(simulated.documents, chosen)]
    left = (pooled - fit.sae.reconstruct(pooled)).double().square().sum()
    assert fit.fvu["trained"].value == pytest.approx(
        float(left / (pooled - pooled.mean(0)).double().square().sum()), rel=1e-4
    )


def test_raw_activations_become_secondary_features(demo_dictionary, tmp_path):
    x = torch.randn(800, 256, generator=torch.Generator().manual_seed(0)) * 3 + demo_dictionary.centre
    nfm = nfm_of(n_features=demo_dictionary.n_features, d=256)
    rows = CodedRows.from_arrays(demo_dictionary.encode_sparse(x), x, documents=np.arange(800) // 20)
    rows.dictionary = demo_dictionary
    fit = train_secondary(nfm, rows, None, 16, 2, 2000, n_boot=19, verbose=0, training=OPTIONS)
    secondary = fit.dictionary
    pooled = nfm.interactions(demo_dictionary.encode_sparse(x))
    assert torch.equal(secondary.encode(x), fit.sae.encode(pooled))
    assert np.array_equal(secondary.encode_sparse(x).toarray(), secondary.encode(x).numpy())
    assert torch.allclose(secondary.reconstruct(x), nfm.interaction(fit.sae.reconstruct(pooled)), atol=1e-3)
    step = secondary.decode(torch.eye(16)) - secondary.decode(torch.zeros(16, 16))
    assert torch.allclose(step, secondary.directions, atol=1e-3)
    secondary.save(tmp_path)
    loaded = load_interaction_features(tmp_path)
    assert isinstance(loaded, SecondaryDictionary) and loaded.fingerprint == secondary.fingerprint
    assert torch.equal(loaded.encode(x), secondary.encode(x))


def test_a_training_goes_on_from_its_folder(simulated, tmp_path):
    call = (nfm_of(), simulated, None, 16, 2, 2000)
    first = train_secondary(*call, n_boot=19, verbose=0, out=tmp_path, training=OPTIONS)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["random", "shuffled", "trained"]
    again = train_secondary(*call, n_boot=19, verbose=0, out=tmp_path, training=OPTIONS)
    assert again.sae.fingerprint == first.sae.fingerprint and again.fvu == first.fvu
    with pytest.raises(DataMismatch):
        train_secondary(nfm_of(1), *call[1:], n_boot=19, verbose=0, out=tmp_path, training=OPTIONS)


def test_what_cannot_be_is_refused(simulated, fit, demo_dictionary):
    with pytest.raises(DataMismatch, match="does not belong"):
        train_secondary(nfm_of(n_features=F + 1), simulated)
    with pytest.raises(InvalidInput, match="at least 2 documents"):
        train_secondary(nfm_of(), simulated, held_out=0.0)
    nfm = NFM({"V": torch.ones(demo_dictionary.n_features, 3), "A": torch.ones(3, 256)}, 4)
    with pytest.raises(DataMismatch, match="takes 8 dimensions"):
        SecondaryDictionary(demo_dictionary, nfm, fit.sae)
