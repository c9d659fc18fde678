"""Codes and activations stay side by side: of a store and of arrays, in order and shuffled, held and streamed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm.activations import Corpus, harvest
from neurollm.dictionaries import TopKSAE
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions import rows as module
from neurollm.interactions.rows import CodedRows, coded
from neurollm.interactions.simulate import simulate_codes
from neurollm.models import LanguageModel, Site

F, D = 20, 6


def sae(site=1, d=D, n_features=F, seed=0, **options):
    draw = np.random.default_rng(seed)
    shapes = {"W_enc": (d, n_features), "W_dec": (n_features, d), "b_enc": (n_features,), "b_dec": (d,)}
    weights = {name: torch.tensor(draw.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}
    return TopKSAE(Site(site), weights, 4, **options)


@pytest.fixture(scope="module")
def lm():
    """A tiny model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=32)
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=D, n_layer=2, n_head=2, initializer_range=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel("tiny", GPT2LMHeadModel(config), tokenizer, is_causal=True)


def some_texts(seed=0, sizes=(40, 9, 70, 25, 31)):
    draw = np.random.default_rng(seed)
    return [(f"text {i}", "".join(draw.choice(list("abcdef ghi"), size))) for i, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def store(lm, tmp_path_factory):
    """A real harvest in three shards."""
    folder = tmp_path_factory.mktemp("store")
    return harvest(lm, Corpus(some_texts()), Site(1), folder, tokens_per_shard=64, dtype="float32", verbose=0)


@pytest.fixture(scope="module")
def stored(store):
    return CodedRows.of(store, sae(), verbose=0)


def arrays_of(store, dictionary):
    """The same rows, as arrays."""
    x = store.rows(0, store.n_rows)
    weights = dictionary.weights
    columns = store.columns(0, store.n_rows)
    return CodedRows.from_arrays(
        dictionary.encode_sparse(x),
        x,
        torch.vstack([weights["W_dec"], weights["b_dec"]]),
        columns["doc_id"],
        columns["position"],
    )


def random_rows(lengths=(7, 3, 12, 1, 9), seed=0, order=None):
    """Arrays with documents of these lengths; every row's code says which row it is."""
    draw = np.random.default_rng(seed)
    n = sum(lengths)
    codes = sp.random(n, F, 0.3, format="csr", dtype=np.float32, random_state=seed).tolil()
    codes[:, 0] = np.arange(1, n + 1)[:, None]
    x = draw.normal(size=(n, D)).astype(np.float32)
    decoder = draw.normal(size=(F + 1, D)).astype(np.float32)
    documents = np.repeat(10 * np.arange(len(lengths))[::-1], lengths)  # numbers fall
    documents = documents if order is None else documents[order]
    return CodedRows.from_arrays(codes.tocsr(), x, decoder, documents), codes.toarray(), x, decoder


def gathered(batches):
    """Everything in some batches, dense."""
    batches = list(batches)
    parts = [(b.rows, b.code.toarray(), b.x.numpy(), b.error.numpy(), b.pairing.toarray()) for b in batches]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a, b)


