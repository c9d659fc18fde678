"""Controls: one interface, files, SAEs that have learned nothing, and the set of a dictionary."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm import datasets
from neurollm.activations import Corpus, harvest
from neurollm.dictionaries import RandomDirections, RawUnits, TopKSAE, evaluate_dictionary, load_dictionary
from neurollm.dictionaries.architectures import ARCHITECTURES
from neurollm.dictionaries.components import ICADictionary, PCADictionary
from neurollm.dictionaries.controls import CONTROLS, KINDS, controls_of, random_sae, unit_rows
from neurollm.dictionaries.nmf import NMFDictionary
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.sae import ALL_WEIGHTS
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site, load_model

SITE, D, F = Site(1), 6, 20
MODEL = {"model_name": "m", "model_fingerprint": "c" * 64}


def activations(n=800):
    """Correlated, with heavy tails, away from zero."""
    rng = np.random.default_rng(0)
    return (rng.laplace(size=(n, D)) @ rng.standard_normal((D, D)) + 3).astype(np.float32)


X = activations()
CONTROL_KINDS = {
    "raw_units": lambda: RawUnits(SITE, D, **MODEL),
    "random_directions": lambda: RandomDirections(SITE, D, F, 4, mean=torch.rand(D), **MODEL),
    "random_directions k": lambda: RandomDirections(SITE, D, F, k=3, **MODEL),
    "pca": lambda: PCADictionary.fit(X, 4, site=SITE, **MODEL),
    "pca sides": lambda: PCADictionary.fit(X, 4, site=SITE, rectified=True, k=2, **MODEL),
    "ica": lambda: ICADictionary.fit(X, site=SITE, rectified=True, **MODEL),
    "nmf": lambda: NMFDictionary.fit(X, 9, site=SITE, **MODEL),
}


@pytest.fixture(params=CONTROL_KINDS)
def control(request):
    made = CONTROL_KINDS[request.param]()
    made.metrics = {"ev": 0.5}
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """About two thousand tokens of the demo corpus read by the demo model."""
    documents = Corpus.read(datasets.demo_corpus_path()).documents
    texts = [(name, text[:2000]) for name, text in documents[:5]]
    return harvest(load_model("demo"), Corpus(texts), Site(3), tmp_path_factory.mktemp("store"), verbose=0)


def trained(architecture, seed=0, normalisation=None, **options):
    """An SAE with arbitrary weights, moderately sparse."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"F": F, "d_in": D, "d_out": D}
    kind = ARCHITECTURES[architecture]
    weights = {
        name: torch.randn([sizes[axis] for axis in ALL_WEIGHTS[name]], generator=generator) for name in kind.tensors
    }
    for name in weights.keys() & {"threshold", "r_mag"}:
        weights[name] = weights[name].abs() / 10
    for name in weights.keys() & {"b_enc", "b_gate"}:
        weights[name] -= 8
    if architecture == "matching_pursuit":
        weights["W_dec"] = torch.nn.functional.normalize(weights["W_dec"], dim=1)
    options = {"k": 3} | options if "topk" in architecture else options
    return kind(SITE, weights, normalisation=normalisation, **options, **MODEL)


def test_every_control_has_the_interface_of_a_dictionary(control, monkeypatch):
    monkeypatch.setattr("neurollm.dictionaries.base.MAX_DENSE_VALUES", 1)  # pieces of 64 rows
    x = X[:150]
    dense, sparse = control.encode(x), control.encode_sparse(x)
    assert dense.shape == (150, control.n_features) and dense.dtype == np.float32
    assert sp.issparse(sparse) and sparse.has_sorted_indices
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert isinstance(control.encode(torch.from_numpy(x)), torch.Tensor)
    np.testing.assert_allclose(control.decode(sparse), control.decode(dense), atol=1e-4)
    np.testing.assert_allclose(control.reconstruct(x), control.decode(dense), atol=1e-4)
    assert control.encode(x[:0]).shape == (0, control.n_features) and control.decode(dense[:0]).shape == (0, D)
    assert control.directions.shape == (control.n_features, D)
    assert control.centre is None or control.centre.shape == (D,)
    np.testing.assert_allclose(control.encode(x[70:71]), dense[70:71], rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInput, match=r"expected shape \(n, 6\)"):
        control.encode(x[:, :5])
    with pytest.raises(InvalidInput, match="row 3 contains NaN"):
        control.encode(np.where(np.arange(150)[:, None] == 3, np.nan, x))


