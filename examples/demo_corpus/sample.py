"""Sample the resting-state corpus: what the demo model says when it is asked nothing.

Every document starts from the start token alone, so no third-party text and no prompt
enters. Run from the repository's top level:

    python examples/demo_corpus/sample.py --out neurollm/datasets/demo_corpus/resting_state.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from neurollm.files import write_text
from neurollm.models import LanguageModel, load_model
from neurollm.progress import Progress

BATCH = 64


def sample_documents(lm: LanguageModel, n_documents: int, seed: int, temperature: float, top_p: float) -> list[str]:
    """Texts sampled from the start token to the end token or the end of the context.

    Parameters
    ----------
    lm : LanguageModel
        A causal model.
    n_documents : int
    seed : int
    temperature, top_p : float
        Nucleus sampling.

    Returns
    -------
    list of str
        Texts of at least 20 words; the last, unfinished sentence is cut off.
    """
    torch.manual_seed(seed)
    start = torch.full((BATCH, 1), lm.tokenizer.bos_token_id, device=lm.device)
    texts: list[str] = []
    with Progress("resting state", n_documents, "documents") as progress:
        while len(texts) < n_documents:
            ids = lm.model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                max_length=lm.context,
                pad_token_id=lm.tokenizer.eos_token_id,
            )
            new = [_whole_sentences(text) for text in lm.tokenizer.batch_decode(ids, skip_special_tokens=True)]
            new = [text for text in new if len(text.split()) >= 20][: n_documents - len(texts)]
            texts += new
            progress.advance(len(new))
    return texts


def _whole_sentences(text: str) -> str:
    end = max(text.rfind(mark) for mark in '.!?"')
    return text[: end + 1].strip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument("--documents", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.95)
    args = parser.parse_args()
    texts = sample_documents(load_model("demo"), args.documents, args.seed, args.temperature, args.top_p)
    lines = [json.dumps({"name": f"rest-{index:04d}", "text": text}) for index, text in enumerate(texts)]
    write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
