"""Does a block of the network know more than its token embeddings?

For every labelled set a linear probe reads mean-pooled activations (special
tokens left out) of the token embeddings, of each block and of the same
architecture with random weights. All representations share the folds; the
interval of the paired difference is the corrected resampled t interval.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

GRID = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse regularisation strengths


def read_tsv(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read ``label TAB text`` lines."""
    rows = [line.split("\t", 1) for line in path.read_text("utf-8").splitlines() if "\t" in line]
    return np.array([r[0] for r in rows]), [r[1] for r in rows]


def load_tasks(folder: Path, max_items: int, seed: int) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Labelled sets by name: integer labels and texts.

    Parameters
    ----------
    folder : Path
        Holds ``sentence_polarity.tsv``, ``movie_reviews.tsv`` and
        ``question_classification.tsv``; a missing file is skipped.
    max_items : int
        Larger sets are subsampled to this size.
    seed : int
        Seed of the subsample.
    """
    found: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name in ("sentence_polarity", "movie_reviews"):
        if (folder / f"{name}.tsv").exists():
            found[name] = read_tsv(folder / f"{name}.tsv")
    path = folder / "question_classification.tsv"
    if path.exists():
        labels, texts = read_tsv(path)
        coarse = np.array([label.split(":")[0] for label in labels])
        found["question_6_classes"] = (coarse, texts)
        keep = np.flatnonzero(np.isin(coarse, ["HUM", "NUM"]))
        found["question_human_number"] = (coarse[keep], [texts[i] for i in keep])
    tasks = {}
    for name, (labels, texts) in found.items():
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(len(texts))[:max_items])
        codes = np.unique(labels, return_inverse=True)[1]
        tasks[name] = (codes[chosen], [texts[i] for i in chosen])
    return tasks


def encode(tokenizer, texts: list[str], limit: int) -> list[tuple[list[int], list[bool]]]:
    """Token ids that begin with the special token, and which of them to pool."""
    batch = tokenizer(texts, truncation=True, max_length=limit - 1, return_special_tokens_mask=True)
    out = []
    for ids, special in zip(batch["input_ids"], batch["special_tokens_mask"], strict=True):
        if not special[0]:
            ids, special = [tokenizer.bos_token_id, *ids], [1, *special]
        out.append((ids, [s == 0 for s in special]))
    return out


@torch.no_grad()
def pooled(model, tokenizer, texts: list[str], batch_size: int = 32) -> np.ndarray:
    """Mean activation per text, shape (1 + blocks, texts, width); row 0: embeddings."""
    base = model.transformer
    taken: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> None:
        taken.append(output[0] if isinstance(output, tuple) else output)

    sites = [base.wte, *base.h]
    handles = [site.register_forward_hook(keep) for site in sites]
    items = encode(tokenizer, texts, model.config.n_positions)
    order = np.argsort([len(ids) for ids, _ in items])
    out = np.zeros((len(sites), len(texts), model.config.n_embd), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(items[r][0]) for r in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, use = torch.zeros_like(ids), torch.zeros(len(rows), width)
        for i, r in enumerate(rows):
            n = len(items[r][0])
            ids[i, :n] = torch.tensor(items[r][0])
            mask[i, :n] = 1
            use[i, :n] = torch.tensor(items[r][1], dtype=torch.float32)
        taken.clear()
        base(ids, attention_mask=mask, use_cache=False)
        weight = (use / use.sum(1, keepdim=True).clamp(min=1))[:, :, None]
        for k, activation in enumerate(taken):
            out[k, rows] = (activation.float() * weight).sum(1).numpy()
    for handle in handles:
        handle.remove()
    return out


def fit_score(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Balanced accuracy on ``test``; regularisation chosen inside ``train``."""

    def path(fit: np.ndarray, held: np.ndarray, grid: tuple[float, ...]) -> list[float]:
        scaler = StandardScaler().fit(x[fit])
        known, unknown = scaler.transform(x[fit]), scaler.transform(x[held])
        # Warm start: each strength begins at the solution of the one before.
        probe = LogisticRegression(max_iter=300, tol=1e-3, warm_start=True)
        scores = []
        for strength in grid:
            probe.set_params(C=strength).fit(known, y[fit])
            scores.append(balanced_accuracy_score(y[held], probe.predict(unknown)))
        return scores

    inner = StratifiedKFold(3, shuffle=True, random_state=0).split(train, y[train])
    means = np.mean([path(train[a], train[b], GRID) for a, b in inner], axis=0)
    return path(train, test, (GRID[int(np.argmax(means))],))[0]