def test_centred_linear_controls_decode_along_their_directions(control):
    if isinstance(control, RandomDirections):  # rescales by least squares
        return
    features = control.encode(X[:40])
    centre = 0 if control.centre is None else control.centre.numpy()
    np.testing.assert_allclose(
        control.decode(features), features @ control.directions.numpy() + centre, rtol=1e-4, atol=1e-4
    )


def test_controls_come_back_from_their_files(tmp_path, control):
    control.save(tmp_path / "a")
    again = load_dictionary(tmp_path / "a")
    assert type(again) is type(control) is CONTROLS[control.architecture]
    assert again.describe() == control.describe() == json.loads(json.dumps(control.describe()))
    assert (again.provenance, again.model_fingerprint, again.site) == (control.provenance, "c" * 64, SITE)
    np.testing.assert_array_equal(again.encode(X[:50]), control.encode(X[:50]))
    again.save(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    if isinstance(control, PCADictionary | ICADictionary):
        np.testing.assert_array_equal(again.explained_variance_ratio, control.explained_variance_ratio)


def test_fingerprints_tell_controls_apart():
    prints = [make().fingerprint for make in CONTROL_KINDS.values()]
    prints += [PCADictionary.fit(X, 4, site=SITE, rectified=value).fingerprint for value in (True, False)]
    assert len(set(prints)) == len(prints) - 1  # the last is the "pca" above


@pytest.mark.parametrize("name", ["centre", "encoder", "decoder"])
def test_fingerprints_depend_on_every_number(name):
    pca = CONTROL_KINDS["pca"]()
    tensors = {key: tensor.clone() for key, tensor in pca.tensors.items()}
    tensors[name].view(-1)[-1] += 1e-3
    assert PCADictionary(SITE, tensors, **MODEL).fingerprint != pca.fingerprint
    nmf = CONTROL_KINDS["nmf"]()
    assert NMFDictionary(SITE, nmf.centre, nmf.parts * 2).fingerprint != nmf.fingerprint
    assert NMFDictionary(SITE, nmf.centre * 2, nmf.parts).fingerprint != nmf.fingerprint


def change(folder, **changes):
    side = json.loads((folder / "neurollm.json").read_text())
    side.update(changes)
    (folder / "neurollm.json").write_text(json.dumps({key: value for key, value in side.items() if value is not None}))


def flip(folder):
    """Change one bit of the last number."""
    path = folder / "control.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "control.safetensors").unlink(), "control.safetensors: the file is missing"),
        (lambda f: (f / "control.safetensors").write_bytes(b"x" * 30), "control.safetensors: damaged, cannot be read"),
        (flip, "control.safetensors: not the file that was written with the neurollm.json"),
        (lambda f: change(f, parameters=None), "neurollm.json: damaged, 'parameters' is missing"),
        (lambda f: change(f, parameters={"colour": 3}), "neurollm.json: damaged .*colour"),
        (lambda f: change(f, parameters={"rectified": False, "k": 99}), "neurollm.json: damaged .k: expected 1 to 4"),
        (lambda f: change(f, weights_sha256=None), "neurollm.json: damaged, 'decoder' is missing"),
        (lambda f: change(f, d_in=7), "neurollm.json: d_in is 7, but control.safetensors has 6 dimensions"),
    ],
)
def test_every_damage_is_one_sentence_with_the_file(tmp_path, damage, words):
    CONTROL_KINDS["pca"]().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataMismatch, match=words) as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_control_takes_the_place_of_another_but_not_of_an_sae(tmp_path):
    CONTROL_KINDS["pca"]().save(tmp_path / "control")
    CONTROL_KINDS["raw_units"]().save(tmp_path / "control")
    assert [path.name for path in (tmp_path / "control").iterdir()] == ["neurollm.json"]
    trained("topk").save(tmp_path / "sae")
    with pytest.raises(InvalidInput, match=r"sae: there is another dictionary here .cfg\.json."):
        CONTROL_KINDS["pca"]().save(tmp_path / "sae")
    assert load_dictionary(tmp_path / "sae").fingerprint == trained("topk").fingerprint