def test_rows_of_a_store_and_of_its_arrays_agree(store, stored):
    arrays = arrays_of(store, sae())
    assert store.n_rows == stored.n_rows == arrays.n_rows and len(store.shards) > 2
    assert np.array_equal(stored.documents, arrays.documents) and np.array_equal(stored.positions, arrays.positions)
    assert (stored.d, stored.n_features) == (D, F) and stored.dictionary.fingerprint == sae().fingerprint
    for one, other in zip(gathered(stored.in_order(50)), gathered(arrays.in_order(50)), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_the_error_is_what_the_dictionary_leaves(store, stored):
    x = store.rows(0, store.n_rows)
    rows, code, found, error, _ = gathered(stored.in_order(33))
    assert np.array_equal(rows, np.arange(store.n_rows)) and np.array_equal(found, x.numpy())
    assert np.array_equal(code, sae().encode_sparse(x).toarray())
    weights = {name: weight.double().numpy() for name, weight in sae().weights.items()}
    by_hand = x.double().numpy() - code @ weights["W_dec"] - weights["b_dec"]
    assert np.allclose(error, by_hand, atol=1e-4) and np.allclose(error, x - sae().reconstruct(x), atol=1e-4)


def test_codes_kept_in_a_folder_are_those_in_memory(store, stored, tmp_path):
    for _ in range(2):  # made, and found there
        kept = CodedRows.of(store, sae(), tmp_path / "codes", verbose=0)
        assert_same(gathered(kept.in_order(40)), gathered(stored.in_order(40)))
        assert_same(gathered(kept.batches(16, 1)), gathered(stored.batches(16, 1)))
        assert kept.sha256 == stored.sha256
    with pytest.raises(DataMismatch):
        CodedRows.of(store, sae(seed=1), tmp_path / "codes", verbose=0)


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_pass_has_every_row_once_and_can_start_anywhere(monkeypatch, prefetch):
    monkeypatch.setattr(module, "rows_per_block", lambda size: 3)  # 11 blocks
    monkeypatch.setattr("neurollm.activations.reader.BLOCKS_PER_BUFFER", 2)
    rows, codes, x, decoder = random_rows()
    whole = [gathered([batch]) for batch in rows.batches(5, 3, 1, prefetch=prefetch)]
    assert [len(batch[0]) for batch in whole] == [5] * 6 + [2] and rows.n_batches(5) == 7
    order = np.concatenate([batch[0] for batch in whole])
    assert np.array_equal(np.sort(order), np.arange(32)) and not np.array_equal(order, np.arange(32))
    for start in range(8):
        rest = [gathered([batch]) for batch in rows.batches(5, 3, 1, start, prefetch)]
        assert len(rest) == 7 - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert_same(one, other)
    numbers, code, seen, error, pairing = (np.concatenate(part) for part in zip(*whole, strict=True))
    assert np.array_equal(code, codes[numbers]) and np.array_equal(pairing, code) and np.array_equal(seen, x[numbers])
    assert np.allclose(error, x[numbers] - codes[numbers] @ decoder[:-1] - decoder[-1], atol=1e-4)
    others = [np.concatenate([b.rows for b in rows.batches(5, *which)]) for which in ((3, 2), (4, 1))]
    assert not any(np.array_equal(order, other) for other in others)


def test_subsets_keep_the_numbers_of_their_rows(stored):
    mask = np.random.default_rng(0).random(stored.n_rows) < 0.4
    part = stored.subset(mask)
    whole = gathered(stored.in_order(1000))
    assert_same(gathered(part.in_order(7)), [array[mask] for array in whole])
    assert np.array_equal(part.rows, np.flatnonzero(mask)) and np.array_equal(part.documents, stored.documents[mask])
    again = part.subset(np.arange(part.n_rows) % 2 == 0)
    assert np.array_equal(again.rows, np.flatnonzero(mask)[::2])
    of = stored.of_documents(np.array([1, 3]))
    assert set(of.documents) == {1, 3} and of.n_rows == np.isin(stored.documents, [1, 3]).sum()
    assert len({rows.sha256 for rows in (stored, part, again, of, stored.shuffled(0), stored.shuffled(1))}) == 6
    shuffled = gathered(part.batches(8))
    assert np.array_equal(np.sort(shuffled[0]), part.rows)


@pytest.mark.parametrize("order", ["together", "mixed"])
def test_shuffled_codes_are_those_of_the_same_place_in_another_document(order):
    mixed = np.random.default_rng(1).permutation(32) if order == "mixed" else None
    rows, codes, _, _ = random_rows(order=mixed)
    shuffled = rows.shuffled(5)
    before, after = gathered(rows.in_order(6)), gathered(shuffled.in_order(6))
    assert_same(before[:4], after[:4])  # own code, activation and error
    partner = after[4][:, 0].astype(int) - 1
    assert np.array_equal(after[4], codes[partner])
    documents = rows.documents
    assert (documents[partner] != documents).all()
    for document in np.unique(documents):
        mine = np.flatnonzero(documents == document)
        other = np.unique(documents[partner[mine]])
        assert len(other) == 1  # one document stands in for the whole of another
        theirs = np.flatnonzero(documents == other[0])
        assert np.array_equal(partner[mine], theirs[np.arange(len(mine)) % len(theirs)])
    assert len(np.unique(documents[partner])) == 5  # each stands in once
    batch = gathered(shuffled.batches(9, 2))
    assert np.array_equal(batch[4], codes[partner[batch[0]]]) and np.array_equal(batch[1], codes[batch[0]])
    part = shuffled.subset(documents == 20)
    assert np.array_equal(gathered(part.in_order())[4], codes[partner[documents == 20]])
    assert not np.array_equal(gathered(rows.shuffled(6).in_order())[4], after[4])


@pytest.mark.parametrize("shuffle", [False, True])
def test_other_errors_are_the_same_held_and_streamed(monkeypatch, shuffle):
    rows, *_ = random_rows()
    rows = rows.shuffled(0) if shuffle else rows
    rows = rows.subset(np.arange(32) % 5 != 0)

    def other(rows):
        doubled = rows.with_errors(lambda batch: 2 * batch.error + torch.from_numpy(batch.pairing.toarray()[:, :D]))
        return doubled.with_errors(lambda batch: batch.error - batch.x / 4 + 1)

    held = other(rows)
    assert isinstance(held._source, module._Arrays) and held._errors is None
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 10)
    streamed = other(rows)
    assert streamed._errors is not None and not streamed.fits_in_memory
    plain = gathered(rows.in_order())
    expected = 0.75 * (2 * plain[3] + plain[4][:, :D]) + 1  # x of other errors is the error
    for one in (held, streamed):
        found = gathered(one.in_order(6))
        assert np.allclose(found[3], expected, atol=1e-5) and np.array_equal(found[2], found[3])
        assert np.array_equal(found[0], rows.rows) and np.array_equal(one.documents, rows.documents)
        assert np.array_equal(found[1], plain[1]) and np.array_equal(found[4], plain[4])
    assert_same(gathered(held.in_order(6)), gathered(streamed.in_order(6)))
    assert_same(gathered(held.batches(6, 1)), gathered(streamed.batches(6, 1)))
    halves = [one.subset(np.arange(one.n_rows) % 2 == 0) for one in (held, streamed)]
    assert_same(*(gathered(half.in_order(4)) for half in halves))


