"""Which format it is, and one sentence for whatever is wrong with its files."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurollm.dictionaries import GatedSAE, Normalisation, RawUnits, TopKSAE, load_dictionary
from neurollm.dictionaries.formats import save_sparsify
from neurollm.errors import DataMismatch, InvalidInput, NeurollmError
from neurollm.models import Site

FIXTURES = Path(__file__).with_name("fixtures")
SPARSIFY, LEARNING = FIXTURES / "sparsify" / "layers.6", FIXTURES / "dictionary_learning" / "AutoEncoderTopK"


class Code:
    """What a pickle may do."""

    def __reduce__(self):
        return (print, ("this must never run",))


def refused(place, words, error=NeurollmError, **given):
    """The sentence is one line, names the file and says what is wrong."""
    with pytest.raises(error, match=words) as caught:
        load_dictionary(place, **given)
    folder = place if place.is_dir() else place.parent
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def config(name, **changes):
    def damage(folder):
        old = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(old | changes))

    return damage


def trainer(**changes):
    def damage(folder):
        old = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({"trainer": old["trainer"] | changes}))

    return damage


def tensor(**changes):
    def damage(folder):
        path = folder / "sae.safetensors"
        save_file({name: t for name, t in (load_file(path) | changes).items() if t is not None}, path)

    return damage


def state(**changes):
    def damage(folder):
        new = torch.load(folder / "ae.pt", weights_only=True) | changes
        torch.save({name: t for name, t in new.items() if t is not None}, folder / "ae.pt")

    return damage


def content(name, value):
    return lambda folder: (folder / name).write_bytes(value)


def shortened(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (config("cfg.json", activation="groupmax"), InvalidInput, "activation 'groupmax' is not supported"),
        (config("cfg.json", signed=True), InvalidInput, "activation 'signed TopK' is not supported"),
        (config("cfg.json", skip_connection=True), InvalidInput, "an autoencoder with a skip connection"),
        (config("cfg.json", num_latents=99), DataMismatch, "has 24 rows, but cfg.json says 99 latents"),
        (config("cfg.json", d_in=9), DataMismatch, "cfg.json says"),
        (config("cfg.json", d_in="8"), InvalidInput, "d_in is '8'; expected a positive whole number"),
        (config("cfg.json", k=25), InvalidInput, "k is 25; expected 1 to d_sae = 24"),
        (tensor(b_dec=None), InvalidInput, "tensor b_dec is missing; found W_dec, encoder.bias, encoder.weight"),
        (tensor(W_dec=torch.zeros(8, 24)), DataMismatch, r"W_dec has shape \(8, 24\), but cfg.json says \(24, 8\)"),
        (tensor(b_dec=torch.full((8,), torch.inf)), DataMismatch, "b_dec contains NaN or infinite"),
        (
            tensor(b_dec=torch.zeros(8, dtype=torch.int8)),
            DataMismatch,
            "b_dec holds torch.int8 values; expected floating",
        ),
        (tensor(**{"encoder.weight": torch.zeros(8)}), DataMismatch, r"has shape \(8,\); expected a matrix"),
        (shortened("sae.safetensors"), DataMismatch, "sae.safetensors: damaged, cannot be read as safetensors"),
        (shortened("cfg.json"), InvalidInput, "cfg.json: not valid JSON"),
    ],
)
def test_sparsify(tmp_path, damage, error, words):
    folder = shutil.copytree(SPARSIFY, tmp_path / "layers.6")
    damage(folder)
    refused(folder, words, error)


def test_group_maximum_of_sparsify_is_refused_and_a_renamed_transcoder_too(tmp_path):
    refused(FIXTURES / "sparsify" / "groupmax", "activation 'groupmax'", InvalidInput)
    folder = shutil.copytree(FIXTURES / "sparsify" / "h.6.mlp", tmp_path / "renamed")
    refused(folder, "'renamed' is not that of a module.*a transcoder needs it", InvalidInput, site=Site(6, "mlp_in"))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (
            trainer(dict_class="CrossCoder"),
            InvalidInput,
            "dict_class 'CrossCoder' is not supported; expected one of Auto",
        ),
        (trainer(dict_size=48), DataMismatch, "24 for dict_size, but config.json says 48"),
        (trainer(activation_dim=9), DataMismatch, "8 for activation_dim, but config.json says 9"),
        (trainer(k=5), DataMismatch, "ae.pt: k is 4, but config.json says 5"),
        (
            trainer(submodule_name="resid_post_layer_3"),
            DataMismatch,
            "submodule_name is 'resid_post_layer_3', but layer",
        ),
        (trainer(submodule_name="resid_mid"), InvalidInput, "submodule_name is not that of a stream such as"),
        (lambda f: (f / "config.json").unlink(), InvalidInput, "config.json: the file is missing"),
        (content("config.json", b'{"trainer": 3}'), InvalidInput, "trainer is 3; expected a JSON object"),
        (content("config.json", b"[1]"), InvalidInput, "expected a JSON object, found list"),
        (content("ae.pt", b"nonsense"), DataMismatch, "ae.pt: damaged, cannot be read as a PyTorch file"),
        (shortened("ae.pt"), DataMismatch, "ae.pt: damaged, cannot be read as a PyTorch file"),
        (lambda f: torch.save(Code(), f / "ae.pt"), InvalidInput, "ae.pt: holds Python objects that could run code"),
        (
            lambda f: torch.save([torch.zeros(3)], f / "ae.pt"),
            InvalidInput,
            "expected a dictionary of tensors, found list",
        ),
        (state(b_dec=None), InvalidInput, "tensor b_dec is missing"),
        (state(b_dec=torch.zeros(9)), DataMismatch, r"b_dec has shape \(9,\), but the configuration says \(8,\)"),
        (state(b_dec=torch.full((8,), torch.nan)), DataMismatch, "b_dec contains NaN"),
        (state(extra=torch.zeros(2)), InvalidInput, "extra does not belong there"),
        (state(**{"encoder.weight": None}), InvalidInput, "tensor encoder.weight is missing"),
    ],
)
def test_dictionary_learning(tmp_path, damage, error, words, capsys):
    folder = shutil.copytree(LEARNING, tmp_path / "a")
    damage(folder)
    refused(folder, words, error)
    assert "never run" not in capsys.readouterr().out


def test_a_batch_topk_without_a_threshold_is_refused(tmp_path):
    folder = shutil.copytree(FIXTURES / "dictionary_learning" / "BatchTopKSAE", tmp_path / "a")
    assert load_dictionary(folder, k=4).architecture == "jumprelu"  # 4 on the average
    refused(folder, "architecture 'jumprelu' has no k, but k=5 was given", DataMismatch, k=5)
    state(threshold=torch.tensor(-1.0))(folder)
    refused(folder, "its threshold was never set", InvalidInput)


def test_a_submodule_by_its_name_in_the_model(tmp_path):
    folder = shutil.copytree(LEARNING, tmp_path / "a")
    trainer(submodule_name="gpt_neox.layers.6.mlp")(folder)
    assert load_dictionary(folder).site == Site(6, "mlp_out")
    trainer(submodule_name="resid_mid")(folder)
    assert load_dictionary(folder, site=Site(1)).site == Site(1)


def test_archives_with_python_objects_or_damage_are_refused(tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, W_enc=np.array([Code()], dtype=object))
    refused(tmp_path, "params.npz: holds Python objects, which are never loaded", InvalidInput)
    path.write_bytes(path.read_bytes()[:-30])
    refused(tmp_path, "params.npz: damaged, cannot be read as a NumPy archive", DataMismatch)
    np.savez(path, W_enc=np.zeros((2, 3)))
    refused(tmp_path, "tensor W_dec is missing", InvalidInput)


def test_missing_unknown_and_ambiguous_folders(tmp_path):
    with pytest.raises(InvalidInput, match="no such folder; expected 'demo' or a folder with neurollm"):
        load_dictionary(tmp_path / "nothing")
    refused(tmp_path, r"no known format; expected neurollm\.json \(neurollm\), cfg\.json \+ sae_weights", InvalidInput)
    with pytest.raises(InvalidInput, match="format 'keras' is unknown; use 'auto' or one of neurollm, saelens"):
        load_dictionary(tmp_path, "keras")
    both = shutil.copytree(SPARSIFY, tmp_path / "layers.6")
    shutil.copy(FIXTURES / "saelens" / "topk" / "sae_weights.safetensors", both)
    refused(both, r"files of several formats lie there \(saelens, sparsify\); say which one with format=", InvalidInput)
    assert load_dictionary(both, "sparsify").site == Site(6)
    refused(both, "d_sae is None; expected a positive whole number", InvalidInput, format="saelens")
    refused(both, "neurollm.json: the file is missing", InvalidInput, format="neurollm")
    refused(both, "hyperparams.json: the file is missing", InvalidInput, format="llama_scope")
    (both / "cfg.json").unlink()
    refused(both, "cfg.json: the file is missing", InvalidInput, format="sparsify")


def test_the_weights_file_stands_for_its_folder():
    whole = load_dictionary(FIXTURES / "saelens" / "topk")
    assert load_dictionary(FIXTURES / "saelens" / "topk" / "sae_weights.safetensors").fingerprint == whole.fingerprint
    assert load_dictionary(LEARNING / "ae.pt").fingerprint == load_dictionary(LEARNING).fingerprint


def test_a_control_must_fit_what_is_given(tmp_path):
    RawUnits(Site(2), 5, model_name="m").save(tmp_path)
    assert load_dictionary(tmp_path, site=Site(2), model_name="m").site == Site(2)
    refused(tmp_path, "trained at resid_post.2, but site=resid_post.3", DataMismatch, site=Site(3))
    refused(tmp_path, "architecture 'raw_units' has no k", DataMismatch, k=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalisation": Normalisation(per_token="centre")}, "no place for normalisation token by token"),
        ({"subtract_decoder_bias": False}, "sparsify subtracts b_dec in every autoencoder"),
        ({"site": Site(3, "resid_pre")}, "its sites are not the input and the output of one module"),
        (
            {"target_site": Site(5, "mlp_out"), "subtract_decoder_bias": False},
            "its sites are not the input and the output of one module",
        ),
    ],
)
def test_what_sparsify_has_no_place_for(tmp_path, change, words):
    plain = load_dictionary(SPARSIFY)
    options = {"site": plain.site, "k": plain.k, **change}
    with pytest.raises(InvalidInput, match=words):
        save_sparsify(TopKSAE(weights=plain.weights, **options), tmp_path)


def test_sparsify_stores_only_topk(tmp_path):
    gated = load_dictionary(FIXTURES / "saelens" / "gated")
    assert isinstance(gated, GatedSAE)
    with pytest.raises(InvalidInput, match="sparsify stores only 'topk' dictionaries, not 'gated'"):
        save_sparsify(gated, tmp_path)


@pytest.mark.parametrize("file", ["activation_scaler.json", "activation_whitening.safetensors"])
def test_training_forms_need_their_statistics(tmp_path, file):
    folder = shutil.copytree(FIXTURES / "saelens_training" / "gated_white", tmp_path / "a")
    (folder / file).unlink()
    refused(folder, f"{file}.*missing", InvalidInput)


def test_a_scale_must_be_positive(tmp_path):
    folder = shutil.copytree(FIXTURES / "saelens_training" / "standard_scaled", tmp_path / "a")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    refused(folder, "scaling_factor is None; expected a positive number", InvalidInput)


@pytest.mark.parametrize("error", [TypeError, KeyError, RecursionError, OverflowError, MemoryError, AssertionError])
def test_whatever_a_file_provokes_is_one_sentence(monkeypatch, error):
    from neurollm.dictionaries.formats import loading

    def hostile(place, given):
        raise error("unforeseen\nin many lines")

    monkeypatch.setitem(loading._LOADERS, "sparsify", hostile)
    refused(SPARSIFY, f"damaged, or not what format 'sparsify' should be .{error.__name__}: .*unforeseen", DataMismatch)


def test_hostile_json_is_one_sentence(tmp_path):
    folder = shutil.copytree(SPARSIFY, tmp_path / "layers.6")
    (folder / "cfg.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused(folder, "RecursionError", DataMismatch)


@pytest.mark.parametrize("path", [None, 5, "a\0b"])
def test_what_is_no_path(path):
    with pytest.raises(InvalidInput, match="expected a name or a folder"):
        load_dictionary(path)


def test_what_is_no_site():
    with pytest.raises(InvalidInput, match=r"site is 'resid_post.6'; expected a Site"):
        load_dictionary(SPARSIFY, site="resid_post.6")


def test_other_files_than_archives_are_called_what_they_are(tmp_path):
    path, words = tmp_path / "params.npz", "params.npz: a Python pickle, which could run code and is never loaded"
    path.write_bytes(pickle.dumps(Code()))
    refused(tmp_path, words, InvalidInput)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    refused(tmp_path, "params.npz: a single NumPy array; expected an archive of arrays", InvalidInput)
    np.savez(path, W_enc=np.array(["a"]))
    refused(tmp_path, "params.npz: W_enc holds <U1; expected numbers of at most 64 bits", InvalidInput)
    np.savez(path, W_enc=np.ones(3, complex))
    refused(tmp_path, "params.npz: W_enc holds complex128; expected numbers", InvalidInput)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_with_code_are_not_called_damaged(tmp_path, protocol):
    path = tmp_path / "6.pt"
    path.write_bytes(pickle.dumps(Code(), protocol=protocol))
    refused(path, "6.pt: (a Python pickle, which could|holds Python objects that could) run code", InvalidInput)
    torch.save({"x": Code()}, path, _use_new_zipfile_serialization=False)
    refused(path, "6.pt: holds Python objects that could run code", InvalidInput)


def test_native_modules_are_kept_where_they_say_the_site(tmp_path):
    assert load_dictionary(SPARSIFY).provenance["module"] == "layers.6"
    renamed = shutil.copytree(SPARSIFY, tmp_path / "renamed")
    assert "module" not in load_dictionary(renamed, site=Site(6)).provenance
    folder = shutil.copytree(LEARNING, tmp_path / "learned")
    assert "module" not in load_dictionary(folder).provenance  # resid_post_layer_6 is not the name of a module
    trainer(submodule_name="model.layers.6.mlp", layer=6)(folder)
    sae = load_dictionary(folder)
    assert sae.site == Site(6, "mlp_out") and sae.provenance["module"] == "model.layers.6.mlp"


@pytest.mark.parametrize("part", ["name", "fingerprint"])
def test_names_of_models_are_text(tmp_path, part):
    RawUnits(Site(6), 4).save(tmp_path)
    config("neurollm.json", model={"name": "", "fingerprint": "", part: 5})(tmp_path)
    refused(tmp_path, f"model.{part} is 5; expected a text", InvalidInput)