def test_a_random_sae_starts_where_training_starts():
    sae = trained("topk", normalisation=Normalisation(torch.randn(D), 0.3))
    control = random_sae(sae, 5)
    assert type(control) is TopKSAE and control.k == 3 and control.n_features == F
    rows = unit_rows(5, "decoder_init", F, D)
    np.testing.assert_array_equal(control.weights["W_dec"], rows)
    np.testing.assert_array_equal(control.weights["W_enc"], rows.T)
    assert not control.weights["b_enc"].any()
    torch.testing.assert_close(control.centre, sae.centre)
    pre = (X - sae.centre.numpy()) @ rows.T
    expected = np.where(pre >= np.sort(pre, axis=1)[:, -3:-2], pre, 0).clip(0)
    np.testing.assert_allclose(control.encode(X), expected, atol=1e-4)
    assert control.fingerprint != random_sae(sae, 6).fingerprint
    assert control.provenance == {"control": "random initialisation", "random_state": 5, "of": sae.fingerprint}
    assert control.model_name == "m" and control.metrics == {}


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("per_token", ["none", "layer_norm"])
def test_a_random_sae_with_data_has_the_mean_l0_of_the_trained_one(architecture, per_token):
    sae = trained(architecture, normalisation=Normalisation(per_token=per_token))
    trained_l0, plain, matched = (
        np.count_nonzero(each.encode(X)) for each in (sae, random_sae(sae), random_sae(sae, data=X))
    )
    assert 0 < trained_l0 < 0.3 * X.shape[0] * F < plain
    assert matched == trained_l0
    assert type(random_sae(sae)) is type(sae)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_random_sae_is_saved_and_loaded_like_any_sae(tmp_path, architecture):
    control = random_sae(trained(architecture), 2, X)
    control.save(tmp_path)
    again = load_dictionary(tmp_path)
    assert again.fingerprint == control.fingerprint and again.provenance == control.provenance
    np.testing.assert_array_equal(again.encode(X[:50]), control.encode(X[:50]))


def test_a_random_sae_needs_an_sae_that_maps_a_site_to_itself():
    with pytest.raises(InvalidInput, match="expected a sparse autoencoder, got a 'raw_units' dictionary"):
        random_sae(RawUnits(SITE, D))
    with pytest.raises(InvalidInput, match="got a transcoder"):
        random_sae(trained("standard", subtract_decoder_bias=False, target_site=Site(2)))


def test_controls_of_a_dictionary_share_its_site_model_size_and_l0(store):
    sae = load_dictionary("demo")
    controls = controls_of(sae, store, KINDS[:4], random_state=1)
    assert list(controls) == list(KINDS[:4])
    for control in controls.values():
        assert (control.site, control.model_name, control.model_fingerprint, control.d_in) == (
            sae.site,
            sae.model_name,
            sae.model_fingerprint,
            sae.d_in,
        )
    assert [control.n_features for control in controls.values()] == [256, 4096, 4096, 512]
    quality = {name: evaluate_dictionary(control, store) for name, control in controls.items()}
    for name in ("random_directions", "random_sae", "pca"):
        assert abs(quality[name].l0 - sae.k) < 0.5
    assert quality["raw_units"].ev == 1
    assert evaluate_dictionary(sae, store).ev > quality["pca"].ev > quality["random_directions"].ev
    assert controls["pca"].provenance["store_sha256"] == store.sha256


def test_all_kinds_of_controls_of_a_small_dictionary():
    sae = trained("jumprelu")
    controls = controls_of(sae, X, KINDS)
    l0 = sae.encode_sparse(X).nnz / len(X)
    assert {name: control.n_features for name, control in controls.items()} == {
        "raw_units": 6,
        "random_directions": F,
        "random_sae": F,
        "pca": 12,
        "ica": 12,
        "nmf": 6,
    }
    assert controls["pca"].k == controls["ica"].k == controls["random_directions"].k == round(l0)
    for name in KINDS[1:]:
        assert controls[name].encode(X).min() == 0  # no signs
    assert controls_of(sae, X, ["pca"])["pca"].fingerprint == controls["pca"].fingerprint


