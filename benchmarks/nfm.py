"""Speed of training an NFM, beside the reader that feeds it and a dense PyTorch NFM of the same model.

    python benchmarks/nfm.py                       # demo model, dictionary and resting-state corpus
    python benchmarks/nfm.py --store FOLDER --dictionary FOLDER
    python benchmarks/nfm.py --features 32768      # synthetic codes of a wider dictionary

All in one run, on the same tokens in batches of one size:

* reader, codes found: activations from the store and their codes by the dictionary: what training needs when codes
  are not kept;
* reader, codes kept: activations and codes from disk, aligned, and the dictionary's error;
* training: `neurollm.interactions` from the latter reader, and from memory as the ladder does;
* whole model: `train_nfm` from the first pass to the solved read-out, in tokens of its training;
* dense: the NFM as one writes it in PyTorch, S = s·V and Q = s²·V² with dense codes and Adam on all weights, from the
  same batches; without the time to make codes dense, and with it; the whole model with its linear part s·W + b.

The model is B·A of rank K on the dictionary's error, float32 unless --precision says otherwise. Losses after the same
tokens are printed, so that it is seen that both learn the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from neurollm.dictionaries.kernels import one_thread_less
from neurollm.interactions import CodedRows, InteractionTraining, simulate_codes, train_nfm
from neurollm.interactions.expansions import EMBEDDING_SCALE, Expansion
from neurollm.interactions.rows import CodedBatch
from neurollm.interactions.training import Learner, code_length, largest_code


def demo_rows(args: argparse.Namespace, folder: Path):
    """Store, dictionary and coded rows, codes kept in a folder."""
    from neurollm import load_model
    from neurollm.activations import ActivationStore, Corpus, harvest
    from neurollm.datasets import demo_corpus_path
    from neurollm.dictionaries import load_dictionary

    dictionary = load_dictionary(args.dictionary)
    if args.store:
        store = ActivationStore(args.store)
    else:
        store = harvest(load_model("demo"), Corpus.read(demo_corpus_path()), dictionary.site, folder / "store")
    return store, dictionary, CodedRows.of(store, dictionary, folder / "codes")


def timed(batches: Iterable, use: Callable, n_tokens: int) -> float:
    """Tokens a second; the first batch, which allocates, does not count."""

    def size(batch: torch.Tensor | CodedBatch | tuple) -> int:
        first = batch[0] if isinstance(batch, tuple) else batch
        return len(first) if isinstance(first, torch.Tensor) else len(first.rows)

    iterator, done = iter(batches), 0
    use(next(iterator))
    start = time.perf_counter()
    for batch in iterator:
        use(batch)
        done += size(batch)
        if done >= n_tokens:
            break
    return done / (time.perf_counter() - start)


def epochs(rows: CodedRows, batch_size: int) -> Iterable[CodedBatch]:
    """Batches without end."""
    epoch = 0
    while True:
        yield from rows.batches(batch_size, 0, epoch)
        epoch += 1


class Dense:
    """The NFM of a textbook."""

    def __init__(self, like: Expansion, d: int, scale: float, rate: float, whole: bool = False) -> None:
        self.V = like.embeddings.clone().requires_grad_()
        self.A = torch.zeros(like.n_columns, d, requires_grad=True)
        self.linear = [torch.zeros(like.n_features, d, requires_grad=True), torch.zeros(d, requires_grad=True)] * whole
        self.adam = torch.optim.Adam([self.V, self.A, *self.linear], lr=rate)
        self.length, self.scale = like.code_length, scale

    def step(self, code: torch.Tensor, error: torch.Tensor) -> float:
        s = code / self.length
        total, squares = s @ self.V, s.square() @ self.V.square()
        predicted = (0.5 * (total.square() - squares)) @ self.A
        if self.linear:
            predicted = predicted + s @ self.linear[0] + self.linear[1]
        loss = (predicted - error / self.scale).square().mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return float(loss)


def learner(rows: CodedRows, args: argparse.Namespace) -> Learner:
    length, top_n = code_length(rows), largest_code(rows)
    expansion = Expansion("pairs", (rows.n_features, args.rank, args.rank), top_n, length)
    training = InteractionTraining(batch_size=args.batch_size, precision=args.precision, warmup=0, decay=0)
    return Learner(expansion, rows, rows, training.resolve())


def train(rows: CodedRows, args: argparse.Namespace) -> float:
    with one_thread_less():
        one = learner(rows, args)
        batches = (batch for epoch in range(10**6) for batch in one.batches(epoch))
        return timed(batches, lambda batch: one.step(*batch, 10**12), args.tokens)


def train_whole(rows: CodedRows, args: argparse.Namespace) -> float:
    """Tokens of the training over the time of everything."""
    training = InteractionTraining(batch_size=args.batch_size, precision=args.precision)
    start = time.perf_counter()
    nfm = train_nfm(rows, rank=args.rank, training=training, verbose=0)
    return nfm.provenance["tokens"] / (time.perf_counter() - start)


def dense(rows: CodedRows, args: argparse.Namespace, whole: bool = False) -> tuple[float, float]:
    """Tokens a second without and with making the codes dense."""
    like = learner(rows, args)
    peer = Dense(like.expansion, rows.d, like.scale, like.training.learning_rate, whole)
    spent, tokens = np.zeros(2), 0
    for index, batch in enumerate(epochs(rows, args.batch_size)):
        begin = time.perf_counter()
        code = torch.from_numpy(batch.code.toarray())
        made = time.perf_counter()
        peer.step(code, batch.error)
        if index:
            spent += [time.perf_counter() - made, time.perf_counter() - begin]
            tokens += len(batch.rows)
        if tokens >= min(args.tokens, args.dense_tokens):
            break
    return tuple(tokens / spent)


def same_losses(rows: CodedRows, args: argparse.Namespace, n_steps: int = 20) -> tuple[float, float]:
    """Mean squared error of the last of some steps, ours and dense, on the same batches."""
    ours = learner(rows, args)
    peer = Dense(ours.expansion, rows.d, ours.scale, ours.training.learning_rate)
    for _, batch in zip(range(n_steps), rows.batches(args.batch_size, 0), strict=False):
        with torch.no_grad():
            predicted = ours.expansion.columns(batch.code) @ ours.readout
            own = float((predicted - batch.error / ours.scale).square().mean())
        other = peer.step(torch.from_numpy(batch.code.toarray()), batch.error)
        ours.step(batch, ours.expansion.active(batch.code), 10**12)
    return own, other


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store")
    parser.add_argument("--dictionary", default="demo")
    parser.add_argument("--features", type=int, help="synthetic codes of so many features instead")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--dense-tokens", type=int, default=60_000)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, rank {args.rank}, batch {args.batch_size}")
    with tempfile.TemporaryDirectory() as name:
        speeds: dict[str, float] = {}
        if args.features:
            rows = simulate_codes(20_000, args.features, 32, 256, pairs=5, tokens_per_document=200).rows
        else:
            store, dictionary, rows = demo_rows(args, Path(name))
            found = (batch for epoch in range(99) for batch in store.batches(args.batch_size, 0, epoch))
            speeds["reader, codes found"] = timed(found, dictionary.encode_sparse, args.tokens)
        print(rows, f"{rows.n_features:,} features")
        speeds["reader, codes kept"] = timed(epochs(rows, args.batch_size), lambda batch: None, args.tokens)
        speeds["training from that reader"] = train(rows, args)
        held = rows.with_errors(lambda batch: batch.error)
        speeds["reader, held in memory"] = timed(epochs(held, args.batch_size), lambda batch: None, args.tokens)
        speeds["training from memory"] = train(held, args)
        speeds["training of the whole model"] = train_whole(rows, args)
        speeds["dense, its steps alone"], speeds["dense, with making codes dense"] = dense(held, args)
        speeds["dense, whole model"], speeds["dense, whole, with making codes"] = dense(held, args, whole=True)
        for label, speed in speeds.items():
            print(f"{label:32s} {speed:12,.0f} tokens/s")
        training = speeds["training from that reader"]
        for reader in ("reader, codes found", "reader, codes kept"):
            if reader in speeds:
                print(f"{reader} / training: {speeds[reader] / training:.2f} (asked: at most 1.5)")
        for peer in ("dense, its steps alone", "dense, with making codes dense"):
            print(f"training / {peer}: {training / speeds[peer]:.1f} (asked: at least 10)")
        ratio = speeds["training of the whole model"] / speeds["dense, whole model"]
        print(f"training / dense, of whole models: {ratio:.1f}")
        print("squared error after 20 steps, ours and dense: {:.5f} and {:.5f}".format(*same_losses(held, args)))
        print(f"(embeddings begin with SD {EMBEDDING_SCALE})")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
