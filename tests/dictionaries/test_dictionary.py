"""The interface: encode, decode, sparse, folding, refusals, controls."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurollm.dictionaries import Normalisation, RandomDirections, RawUnits, TopKSAE
from neurollm.dictionaries.architectures import ARCHITECTURES, MatchingPursuitSAE
from neurollm.dictionaries.kernels import sparse_decode, topk_of_relu
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


def brute_force(sae, x):
    """Features by the definition, one token and one feature at a time, in float64."""
    w = {name: weight.double().numpy() for name, weight in sae.weights.items()}
    features = np.zeros((len(x), sae.n_features))
    for row, token in enumerate(np.asarray(x, dtype=float)):
        pre = (token - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        for feature in sorted(range(sae.n_features), key=lambda f: (-pre[f], f))[: sae.k]:
            features[row, feature] = max(pre[feature], 0)
    return features, features @ w["W_dec"] + w["b_dec"]


def test_encode_and_decode_follow_the_definition(random_sae):
    sae, x = random_sae(), torch.randn(50, 6)
    features, decoded = brute_force(sae, x)
    np.testing.assert_allclose(sae.encode(x), features, atol=1e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(x)), decoded, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(x), decoded, atol=1e-4)


def test_at_most_k_are_active_and_zero_never_counts(random_sae):
    sae = random_sae(k=10)
    sae.weights["b_enc"] -= 3  # few positive pre-activations
    features = sae.encode(torch.randn(200, 6))
    counts = (features > 0).sum(1)
    assert counts.max() <= 10 and counts.min() < 10
    assert sae.encode_sparse(torch.randn(200, 6)).data.min() > 0


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_of_equal_entries_the_lower_column_wins(k, seed):
    pre = torch.from_numpy(np.random.default_rng(seed).integers(-2, 4, (5, 12)).astype(np.float32))
    values, indices = topk_of_relu(pre, k)
    for row in range(5):
        expected = sorted(range(12), key=lambda f: (-float(pre[row, f]), f))[:k]
        active = {int(i) for v, i in zip(values[row], indices[row], strict=True) if v > 0}
        assert active == {f for f in expected if pre[row, f] > 0}
        assert (values[row] >= 0).all()


@pytest.mark.parametrize("kind", ["topk", "raw", "random", "random_k"])
def test_sparse_equals_dense_for_both_kinds_of_input(random_sae, kind, monkeypatch):
    dictionary = {
        "topk": random_sae(),
        "raw": RawUnits(Site(1), 6),
        "random": RandomDirections(Site(1), 6, 20),
        "random_k": RandomDirections(Site(1), 6, 20, k=3),
    }[kind]
    monkeypatch.setattr("neurollm.dictionaries.base.MAX_DENSE_VALUES", 1)  # pieces of 64 rows
    x = np.random.default_rng(0).standard_normal((150, 6)).astype(np.float32)
    dense, sparse = dictionary.encode(x), dictionary.encode_sparse(x)
    assert isinstance(dense, np.ndarray) and isinstance(dictionary.encode(torch.from_numpy(x)), torch.Tensor)
    assert sp.isspmatrix_csr(sparse) and sparse.dtype == np.float32 and sparse.has_sorted_indices
    np.testing.assert_array_equal(sparse.toarray(), dense)
    np.testing.assert_allclose(dictionary.decode(sparse), dictionary.decode(dense), atol=1e-5)
    assert dictionary.encode_sparse(x[:0]).shape == (0, dictionary.n_features)
    assert dictionary.encode(x[:0]).shape == (0, dictionary.n_features)


LINEAR = [name for name in ARCHITECTURES if name != MatchingPursuitSAE.architecture]
MATRICES = {
    "factor": lambda g: 0.07,
    "factors": lambda g: torch.rand(6, generator=g) + 0.2,
    "matrix": lambda g: torch.randn(6, 6, generator=g) + 2 * torch.eye(6),
}


def sae_of(architecture, seed=0, **options):
    """Random weights for an architecture: 20 features of width 6."""
    kind, generator = ARCHITECTURES[architecture], torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (6, 20), "W_dec": (20, 6), "b_dec": (6,)}
    weights = {name: torch.randn(shapes.get(name, (20,)), generator=generator) for name in kind.tensors}
    if "threshold" in weights:
        weights["threshold"].abs_()
    return kind(Site(1), weights, **({"k": 3} if "topk" in architecture else {}), **options)


@pytest.mark.parametrize("architecture", LINEAR)
@pytest.mark.parametrize("subtract", [True, False])
def test_architectures_follow_their_definitions(architecture, subtract):
    """One token and one feature at a time, in float64, from the printed equations."""
    sae = sae_of(architecture, subtract_decoder_bias=subtract)
    w = {name: weight.double().numpy() for name, weight in sae.weights.items()}
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    expected = np.zeros((40, 20))
    for row, token in enumerate(x.astype(float)):
        v = [sum((token[d] - subtract * w["b_dec"][d]) * w["W_enc"][d, f] for d in range(6)) for f in range(20)]
        for f in range(20):
            pre = v[f] + w.get("b_enc", w.get("b_gate"))[f]
            if architecture == "gated":
                expected[row, f] = max(0, v[f] * np.exp(w["r_mag"][f]) + w["b_mag"][f]) if pre > 0 else 0
            elif architecture == "jumprelu":
                expected[row, f] = pre if pre > max(0, w["threshold"][f]) else 0
            else:
                expected[row, f] = pre if architecture == "abstopk" else max(0, pre)
        if "topk" in architecture:
            expected[row, np.argsort(-abs(expected[row]))[3:]] = 0
    np.testing.assert_allclose(sae.encode(x), expected, atol=1e-5)
    np.testing.assert_allclose(sae.encode_sparse(x).toarray(), expected, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(x), expected @ w["W_dec"] + w["b_dec"], atol=1e-4)


@pytest.mark.parametrize("architecture", LINEAR)
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
def test_folding_changes_no_reconstruction_and_scales_features(architecture, subtract, matrix):
    generator = torch.Generator().manual_seed(1)
    norm = Normalisation(torch.randn(6, generator=generator) * 5, MATRICES[matrix](generator))
    plain = sae_of(architecture, subtract_decoder_bias=subtract)
    sae = plain.with_normalisation(norm)
    x = norm.undo(torch.randn(100, 6, generator=generator))
    folded = sae.fold()
    assert folded.normalisation.is_identity and folded.subtract_decoder_bias == subtract
    torch.testing.assert_close(folded.encode(x), sae.encode(x) * norm.unit, rtol=1e-3, atol=1e-3 * norm.unit)
    torch.testing.assert_close(folded.reconstruct(x), sae.reconstruct(x), rtol=1e-3, atol=2e-3 * norm.unit)
    assert folded.fingerprint == sae.fingerprint != plain.fingerprint
    lengths = [d.directions.norm(dim=1).square().mean().sqrt() for d in (plain, folded)]
    if matrix == "factor":
        torch.testing.assert_close(*lengths)


@pytest.mark.parametrize("architecture", LINEAR)
def test_a_unit_decoder_is_the_same_map(architecture):
    sae, x = sae_of(architecture), torch.randn(60, 6, generator=torch.Generator().manual_seed(2))
    if "topk" in architecture:
        with pytest.raises(InvalidInput, match="compete by their size"):
            sae.unit_decoder()
        sae.weights["W_dec"] /= sae.weights["W_dec"].norm(dim=1, keepdim=True) / 3
    unit = sae.unit_decoder()
    torch.testing.assert_close(unit.directions.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(unit.encode(x), sae.encode(x) * sae.directions.norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit.reconstruct(x), sae.reconstruct(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", LINEAR)
def test_the_input_bias_can_be_written_in_both_ways(architecture):
    sae, x = sae_of(architecture, subtract_decoder_bias=False), torch.randn(60, 6)
    same = sae.with_input_bias()
    assert same.subtract_decoder_bias and sae.with_input_bias().with_input_bias().fingerprint == same.fingerprint
    torch.testing.assert_close(same.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(same.reconstruct(x), sae.reconstruct(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_token", ["centre", "layer_norm", "unit_norm"])
def test_per_token_normalisation_is_undone_with_the_token(per_token):
    x = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32) * 7 + 3
    norm = Normalisation(per_token=per_token)
    u = norm.apply(torch.from_numpy(x)).numpy()
    if per_token == "unit_norm":
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), np.sqrt(6), rtol=1e-5)
    else:
        np.testing.assert_allclose(u.mean(1), 0, atol=1e-5)
    if per_token == "layer_norm":
        np.testing.assert_allclose(u.std(1, ddof=1), 1, rtol=1e-4)
    np.testing.assert_allclose(norm.undo(torch.from_numpy(u), torch.from_numpy(x)), x, atol=1e-3)
    sae = sae_of("topk").with_normalisation(norm)
    assert sae.centre is None or per_token == "centre"
    np.testing.assert_allclose(sae.encode(x), sae_of("topk").encode(u), atol=1e-4)
    if norm.needs_input:
        with pytest.raises(InvalidInput, match="decode needs the activations"):
            sae.decode(sae.encode(x))
    with pytest.raises(InvalidInput, match="30 rows of features and 7 of activations"):
        sae.decode(sae.encode(x), x[:7])


def test_normalisations_that_cannot_be_undone_are_refused():
    with pytest.raises(InvalidInput, match="zero, infinite or NaN"):
        Normalisation(matrix=torch.tensor([1.0, 0.0]))
    with pytest.raises(InvalidInput, match="singular"):
        Normalisation(matrix=torch.ones(3, 3))
    with pytest.raises(InvalidInput, match="per_token 'batch'"):
        Normalisation(per_token="batch")


def test_raw_units_are_the_identity():
    x = torch.randn(7, 5)
    units = RawUnits(Site(0), 5)
    assert torch.equal(units.encode(x), x) and torch.equal(units.decode(x), x)


def test_random_directions_reconstruct_something_and_match_a_dictionary(random_sae):
    sae = random_sae(d=6, n_features=40, k=4)
    control = RandomDirections.matching(sae, random_state=3)
    x = torch.randn(300, 6) + sae.centre
    assert control.n_features == 40 and control.encode_sparse(x).getnnz(1).max() <= 4
    error = (control.decode(control.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.8
    assert not torch.equal(control.directions, RandomDirections.matching(sae, 4).directions)
    torch.testing.assert_close(control.directions.norm(dim=1), torch.ones(40))


@pytest.mark.parametrize("bad", [np.zeros((3, 5)), np.zeros(6), torch.zeros(2, 3, 6)])
def test_wrong_shapes_are_refused(random_sae, bad):
    with pytest.raises(InvalidInput, match=r"expected shape \(n, 6\)"):
        random_sae().encode(bad)


def test_nan_is_refused_naming_the_row(random_sae):
    x = torch.zeros(5, 6)
    x[3, 2] = float("nan")
    with pytest.raises(InvalidInput, match="row 3"):
        random_sae().encode(x)


def test_k_and_weight_shapes_are_checked(random_sae):
    with pytest.raises(InvalidInput, match="k: expected 1 to 20"):
        random_sae(k=21)
    weights = random_sae().weights | {"b_enc": torch.zeros(3)}
    with pytest.raises(InvalidInput, match="b_enc has shape"):
        TopKSAE(Site(1), weights, 3)


def test_check_refuses_what_it_was_not_made_for(random_sae, tiny_lm):
    random_sae(model_name="tiny", model_fingerprint=tiny_lm.fingerprint).check(tiny_lm, Site(1))
    random_sae().check(tiny_lm)  # nothing known about the model
    with pytest.raises(DataMismatch, match=r"was trained on model 'other' .fingerprint bbbb.* this is model 'tiny'"):
        random_sae(model_name="other", model_fingerprint="b" * 64).check(tiny_lm)
    with pytest.raises(DataMismatch, match=r"made at resid_post.1; it cannot read activations of resid_post.2"):
        random_sae().check(tiny_lm, Site(2))
    with pytest.raises(DataMismatch, match="width 5"):
        random_sae(d=5).check(tiny_lm)
    with pytest.raises(DataMismatch, match="only 3 blocks"):
        RawUnits(Site(3), 6).check(tiny_lm)


def test_sparse_decoding_equals_the_dense_product():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, 5, generator=generator)
    indices = torch.stack([torch.randperm(30, generator=generator)[:5] for _ in range(40)])
    weight = torch.randn(30, 7, generator=generator)
    dense = torch.zeros(40, 30).scatter_(1, indices, values)
    torch.testing.assert_close(sparse_decode(values, indices, weight), dense @ weight)


def test_describe_is_plain_data(random_sae):
    import json

    record = random_sae(model_name="tiny").describe()
    assert json.loads(json.dumps(record)) == record
    assert record["k"] == 3 and record["site"] == {"layer": 1, "stream": "resid_post"}
    assert len(record["fingerprint"]) == 64


def test_copies_do_not_share_their_records(random_sae):
    sae = random_sae(normalisation=Normalisation(torch.randn(6), 0.3))
    sae.provenance, sae.metrics = {"data": {"tokens": 1}}, {"ev": 0.5}
    for other in (sae.to("cpu"), sae.fold(), sae.with_normalisation(Normalisation())):
        assert (other.provenance, other.metrics) == (sae.provenance, sae.metrics)
        other.provenance["data"]["tokens"] = other.metrics["ev"] = 2
    assert (sae.provenance, sae.metrics) == ({"data": {"tokens": 1}}, {"ev": 0.5})


def test_folding_does_not_change_the_fingerprint_of_matching_pursuit():
    rows = torch.nn.functional.normalize(torch.randn(12, 6), dim=1)
    sae = MatchingPursuitSAE(Site(2), {"W_dec": rows, "b_dec": torch.ones(6)}, normalisation=Normalisation(None, 0.5))
    assert sae.fingerprint == sae.fold().fingerprint
    other = MatchingPursuitSAE(Site(2), sae.weights, 0.02, normalisation=Normalisation(None, 0.5))
    assert other.fingerprint != sae.fingerprint


@pytest.mark.filterwarnings("error")
def test_arrays_may_lie_in_memory_in_any_way(random_sae):
    sae, x = random_sae(), np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    for same in (frozen, x.astype(">f4"), x[::-1].copy()[::-1], np.asfortranarray(x), x.astype(np.longdouble)):
        np.testing.assert_array_equal(sae.encode(same), sae.encode(x))
        np.testing.assert_array_equal(sae.encode_sparse(same).toarray(), sae.encode(x))
        np.testing.assert_array_equal(sae.reconstruct(same), sae.reconstruct(x))
    for wrong in (x.astype(complex), x.astype(object), x.astype(str)):
        with pytest.raises(InvalidInput, match="expected real numbers"):
            sae.encode(wrong)


def native(kind):
    """A model with random weights, whose tokenizer is never asked."""
    import transformers

    from neurollm.models import LanguageModel

    sizes = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads)
    tokenizer = SimpleNamespace(bos_token_id=None)
    return LanguageModel(kind, getattr(transformers, f"{kind}ForCausalLM")(config), tokenizer, True)


@pytest.mark.parametrize("kind, post_norm", [("Llama", False), ("Gemma2", True), ("Glm4", True)])
def test_a_module_that_is_not_the_site_of_the_model_is_refused(random_sae, kind, post_norm):
    lm = native(kind)
    for module, stream, normed in (
        ("layers.1.mlp", "mlp_out", True),
        ("model.layers.1.self_attn", "attn_out", True),
        ("model.layers.1", "resid_post", False),
        ("h.1.mlp", "mlp_out", False),  # no such module here
    ):
        sae = random_sae(8)
        sae.site = sae.target_site = Site(1, stream)
        sae.check(lm)
        sae.provenance = {"module": module}
        if post_norm and normed:
            with pytest.raises(DataMismatch, match=rf"the output of module '{module}'; in model '{kind}' that is not"):
                sae.check(lm)
        else:
            sae.check(lm)