def test_a_component_dictionary_reads_a_store_in_order_or_by_chance(store):
    x = store.rows(0, store.n_rows)
    pca = PCADictionary.fit(store, 5)
    assert pca.site == Site(3) and pca.model_fingerprint == store.model_fingerprint and pca.model_name == "demo"
    array = PCADictionary.fit(x, 5, site=Site(3))
    assert pca.fingerprint == array.fingerprint
    few = [PCADictionary.fit(store, 5, seed, n_rows=300) for seed in (0, 0, 1)]
    assert few[0].fingerprint == few[1].fingerprint != few[2].fingerprint and few[0].provenance["rows"] == 300
    with pytest.raises(InvalidInput, match=r"site is resid_post.2, but the activation store holds resid_post.3"):
        PCADictionary.fit(store, 5, site=Site(2))


def test_controls_of_refuses_what_does_not_belong(store):
    with pytest.raises(InvalidInput, match="kinds: 'lda' is unknown; use raw_units"):
        controls_of(trained("topk"), X, ["lda"])
    with pytest.raises(DataMismatch, match=r"made at resid_post.1; the activation store holds resid_post.3"):
        controls_of(trained("topk"), store)
    with pytest.raises(DataMismatch, match="6 dimensions; these activations have 5"):
        controls_of(trained("topk"), X[:, :5])


def test_random_directions_are_centred_where_the_dictionary_is_not():
    mean = torch.from_numpy(X.astype(float).mean(0)).float()
    uncentred = (
        trained("topk", normalisation=Normalisation(per_token="layer_norm")),
        trained("topk", subtract_decoder_bias=False),
        RawUnits(SITE, D),
    )
    for dictionary in uncentred:
        torch.testing.assert_close(controls_of(dictionary, X, ["random_directions"])["random_directions"].mean, mean)
        assert torch.equal(RandomDirections.matching(dictionary, mean=mean).mean, mean)
    sae = trained("topk")
    assert torch.equal(controls_of(sae, X, ["random_directions"])["random_directions"].mean, sae.centre)
    assert torch.equal(RandomDirections.matching(sae, mean=mean).mean, sae.centre)


def test_a_random_sae_says_when_it_misses_the_l0(caplog):
    sae = trained("standard")
    matched = random_sae(sae, data=X)
    found = matched.provenance["l0_matched"]
    assert found["l0"] == found["reached"] == pytest.approx(sae.encode_sparse(X).nnz / len(X)) and not caplog.records
    sae.weights["b_enc"] += 1e3  # every feature is active, of the untrained ones no more than half
    missed = random_sae(sae, data=X)
    reached = missed.encode_sparse(X).nnz / len(X)
    assert missed.provenance["l0_matched"] == {"rows": len(X), "l0": F, "reached": reached} and reached < 0.7 * F
    assert f"an L0 of {F} was wanted, {reached:.4g} was reached" in caplog.text


def test_controls_have_no_more_components_than_the_activations(caplog):
    rng = np.random.default_rng(0)
    flat = (rng.laplace(size=(300, 3)) @ rng.standard_normal((3, D)) + 1).astype(np.float32)
    flat[:, 3:] = flat[:, :3]  # exactly of rank 3
    controls = controls_of(trained("topk"), flat, ["pca", "ica"])
    assert [control.n_features for control in controls.values()] == [6, 6]
    few = controls_of(trained("topk"), X[:4], ["pca", "ica"])
    assert [control.n_features for control in few.values()] == [6, 6]  # four rows differ in three directions


@pytest.mark.parametrize("field", ["d_in", "n_features"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "6", None, 7])
def test_sizes_of_a_control_are_checked(tmp_path, field, value):
    RawUnits(SITE, D, **MODEL).save(tmp_path)
    side = json.loads((tmp_path / "neurollm.json").read_text())
    (tmp_path / "neurollm.json").write_text(json.dumps(side | {field: value}))
    with pytest.raises((DataMismatch, InvalidInput), match=r"neurollm.json: .*(d_in|n_features)"):
        load_dictionary(tmp_path)
