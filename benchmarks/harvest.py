"""How fast is a harvest? Three ways to get the activations of one layer, side by side in one run.

1. A plain loop: texts tokenised and padded in batches, the whole language model with
   ``output_hidden_states=True``, nothing written.
2. ``neurollm.harvest``: tokenising, the model cut after the layer, hashing and writing.
3. The ceiling: the model cut after the layer on tensors batched beforehand, nothing else.

The order is drawn anew in every repeat, so that other load on the machine falls on all alike;
medians are printed, and the fastest, which other load touches least. CPU seconds (of all
threads) are printed too: on a busy machine they say more than the clock.
All three use the same weights in the same dtype and the same contexts; the last two the same
size of a forward pass.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neurollm.activations import Corpus, harvest
from neurollm.activations.contexts import Contexts
from neurollm.models import LanguageModel, Site, load_model, plan_batches, run_site
from neurollm.models.forward import pad

WORDS = """a and the of to in was he she it that his her with for on at by had not but from they said one all
there when which were up out so would into no what then could them some man time now little about if over who see
came down before old two house day good long after night water hand door king sea light morning road tree voice child
stone never again away began thought nothing world heart white dark walked opened carried answered listened"""


def generated_documents(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of very different lengths made of common words."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(5.3, 0.9, n)).astype(int) + 5
    return [(f"document {i}", " ".join(rng.choice(WORDS.split(), length)) + ".") for i, length in enumerate(lengths)]


def read_documents(path: Path, n: int, characters: int = 1200) -> list[tuple[str, str]]:
    """The first `n` documents of a corpus; long ones are cut into passages."""
    passages = []
    for name, text in Corpus.read(path):
        cuts = range(0, len(text), characters)
        passages += [(f"{name} {cut}", text[cut : cut + characters]) for cut in cuts]
        if len(passages) >= n:
            break
    return passages[:n]


def plain_loop(lm: LanguageModel, texts: list[str], layer: int, batch: int) -> None:
    """What one writes without neurollm."""
    tokenizer, limit = lm.tokenizer, int(lm.context)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    for start in range(0, len(texts), batch):
        encoded = tokenizer(
            texts[start : start + batch], padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(lm.device)
        with torch.no_grad():
            output = lm.model(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], output_hidden_states=True
            )
        hidden = output.hidden_states[layer + 1]
        hidden[encoded["attention_mask"].bool()].cpu()


def ceiling(lm: LanguageModel, batches: list[tuple[torch.Tensor, torch.Tensor | None]], site: Site) -> None:
    """The forward passes alone."""
    for ids, mask in batches:
        run_site(lm, ids, mask, site)
    if lm.device.type == "cuda":
        torch.cuda.synchronize()


def measure(
    ways: dict[str, Callable[[], None]], repeats: int, after: Callable[[], None]
) -> dict[str, list[tuple[float, float]]]:
    """Clock and CPU seconds of each way in each repeat, after one unmeasured round; `after` is not timed."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    order = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for name in order.permutation(list(ways)):  # none always follows the same other
            start, cpu_start = time.perf_counter(), time.process_time()
            ways[name]()
            if repeat:
                seconds[name].append((time.perf_counter() - start, time.process_time() - cpu_start))
            after()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="'demo', a folder, or a hub name (default: demo)")
    parser.add_argument("--text", type=Path, help="a corpus to read; without it texts are generated")
    parser.add_argument("--layer", type=int, help="the block to stop after (default: the middle one)")
    parser.add_argument("--documents", type=int, default=2000, help="number of documents (default: 2000)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats of each way (default: 5)")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights (default: auto)")
    parser.add_argument("--batch", type=int, default=16, help="texts per batch of the plain loop (default: 16)")
    parser.add_argument("--shard", type=int, default=65_536, help="rows per shard of the harvest (default: 65536)")
    parser.add_argument("--tokens", type=int, help="tokens per forward pass of 2 and 3 (default: the model's own)")
    arguments = parser.parse_args()

    lm = load_model(arguments.model, dtype=arguments.dtype)
    site = Site(lm.n_layers // 2 if arguments.layer is None else arguments.layer)
    n, tokens = arguments.documents, arguments.tokens or lm.tokens_per_batch
    corpus = Corpus(read_documents(arguments.text, n) if arguments.text else generated_documents(n))
    contexts = Contexts.of(lm, corpus, lm.context)
    sequences = contexts.sequences(0, len(contexts))
    groups = plan_batches([len(sequence) for sequence in sequences], tokens)
    batches = [pad([sequences[i] for i in group], lm) for group in groups]
    # The same passages for the plain loop: the text of each context.
    document = np.searchsorted(contexts.document_start, contexts.first[:-1], side="right") - 1
    spans = zip(document, contexts.starts[contexts.first[:-1]], contexts.ends[contexts.first[1:] - 1], strict=True)
    texts = [corpus.documents[i][1][start:end] for i, start, end in spans]
    folder = Path(tempfile.mkdtemp(prefix="neurollm-benchmark-"))

    def run_harvest() -> None:
        harvest(lm, corpus, site, folder, tokens_per_shard=arguments.shard, tokens_per_batch=tokens, verbose=0)

    ways = {
        "plain loop (whole model, padded)": lambda: plain_loop(lm, texts, site.layer, arguments.batch),
        "neurollm.harvest (with disk)": run_harvest,
        "  of which tokenising": lambda: Contexts.of(lm, corpus, lm.context),
        "bare forward, batched before": lambda: ceiling(lm, batches, site),
    }
    try:
        seconds = measure(ways, arguments.repeats, lambda: shutil.rmtree(folder, ignore_errors=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(lm, site, contexts, seconds)


def report(lm: LanguageModel, site: Site, contexts: Contexts, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """The table and the two ratios."""
    print(f"model {lm.name}: {lm.n_layers} blocks, d {lm.d_model}, {lm.dtype} on {lm.device}, {site}")
    print(f"{contexts.n_rows:,} tokens in {len(contexts):,} contexts; {torch.get_num_threads()} threads\n")
    print(f"{'':34}{'median s':>10}{'min s':>9}{'max s':>9}{'tokens/s':>12}{'CPU s':>9}")
    for name, values in seconds.items():
        clock, cpu = np.array(values).T
        median = np.median(clock)
        print(
            f"{name:34}{median:10.2f}{clock.min():9.2f}{clock.max():9.2f}{contexts.n_rows / median:12,.0f}"
            f"{np.median(cpu):9.2f}"
        )
    for label, column in (("clock", 0), ("CPU", 1)):
        plain, ours, tokenising, bare = (np.array(values)[:, column] for values in seconds.values())
        print(
            f"\nby the {label}: {np.median(plain / ours):.2f} times as fast as the plain loop; "
            f"{np.median(ours / bare) * 100 - 100:+.0f} % over the bare forward "
            f"({np.median((ours - tokenising) / bare) * 100 - 100:+.0f} % without tokenising)"
        )
        print(
            f"fastest of {len(ours)} by the {label}: {plain.min() / ours.min():.2f} times; "
            f"{ours.min() / bare.min() * 100 - 100:+.0f} % "
            f"({(ours.min() - tokenising.min()) / bare.min() * 100 - 100:+.0f} % without tokenising)"
        )


if __name__ == "__main__":
    main()
