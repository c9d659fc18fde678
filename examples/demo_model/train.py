"""Train the demo language model: a small GPT-2 on public-domain text, on CPU.

The weights are bfloat16 with float32 master copies; the unembedding and the
cross entropy are computed together in chunks, so that the logits of a whole
batch never exist at once. The learning rate is warmed up, held, and brought to
zero in a last phase, which a limit or a file ``STOP_AND_DECAY`` in the work
folder starts. The state is saved every two minutes and a second call resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizer import CONTEXT, SOURCES, SPECIAL_ID, prepare
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

CHUNK = 1024  # tokens per chunk of the fused loss


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a tied unembedding, with its gradients, by chunks."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        """Return the mean loss; the gradients are computed on the way."""
        n = hidden.shape[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
        loss = 0.0
        for start in range(0, n, CHUNK):
            h, t = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = (h @ weight.T).float()
            lse = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += (lse - logits.gather(1, t)).sum().item()
            prob = logits.sub_(lse).exp_()
            prob.scatter_add_(1, t, torch.full(t.shape, -1.0))
            prob = prob.mul_(1.0 / n).to(hidden.dtype)
            grad_hidden[start : start + CHUNK] = prob @ weight
            grad_weight += (prob.T @ h).float()
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return torch.tensor(loss / n)

    @staticmethod
    def backward(ctx, grad_output):
        """Scale the stored gradients."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None


