"""The one forward pass against explicit sums over pairs, its gradients, its files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm.dictionaries import TopKSAE
from neurollm.dictionaries.kernels import SparseCode
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.expansions import Expansion
from neurollm.interactions.model import CONFIG_FILE, NFM, WEIGHTS_FILE, as_places, bi_interaction, truncate
from neurollm.models import Site

F, K, H, D = 30, 5, 7, 6


def weights_of(readout="linear", refit=True, seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"V": (F, K), "A": (K, D)}
    shapes |= {"W1": (K, H), "b1": (H,), "W2": (H, D)} if readout == "mlp" else {}
    shapes |= {"W": (F, D), "b": (D,)} if refit else {}
    return {name: torch.tensor(draw.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}


def codes_of(n=40, density=0.3, seed=0):
    """Some rows have no entry, one entry or all of them; values of both signs."""
    draw = np.random.default_rng(seed)
    dense = np.where(draw.random((n, F)) < density, draw.normal(size=(n, F)), 0)
    dense[0] = 0
    dense[1:3] = 0
    dense[1, 4], dense[2, 29] = 1.7, -0.3
    dense[3] = draw.normal(size=F)
    return sp.csr_matrix(dense.astype(np.float32))


def pairwise(codes, V):
    """B as an explicit sum over pairs, float64."""
    dense, V = codes.toarray().astype(float), V.double().numpy()
    out = np.zeros((len(dense), V.shape[1]))
    for i, j in itertools.combinations(range(F), 2):
        out += (dense[:, i] * dense[:, j])[:, None] * V[i] * V[j]
    return out


def truncated(codes, top_n):
    """The entries of largest size, the lower column of equal ones, one row at a time."""
    dense = codes.toarray()
    for row in dense:
        order = sorted(np.flatnonzero(row), key=lambda column: (-abs(row[column]), column))
        row[order[top_n:]] = 0
    return dense


def test_interactions_are_the_sum_over_pairs():
    nfm, codes = NFM(weights_of(), F), codes_of()
    total, pooled = nfm.embed(codes)
    expected = pairwise(codes, nfm.weights["V"])
    assert np.abs(pooled.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.allclose(total, codes @ nfm.weights["V"].numpy(), atol=1e-5)
    cut = NFM(nfm.weights, 4)
    expected = pairwise(sp.csr_matrix(truncated(codes, 4)), nfm.weights["V"])
    assert np.abs(cut.interactions(codes).numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert torch.equal(nfm.interactions(codes), pooled) and torch.equal(nfm.interactions(as_places(codes)), pooled)
    assert torch.equal(nfm.interactions(codes.tocsc()), pooled)  # whatever the format


def test_one_feature_has_no_interaction_and_two_have_their_product():
    nfm = NFM(weights_of(), F)
    V = nfm.weights["V"]
    for scale in (1e-3, 0.7, 1234.5):
        single = sp.csr_matrix(scale * np.eye(F, dtype=np.float32))
        assert not nfm.interactions(single).any()
    one = SparseCode(torch.tensor([3, 8, 5]), torch.tensor([0, 3]), F)  # places may hold zeros: one feature still
    assert not bi_interaction(one, torch.tensor([0.0, 0.7, 0.0]), V)[1].any()
    pairs = list(itertools.combinations(range(F), 2))
    s, t = np.random.default_rng(0).uniform(-2, 2, (2, len(pairs))).astype(np.float32)
    dense = np.zeros((len(pairs), F), np.float32)
    for row, (i, j) in enumerate(pairs):
        dense[row, i], dense[row, j] = s[row], t[row]
    i, j = np.transpose(pairs)
    expected = torch.from_numpy(s * t)[:, None] * V[i] * V[j]
    assert torch.allclose(nfm.interactions(sp.csr_matrix(dense)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_no_pairs_no_output(readout):
    """Exactly, whatever the biases."""
    nfm = NFM(weights_of(readout), F)
    assert not nfm.interaction(torch.zeros(3, K)).any()
    few = sp.csr_matrix(np.vstack([np.zeros((1, F)), np.eye(F)]).astype(np.float32))
    assert not nfm.interaction(nfm.interactions(few)).any()
    assert torch.equal(nfm.predict(few), nfm.linear(few))
    assert torch.equal(nfm.predict(few)[0], nfm.weights["b"])


@pytest.mark.parametrize("readout", ["linear", "mlp"])
@pytest.mark.parametrize("refit", [True, False])
def test_a_prediction_is_its_two_components(readout, refit):
    nfm, codes = NFM(weights_of(readout, refit), 6), codes_of()
    w = {name: weight.double().numpy() for name, weight in nfm.weights.items()}
    pooled = pairwise(sp.csr_matrix(truncated(codes, 6)), nfm.weights["V"])
    expected = pooled @ w["A"]
    if readout == "mlp":
        relu = np.maximum
        expected = expected + relu(pooled @ w["W1"] + w["b1"], 0) @ w["W2"] - relu(w["b1"], 0) @ w["W2"]
    linear = codes @ w["W"] + w["b"] if refit else np.zeros((40, D))  # all entries, not the largest only
    assert np.allclose(nfm.interaction(nfm.interactions(codes)), expected, atol=1e-4 * np.abs(expected).max())
    assert np.allclose(nfm.linear(codes), linear, atol=1e-4)
    assert torch.equal(nfm.predict(codes), nfm.linear(codes) + nfm.interaction(nfm.interactions(codes)))
    assert (nfm.readout, nfm.has_refit) == (readout, refit)
    assert nfm.n_parameters == sum(weight.size for weight in w.values())


def test_gradients_are_those_of_the_dense_sum():
    codes = codes_of(25)
    places, values = as_places(codes)
    draw = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 25, K)))
    sparse_in = (values.double().requires_grad_(), weights_of()["V"].double().requires_grad_())
    dense_in = tuple(one.detach().clone().requires_grad_() for one in sparse_in)
    total, pooled = bi_interaction(places, *sparse_in)
    dense = torch.zeros(25, F, dtype=torch.float64).index_put((places.rows, places.columns), dense_in[0])
    V = dense_in[1]
    matrix = torch.einsum("ni,nj,ik,jk->nijk", dense, dense, V, V)
    explicit = torch.triu(matrix.permute(0, 3, 1, 2), diagonal=1).sum((2, 3))
    found = torch.autograd.grad((total * draw[0] + pooled * draw[1]).sum(), sparse_in)
    expected = torch.autograd.grad(((dense @ V) * draw[0] + explicit * draw[1]).sum(), dense_in)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10) and other.abs().max() > 1


@pytest.mark.parametrize("top_n", [1, 2, 5, 11, 30])
def test_truncation_against_sorting(top_n):
    draw = np.random.default_rng(3)
    dense = np.where(draw.random((60, F)) < 0.4, draw.integers(-3, 4, (60, F)), 0).astype(np.float32)  # many ties
    dense[7], dense[8] = 0, 2
    codes = sp.csr_matrix(dense)
    found = truncate(codes, top_n)
    assert np.array_equal(found.toarray(), truncated(codes, top_n))
    assert np.diff(found.indptr).max() <= top_n and found.has_sorted_indices
    unsorted = codes.copy()
    for start, stop in itertools.pairwise(codes.indptr):
        order = draw.permutation(stop - start)
        unsorted.indices[start:stop] = codes.indices[start:stop][order]
        unsorted.data[start:stop] = codes.data[start:stop][order]
    unsorted.has_sorted_indices = False
    assert np.array_equal(truncate(unsorted, top_n).toarray(), found.toarray())
    assert truncate(sp.csr_matrix((0, F)), top_n).shape == (0, F)


def test_top_n_cuts_pairs_and_not_the_code_that_an_mlp_takes():
    codes, length = codes_of(), 2.0
    assert np.diff(codes.indptr).max() > 3
    dense = {top_n: torch.from_numpy(truncated(codes, top_n)).double() / length for top_n in (3, F)}
    for kind in ("pairs", "pairs_mlp", "code_mlp"):
        expansion = Expansion(kind, (F, K, H), 3, length, random_state=1)
        if kind != "pairs":
            expansion.weights["b1"] += torch.linspace(-1, 1, len(expansion.weights["b1"]))
        w = {name: weight.double() for name, weight in expansion.weights.items()} | {"V": expansion.embeddings.double()}
        if kind == "code_mlp":
            expected = torch.relu(dense[F] @ w["V"] + w["b1"]) - torch.relu(w["b1"])
        else:
            pooled = ((dense[3] @ w["V"]) ** 2 - dense[3] ** 2 @ w["V"] ** 2) / 2
            hidden = [torch.relu(pooled @ w["W1"] + w["b1"]) - torch.relu(w["b1"])] if kind == "pairs_mlp" else []
            expected = torch.cat([pooled, *hidden], 1)
        assert torch.allclose(expansion.columns(codes).double(), expected, atol=1e-6)
        whole = Expansion(kind, (F, K, H), F, length, random_state=1)
        whole.weights = expansion.weights
        assert torch.equal(whole.columns(codes), expansion.columns(codes)) == (kind == "code_mlp")


def test_codes_without_entries_predict_the_bias():
    nfm = NFM(weights_of(), F)
    for n in (0, 3):
        empty = sp.csr_matrix((n, F), dtype=np.float32)
        assert nfm.interactions(empty).shape == (n, K) and not nfm.interactions(empty).any()
        assert torch.equal(nfm.predict(empty), nfm.weights["b"].expand(n, D))


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_saved_and_loaded_it_predicts_the_same_bytes(readout, tmp_path):
    nfm, codes = NFM(weights_of(readout), 6, "f" * 64), codes_of()
    nfm.provenance = {"embedding_scale": 0.25, "history": [1, 2.5]}
    nfm.save(tmp_path)
    loaded = NFM.load(tmp_path)
    assert loaded.predict(codes).numpy().tobytes() == nfm.predict(codes).numpy().tobytes()
    assert loaded.fingerprint == nfm.fingerprint and loaded.provenance == nfm.provenance and repr(loaded) == repr(nfm)
    assert loaded.top_n == 6 and loaded.dictionary_fingerprint == "f" * 64
    assert NFM(weights_of(readout), 5, "f" * 64).fingerprint != nfm.fingerprint
    moved = nfm.to("cpu")
    assert moved.fingerprint == nfm.fingerprint and moved.provenance == nfm.provenance


def damage(folder, how):
    config = folder / CONFIG_FILE
    record = json.loads(config.read_text())
    if how == "cut weights":
        (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-40])
    elif how == "other weights":
        NFM(weights_of(seed=1), 6).save(folder / "other")
        (folder / WEIGHTS_FILE).write_bytes((folder / "other" / WEIGHTS_FILE).read_bytes())
    elif how == "no weights":
        (folder / WEIGHTS_FILE).unlink()
    elif how == "cut config":
        config.write_text(config.read_text()[:50])
    elif how == "list":
        config.write_text("[]")
    else:
        name, value = how
        if value is None:
            del record[name]
        config.write_text(json.dumps(record if value is None else record | {name: value}))


@pytest.mark.parametrize(
    "how",
    [
        "cut weights",
        "other weights",
        "no weights",
        "cut config",
        "list",
        ("format_version", 99),
        ("top_n", "many"),
        ("top_n", 1),
        ("provenance", 3),
        ("weights_sha256", None),
    ],
    ids=str,
)
def test_damaged_files_are_named(how, tmp_path):
    NFM(weights_of(), 6).save(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(DataMismatch, match=str(tmp_path)) as refusal:
        NFM.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="no interaction model"):
        NFM.load(tmp_path)


def test_another_dictionary_is_refused():
    draw = np.random.default_rng(0)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}

    def sae(width=D, features=F):
        sizes = {**shapes, "W_enc": (width, features), "W_dec": (features, width)}
        sizes |= {"b_enc": (features,), "b_dec": (width,)}
        return TopKSAE(Site(1), {name: torch.tensor(draw.normal(size=size)) for name, size in sizes.items()}, 4)

    own, other = sae(), sae()
    NFM(weights_of(), 6, own.fingerprint).check(own)
    NFM(weights_of(), 6).check(own)  # not known whose codes they are: sizes must fit
    for nfm, dictionary in (
        (NFM(weights_of(), 6, own.fingerprint), other),
        (NFM(weights_of(), 6), sae(D + 1)),
        (NFM(weights_of(), 6), sae(features=F + 2)),
    ):
        with pytest.raises(DataMismatch, match="another dictionary"):
            nfm.check(dictionary)
    with pytest.raises(InvalidInput, match="features"):
        NFM(weights_of(), 6).predict(sp.csr_matrix((3, F + 1), dtype=np.float32))


def test_a_random_model_has_the_sizes_and_scales_and_nothing_else():
    weights = weights_of("mlp")
    weights["A"] *= 30
    like = NFM({name: weight.repeat(50, 1) if name in ("V", "W") else weight for name, weight in weights.items()}, 6)
    like.provenance = {"embedding_scale": 0.2}
    null, again, other = NFM.random(like), NFM.random(like), NFM.random(like, 1)
    assert null.fingerprint == again.fingerprint != other.fingerprint
    assert not null.has_refit and null.readout == "mlp" and null.top_n == 6
    assert {name: w.shape for name, w in null.weights.items()} == {
        name: w.shape for name, w in like.weights.items() if name not in ("W", "b")
    }
    assert null.weights["V"].std().item() == pytest.approx(0.2, rel=0.03)  # 7,500 numbers
    assert null.weights["A"].square().mean().sqrt() / like.weights["A"].square().mean().sqrt() == pytest.approx(1, 0.5)
    correlation = np.corrcoef(null.weights["V"].numpy().ravel(), like.weights["V"].numpy().ravel())[0, 1]
    assert abs(correlation) < 0.05


@pytest.mark.parametrize(
    ("change", "top_n"),
    [
        ({"A": None}, 6),
        ({"W2": torch.zeros(H, D)}, 6),
        ({"b": None}, 6),
        ({"Q": torch.zeros(2)}, 6),
        ({"A": torch.zeros(K + 1, D)}, 6),
        ({"V": torch.zeros(F)}, 6),
        ({"V": torch.full((F, K), float("nan"))}, 6),
        ({"W": torch.zeros(F, D + 1)}, 6),
        ({"A": torch.zeros(K, 0), "W": None, "b": None}, 6),
        ({}, 1),
    ],
    ids=str,
)
def test_weights_that_make_no_model_are_refused(change, top_n):
    weights = {name: weight for name, weight in (weights_of() | change).items() if weight is not None}
    with pytest.raises(InvalidInput) as refusal:
        NFM(weights, top_n)
    assert "\n" not in str(refusal.value)
