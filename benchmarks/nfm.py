"""Speed of training an NFM, beside the reader that feeds it and a dense PyTorch NFM of the same model.

    python benchmarks/nfm.py                       # demo model, dictionary and resting-state corpus
    python benchmarks/nfm.py --store FOLDER --dictionary FOLDER
    python benchmarks/nfm.py --features 32768      # synthetic codes of a wider dictionary, in memory
    python benchmarks/nfm.py --batch-size 1024     # the default of `InteractionTraining`

All in one run, in turn for several rounds (medians over them, of ratios too, are printed), on the same tokens in
batches of one size, as large as trainers of SAEs take them:

* reader, codes found: activations from the store and their codes by the dictionary: what training needs when codes
  are not kept;
* reader, codes kept: activations and codes from disk, aligned and shuffled, and the dictionary's error, in one thread,
  as training has it; from the page cache, and with this machine's cache of the files emptied before (Linux; what
  lies below, such as the host of a virtual machine, may still hold them);
* training: `neurollm.interactions` from the latter reader, and from memory, which is what `train_nfm` and the ladder do
  where codes and errors fit;
* whole model: `train_nfm` from the first pass to the solved read-out, in tokens of its training;
* dense: the NFM as one writes it in PyTorch, S = s·V and Q = s²·V² with dense codes and Adam on all weights, from the
  same batches; without the time to make codes dense, and with it; the whole model with its linear part s·W + b.

The model is B·A of rank K on the dictionary's error, float32 unless --precision says otherwise (dense: always). The
losses of both on the same batch after the same steps are printed, so that it is seen that both learn the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from neurollm import load_model
from neurollm.activations import ActivationStore, Corpus, harvest
from neurollm.activations.reader import read_ahead
from neurollm.datasets import demo_corpus_path
from neurollm.dictionaries import Dictionary, load_dictionary
from neurollm.dictionaries.kernels import one_thread_less
from neurollm.interactions import CodedRows, InteractionTraining, simulate_codes, train_nfm
from neurollm.interactions.expansions import EMBEDDING_SCALE, Expansion
from neurollm.interactions.rows import CodedBatch
from neurollm.interactions.training import AHEAD, Learner, code_length, largest_code

RATIOS = [
    ("reader", "training", " (asked: at most 1.5)"),
    ("reader, from disk", "training, from disk", " (asked: at most 1.5)"),
    ("reader", "training, from memory", " (asked: at most 1.5; as train_nfm trains here)"),
    ("reader, codes found", "training", ""),
    ("reader, from memory", "training, from memory", ""),
    ("training", "dense", " (asked: at least 10)"),
    ("training, from memory", "dense", ""),
    ("training", "dense, making codes dense", ""),
    ("whole model", "dense, whole model", ""),
]


def demo_rows(args: argparse.Namespace, folder: Path) -> tuple[Path, Dictionary]:
    """Folder of the store, and the dictionary."""
    dictionary = load_dictionary(args.dictionary)
    path = Path(args.store) if args.store else folder / "store"
    if not args.store:
        harvest(load_model("demo"), Corpus.read(demo_corpus_path()), dictionary.site, path)
    return path, dictionary


def timed(batches: Iterable, use: Callable, n_tokens: int, first: bool = False) -> float:
    """Tokens a second; the first batch, which allocates and fills the reader's buffer, counts if it is asked to."""
    iterator, done, start = iter(batches), 0, time.perf_counter()
    if not first:
        use(next(iterator))
        start = time.perf_counter()
    for batch in iterator:
        use(batch)
        done += len(batch[0].rows if isinstance(batch, tuple) else getattr(batch, "rows", batch))
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


def train(opened: Callable[[], CodedRows], like: CodedRows, args: argparse.Namespace, once: bool = False) -> float:
    """From rows opened when all else is ready; `like` are the same in memory."""
    one = learner(like, args)
    with one_thread_less():
        one.fit = opened()
        batches = (batch for epoch in range(1 if once else 10**6) for batch in one.batches(epoch))
        return timed(batches, lambda batch: one.step(*batch, 10**12), args.tokens, first=once)