def test_widened_rows_have_presence_and_squares_beside_the_code(monkeypatch):
    rows, codes, x, decoder = random_rows()
    units = np.random.default_rng(3).uniform(0.5, 4, F).astype(np.float32)  # one for each feature
    for memory in (4e9, 10):  # held and streamed
        monkeypatch.setattr(module, "MOST_IN_MEMORY", memory)
        wide = rows.widened(units).subset(np.arange(32) % 3 > 0)
        kept = np.flatnonzero(np.arange(32) % 3 > 0)
        expected = np.hstack([codes, units * (codes != 0), codes**2 / units])[kept]
        for one in (wide, wide.with_errors(lambda batch: batch.error + torch.from_numpy(batch.code.toarray()[:, -D:]))):
            found = gathered(one.in_order(5))
            assert one.n_features == 3 * F and np.allclose(found[1], expected, rtol=1e-6)
            assert np.array_equal(found[4], codes[kept]) and np.array_equal(found[0], kept)
            error = x[kept] - codes[kept] @ decoder[:-1] - decoder[-1]
            added = expected[:, -D:] if one is not wide else 0
            assert np.allclose(found[3], error + added, rtol=1e-5, atol=1e-4)
    assert wide.sha256 != rows.subset(np.arange(32) % 3 > 0).sha256 and rows.n_features == F
    for refused in (rows.shuffled(0), wide):
        with pytest.raises(InvalidInput, match="widened"):
            refused.widened(units)


def test_stored_zeros_and_entries_given_twice_are_no_features():
    codes = sp.csr_matrix((np.array([1.0, 2.0, 0.0, 5.0]), np.array([3, 3, 1, 2]), np.array([0, 3, 4])), shape=(2, 5))
    rows = CodedRows.from_arrays(codes, np.zeros((2, 3)))
    code = next(rows.in_order()).code
    assert code.nnz == 2 and np.array_equal(code.toarray(), [[0, 0, 0, 3, 0], [0, 0, 5, 0, 0]])
    assert codes.nnz == 4  # what was given is left alone


def test_rows_tell_who_shares_documents():
    rows, *_ = random_rows()
    other, *_ = random_rows(seed=1)
    early, late = rows.of_documents(np.array([0, 10])), rows.of_documents(np.array([20, 30]))
    assert rows.shared_documents(early) == ["0", "10"] == early.shared_documents(rows.shuffled(0))
    assert early.shared_documents(late) == [] == rows.shared_documents(other)
    assert early.origin == late.origin == rows.origin != other.origin and early.sha256 != late.sha256


