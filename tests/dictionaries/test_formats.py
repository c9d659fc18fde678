"""Other packages' files: features and reconstructions are those the packages computed (fixtures/make.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurollm.dictionaries import load_dictionary
from neurollm.dictionaries.formats import save_sparsify
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import sha256_file
from neurollm.models import Site
from neurollm.models.site import STREAMS

FIXTURES = Path(__file__).with_name("fixtures")
REFUSED = {"groupmax"}


def cases(group):
    return [p for p in sorted((FIXTURES / group).iterdir()) if p.is_dir() and p.name not in REFUSED]


def check(dictionary, case, shift=None):
    """Compare with what the package computed; `shift` is what it did not add to its reconstruction."""
    expected = load_file(f"{case}.expected.safetensors")
    x, tolerance = expected["x"], {"rtol": 1e-5, "atol": 1e-5}
    reconstruction = expected["reconstruction"] + (0 if shift is None else shift(x))
    assert 0 < (expected["features"] != 0).float().mean() < 1
    for features in (dictionary.encode(x), torch.from_numpy(dictionary.encode_sparse(x).toarray())):
        torch.testing.assert_close(features, expected["features"], **tolerance)
    torch.testing.assert_close(dictionary.reconstruct(x), reconstruction, **tolerance)
    torch.testing.assert_close(dictionary.decode(expected["features"], x), reconstruction, **tolerance)


@pytest.mark.parametrize("case", cases("saelens"), ids=lambda case: case.name)
def test_saelens_computes_the_same(case):
    sae = load_dictionary(case)
    assert sae.model_name == "gpt2" and sae.is_transcoder == ("transcoder" in case.name)
    if sae.is_transcoder:
        assert (sae.site, sae.target_site, sae.d_out) == (Site(6, "mlp_in"), Site(6, "mlp_out"), 6)
    else:
        assert sae.site == sae.target_site == Site(6)
    check(sae, case)


@pytest.mark.parametrize("case", cases("saelens"), ids=lambda case: case.name)
def test_saving_gives_the_files_of_saelens_and_loses_nothing(case, tmp_path):
    sae = load_dictionary(case)
    sae.save(tmp_path / "a")
    again = load_dictionary(tmp_path / "a")
    check(again, case)
    if sae.dtype == "float32":
        assert again.fingerprint == sae.fingerprint
    assert (again.site, again.target_site, again.provenance) == (sae.site, sae.target_site, sae.provenance)
    check(load_dictionary(tmp_path / "a", "saelens"), case)
    if case.name in ("topk_rescale", "matching_pursuit_no_bias"):  # options that went into the weights
        return
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert sha256_file(tmp_path / "a" / name) == sha256_file(case / name)


@pytest.mark.parametrize("case", cases("saelens_training"), ids=lambda case: case.name)
def test_training_forms_are_what_saelens_makes_of_them(case):
    check(load_dictionary(case), case)


@pytest.mark.parametrize("case", cases("saelens_before_six"), ids=lambda case: case.name)
def test_flat_configurations_and_centred_activations(case, tmp_path):
    sae = load_dictionary(case)
    centred = case.name != "topk"
    assert sae.normalisation.per_token == ("centre" if centred else "none")
    check(sae, case, (lambda x: x.mean(1, keepdim=True)) if centred else None)
    x = load_file(f"{case}.expected.safetensors")["x"]
    if centred:  # a constant added to a token changes nothing but its own reconstruction
        torch.testing.assert_close(sae.encode(x + 3), sae.encode(x), rtol=1e-4, atol=1e-4)
    sae.save(tmp_path)
    for format in ("auto", "saelens"):
        torch.testing.assert_close(load_dictionary(tmp_path, format).reconstruct(x), sae.reconstruct(x))


def test_res_jb_is_read_before_its_block():
    sae = load_dictionary(FIXTURES / "saelens_before_six" / "res_jb")
    assert sae.site == Site(8, "resid_pre") and sae.model_name == "gpt2-small"


@pytest.mark.parametrize("change", [{"architecture": "standard"}, {"model_name": "pythia-70m"}])
def test_other_old_saes_are_not_centred(tmp_path, change):
    folder = shutil.copytree(FIXTURES / "saelens_before_six" / "res_jb", tmp_path / "a")
    config = json.loads((folder / "cfg.json").read_text()) | change
    (folder / "cfg.json").write_text(json.dumps(config))
    assert load_dictionary(folder).normalisation.per_token == "none"


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_a_scaling_factor_of_old_releases_multiplies_the_features_before_decoding(tmp_path, name):
    folder = shutil.copytree(FIXTURES / "saelens_before_six" / "topk", tmp_path / "a")
    plain = load_dictionary(folder)
    factor = torch.linspace(0.5, 2, 24)
    path = folder / "sae_weights.safetensors"
    tensors = {key: tensor for key, tensor in load_file(path).items() if key != "scaling_factor"}
    save_file(tensors | {name: factor}, path)
    with pytest.raises(DataMismatch, match="scaling_factor is not 1"):
        load_dictionary(folder)
    config = json.loads((folder / "cfg.json").read_text()) | {"finetuning_scaling_factor": True}
    (folder / "cfg.json").write_text(json.dumps(config))
    x = load_file(f"{FIXTURES / 'saelens_before_six' / 'topk'}.expected.safetensors")["x"]
    features = plain.encode(x)
    torch.testing.assert_close(load_dictionary(folder).encode(x), features)
    torch.testing.assert_close(load_dictionary(folder).reconstruct(x), plain.decode(features * factor))


@pytest.mark.parametrize(
    ("name", "site", "target"),
    [
        ("layers.6", Site(6), None),
        ("h.6.mlp", Site(6, "mlp_in"), Site(6, "mlp_out")),
        ("layers.6.mlp", Site(6, "mlp_in"), Site(6, "mlp_out")),
    ],
)
def test_sparsify_computes_the_same_and_saving_gives_its_files(tmp_path, name, site, target):
    case = FIXTURES / "sparsify" / name
    sae = load_dictionary(case)
    assert (sae.site, sae.target_site, sae.k) == (site, target or site, 4)
    assert sae.model_name == "EleutherAI/pythia-70m" and sae.is_transcoder == bool(target)
    check(sae, case)
    saved = save_sparsify(sae, tmp_path)
    assert saved.name == name.replace("h.", "layers.")
    assert sha256_file(saved / "sae.safetensors") == sha256_file(case / "sae.safetensors")
    mine, theirs = (json.loads((folder / "cfg.json").read_text()) for folder in (saved, case))
    assert list(mine) == list(theirs)
    differing = {key for key in mine if mine[key] != theirs[key]}
    assert differing <= {"num_latents", "expansion_factor", "normalize_decoder"}
    check(load_dictionary(saved, model_name="pythia-70m"), case)
    sae.save(tmp_path / "native")  # a transcoder that SAELens has no name for
    check(load_dictionary(tmp_path / "native"), case)
    check(load_dictionary(tmp_path / "native", "saelens"), case)


def test_older_sparsify_configurations_lack_keys(tmp_path):
    case = FIXTURES / "sparsify" / "layers.6"
    folder = shutil.copytree(case, tmp_path / "layers.6")
    (folder / "cfg.json").write_text('{"expansion_factor": 3, "k": 4, "d_in": 8, "signed": false, "jumprelu": 0}')
    check(load_dictionary(folder), case)
    renamed = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=r"'elsewhere' is not that of a module such as 'layers\.6'.*give it"):
        load_dictionary(renamed)
    assert load_dictionary(renamed, site=Site(2, "mlp_out")).site == Site(2, "mlp_out")


@pytest.mark.parametrize("case", cases("dictionary_learning"), ids=lambda case: case.name)
def test_dictionary_learning_computes_the_same(case, tmp_path):
    sae = load_dictionary(case)
    assert sae.site == Site(6) and sae.model_name == "gpt2"
    check(sae, case)
    sae.save(tmp_path)
    check(load_dictionary(tmp_path), case)


def test_a_checkpoint_of_dictionary_learning_takes_the_configuration_above(tmp_path):
    case = FIXTURES / "dictionary_learning" / "BatchTopKSAE"
    folder = shutil.copytree(case, tmp_path / "a")
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_100.pt")
    check(load_dictionary(folder / "checkpoints" / "ae_100.pt"), case)


@pytest.mark.parametrize("stream", STREAMS)
def test_sites_have_one_name_in_saelens(stream):
    site = Site(0 if stream == "token_embedding" else 4, stream)
    assert Site.from_saelens(site.saelens_hook_name) == site


@pytest.mark.parametrize(
    ("name", "end", "site"),
    [
        ("model.layers.11", "output", Site(11)),
        ("transformer.h.0", "input", Site(0, "resid_pre")),
        ("layers.3.self_attn", "output", Site(3, "attn_out")),
        ("gpt_neox.layers.3.attention", "output", Site(3, "attn_out")),
        ("model.layers.3.post_feedforward_layernorm", "output", Site(3, "mlp_out")),
        ("h.3.mlp", "input", Site(3, "mlp_in")),
        ("embed_tokens", "output", Site(0, "token_embedding")),
    ],
)
def test_sites_by_the_module_of_the_model(name, end, site):
    assert Site.from_module(name, end) == site


@pytest.mark.parametrize(
    ("name", "end"),
    [("layers.3.self_attn", "input"), ("layers.3.mlp.act", "output"), ("lm_head", "output"), ("wte", "input")],
)
def test_modules_that_are_no_site(name, end):
    with pytest.raises(InvalidInput, match=f"the {end} of module '{name}' is not a site neurollm knows"):
        Site.from_module(name, end)


def test_the_demo_is_unchanged_and_saves_to_the_same_bytes(tmp_path, demo_dictionary):
    from neurollm.datasets import demo_dictionary_path

    assert demo_dictionary.fingerprint.startswith("1eef058c796e")
    demo_dictionary.save(tmp_path)
    for name in ("cfg.json", "sae_weights.safetensors", "neurollm.json"):
        assert sha256_file(tmp_path / name) == sha256_file(demo_dictionary_path() / name)


def test_matching_pursuit_by_its_definition():
    """Token by token and step by step, in float64."""
    sae = load_dictionary(FIXTURES / "saelens" / "matching_pursuit")
    x = load_file(FIXTURES / "saelens" / "matching_pursuit.expected.safetensors")["x"]
    rows, bias = sae.weights["W_dec"].double().numpy(), sae.weights["b_dec"].double().numpy()
    for token, features in zip(x.double().numpy(), sae.encode(x).numpy(), strict=True):
        residual, expected = token - bias, np.zeros(sae.n_features)
        for _ in range(sae.d_in):
            best = int(np.argmax(rows @ residual))
            known, value = expected[best] > 0, max(rows[best] @ residual, 0)
            expected[best] += value
            residual = residual - value * rows[best]
            if known or value == 0 or np.linalg.norm(residual) < sae.residual_threshold:
                break
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_folding_a_scale_into_matching_pursuit_changes_no_reconstruction():
    sae = load_dictionary(FIXTURES / "saelens" / "matching_pursuit")
    x = load_file(FIXTURES / "saelens" / "matching_pursuit.expected.safetensors")["x"]
    scaled = type(sae)(sae.site, sae.weights, **sae.options, normalisation=Normalisation(torch.ones(8), 0.25))
    folded = scaled.fold()
    torch.testing.assert_close(folded.reconstruct(x), scaled.reconstruct(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded.encode(x), 4 * scaled.encode(x), rtol=1e-4, atol=1e-4)
    for options, words in (
        ({"normalisation": Normalisation(None, torch.eye(8))}, "one positive factor"),
        ({"subtract_decoder_bias": False}, "leave out b_dec"),
        ({"residual_threshold": -1.0}, "residual_threshold must be at least 0"),
    ):
        with pytest.raises(InvalidInput, match=words):
            type(sae)(sae.site, sae.weights, **options)
