"""A GPT-2 of three blocks with a byte tokenizer, made in memory: tests need no downloaded model."""

from __future__ import annotations

import numpy as np


def tiny_lm(n_positions: int = 32, n_embd: int = 24):
    """Random weights, one token per byte (so an emoji is four), start token 256."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from neurollm.models import LanguageModel

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=n_positions)
    config = GPT2Config(
        vocab_size=257,
        n_positions=n_positions,
        n_embd=n_embd,
        n_layer=3,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    return LanguageModel("tiny", model, tokenizer, is_causal=True)


def tiny_documents(n: int = 40, seed: int = 0) -> list[tuple[str, str]]:
    """Documents of very different lengths, one empty, some with characters of several bytes."""
    rng = np.random.default_rng(seed)
    words = ["the", "king", "said", "nothing", "and", "then", "é🙂", "went", "home.", "—", "a\n", "Über"]
    sizes = rng.integers(1, 60, n)
    documents = [(f"document {i}", " ".join(rng.choice(words, size))) for i, size in enumerate(sizes)]
    documents[3] = ("empty", "")
    documents[5] = ("spells a special token", "one <s> two")
    return documents


class TinyDictionary:
    """A linear ReLU top-4 dictionary with the interface the index needs."""

    def __init__(self, site, d_in: int = 24, n_features: int = 50, seed: int = 0) -> None:
        self.site, self.n_features, self.seed = site, n_features, seed
        self.directions = np.random.default_rng(seed).normal(size=(d_in, n_features)).astype(np.float32)

    def encode_sparse(self, x):
        """The four largest positive projections."""
        from scipy import sparse

        projections = np.asarray(x, dtype=np.float32) @ self.directions
        threshold = np.partition(projections, -4, axis=1)[:, -4:-3]
        return sparse.csr_matrix(np.where(projections >= np.maximum(threshold, 0), projections, 0))

    def describe(self):
        """What identifies it."""
        return {"seed": self.seed}