def corrected_interval(difference: np.ndarray, ratio: float) -> tuple[float, float, float]:
    """Mean and 95 % corrected resampled t interval (Nadeau & Bengio, 2003).

    Parameters
    ----------
    difference : ndarray
        Paired difference per fold.
    ratio : float
        Test size over training size.
    """
    n = difference.size
    error = np.sqrt((1 / n + ratio) * difference.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    mean = float(difference.mean())
    return mean, mean - half, mean + half


def probe_model(folder: Path, tasks: dict, middle: int, repeats: int, every_block: bool) -> dict:
    """Probe one model on all tasks; returns fold scores by task and representation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    torch.manual_seed(0)
    blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    blank = blank.to(torch.bfloat16).eval()
    results: dict[str, dict] = {}
    for task, (labels, texts) in tasks.items():
        start = time.monotonic()
        features = pooled(model, tokenizer, texts)
        random = pooled(blank, tokenizer, texts)
        named = {"embeddings": features[0]}
        for block in range(len(features) - 1):
            if every_block or block == middle:
                named[f"block {block}"] = features[1 + block]
        named["random emb."] = random[0]
        named[f"random block {middle}"] = random[1 + middle]
        folds = list(RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=0).split(labels, labels))
        scores = {k: [fit_score(x, labels, a, b) for a, b in folds] for k, x in named.items()}
        gain = np.array(scores[f"block {middle}"]) - np.array(scores["embeddings"])
        results[task] = {
            "scores": scores,
            "difference": corrected_interval(gain, len(folds[0][1]) / len(folds[0][0])),
            "items": len(texts),
        }
        seconds = time.monotonic() - start
        print(f"{seconds:.0f} s {table({task: results[task]}, middle)}", flush=True)
    return results


def table(results: dict, middle: int) -> str:
    """Markdown table of mean accuracies and the paired difference."""
    names = list(next(iter(results.values()))["scores"])
    head = ["set (items)", *names, f"block {middle} - embeddings [95 % CI]"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for task, entry in results.items():
        mean, low, high = entry["difference"]
        cells = [f"{np.mean(entry['scores'][n]):.3f}" for n in names]
        cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {task} ({entry['items']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelled", type=Path, required=True, help="folder with the tsv files")
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="model folders")
    parser.add_argument("--middle", type=int, default=3, help="block compared with embeddings")
    parser.add_argument("--max-items", type=int, default=4000, help="larger sets are subsampled")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the 5 folds")
    parser.add_argument("--tasks", nargs="*", help="only these sets")
    parser.add_argument("--only-middle", action="store_true", help="skip the other blocks")
    parser.add_argument("--json", type=Path, help="also write all fold scores here")
    args = parser.parse_args()
    tasks = load_tasks(args.labelled, args.max_items, seed=0)
    tasks = {k: v for k, v in tasks.items() if not args.tasks or k in args.tasks}
    everything = {}
    for folder in args.model:
        results = probe_model(folder, tasks, args.middle, args.repeats, not args.only_middle)
        everything[str(folder)] = results
        better = sum(entry["difference"][1] > 0 for entry in results.values())
        print(f"\n## {folder.name}\n\n{table(results, args.middle)}\n")
        print(f"block {args.middle} beats the embeddings (CI > 0) on {better} of {len(results)}\n")
    if args.json:
        args.json.write_text(json.dumps(everything) + "\n")


if __name__ == "__main__":
    main()
