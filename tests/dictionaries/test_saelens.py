"""Files: byte layout, round trips, and one sentence for every damage."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neurollm.dictionaries import Normalisation, RandomDirections, RawUnits, ReLUSAE, TopKSAE, load_dictionary
from neurollm.dictionaries.formats import save_sparsify
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import sha256_file, write_json
from neurollm.models import Site

# Of files written by SAELens 6.54.12 (TopKSAE.save_model) with the weights below.
REAL_WEIGHTS_SHA256 = "94c2e27f8f81a45339216572b82c185255ec560cfe6ef98a1eeee1b0c3cf3fe4"
REAL_CONFIG_SHA256 = "e274abae46538d868ec7179f3b4f2f6ba190b84d95b373efd21ad5e24b5e27ae"
# decode(encode(x))[0] there, without and with rescale_acts_by_decoder_norm.
REAL_RECONSTRUCTION = {
    False: [7.57871150970459, 5.037558555603027, -8.876834869384766, -2.750095844268799],
    True: [2.157820701599121, 8.508138656616211, -4.350274562835693, -7.387120246887207],
}


def fixture_sae(k=3, **options):
    v = np.sin(np.arange(200) * 1.7 + 0.3).astype(np.float32)
    weights = {"W_enc": v[:32].reshape(4, 8), "W_dec": v[40:72].reshape(8, 4), "b_enc": v[80:88], "b_dec": v[90:94]}
    weights = {name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}
    sae = TopKSAE(Site(3), weights, k, **{"model_name": "gpt2", **options})
    sae.provenance = {"context": 128}
    return sae


X = torch.from_numpy(np.cos(np.arange(24) * 0.9).astype(np.float32).reshape(6, 4) * 3)


def edit(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    config.update(changes)
    (folder / "cfg.json").write_text(json.dumps(config))


def test_files_are_those_of_saelens_byte_for_byte(tmp_path):
    fixture_sae().save(tmp_path)
    assert sha256_file(tmp_path / "sae_weights.safetensors") == REAL_WEIGHTS_SHA256
    assert sha256_file(tmp_path / "cfg.json") == REAL_CONFIG_SHA256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "neurollm.json", "sae_weights.safetensors"]


@pytest.mark.parametrize("rescale", [False, True])
def test_a_folder_of_saelens_gives_the_same_numbers(tmp_path, rescale):
    fixture_sae().save(tmp_path)
    (tmp_path / "neurollm.json").unlink()
    edit(tmp_path, rescale_acts_by_decoder_norm=rescale)
    sae = load_dictionary(tmp_path)
    assert sae.site == Site(3) and sae.model_name == "gpt2" and sae.model_fingerprint == "" and sae.k == 3
    np.testing.assert_allclose(sae.decode(sae.encode(X))[0], REAL_RECONSTRUCTION[rescale], rtol=1e-5)


def test_an_encoder_without_b_dec_is_read_by_the_same_equation(tmp_path):
    fixture_sae().save(tmp_path)
    (tmp_path / "neurollm.json").unlink()
    edit(tmp_path, apply_b_dec_to_input=False)
    sae, plain = load_dictionary(tmp_path), fixture_sae()
    torch.testing.assert_close(sae.encode(X), plain.encode(X + plain.weights["b_dec"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_and_loading_changes_nothing(tmp_path, dtype):
    sae = fixture_sae(model_name="m", model_fingerprint="c" * 64, dtype=dtype)
    sae.provenance, sae.metrics = {"run": {"k": 3}}, {"ev": 0.9}
    sae.save(tmp_path / "a")
    again = load_dictionary(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("cfg.json", "neurollm.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (again.metrics, again.provenance, again.model_fingerprint) == (sae.metrics, sae.provenance, "c" * 64)
    if dtype == "float32":
        assert again.fingerprint == sae.fingerprint


@pytest.mark.parametrize(
    "control", [RawUnits(Site(2), 5, model_name="m"), RandomDirections(Site(2), 5, 9, 4, mean=torch.rand(5), k=2)]
)
def test_controls_come_back(tmp_path, control):
    control.save(tmp_path)
    again = load_dictionary(tmp_path)
    assert type(again) is type(control) and again.fingerprint == control.fingerprint
    assert again.describe() == control.describe()


CENTRED = {
    "hook_name": "blocks.3.hook_resid_post",
    "model_from_pretrained_kwargs": {"center_writing_weights": True},
}


def foreign(**changes):
    """Without our own file, and with another configuration."""

    def damage(folder):
        (folder / "neurollm.json").unlink()
        edit(folder, **changes)

    return damage


def truncated(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def tensor(**changes):
    def damage(folder):
        from safetensors.torch import load_file, save_file

        path = folder / "sae_weights.safetensors"
        tensors = load_file(path) | changes
        save_file({name: t for name, t in tensors.items() if t is not None}, path)
        (folder / "neurollm.json").unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (truncated, DataMismatch, "sae_weights.safetensors: damaged"),
        (tensor(b_dec=None), InvalidInput, "tensor b_dec is missing"),
        (tensor(W_dec=torch.zeros(4, 8)), DataMismatch, r"W_dec has shape \(4, 8\), but cfg.json says \(8, 4\)"),
        (tensor(b_enc=torch.full((8,), torch.nan)), DataMismatch, "b_enc contains NaN"),
        (lambda f: edit(f, k=4), DataMismatch, "neurollm.json: k is 3, but cfg.json says 4"),
        (
            lambda f: edit(f, normalize_activations="layer_norm"),
            DataMismatch,
            "neurollm.json: per_token is 'none', but cfg.json says 'layer_norm'",
        ),
        (
            lambda f: edit(f, metadata={"hook_name": "blocks.2.hook_resid_post"}),
            DataMismatch,
            "neurollm.json: site is .* but cfg.json says .*'layer': 2",
        ),
        (
            foreign(normalize_activations="constant_norm_rescale", metadata=CENTRED),
            InvalidInput,
            "activations centred by TransformerLens, in a transcoder or together with 'constant_norm_rescale', are not",
        ),
        (foreign(k=9), InvalidInput, "k is 9; expected 1 to d_sae = 8"),
        (foreign(k=True), InvalidInput, "k is True"),
        (foreign(architecture="temporal"), InvalidInput, "'temporal' is not supported: its features depend on"),
        (foreign(architecture="new"), InvalidInput, "'new' is not supported: known are standard"),
        (foreign(normalize_activations="batch_norm"), InvalidInput, "normalize_activations is 'batch_norm'; expected"),
        (foreign(normalize_activations="expected_average_only_in"), InvalidInput, "activation_scaler.json with its"),
        (foreign(reshape_activations="hook_z"), InvalidInput, "SAEs of attention heads are not supported"),
        (foreign(activation_fn="tanh-relu"), InvalidInput, "activation_fn is 'tanh-relu'; expected 'relu' or 'topk'"),
        (
            foreign(metadata={"hook_name": "blocks.1.hook_resid_mid"}),
            InvalidInput,
            "hook name 'blocks.1.hook_resid_mid'",
        ),
        (
            foreign(metadata={"hf_hook_name": "model.layers.1.self_attn.o_proj.input"}),
            InvalidInput,
            "the input of module",
        ),
        (foreign(metadata={"hook_name": "hook_embed", "hook_head_index": 3}), InvalidInput, "hook_head_index is set"),
        (foreign(metadata={}), InvalidInput, "metadata.hook_name is missing.*; give it, for example site=Site"),
        (foreign(metadata=[]), InvalidInput, "metadata is \\[\\]; expected a JSON object"),
        (foreign(architecture="jumprelu"), InvalidInput, "tensor threshold is missing"),
        (foreign(architecture="transcoder", d_out=4), InvalidInput, "a transcoder that normalises its input"),
        (
            foreign(architecture="transcoder", d_out=4, apply_b_dec_to_input=False),
            InvalidInput,
            "metadata.hook_name_out is missing; a transcoder needs",
        ),
        (tensor(extra=torch.zeros(3)), InvalidInput, "extra does not belong there; expected only W_enc, W_dec"),
        (
            lambda f: write_json(f / "neurollm.json", json.loads((f / "neurollm.json").read_text()) | {"site": 3}),
            InvalidInput,
            "neurollm.json: site is 3; expected a JSON object",
        ),
        (
            lambda f: write_json(f / "neurollm.json", {"format_version": 7}),
            InvalidInput,
            "format_version is 7; this edition reads 1",
        ),
        (lambda f: edit(f, d_in=None), InvalidInput, "d_in is None"),
        (lambda f: edit(f, dtype="int8"), InvalidInput, "dtype 'int8'"),
        (lambda f: (f / "cfg.json").write_text("{"), InvalidInput, "cfg.json: not valid JSON"),
        (lambda f: (f / "neurollm.json").write_text("[]"), InvalidInput, "neurollm.json: expected a JSON object"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), InvalidInput, "the file is missing"),
        (lambda f: (f / "cfg.json").unlink(), InvalidInput, "neurollm.json: architecture 'topk' without cfg.json"),
    ],
)
def test_every_damage_is_one_sentence_with_the_file(tmp_path, damage, error, words):
    fixture_sae().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=words) as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_other_weights_than_the_side_file_describes_are_refused(tmp_path):
    fixture_sae().save(tmp_path / "a")
    fixture_sae(dtype="bfloat16").save(tmp_path / "b")
    (tmp_path / "b" / "sae_weights.safetensors").replace(tmp_path / "a" / "sae_weights.safetensors")
    with pytest.raises(DataMismatch, match="describes other weights"):
        load_dictionary(tmp_path / "a")


def test_a_missing_folder_and_an_unknown_hook_are_named(tmp_path):
    with pytest.raises(InvalidInput, match="expected 'demo' or a folder"):
        load_dictionary(tmp_path / "nothing")
    fixture_sae().save(tmp_path)
    (tmp_path / "neurollm.json").unlink()
    edit(tmp_path, metadata={"hook_name": "somewhere"})
    with pytest.raises(InvalidInput, match="hook name 'somewhere'"):
        load_dictionary(tmp_path)
    assert load_dictionary(tmp_path, site=Site(1, "attn_out")).site == Site(1, "attn_out")
    edit(tmp_path, metadata={"hook_name": "anything", "hf_hook_name": "model.layers.4.mlp"})
    assert load_dictionary(tmp_path).site == Site(4, "mlp_out")  # the native module is the exact name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"site": Site(2)}, "it was trained at resid_post.3, but site=resid_post.2 was given"),
        ({"k": 4}, "k is 3, but k=4 was given"),
        ({"model_name": "pythia-70m"}, "trained on model 'gpt2', but model_name='pythia-70m' was given"),
    ],
)
@pytest.mark.parametrize("format", ["auto", "saelens"])
def test_what_is_given_must_not_contradict_the_files(tmp_path, given, words, format):
    fixture_sae().save(tmp_path)
    with pytest.raises(DataMismatch, match=words):
        load_dictionary(tmp_path, format, **given)
    same = load_dictionary(tmp_path, format, site=Site(3), k=3, model_name="openai-community/gpt2")
    assert same.fingerprint == fixture_sae().fingerprint


def test_a_dictionary_without_k_refuses_one(tmp_path):
    weights = fixture_sae().weights
    ReLUSAE(Site(3), weights).save(tmp_path)
    with pytest.raises(DataMismatch, match="architecture 'standard' has no k, but k=4 was given"):
        load_dictionary(tmp_path, k=4)


def test_a_loaded_dictionary_refuses_another_model_and_another_site(tmp_path, tiny_lm):
    fixture_sae().save(tmp_path)
    sae = load_dictionary(tmp_path)
    with pytest.raises(DataMismatch, match=r"was made at resid_post\.3; it cannot read activations of resid_post\.1"):
        sae.check(tiny_lm, Site(1))
    with pytest.raises(DataMismatch, match="'tiny' has only 3 blocks"):
        sae.check(tiny_lm)


@pytest.mark.parametrize("per_token", ["centre", "layer_norm", "unit_norm"])
@pytest.mark.parametrize("subtract", [True, False])
def test_normalisation_of_every_token_comes_back(tmp_path, per_token, subtract):
    norm = Normalisation(torch.ones(4), 0.5, per_token)
    sae = fixture_sae(normalisation=norm, subtract_decoder_bias=subtract)
    sae.save(tmp_path)
    for format in ("auto", "saelens"):
        again = load_dictionary(tmp_path, format)
        torch.testing.assert_close(again.encode(X), sae.encode(X) * norm.unit)
        torch.testing.assert_close(again.reconstruct(X), sae.reconstruct(X))


@pytest.mark.parametrize("kind", [TopKSAE, ReLUSAE])
def test_weights_that_overflow_their_dtype_are_not_written(tmp_path, kind):
    sae = fixture_sae(dtype="float16")
    sae = sae if kind is TopKSAE else ReLUSAE(Site(3), sae.weights, dtype="float16")
    sae.weights["b_dec"][1] = 7e4
    for save in (sae.save, *([lambda folder: save_sparsify(sae, folder)] if kind is TopKSAE else [])):
        with pytest.raises(InvalidInput, match=r"b_dec has values up to 7e\+04, which float16 cannot hold"):
            save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_float64_files_are_loaded_as_float32(tmp_path):
    sae = fixture_sae(dtype="float64")
    sae.save(tmp_path / "a")
    assert load_file(tmp_path / "a" / "sae_weights.safetensors")["W_dec"].dtype == torch.float64
    again = load_dictionary(tmp_path / "a")
    assert again.dtype == "float32" and again.fingerprint == sae.fingerprint
    again.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "cfg.json").read_text())["dtype"] == "float32"
    assert load_dictionary(tmp_path / "b").fingerprint == sae.fingerprint


@pytest.mark.parametrize("old, new", [("none", "centre"), ("centre", "none"), ("none", "layer_norm")])
def test_another_normalisation_survives_the_files(tmp_path, old, new):
    fixture_sae(normalisation=Normalisation(per_token=old)).save(tmp_path / "a")
    sae = load_dictionary(tmp_path / "a", "saelens")
    other = sae.with_normalisation(Normalisation(per_token=new))
    other.save(tmp_path / "b")
    np.testing.assert_array_equal(load_dictionary(tmp_path / "b").reconstruct(X), other.reconstruct(X))
    assert "saelens_metadata" in sae.provenance


def test_names_of_native_modules_are_kept(tmp_path):
    fixture_sae().save(tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    edit(tmp_path, metadata={**metadata, "hook_name": "", "hf_hook_name": "model.layers.3.mlp.output"})
    sae = load_dictionary(tmp_path, "saelens")
    assert sae.site == Site(3, "mlp_out") and sae.provenance["module"] == "model.layers.3.mlp"
    edit(tmp_path, metadata={**metadata, "hf_hook_name": "model.layers.3.input"})
    assert "module" not in load_dictionary(tmp_path, "saelens").provenance


@pytest.mark.parametrize("value", ["false", 0, None, [True]])
def test_switches_are_true_or_false(tmp_path, value):
    fixture_sae().save(tmp_path)
    edit(tmp_path, apply_b_dec_to_input=value)
    with pytest.raises(InvalidInput, match=r"apply_b_dec_to_input is .*; expected true or false"):
        load_dictionary(tmp_path, "saelens")
