"""Files: byte layout, round trips, and one sentence for every damage."""

import json

import numpy as np
import pytest
import torch

from neurollm.dictionaries import RandomDirections, RawUnits, TopKSAE, load_dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import sha256_file
from neurollm.models import Site

# Of files written by SAELens 6.54.12 (TopKSAE.save_model) with the weights below.
REAL_WEIGHTS_SHA256 = "94c2e27f8f81a45339216572b82c185255ec560cfe6ef98a1eeee1b0c3cf3fe4"
REAL_CONFIG_SHA256 = "e274abae46538d868ec7179f3b4f2f6ba190b84d95b373efd21ad5e24b5e27ae"
# decode(encode(x))[0] there, without and with rescale_acts_by_decoder_norm.
REAL_RECONSTRUCTION = {
    False: [7.57871150970459, 5.037558555603027, -8.876834869384766, -2.750095844268799],
    True: [2.157820701599121, 8.508138656616211, -4.350274562835693, -7.387120246887207],
}


def fixture_sae():
    v = np.sin(np.arange(200) * 1.7 + 0.3).astype(np.float32)
    weights = {"W_enc": v[:32].reshape(4, 8), "W_dec": v[40:72].reshape(8, 4), "b_enc": v[80:88], "b_dec": v[90:94]}
    sae = TopKSAE(Site(3), 3, {name: torch.from_numpy(w.copy()) for name, w in weights.items()}, model_name="gpt2")
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
    torch.testing.assert_close(sae.encode(X), plain.encode(X + plain.b_dec))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_and_loading_changes_nothing(tmp_path, random_sae, dtype):
    sae = random_sae(model_name="m", model_fingerprint="c" * 64, dtype=dtype)
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
        (lambda f: edit(f, k=9), InvalidInput, "k is 9; expected 1 to d_sae = 8"),
        (lambda f: edit(f, architecture="gated"), InvalidInput, "'gated' is not supported; this edition reads 'topk'"),
        (lambda f: edit(f, normalize_activations="layer_norm"), InvalidInput, "normalize_activations is 'layer_norm'"),
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


def test_other_weights_than_the_side_file_describes_are_refused(tmp_path, random_sae):
    random_sae().save(tmp_path / "a")
    random_sae(seed=1).save(tmp_path / "b")
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
