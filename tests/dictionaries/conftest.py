"""Fixtures of the dictionary tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from neurollm.dictionaries import TopKSAE
from neurollm.models import LanguageModel, Site

SCRIPT = Path(__file__).with_name("memory_store.py")


@pytest.fixture(scope="session")
def script():
    """The module memory_store.py and its path."""
    spec = importlib.util.spec_from_file_location("memory_store", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def child_environment():
    """Environment of a child that computes exactly like this process."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


@pytest.fixture(scope="session")
def planted_store(script):
    return script.MemoryStore(script.planted()[0])


@pytest.fixture(scope="session")
def trained(script, planted_store):
    return script.small_training(planted_store)


@pytest.fixture()
def random_sae():
    """Build a TopK SAE with random weights."""

    def build(d=6, n_features=20, k=3, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"W_enc": (d, n_features), "W_dec": (n_features, d), "b_enc": (n_features,), "b_dec": (d,)}
        weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return TopKSAE(Site(1), weights, k, **options)

    return build


class _Tokenizer:
    """Enough of a tokenizer for token id sequences: id 0 is special."""

    bos_token_id, eos_token_id, pad_token_id, cls_token_id, unk_token_id = 0, 0, None, None, None
    all_special_ids = (0,)
    model_max_length = 16

    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": [0, 1]}


@pytest.fixture(scope="session")
def tiny_lm():
    """A GPT-2 with random weights: 3 blocks, width 6, 30 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=30, n_positions=16, n_embd=6, n_layer=3, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    for weight in model.parameters():
        weight.data *= 4  # so that predictions depend on the residual stream
    return LanguageModel("tiny", model, _Tokenizer(), True)
