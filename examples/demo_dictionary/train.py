"""Make the demo dictionary: text → activations → TopK SAE → quality on held-out books → card.

With several ``--seeds`` all are trained in one pass, and saved in bfloat16 into a folder each: the small
dictionaries ``demo_seed0``, ``demo_seed1``, ``demo_seed2`` are made so. Every step resumes where it was
interrupted: make the same call again.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

import neurollm
import neurollm.dictionaries
from neurollm import Corpus, Site
from neurollm.dictionaries import (
    Plan,
    TopKTraining,
    evaluate_dictionary,
    load_dictionary,
    seed_stability,
    train_dictionaries,
)
from neurollm.files import write_text
from neurollm.models import tokenize
from neurollm.random import stream

TITLE = re.compile(r"(?:^|\n\n)([^\n]{1,120} -- [^\n]{2,60})\n\n")
HELD_OUT_TOKENS = 100_000
CE_TOKENS = 50_000
PIECE = 1_000  # characters of a held-out passage

CARD = """# Demo dictionary

A TopK sparse autoencoder of the residual stream after block {layer} of the demo model
({n_features:,} features, k = {k}, d = {d_in}), trained on {n_tokens:,} tokens of public-domain
books, {data}. SAELens inference layout; `neurollm.json` holds provenance and metrics.
Load it with `neurollm.load_dictionary("{name}")`.

Quality on {measured:,} tokens of books it was not trained on ({held_out}):

| measure | value |
|---|---|
| explained variance | {ev:.4f} |
| L0 | {l0:.1f} |
| features never active on these tokens | {dead:.2%} |
| features active on more than 10 % of tokens | {dense:.2%} |
| cosine, L2 ratio, shrinkage | {cosine:.4f}, {l2_ratio:.4f}, {shrinkage:.4f} |
| mean largest decoder cosine | {decoder_cosine:.3f} |
| cross-entropy, clean / spliced (nats per token, {n_predicted:,} tokens) | {ce:.4f} / {ce_sae:.4f} |
| cross-entropy, mean / zero ablation | {ce_mean:.4f} / {ce_zero:.4f} |
| cross-entropy recovered, against mean / zero ablation | {ce_recovered:.4f} / {ce_recovered_zero:.4f} |
| KL(clean ‖ spliced) | {kl:.4f} |

Special tokens are left out of training and of every figure. Expect many features that
detect single tokens or word pieces: compare with the control rows of a report before
reading anything into a feature.
"""


def read_documents(paths: list[Path]) -> list[tuple[str, str]]:
    """Documents of text files; books begin with a line ``Title -- Author`` between blank lines."""
    documents = []
    for path in paths:
        parts = TITLE.split(path.read_text("utf-8"))
        titled = list(zip(parts[1::2], parts[2::2], strict=True))
        documents += titled or [(path.stem, parts[0])]
    return documents


def split_held_out(
    documents: list[tuple[str, str]], titles: list[str], seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and held-out documents: those named, or else 3 drawn at random."""
    if titles:
        held = {name for name, _ in documents if any(name.startswith(title) for title in titles)}
    else:
        held = {documents[index][0] for index in stream(seed, "held_out").permutation(len(documents))[:3]}
    if not held or len(held) == len(documents):
        raise SystemExit(f"--held-out {titles}: no document, or every document, begins so")
    return [d for d in documents if d[0] not in held], [d for d in documents if d[0] in held]


def shorten(lm, documents: list[tuple[str, str]], n_tokens: int) -> list[tuple[str, str]]:
    """The same share of every document, about `n_tokens` in all."""
    sample = "\n".join(text[:2_000] for _, text in documents)
    per_token = len(sample) / len(tokenize(lm, [sample])[0])
    share = n_tokens * per_token / sum(len(text) for _, text in documents)
    if share >= 1:
        return documents
    return [(name, text[: max(200, int(len(text) * share))]) for name, text in documents]


def passages(documents: list[tuple[str, str]], n_tokens: int) -> list[str]:
    """Evenly spaced passages of the documents, about `n_tokens` in all (3 characters a token)."""
    pieces = [text[i : i + PIECE] for _, text in documents for i in range(0, len(text) - PIECE, PIECE)]
    step = max(1, len(pieces) * PIECE // (3 * n_tokens))
    return pieces[::step]


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--work", type=Path, required=True, help="folder for activations and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dictionary")
    parser.add_argument("--model", default="demo", help="name or folder of the language model")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=5_000_000, help="tokens to train on")
    parser.add_argument("--store-tokens", type=int, default=None, help="tokens to harvest; default: as many")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--held-out", nargs="*", default=[], help="titles of the held-out books; default: 3 at random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


def main() -> None:
    """Harvest, train, evaluate, save."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = arguments()
    lm = neurollm.load_model(args.model)
    train, held_out = split_held_out(read_documents(args.text), args.held_out, args.seeds[0])
    site = Site(args.layer)
    corpora = {
        "train": Corpus(shorten(lm, train, args.store_tokens or args.tokens), "books"),
        "held_out": Corpus(shorten(lm, held_out, HELD_OUT_TOKENS), "held-out books"),
    }
    stores = {name: neurollm.harvest(lm, corpus, site, args.work / name) for name, corpus in corpora.items()}
    training = TopKTraining(learning_rate=args.learning_rate, batch_size=args.batch_size)
    plans = [
        Plan(
            n_features=args.features,
            k=args.k,
            n_tokens=args.tokens,
            random_state=seed,
            out=args.work / f"dictionary-{seed}",
            training=training,
        )
        for seed in args.seeds
    ]
    several = len(plans) > 1
    finished = []
    for seed, dictionary in zip(args.seeds, train_dictionaries(stores["train"], plans), strict=True):
        out = args.out / f"seed{seed}" if several else args.out
        if several:
            dictionary.dtype = "bfloat16"
            dictionary.save(out)
            dictionary = load_dictionary(out)  # what is measured is what was rounded
        metrics = evaluate_dictionary(dictionary, stores["held_out"], lm, passages(held_out, CE_TOKENS), verbose=1)
        dictionary.metrics = {**metrics.to_dict(), "data": f"held-out books: {', '.join(name for name, _ in held_out)}"}
        dictionary.save(out)
        write_card(out, f"demo_seed{seed}" if several else "demo", dictionary, [name for name, _ in held_out])
        finished.append(dictionary)
    if several:
        logging.info("%s", seed_stability(finished).to_frame().to_string())


def write_card(folder: Path, name: str, dictionary: neurollm.dictionaries.SAE, held_out: list[str]) -> None:
    """What a reader should know of the dictionary in a folder."""
    run = dictionary.provenance["run"]
    facts = {
        **dictionary.metrics,
        "name": name,
        "layer": dictionary.site.layer,
        "k": run["k"],
        "d_in": dictionary.d_in,
        "n_features": dictionary.n_features,
        "n_tokens": run["n_tokens"],
        "measured": dictionary.metrics["n_tokens"],
        "data": dictionary.provenance["data"],
        "held_out": "; ".join(held_out),
    }
    card = CARD.format(**facts)
    write_text(folder / "README.md", card)
    logging.info("%s", card)


if __name__ == "__main__":
    main()