class Corpus:
    """Training contexts: each starts with the special token.

    An epoch cuts every source into consecutive windows of 255 tokens with a
    random phase. A window is moved back to the start of its line when that is
    near, so that most contexts begin where a sentence begins.
    """

    def __init__(self, work: Path, seed: int) -> None:
        """Load the token files of ``work``."""
        self.seed = seed
        self.ids = [np.load(work / f"train_{s.name}.npy") for s in SOURCES]
        vocab = json.loads((work / "tokenizer" / "tokenizer.json").read_text("utf-8"))
        vocab = vocab["model"]["vocab"]
        ends = np.array([i for t, i in vocab.items() if t.endswith("Ċ")] + [SPECIAL_ID])
        self.line_start = [self._line_starts(ids, ends) for ids in self.ids]
        self._epoch = -1
        self._windows = np.empty((0, 2), dtype=np.int64)

    @staticmethod
    def _line_starts(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Index of the first token of the line each token is in."""
        first = np.concatenate([[True], np.isin(ids[:-1], ends)])
        return np.maximum.accumulate(np.where(first, np.arange(ids.size), 0)).astype(np.int32)

    def _make_epoch(self, epoch: int) -> None:
        """Cut and shuffle the windows of one epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        size, windows = CONTEXT - 1, []
        for k, source in enumerate(SOURCES):
            for _ in range(source.weight):
                start = np.arange(rng.integers(size), self.ids[k].size - size, size)
                line = self.line_start[k][start]
                start = np.where(start - line <= size // 2, line, start)
                windows.append(np.stack([np.full(start.size, k), start], axis=1))
        self._windows = rng.permutation(np.concatenate(windows))
        self._epoch = epoch

    def batch(self, step: int, size: int) -> torch.Tensor:
        """Contexts of one step, shape (size, CONTEXT); a function of the step only."""
        if self._epoch < 0:
            self._make_epoch(0)
        per_epoch = len(self._windows) // size  # the same within a few windows
        epoch = step // (per_epoch - 1)
        if epoch != self._epoch:
            self._make_epoch(epoch)
        at = (step - epoch * (per_epoch - 1)) * size
        out = np.full((size, CONTEXT), SPECIAL_ID, dtype=np.int64)
        for row, (k, start) in enumerate(self._windows[at : at + size]):
            piece = self.ids[k][start : start + CONTEXT - 1]
            out[row, 1 : 1 + piece.size] = piece
        return torch.from_numpy(out)


@dataclass
class Progress:
    """What must survive an interruption besides weights and optimisers."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decay_start: int = -1  # tokens; -1 = not yet
    decay_end: int = -1

    def lr_factor(self, warmup: int) -> float:
        """Warmup, constant, linear decay; a function of the tokens seen."""
        factor = min(1.0, (self.tokens + 1) / warmup)
        if self.decay_start >= 0:
            left = self.decay_end - self.tokens
            factor *= max(0.0, left / (self.decay_end - self.decay_start))
        return factor


class Trainer:
    """bfloat16 model, float32 masters, Muon for block matrices, AdamW for the rest."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Build the model and the optimisers; resume when there is a checkpoint."""
        torch.manual_seed(args.seed)
        self.args = args
        self.model = GPT2LMHeadModel(make_config(**self.shape))
        resumes = (args.work / "checkpoint.pt").exists()
        if args.start_from and not resumes:
            grow_vocabulary(self.model, args.start_from, args.work / "tokenizer")
        params = dict(self.model.named_parameters())
        self.masters = {n: p.detach().clone().float() for n, p in params.items()}
        self.model.to(torch.bfloat16)
        self.params = dict(self.model.named_parameters())
        use_muon = args.optimiser == "muon"
        matrix = [n for n, p in params.items() if use_muon and ".h." in n and p.ndim == 2]
        other = [n for n in params if n not in matrix]
        decayed = [n for n in other if params[n].ndim == 2]
        groups = [
            {"params": [self.masters[n] for n in decayed], "weight_decay": 0.05},
            {
                "params": [self.masters[n] for n in other if n not in decayed],
                "weight_decay": 0.0,
            },
        ]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=args.lr_adamw, betas=(0.9, 0.95), foreach=True)
        ]
        if matrix:
            self.optimisers.append(
                torch.optim.Muon(
                    [self.masters[n] for n in matrix],
                    lr=args.lr_muon,
                    weight_decay=0.05,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self.base_lr = [args.lr_adamw, args.lr_muon][: len(self.optimisers)]
        self.progress = Progress()
        if resumes:
            self.load()

    @property
    def shape(self) -> dict[str, int]:
        """What decides the sizes of the weights."""
        args = self.args
        return {
            "vocab_size": args.vocabulary,
            "layers": args.layers,
            "width": args.width,
            "heads": args.heads,
        }

    def load(self) -> None:
        """Resume from the checkpoint."""
        state = torch.load(self.args.work / "checkpoint.pt", weights_only=True)
        self.progress = Progress(**state["progress"])
        for name, value in state["masters"].items():
            self.masters[name].copy_(value)
        for optimiser, value in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        self.copy_masters()

    def save(self) -> None:
        """Write the checkpoint; the rename makes it appear complete or not at all."""
        state = {
            "progress": asdict(self.progress),
            "masters": self.masters,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "shape": self.shape,
        }
        path = self.args.work / "checkpoint.pt"
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def copy_masters(self) -> None:
        """Round the master weights into the model."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.params.values()), [self.masters[n] for n in self.params])

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross entropy of a batch of contexts."""
        hidden = self.model.transformer(batch[:, :-1], use_cache=False).last_hidden_state
        hidden = hidden.reshape(-1, hidden.shape[-1])
        weight = self.model.transformer.wte.weight
        return ChunkedCrossEntropy.apply(hidden, weight, batch[:, 1:].reshape(-1))

    def step(self, batch: torch.Tensor) -> float:
        """One optimiser step; returns the loss."""
        factor = self.progress.lr_factor(self.args.warmup)
        loss = self.loss(batch)
        loss.backward()
        for name, param in self.params.items():
            self.masters[name].grad = param.grad.float()
            param.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimiser, base in zip(self.optimisers, self.base_lr, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * factor
            optimiser.step()
        self.copy_masters()
        self.progress.step += 1
        self.progress.tokens += batch.numel()
        return loss.item()

    @torch.no_grad()
    def validate(self, contexts: int = 48) -> dict[str, float]:
        """Held-out loss (nats per token) of each source."""
        losses = {}
        size = CONTEXT - 1
        for source in SOURCES:
            ids = np.load(self.args.work / f"val_{source.name}.npy").astype(np.int64)
            rows = ids[: min(contexts, ids.size // size) * size].reshape(-1, size)
            rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=SPECIAL_ID)
            parts = torch.from_numpy(rows).split(16)
            total = sum(self.loss(part).item() * len(part) for part in parts)
            losses[source.name] = round(total / len(rows), 4)
        return losses


def grow_vocabulary(model: GPT2LMHeadModel, start: Path, tokenizer: Path) -> None:
    """Start from a model of the same shape with another vocabulary.

    All weights but the token embeddings are copied. A new token begins as the
    mean of the embeddings of the pieces that the old tokenizer makes of it.
    """
    old = GPT2LMHeadModel.from_pretrained(start, dtype=torch.float32)
    for name in ("n_layer", "n_embd", "n_head", "n_positions"):
        if getattr(old.config, name) != getattr(model.config, name):
            raise SystemExit(f"{start}: {name} is {getattr(old.config, name)}, not {getattr(model.config, name)}")
    pieces = Tokenizer.from_file(str(start / "tokenizer.json")).model
    vocab = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab()
    state = old.transformer.state_dict()
    before = state.pop("wte.weight")
    model.transformer.load_state_dict(state, strict=False)
    with torch.no_grad():
        for token, i in vocab.items():
            known = pieces.token_to_id(token)
            ids = [known] if known is not None else [t.id for t in pieces.tokenize(token)]
            if not ids:
                raise SystemExit(f"{start}: its tokenizer has no pieces for {token!r}")
            model.transformer.wte.weight[i] = before[ids].mean(dim=0)


def make_config(vocab_size: int, layers: int, width: int, heads: int) -> GPT2Config:
    """Architecture of the demo model."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=4 * width,
        activation_function="gelu_pytorch_tanh",  # one fused kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=SPECIAL_ID,
        eos_token_id=SPECIAL_ID,
        pad_token_id=SPECIAL_ID,
        attn_implementation="sdpa",
    )


def maybe_start_decay(args: argparse.Namespace, progress: Progress) -> None:
    """Start the last phase at a limit or when the file asks for it."""
    if progress.decay_start >= 0:
        return
    share = 1.0 - args.decay
    by_time = args.minutes and progress.seconds >= 60 * args.minutes * share
    by_tokens = args.tokens and progress.tokens >= args.tokens * share
    if by_time or by_tokens or (args.work / "STOP_AND_DECAY").exists():
        progress.decay_start = progress.tokens
        length = int(progress.tokens * args.decay / share)
        progress.decay_end = progress.tokens + max(length, 1)
        print(f"decay starts, {length:,} tokens", flush=True)


def run(args: argparse.Namespace) -> None:
    """Train until the decay has ended."""
    prepare(args.text, args.work, args.vocabulary, args.seed)
    corpus, trainer = Corpus(args.work, args.seed), Trainer(args)
    progress = trainer.progress
    batch = args.batch_tokens // CONTEXT
    n_params = sum(p.numel() for p in trainer.params.values())
    print(f"{n_params:,} parameters, resumed at {progress.tokens:,} tokens", flush=True)
    mark = saved = validated = time.monotonic()
    mark_tokens, recent = progress.tokens, []
    while progress.decay_start < 0 or progress.tokens < progress.decay_end:
        begin = time.monotonic()
        maybe_start_decay(args, progress)
        recent.append(trainer.step(corpus.batch(progress.step, batch)))
        now = time.monotonic()
        progress.seconds += now - begin
        if progress.step % args.log_every == 0:
            rate = (progress.tokens - mark_tokens) / (now - mark)
            end = progress.decay_end if progress.decay_start >= 0 else args.tokens
            eta = f"{(end - progress.tokens) / rate / 60:.1f} min" if end else "by time"
            print(
                f"step {progress.step} tokens {progress.tokens / 1e6:.2f}M "
                f"loss {np.mean(recent):.4f} lr x{progress.lr_factor(args.warmup):.3f} "
                f"{rate:,.0f} tokens/s, {progress.seconds / 60:.1f} min, ETA {eta}",
                flush=True,
            )
            mark, mark_tokens, recent = now, progress.tokens, []
        if now - saved > 120:
            trainer.save()
            saved = now
        if args.validate_minutes and now - validated > 60 * args.validate_minutes:
            print("held-out", json.dumps(trainer.validate()), flush=True)
            validated = time.monotonic()
    trainer.save()
    final = {"held_out": trainer.validate(1000), **asdict(progress), "started_from": str(args.start_from or "")}
    (args.work / "final.json").write_text(json.dumps(final, indent=1) + "\n")
    print("finished", json.dumps(final), flush=True)


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--text", type=Path, required=True, help="folder with the text files")
    p.add_argument("--work", type=Path, required=True, help="folder for tokens and checkpoints")
    p.add_argument("--start-from", type=Path, help="model folder to begin with, any vocabulary")
    p.add_argument("--vocabulary", type=int, default=8192, help="entries of the tokenizer")
    p.add_argument("--out", type=Path, help="export the finished model to this folder")
    p.add_argument("--tokens", type=int, default=0, help="stop after this many tokens")
    p.add_argument("--minutes", type=float, default=0, help="stop after about this many minutes")
    p.add_argument("--decay", type=float, default=0.25, help="share of the run in the decay")
    p.add_argument("--warmup", type=int, default=800_000, help="tokens of learning-rate warmup")
    p.add_argument("--batch-tokens", type=int, default=8192, help="tokens per step")
    p.add_argument("--layers", type=int, default=6, help="transformer blocks")
    p.add_argument("--width", type=int, default=256, help="residual width")
    p.add_argument("--heads", type=int, default=4, help="attention heads")
    p.add_argument("--optimiser", choices=["muon", "adamw"], default="muon")
    p.add_argument("--lr-muon", type=float, default=4e-3, help="peak rate, block matrices")
    p.add_argument("--lr-adamw", type=float, default=5e-3, help="peak rate, everything else")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all")
    p.add_argument("--log-every", type=int, default=20, help="steps between progress lines")
    p.add_argument("--validate-minutes", type=float, default=5, help="0 = only at the end")
    p.add_argument("--seed", type=int, default=0, help="initialisation, order, held-out choice")
    args = p.parse_args()
    if not args.tokens and not args.minutes:
        p.error("give --tokens or --minutes")
    if args.threads:
        torch.set_num_threads(args.threads)
    run(args)
    if args.out:
        from export import export

        export(args.work, args.out)


if __name__ == "__main__":
    main()