def test_documents_of_other_arrays_are_known_by_their_numbers():
    rows, codes, x, decoder = random_rows()  # documents 40, 30, 20, 10, 0
    again = np.r_[7:10, 22:23, 23:32]  # those of 30, 10 and 0, under other numbers
    documents = np.repeat([5, 6, 7], [3, 1, 9])
    kept = x[again].copy()
    kept[-1] += 1e-3  # the last is no longer the same
    other = CodedRows.from_arrays(codes[again], kept, decoder, documents)
    assert rows.origin != other.origin
    assert rows.shared_documents(other) == ["5", "6"] and other.shared_documents(rows) == ["10", "30"]
    assert rows.of_documents(np.array([10, 20])).shared_documents(other) == ["6"]
    assert rows.of_documents(np.array([40, 20])).shared_documents(other) == []


def test_documents_of_two_stores_are_known_by_their_text(lm, store, stored, tmp_path):
    texts = some_texts()
    mixed = [*some_texts(1, (20, 30)), ("new name", texts[2][1])]
    others = [CodedRows.of(_harvested(lm, name, tmp_path), sae(), verbose=0) for name in (mixed, mixed[:2])]
    assert stored.shared_documents(others[0]) == ["new name"] and others[0].shared_documents(stored) == ["text 2"]
    assert stored.shared_documents(others[1]) == [] == others[1].shared_documents(stored)
    assert stored.shared_documents(stored.of_documents(np.array([1, 3]))) == ["1", "3"]


def _harvested(lm, texts, folder):
    return harvest(lm, Corpus(texts), Site(1), folder / str(len(texts)), dtype="float32", verbose=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"activations": np.zeros((3, D))},
        {"activations": np.zeros(4)},
        {"activations": np.full((4, D), np.nan)},
        {"codes": sp.csr_matrix(np.full((4, F), np.inf))},
        {"codes": sp.csr_matrix((0, F)), "activations": np.zeros((0, D))},
        {"reconstruction": np.zeros((F, D))},
        {"reconstruction": np.full((F + 1, D), np.nan)},
        {"documents": np.zeros(3, int)},
        {"documents": np.array(["a", "a", "b", "b"])},
        {"documents": np.array([0, 0, np.nan, 1])},
        {"positions": np.zeros((4, 1), int)},
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_sentence(wrong):
    given = {"codes": sp.csr_matrix(np.ones((4, F))), "activations": np.zeros((4, D))} | wrong
    with pytest.raises(InvalidInput) as refusal:
        CodedRows.from_arrays(**given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("per_token", ["layer_norm", "unit_norm"])
def test_a_dictionary_that_scales_every_token_is_refused(store, per_token):
    """Its error is a product of scale and features."""
    with pytest.raises(InvalidInput, match=rf"scales every token by itself \({per_token}\)") as refusal:
        CodedRows.of(store, sae(normalisation=Normalisation(per_token=per_token)), verbose=0)
    assert "\n" not in str(refusal.value)
    centred = sae(normalisation=Normalisation(per_token="centre"))
    assert CodedRows.of(store, centred, verbose=0).n_rows == store.n_rows


def test_what_does_not_belong_together_is_refused(store, stored, monkeypatch):
    with pytest.raises(DataMismatch):
        CodedRows.of(store, sae(site=0), verbose=0)
    with pytest.raises(DataMismatch):
        coded(stored, sae(seed=1))
    with pytest.raises(InvalidInput, match="dictionary"):
        coded(store, None)
    for given in (np.zeros((3, D)), "a/folder", CodedRows, None):  # the wrong type is named first
        for dictionary in (sae(), None):
            with pytest.raises(InvalidInput, match=rf"a {type(given).__name__}; .*from_arrays"):
                coded(given, dictionary)
    assert coded(stored, None) is stored and coded(stored, sae()) is stored
    simulated = simulate_codes(400, F, 4, D)
    assert coded(simulated, None) is simulated.rows
    for mask in (np.zeros(stored.n_rows, bool), np.ones(3, bool), np.ones(stored.n_rows)):
        with pytest.raises(InvalidInput):
            stored.subset(mask)
    with pytest.raises(InvalidInput, match="two documents"):
        stored.of_documents(np.array([2])).shuffled()
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 100)
    with pytest.raises(InvalidInput, match="folder"):
        CodedRows.of(store, sae(), verbose=0)
