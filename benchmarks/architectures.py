"""All architectures, and what is learnt from nothing, at the same number of active features on the demo model.

The embedded model reads its embedded corpus; five sixths of the documents are learnt from, one sixth is
measured on. All architectures are trained in one pass. TopK keeps k features on a token, the others are
steered to k on the average, so that FVU can be compared at equal L0.

    python benchmarks/architectures.py                       # F = 1,024, k = 16, 1.5 million tokens
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import neurollm
from neurollm import datasets
from neurollm.activations import ActivationStore, Corpus
from neurollm.dictionaries import Plan, controls_of, evaluate_dictionary, train_dictionaries
from neurollm.dictionaries.training import LEARNERS


def stores(folder: Path, layer: int) -> tuple[ActivationStore, ActivationStore]:
    """Activations of the embedded corpus: to learn from, and held out."""
    lm = neurollm.load_model("demo")
    documents = Corpus.read(datasets.demo_corpus_path()).documents
    parts = {
        "train": [d for i, d in enumerate(documents) if i % 6],
        "held_out": [d for i, d in enumerate(documents) if not i % 6],
    }
    site = neurollm.Site(layer)
    found = [neurollm.harvest(lm, Corpus(docs, name), site, folder / name) for name, docs in parts.items()]
    return found[0], found[1]


def main() -> None:
    """Train all and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--layer", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = stores(Path(folder), args.layer)
        plans = [
            Plan(
                architecture=name,
                n_features=args.features,
                k=args.k,
                n_tokens=args.tokens,
                training=kind.options(batch_size=args.batch_size),
            )
            for name, kind in LEARNERS.items()
        ]
        start = time.perf_counter()
        trained = dict(zip(LEARNERS, train_dictionaries(train, plans), strict=True))
        seconds = time.perf_counter() - start
        print(f"{len(plans)} dictionaries of {args.features} features in one pass: {seconds:.0f} s")
        controls = controls_of(trained["topk"], train)
        rows = {**trained, **{f"control: {name}": control for name, control in controls.items()}}
        names = ("fvu", "l0", "dead", "shrinkage", "gini", "decoder_cosine")
        print(f"{'':26s}" + "".join(f"{name:>15s}" for name in names))
        for name, dictionary in rows.items():
            metrics = evaluate_dictionary(dictionary, held_out)
            values = [getattr(metrics, field) for field in names]
            cells = [f"{'':>15s}" if value is None else f"{value:15.4f}" for value in values]
            print(f"{name:26s}" + "".join(cells), flush=True)
        print(
            f"trained on {train.n_rows:,} tokens, each seen {args.tokens / train.n_rows:.1f} times; "
            f"measured on {held_out.n_rows:,} others"
        )


if __name__ == "__main__":
    main()
