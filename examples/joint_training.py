"""Is an SAE that is trained together with an NFM better than an SAE? On the embedded model, with equal baselines.

    python examples/joint_training.py FOLDER

Joint, alone, alone with as many weights as the joint model, joint with codes of other tokens, and one after the other:
the same tokens in the same order, several seeds, held-out documents. About 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neurollm import load_model
from neurollm.activations import Corpus, harvest
from neurollm.datasets import demo_corpus_path
from neurollm.interactions import joint_comparison
from neurollm.models import Site

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--features", type=int, default=1024)
parser.add_argument("--k", type=int, default=16)
parser.add_argument("--rank", type=int, default=64)
parser.add_argument("--tokens", type=int, default=1_000_000)
parser.add_argument("--seeds", type=int, default=5)
args = parser.parse_args()

lm, documents = load_model("demo"), Corpus.read(demo_corpus_path()).documents
train, held_out = Corpus(documents[:1000], "training texts"), Corpus(documents[1000:], "held-out texts")
store = harvest(lm, train, Site(3), args.folder / "store")
other = harvest(lm, held_out, Site(3), args.folder / "held_out")
result = joint_comparison(
    store,
    other,
    args.features,
    args.k,
    args.rank,
    args.tokens,
    args.seeds,
    lm=lm,
    documents=[text for _, text in documents[1000:1100]],
    out=args.folder / "models",
)
result.save(args.folder / "result")
print(result.to_frame().round(4).to_string(index=False))
print(result.differences().round(4).to_string(index=False))
print(result.verdict())
