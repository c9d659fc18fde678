"""Text preparation and byte-level BPE tokenizer of the demo language model.

Reads the plain-text sources, cleans them, splits them into documents, holds
out about one per cent of the documents, trains a small byte-level BPE
vocabulary on the rest and stores both parts as ``uint16`` token files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = "<|endoftext|>"
SPECIAL_ID = 0
CONTEXT = 256
MIN_HELD_OUT = 1500  # characters; shorter documents say little about the loss


@dataclass(frozen=True)
class Source:
    """One text file: how it is split, how often it is seen, what is held out."""

    name: str
    kind: str  # "books", "wiki" or "plain" (no titles: cut into 100 parts)
    weight: int  # how many times per epoch the text is seen
    held_out: int  # number of documents kept for validation


# Children's books, encyclopaedic and political prose are seen more often than
# the large collection of old novels: they hold the plainer and newer English.
SOURCES = (
    Source("books", "books", 1, 3),
    Source("children_books", "books", 2, 1),
    Source("wikitext2_valid_test", "wiki", 4, 3),
    Source("presidential_speeches", "plain", 2, 1),
    Source("tinyshakespeare", "plain", 1, 1),
)


def clean_wiki_line(line: str) -> str | None:
    """Turn a WikiText line into natural text; None when it is not usable."""
    if not line.strip():
        return None
    heading = re.fullmatch(r"\s*((?:= )+)(.+?)((?: =)+)\s*", line)
    if heading:
        return None if "<unk>" in line else heading.group(2)
    text = re.sub(r" @([-,.])@ ", r"\1", line.strip())
    # Sentences that contain an unknown word are removed, the others are kept.
    sentences = re.split(r"(?<=[.!?]) ", text)
    known = [s for s in sentences if "<unk>" not in s]
    if 4 * len(known) < len(sentences) or not known:  # hardly a paragraph any more
        return None
    text = " ".join(known)
    text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r"(\w) (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1\2", text)
    text = re.sub(r"(\w) ' (\w)", r"\1' \2", text)
    return re.sub(r"\s+", " ", text).strip() or None


def clean_prose(text: str) -> str:
    """Remove underscores that mark italics; keep one newline per paragraph."""
    text = re.sub(r"_([^_\n]{1,200})_", r"\1", text.replace("\r", ""))
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def split_documents(raw: str, kind: str, name: str) -> list[tuple[str, str]]:
    """Split one source into documents.

    Returns
    -------
    list of (str, str)
        Title and cleaned text of each document.
    """
    if kind == "books":
        parts = re.split(r"(?:^|\n\n)([^\n]{1,120} -- [^\n]{2,60})\n\n", raw)
        return [(parts[i], clean_prose(parts[i + 1])) for i in range(1, len(parts), 2)]
    if kind == "wiki":
        docs: list[tuple[str, list[str]]] = []
        for line in raw.split("\n"):
            title = re.fullmatch(r"\s*= ([^=]+?) =\s*", line)
            if title:
                docs.append((title.group(1), []))
            cleaned = clean_wiki_line(line)
            if docs and cleaned:
                docs[-1][1].append(cleaned)
        return [(title, "\n".join(lines)) for title, lines in docs if len(lines) > 2]
    text = clean_prose(raw)
    size = len(text) // 100
    cuts = [0]
    while cuts[-1] < len(text):
        end = text.find("\n", cuts[-1] + size)
        cuts.append(len(text) if end < 0 else end + 1)
    return [(f"{name}, part {i}", text[a:b]) for i, (a, b) in enumerate(itertools.pairwise(cuts))]


def load_sources(folder: Path, seed: int) -> tuple[dict, dict, dict]:
    """Read, clean and split all sources.

    Returns
    -------
    train, held_out : dict
        Source name -> list of document texts.
    titles : dict
        Source name -> titles of the held-out documents.
    """
    train: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    titles: dict[str, list[str]] = {}
    rng = np.random.default_rng(seed)
    parsed = {s.name: split_documents((folder / f"{s.name}.txt").read_text("utf-8"), s.kind, s.name) for s in SOURCES}
    everywhere = [title.lower() for docs in parsed.values() for title, _ in docs]
    for source in SOURCES:
        docs = parsed[source.name]
        # A work that occurs twice must not be held out: its copy is trained on.
        order = [
            i
            for i in rng.permutation(len(docs))
            if everywhere.count(docs[i][0].lower()) == 1 and len(docs[i][1]) >= MIN_HELD_OUT
        ]
        chosen = set(order[: source.held_out])
        train[source.name] = [t for i, (_, t) in enumerate(docs) if i not in chosen]
        held_out[source.name] = [docs[i][1] for i in sorted(chosen)]
        titles[source.name] = [docs[i][0] for i in sorted(chosen)]
    return train, held_out, titles


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train the byte-level BPE; every encoding starts with the special token."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator((line for t in texts for line in t.split("\n")), trainer)
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{SPECIAL} $A",
                pair=f"{SPECIAL} $A $B",
                special_tokens=[(SPECIAL, SPECIAL_ID)],
            ),
        ]
    )
    return tok


def save_tokenizer(tok: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` (compact) and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tok.to_str(pretty=False), "utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL,
        "eos_token": SPECIAL,
        "pad_token": SPECIAL,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def encode_documents(tok: Tokenizer, docs: list[str]) -> np.ndarray:
    """Encode documents line by line; the special token ends each document."""
    pieces: list[np.ndarray] = []
    for doc in docs:
        lines = [line + "\n" for line in doc.split("\n") if line]
        for enc in tok.encode_batch_fast(lines, add_special_tokens=False):
            pieces.append(np.array(enc.ids, dtype=np.uint16))
        pieces.append(np.array([SPECIAL_ID], dtype=np.uint16))
    return np.concatenate(pieces)


def prepare(text: Path, work: Path, vocab_size: int, seed: int = 0) -> None:
    """Do everything up to the token files in ``work`` (once)."""
    if (work / "data.json").exists():
        made = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json")).get_vocab_size()
        if made != vocab_size:
            raise SystemExit(f"{work} was prepared with {made} entries, not {vocab_size}; use another work folder")
        return
    work.mkdir(parents=True, exist_ok=True)
    train, held_out, titles = load_sources(text, seed)
    tok = train_tokenizer([t for docs in train.values() for t in docs], vocab_size)
    save_tokenizer(tok, work / "tokenizer")
    info: dict[str, dict] = {}
    for source in SOURCES:
        ids = encode_documents(tok, train[source.name])
        val = encode_documents(tok, held_out[source.name])
        np.save(work / f"train_{source.name}.npy", ids)
        np.save(work / f"val_{source.name}.npy", val)
        n_bytes = sum(len(t.encode()) for t in train[source.name])
        info[source.name] = {
            "weight": source.weight,
            "train_documents": len(train[source.name]),
            "train_bytes": n_bytes,
            "train_tokens": int(ids.size),
            "held_out_tokens": int(val.size),
            "held_out_documents": titles[source.name],
        }
        print(f"{source.name}: {ids.size:,} tokens, {n_bytes / ids.size:.2f} bytes per token")
    (work / "data.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="folder with the text files")
    parser.add_argument("--work", type=Path, required=True, help="folder for token files")
    parser.add_argument("--vocabulary", type=int, default=8192, help="entries of the tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="choice of the held-out documents")
    args = parser.parse_args()
    prepare(args.text, args.work, args.vocabulary, args.seed)


if __name__ == "__main__":
    main()
