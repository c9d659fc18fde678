"""Gemma Scope, Llama Scope and OpenAI: files in the published layout, equations computed anew in NumPy."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from neurollm.dictionaries import load_dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

D, F, N = 8, 24, 40


@pytest.fixture()
def numbers():
    rng = np.random.default_rng(0)
    arrays = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    x = (2 * rng.standard_normal((N, D)) + 1).astype(np.float32)
    return {**arrays, "threshold": rng.uniform(0.2, 2, F).astype(np.float32)}, x


def agree(sae, x, features, reconstruction):
    assert 0 < (features != 0).mean() < 1
    np.testing.assert_allclose(sae.encode(x), features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(x), reconstruction, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(sae.decode(sae.encode_sparse(x), x), reconstruction, rtol=1e-5, atol=2e-5)


def jumprelu(a, x):
    """Features by Lieberum et al. (2024), equation 3."""
    pre = x @ a["W_enc"] + a["b_enc"]
    return pre * (pre > a["threshold"])


def gemma_scope(root, arrays, folders="gemma-scope-2b-pt-res/layer_5/width_24/average_l0_4"):
    folder = root / folders
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays)
    return folder


@pytest.mark.parametrize("name", ["W", "w"])
def test_gemma_scope(tmp_path, numbers, name):
    a, x = numbers
    renamed = {key.replace("W_", f"{name}_"): value for key, value in a.items()}
    folder = gemma_scope(tmp_path, renamed)
    features = jumprelu(a, x)
    for place in (folder, folder / "params.npz"):
        sae = load_dictionary(place)
        agree(sae, x, features, features @ a["W_dec"] + a["b_dec"])
    assert sae.site == Site(5) and sae.model_name == "google/gemma-2-2b"
    folder = gemma_scope(tmp_path, a, "gemma-scope-9b-it-mlp/layer_7/width_24/average_l0_4")
    assert load_dictionary(folder).site == Site(7, "mlp_out")
    assert load_dictionary(folder).model_name == "google/gemma-2-9b-it"


def test_gemma_scope_in_the_cache_of_the_hub(tmp_path, numbers):
    root = tmp_path / "models--google--gemma-scope-2b-pt-mlp"
    folder = root / "snapshots" / "0123abcd" / "layer_5" / "width_24" / "average_l0_4"
    folder.mkdir(parents=True)
    np.savez(root / "blob.npz", **numbers[0])
    (folder / "params.npz").symlink_to(root / "blob.npz")
    sae = load_dictionary(folder)
    assert sae.site == Site(5, "mlp_out") and sae.model_name == "google/gemma-2-2b"


def test_embedding_saes_of_gemma_scope_take_the_scale_of_the_model(tmp_path, numbers):
    a, x = numbers
    sae = load_dictionary(gemma_scope(tmp_path, a, "gemma-scope-2b-pt-res/embedding/width_24/average_l0_4"))
    rows = x / np.sqrt(np.float32(D))  # of the embedding matrix; the model multiplies them with sqrt(d)
    features = jumprelu(a, rows)
    agree(sae, x, features, (features @ a["W_dec"] + a["b_dec"]) * np.sqrt(D))
    assert sae.site == Site(0, "token_embedding")


def test_gemma_scope_out_of_its_folders_needs_the_site(tmp_path, numbers):
    a, x = numbers
    folder = gemma_scope(tmp_path, a, "downloads")
    with pytest.raises(InvalidInput, match=r"expected layer_L/width_W/average_l0_X .*give it"):
        load_dictionary(folder)
    sae = load_dictionary(folder, site=Site(3), model_name="google/gemma-2-2b")
    assert sae.site == Site(3) and sae.model_name == "google/gemma-2-2b"
    np.testing.assert_allclose(sae.encode(x), jumprelu(a, x), rtol=1e-5, atol=1e-5)
    folder = gemma_scope(tmp_path, a, "local/layer_4/width_24")
    with pytest.raises(DataMismatch, match="trained at layer 4, but site=resid_post"):
        load_dictionary(folder, site=Site(3))
    assert load_dictionary(folder, site=Site(4, "mlp_out")).site == Site(4, "mlp_out")


@pytest.mark.parametrize(
    ("folders", "given", "error", "words"),
    [
        ("gemma-scope-2b-pt-att/layer_5", {}, InvalidInput, "gemma-scope-2b-pt-att is not supported: its SAEs read no"),
        ("gemma-scope-2b-pt-transcoders/layer_5", {}, InvalidInput, "transcoders is not supported"),
        (
            "gemma-scope-2b-pt-res/layer_5/width_16k",
            {},
            DataMismatch,
            "has 24 features, but its folder is named width_16k",
        ),
        (
            "gemma-scope-2b-pt-res/layer_5",
            {"site": Site(5, "mlp_out")},
            DataMismatch,
            "trained at resid_post.5, but site",
        ),
        ("gemma-scope-2b-pt-res/layer_5", {"model_name": "gpt2"}, DataMismatch, "model 'google/gemma-2-2b', but"),
        ("gemma-scope-2b-pt-res/layer_5", {"k": 5}, DataMismatch, "architecture 'jumprelu' has no k"),
    ],
)
def test_folders_of_gemma_scope_are_believed(tmp_path, numbers, folders, given, error, words):
    with pytest.raises(error, match=words):
        load_dictionary(gemma_scope(tmp_path, numbers[0], folders), **given)


@pytest.mark.parametrize(
    ("name", "size"), [("16k", 2**14), ("65k", 2**16), ("131k", 2**17), ("1m", 2**20), ("262k", 2**18)]
)
def test_widths_are_counted_in_two_ways(tmp_path, name, size):
    arrays = {"W_enc": (1, size), "W_dec": (size, 1), "b_enc": (size,), "b_dec": (1,), "threshold": (size,)}
    arrays = {key: np.ones(shape, np.float32) for key, shape in arrays.items()}
    folder = gemma_scope(tmp_path, arrays, f"gemma-scope-2b-pt-res/layer_5/width_{name}")
    assert load_dictionary(folder).n_features == size


def gemma_scope_2(folder, arrays, **config):
    folder.mkdir()
    save_file(
        {key.lower(): np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "params.safetensors"
    )
    base = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "width": F, "l0": 4, "type": "sae"}
    (folder / "config.json").write_text(json.dumps({**base, **config}))
    return folder


@pytest.mark.parametrize(
    ("point", "site"),
    [
        ("model.layers.12.output", Site(12)),
        ("model.layers.12.post_feedforward_layernorm.output", Site(12, "mlp_out")),
    ],
)
def test_gemma_scope_2(tmp_path, numbers, point, site):
    a, x = numbers
    sae = load_dictionary(gemma_scope_2(tmp_path / "a", a, hf_hook_point_in=point))
    features = jumprelu(a, x)
    agree(sae, x, features, features @ a["W_dec"] + a["b_dec"])
    assert sae.site == site and not sae.is_transcoder and sae.model_name == "google/gemma-3-1b-pt"


@pytest.mark.parametrize("affine", [False, True])
def test_transcoders_of_gemma_scope_2(tmp_path, numbers, affine):
    a, x = numbers
    a["W_dec"], a["b_dec"] = a["W_dec"][:, :6], a["b_dec"][:6]
    skip = np.random.default_rng(1).standard_normal((D, 6)).astype(np.float32)
    points = {
        "hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.2.post_feedforward_layernorm.output",
    }
    arrays = {**a, "affine_skip_connection": skip} if affine else a
    sae = load_dictionary(gemma_scope_2(tmp_path / "a", arrays, **points, affine_connection=affine))
    features = jumprelu(a, x)
    agree(sae, x, features, features @ a["W_dec"] + a["b_dec"] + (x @ skip if affine else 0))
    assert (sae.site, sae.target_site) == (Site(2, "mlp_in"), Site(2, "mlp_out")) and sae.is_transcoder
    sae.save(tmp_path / "b")
    again = load_dictionary(tmp_path / "b")
    assert again.fingerprint == sae.fingerprint and again.target_site == sae.target_site


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"architecture": "topk"}, InvalidInput, "architecture 'topk' is not supported; only 'jump_relu' is"),
        ({"hf_hook_point_in": "model.layers.1.self_attn.o_proj.input"}, InvalidInput, "is not a site neurollm knows"),
        ({"width": 16384}, DataMismatch, "has 24 features, but config.json says 16,384"),
        ({}, InvalidInput, "the files do not say where in the model it was trained; give it"),
    ],
)
def test_what_gemma_scope_2_does_not_support(tmp_path, numbers, config, error, words):
    with pytest.raises(error, match=words):
        load_dictionary(gemma_scope_2(tmp_path / "a", numbers[0], **config))


def test_cross_layer_transcoders_are_refused(tmp_path, numbers):
    a = {**numbers[0], "W_dec": np.zeros((F, 3, D), np.float32)}
    with pytest.raises(InvalidInput, match="a cross-layer transcoder is not supported"):
        load_dictionary(gemma_scope_2(tmp_path / "a", a, hf_hook_point_in="model.layers.1.output"))


def llama_scope(folder, a, later=False, tensors=None, **config):
    """What lm-saes writes; `later` with config.json."""
    base = {
        "d_model": D,
        "expansion_factor": F // D,
        "hook_point_in": "blocks.4.hook_resid_post",
        "hook_point_out": "blocks.4.hook_resid_post",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 1.5,
        "top_k": 50,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 7.0, "out": 7.0},
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    arrays = {"encoder.weight": a["W_enc"].T, "encoder.bias": a["b_enc"], "decoder.weight": a["W_dec"].T}
    arrays |= {"decoder.bias": a["b_dec"], **(tensors or {})}
    (folder / "checkpoints").mkdir(parents=True)
    weights = folder / ("sae_weights.safetensors" if later else "checkpoints/final.safetensors")
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items() if value is not None}, weights)
    text = json.dumps({**base, **config})
    (folder / ("config.json" if later else "hyperparams.json")).write_text(text)
    return folder


def in_units_of_training(a, x, scale, threshold, norms):
    """The forward pass of lm-saes on u = s x: features, and raw reconstructions."""
    pre = (scale * x) @ a["W_enc"] + a["b_enc"]
    features = pre * (pre * norms > threshold)
    return features, (features @ a["W_dec"] + a["b_dec"]) / scale


@pytest.mark.parametrize("include", [True, False])
def test_llama_scope(tmp_path, numbers, include):
    a, x = numbers
    scale, norms = np.sqrt(D) / 7.0, np.linalg.norm(a["W_dec"], axis=1) if include else np.ones(F)
    # The threshold is compared with features of raw activations, those of training divided by s.
    features, reconstruction = in_units_of_training(a, x, scale, 1.5 * scale, norms)
    sae = load_dictionary(llama_scope(tmp_path / "a", a, sparsity_include_decoder_norm=include))
    agree(sae, x, features / scale * norms, reconstruction)
    assert sae.site == Site(4)
    if include:
        np.testing.assert_allclose(sae.directions.norm(dim=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"])
def test_learned_thresholds_of_llama_scope(tmp_path, numbers, name):
    a, x = numbers
    norm = {"dataset_average_activation_norm.blocks.4.hook_resid_post": np.float32(7).reshape(())}
    tensors = {name: np.log(a["threshold"]), **norm}
    folder = llama_scope(
        tmp_path / "a", a, True, tensors, dataset_average_activation_norm=None, model_name="meta/Llama"
    )
    scale, norms = np.sqrt(D) / 7.0, np.linalg.norm(a["W_dec"], axis=1)
    features, reconstruction = in_units_of_training(a, x, scale, a["threshold"], norms)
    sae = load_dictionary(folder)
    agree(sae, x, features / scale * norms, reconstruction)
    assert sae.model_name == "meta/Llama"


def test_weights_that_were_rewritten_are_kept_in_float32(tmp_path, numbers):
    half = {name: array.astype(np.float16) for name, array in numbers[0].items()}
    x = numbers[1]
    assert load_dictionary(gemma_scope(tmp_path, half)).dtype == "float16"
    sae = load_dictionary(llama_scope(tmp_path / "a", half))
    assert sae.dtype == "float32"
    sae.save(tmp_path / "b")
    np.testing.assert_array_equal(load_dictionary(tmp_path / "b").encode(x), sae.encode(x))


def test_other_activations_and_normalisations_of_llama_scope(tmp_path, numbers):
    a, x = numbers
    plain = {"sparsity_include_decoder_norm": False, "norm_activation": "inference"}
    pre = x @ a["W_enc"] + a["b_enc"]
    relu = load_dictionary(llama_scope(tmp_path / "relu", a, act_fn="relu", **plain))
    np.testing.assert_allclose(relu.encode(x), np.maximum(pre, 0), rtol=1e-5, atol=1e-5)
    threshold = load_dictionary(llama_scope(tmp_path / "converted", a, act_fn="topk", **plain))
    np.testing.assert_allclose(threshold.encode(x), pre * (pre > 1.5), rtol=1e-5, atol=1e-5)
    topk = load_dictionary(llama_scope(tmp_path / "topk", a, act_fn="topk", jump_relu_threshold=0, top_k=3, **plain))
    kth = np.sort(np.maximum(pre, 0), axis=1)[:, -3:-2]
    np.testing.assert_allclose(topk.encode(x), np.maximum(pre, 0) * (pre >= kth), rtol=1e-5, atol=1e-5)
    unit = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    wise = {"norm_activation": "token-wise", "sparsity_include_decoder_norm": False}
    token = load_dictionary(llama_scope(tmp_path / "token", a, **wise))
    pre = (x * unit) @ a["W_enc"] + a["b_enc"]
    features = pre * (pre > 1.5)
    agree(token, x, features, (features @ a["W_dec"] + a["b_dec"]) / unit)
    bias = {"use_decoder_bias": False, "tensors": {"decoder.bias": None}}
    assert not load_dictionary(llama_scope(tmp_path / "bias", a, **bias)).weights["b_dec"].any()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hook_point_out": "blocks.4.hook_mlp_out"}, "a transcoder is not supported"),
        ({"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise'; expected 'dataset-wise'"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm is None; expected a positive"),
        ({"act_fn": "prolu"}, "act_fn is 'prolu'; expected 'jumprelu'"),
        ({"use_glu_encoder": True}, "use_glu_encoder is set"),
        ({"d_model": 0}, "d_model is 0; expected a positive whole number"),
        ({"hook_point_in": "blocks.4.attn.hook_z", "hook_point_out": "blocks.4.attn.hook_z"}, "blocks.4.attn.hook_z"),
    ],
)
def test_what_llama_scope_does_not_support(tmp_path, numbers, config, words):
    with pytest.raises(InvalidInput, match=words):
        load_dictionary(llama_scope(tmp_path / "a", numbers[0], **config))


def openai(path, a, **more):
    """The state_dict of openai/sparse_autoencoder, as saved by torch."""
    state = {"pre_bias": a["b_dec"], "latent_bias": a["b_enc"], "encoder.weight": a["W_enc"].T}
    state |= {"decoder.weight": a["W_dec"].T, "stats_last_nonzero": np.zeros(F, np.int64)}
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    torch.save({name: value for name, value in {**state, **more}.items() if value is not None}, path)
    return path


def test_openai_topk(tmp_path, numbers):
    a, x = numbers
    topk = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    path = openai(tmp_path / "6.pt", a, **topk)
    sae = load_dictionary(path, site=Site(6))
    mean, sd = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    pre = ((x - mean) / (sd + 1e-5) - a["b_dec"]) @ a["W_enc"] + a["b_enc"]
    features = np.maximum(pre, 0) * (pre >= np.sort(pre, axis=1)[:, -4:-3])
    agree(sae, x, features, (features @ a["W_dec"] + a["b_dec"]) * sd + mean)
    assert sae.k == 4 and sae.model_name == "gpt2"
    for given, error, words in (
        ({}, InvalidInput, "6.pt: the files do not say where in the model it was trained; give it, for example site="),
        ({"site": Site(6), "k": 5}, DataMismatch, "k is 4, but k=5 was given"),
        ({"site": Site(6), "model_name": "pythia-70m"}, DataMismatch, "on model 'gpt2', but"),
    ):
        with pytest.raises(error, match=words):
            load_dictionary(path, **given)


@pytest.mark.parametrize("tied", [False, True])
def test_openai_relu(tmp_path, numbers, tied):
    a, x = numbers
    more = {"decoder.weight": None, "decoder.linear.weight": torch.from_numpy(a["W_enc"].T.copy())} if tied else {}
    sae = load_dictionary(openai(tmp_path / "6.pt", a, activation="ReLU", **more), site=Site(6, "mlp_out"))
    features = np.maximum((x - a["b_dec"]) @ a["W_enc"] + a["b_enc"], 0)
    agree(sae, x, features, features @ (a["W_enc"].T if tied else a["W_dec"]) + a["b_dec"])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"activation": "GELU"}, "activation 'GELU' is not supported"),
        ({"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "Identity"}}, "followed by 'Identity'"),
        ({"activation": "TopK"}, "do not say how many features are active per token; give k"),
        ({"latent_bias": None}, "tensor latent_bias is missing"),
        ({"W_skip": torch.zeros(3)}, "W_skip does not belong there"),
    ],
)
def test_what_openai_files_may_not_hold(tmp_path, numbers, state, words):
    with pytest.raises(InvalidInput, match=words):
        load_dictionary(openai(tmp_path / "6.pt", numbers[0], **state), site=Site(6))
