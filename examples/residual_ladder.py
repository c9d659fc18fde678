"""What do pairs of features explain that a dictionary leaves over? The ladder, partners and KL on the embedded model.

    python examples/residual_ladder.py FOLDER            # about an hour on two cores; goes on where it was stopped
    python examples/residual_ladder.py FOLDER --seeds 2  # a first look

The texts are those that ship with neurollm (sampled from the embedded model itself); --corpus reads others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from neurollm import load_dictionary, load_model
from neurollm.activations import Corpus, harvest
from neurollm.datasets import demo_corpus_path
from neurollm.interactions import (
    CodedRows,
    contributions,
    inspect_weights,
    interaction_partners,
    perturbation_test,
    residual_ladder,
    train_nfm,
)
from neurollm.plotting.inspection import plot_weight_report
from neurollm.plotting.ladder import plot_ladder
from neurollm.plotting.perturbation import plot_perturbation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--corpus", type=Path, default=demo_corpus_path())
parser.add_argument("--texts", type=int, default=120, help="held-out documents for KL and cross-entropy")
args = parser.parse_args()

lm, sae = load_model("demo"), load_dictionary("demo")
store = harvest(lm, Corpus.read(args.corpus), sae.site, args.folder / "store")
rows = CodedRows.of(store, sae, args.folder / "codes")

# The ladder: every step judged on documents that took no part in it.
controls = ("shuffled", "gaussian", "frozen", "additive", "residual_sae")
ladder = residual_ladder(rows, sae, seeds=args.seeds, controls=controls, out=args.folder / "ladder")
ladder.save(args.folder / "result")
plot_ladder(ladder).figure.savefig(args.folder / "ladder.png", dpi=150)
print(ladder.summary().round(5).to_string(index=False))
print(ladder.verdict())

# One model, trained on four fifths of the documents; everything below is about the others.
documents = np.unique(rows.documents)
held_out = np.isin(rows.documents, documents[::5])
nfm = train_nfm(rows.subset(~held_out), sae, out=args.folder / "nfm")
print(contributions(nfm, rows.subset(held_out)).verdict())

# Partners of the features that occur most often, on held-out documents.
often = np.argsort(-sum(np.asarray((batch.code > 0).sum(0)).ravel() for batch in rows.in_order()))[200:205]
for feature in often:
    print(interaction_partners(nfm, rows.subset(held_out), int(feature), sae, top=5).verdict())

# Weights beside those of models that learned nothing.
report = inspect_weights(nfm, sae)
plot_weight_report(report).savefig(args.folder / "weights.png", dpi=150)
print(report.verdict())


# Are the errors worse than random ones of the same size, and does the interaction component mend that?
def with_components(refit: bool, pairs: bool):
    """A reconstruction with some components of the interaction model."""

    def reconstruct(x):
        code = sae.encode_sparse(x)
        parts = [sae.decode(code, x)]
        parts += [nfm.linear(code).numpy()] * refit + [nfm.interaction(nfm.interactions(code)).numpy()] * pairs
        return x.new_tensor(np.sum(parts, axis=0))

    return reconstruct


conditions = {
    "dictionary": sae.reconstruct,
    "+ refit": with_components(True, False),
    "+ refit and pairs": with_components(True, True),
}
texts = [store.documents[int(index)][1] for index in documents[::5][: args.texts]]
result = perturbation_test(lm, sae.site, conditions, texts)
result.save(args.folder / "result")
plot_perturbation(result)[0].figure.savefig(args.folder / "perturbation.png", dpi=150)
print(result.to_frame().round(4).to_string(index=False))
print(result.verdict())