def read(opened: Callable[[], CodedRows], args: argparse.Namespace, once: bool = False) -> float:
    """In one thread and `AHEAD` batches ahead, as for training (which stays below `AHEAD_BYTES` too)."""
    rows = opened()

    def batches() -> Iterator[CodedBatch]:
        torch.set_num_threads(1)
        for epoch in range(1 if once else 10**6):
            yield from rows.batches(args.batch_size, 0, epoch, prefetch=False)

    with one_thread_less():
        return timed(read_ahead(batches(), AHEAD), lambda batch: None, args.tokens, first=once)


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
    for _, batch in zip(range(n_steps), epochs(rows, args.batch_size), strict=False):
        with torch.no_grad():
            predicted = ours.expansion.columns(batch.code) @ ours.readout
            own = float((predicted - batch.error / ours.scale).square().mean())
        other = peer.step(torch.from_numpy(batch.code.toarray()), batch.error)
        ours.step(batch, ours.expansion.active(batch.code), 10**12)
    return own, other


def without_cache(folders: list[Path]) -> None:
    """Forget what the operating system keeps of the files; pages that somebody maps would stay."""
    gc.collect()
    os.sync()
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        with open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measures(args: argparse.Namespace, folder: Path) -> tuple[CodedRows, dict[str, Callable[[], float]]]:
    """Rows held in memory, and what is measured."""
    found: dict[str, Callable[[], float]] = {}
    if args.features:
        simulated = simulate_codes(20_000, args.features, 32, 256, pairs=5, tokens_per_document=200).rows

        def opened() -> CodedRows:
            return simulated
    else:
        path, dictionary = demo_rows(args, folder)

        def opened() -> CodedRows:
            return CodedRows.of(ActivationStore(path), dictionary, folder / "codes", verbose=0)

        def codes_found() -> float:
            batches = ActivationStore(path).batches(args.batch_size)
            return timed(batches, dictionary.encode_sparse, args.tokens // 4)

        def from_disk() -> CodedRows:
            without_cache([path, folder / "codes"])
            return opened()

        found["reader, codes found"] = codes_found
        if hasattr(os, "posix_fadvise"):
            found["reader, from disk"] = lambda: read(from_disk, args, once=True)
            found["training, from disk"] = lambda: train(from_disk, held, args, once=True)
    held = opened().with_errors(lambda batch: batch.error)
    found["reader"] = lambda: read(opened, args)
    found["training"] = lambda: train(opened, held, args)
    found["reader, from memory"] = lambda: read(lambda: held, args)
    found["training, from memory"] = lambda: train(lambda: held, held, args)
    found["dense"] = lambda: dense(held, args)[0]
    found["dense, making codes dense"] = lambda: dense(held, args)[1]
    found["whole model"] = lambda: train_whole(opened(), args)
    found["dense, whole model"] = lambda: dense(held, args, whole=True)[0]
    return held, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store")
    parser.add_argument("--dictionary", default="demo")
    parser.add_argument("--features", type=int, help="synthetic codes of so many features instead")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--dense-tokens", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, rank {args.rank}, batch {args.batch_size}")
    with tempfile.TemporaryDirectory() as name:
        held, found = measures(args, Path(name))
        print(held, f"{held.n_features:,} features")
        if held.n_rows < 2 * args.batch_size:
            parser.error(f"--batch-size {args.batch_size} leaves no second batch of {held.n_rows} tokens to time")
        speeds: dict[str, list[float]] = {label: [] for label in found}
        for _ in range(args.rounds):
            for label, measure in found.items():
                speeds[label].append(measure())
        for label, values in speeds.items():
            low, middle, high = np.quantile(values, [0, 0.5, 1])
            print(f"{label:28s} {middle:10,.0f} tokens/s ({low:,.0f} to {high:,.0f})")
        for above, below, asked in RATIOS:
            if above in speeds and below in speeds:
                ratio = np.median(np.divide(speeds[above], speeds[below]))
                print(f"{above} / {below}: {ratio:.2f}{asked}")
        print("squared error after 20 steps, ours and dense: {:.5f} and {:.5f}".format(*same_losses(held, args)))
        print(f"(embeddings begin with SD {EMBEDDING_SCALE})")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
