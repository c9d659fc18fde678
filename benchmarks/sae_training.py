"""Speed of the TopK trainer against the same maths in plain dense PyTorch.

The reference is what one would write first: autograd, float32, a dense decoder product,
`torch.optim.Adam` with its defaults. Data, order, initialisation, learning rates and
number of tokens are the same; both report explained variance on held-out rows.

    python benchmarks/sae_training.py                    # synthetic activations, d = 256
    python benchmarks/sae_training.py --store FOLDER     # a harvested ActivationStore

Wall time says what a user waits for on this machine now; CPU time (all threads) is the
fairer comparison where other programs are running.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch.nn import functional

from neurollm.dictionaries import TopKSAE, TopKTraining, evaluate_dictionary
from neurollm.dictionaries.controls import unit_rows
from neurollm.dictionaries.topk_training import ADAM, TopKTrainer
from neurollm.dictionaries.training import learning_rate
from neurollm.models import Site


class DenseReference:
    """TopK SAE with AuxK, dense, float32, autograd."""

    def __init__(self, d: int, n_features: int, k: int, training: TopKTraining) -> None:
        rows = torch.from_numpy(unit_rows(0, "decoder_init", n_features, d))
        self.k, self.training = k, training
        self.W_enc, self.W_dec = rows.T.clone().requires_grad_(), rows.clone().requires_grad_()
        self.b_enc, self.b_dec = torch.zeros(n_features, requires_grad=True), torch.zeros(d, requires_grad=True)
        self.adam = torch.optim.Adam([self.W_enc, self.W_dec, self.b_enc, self.b_dec], lr=0.0, **ADAM)
        self.silent = torch.zeros(n_features, dtype=torch.long)

    def step(self, x: torch.Tensor, rate: float) -> None:
        """One step."""
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        top = pre.topk(self.k, dim=1)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        residual = x - (acts @ self.W_dec + self.b_dec)
        loss = residual.square().sum() / (self.training.batch_size * x.shape[1])
        with torch.no_grad():
            self.silent += len(x)
            self.silent[(acts > 0).any(0)] = 0
            dead = torch.nonzero(self.silent >= self.training.dead_after_tokens).reshape(-1)
        if len(dead):
            loss = loss + self._auxk(x, residual.detach(), dead)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.adam.step()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    def _auxk(self, x: torch.Tensor, error: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        pre = ((x - self.b_dec).detach() @ self.W_enc[:, dead] + self.b_enc[dead]).relu()
        top = pre.topk(min(self.training.auxk, len(dead)), dim=1)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        share = min(1.0, len(dead) / self.training.auxk)
        fvu = (acts @ self.W_dec[dead] - error).square().sum() / error.square().sum()
        return self.training.auxk_coefficient * share * fvu

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights by name."""
        return {name: getattr(self, name).detach() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def synthetic(n: int, d: int, n_planted: int, seed: int) -> torch.Tensor:
    """Rows with 20 of `n_planted` directions active, with a heavy-tailed choice, and noise."""
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(n_planted, d, generator=generator), dim=1)
    generator.manual_seed(seed)
    chance = 1.0 / torch.arange(1, n_planted + 1).float() ** 0.7
    draws = [torch.multinomial(chance.expand(5000, -1), 20, generator=generator) for _ in range(0, n, 5000)]
    indices = torch.cat(draws)
    values = 1 + 2 * torch.rand(indices.shape, generator=generator)
    clean = functional.embedding_bag(indices, directions, per_sample_weights=values, mode="sum")
    return (clean + 0.05 * torch.randn(clean.shape, generator=generator))[:n]


def load(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out rows, centred and scaled alike."""
    if args.store:
        from neurollm.activations import ActivationStore

        store = ActivationStore(args.store)
        rows = torch.cat(list(store.batches(65_536))[: -(-(args.tokens + 20_000) // 65_536)])
        train, held_out = rows[: len(rows) - 20_000], rows[-20_000:]
    else:
        train, held_out = synthetic(args.tokens, 256, 4096, 1), synthetic(20_000, 256, 4096, 2)
    mean = train.mean(0)
    scale = (train.shape[1] / (train - mean).square().sum(1).mean()) ** 0.5
    return (train - mean) * scale, (held_out - mean) * scale


def batches(rows: torch.Tensor, size: int, n_tokens: int) -> Iterator[torch.Tensor]:
    """Batches, again from the start when the rows are used up."""
    for start in range(0, n_tokens - size + 1, size):
        at = start % (len(rows) - size + 1)
        yield rows[at : at + size]


def main() -> None:
    """Run both and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="folder of an ActivationStore; default: synthetic activations")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4096)
    args = parser.parse_args()
    train, held_out = load(args)
    d = train.shape[1]
    print(f"d {d}, F {args.features}, k {args.k}, {args.tokens:,} tokens, {torch.get_num_threads()} threads")
    for name in ("dense float32", "neurollm float32", "neurollm bfloat16"):
        precision = "bfloat16" if name.endswith("bfloat16") else "float32"
        options = TopKTraining(batch_size=args.batch_size, precision=precision, device="cpu")
        training = options.resolve(d, args.features, args.tokens)
        if name.startswith("dense"):
            trainer = DenseReference(d, args.features, args.k, training)
        else:
            trainer = TopKTrainer(d, args.features, args.k, training, 0)
        wall, cpu, seen = time.perf_counter(), time.process_time(), 0
        for batch in batches(train, args.batch_size, args.tokens):
            trainer.step(batch, learning_rate(seen / args.tokens, training))
            seen += len(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        ev = evaluate_dictionary(TopKSAE(Site(0), args.k, trainer.weights()), held_out).ev
        speed = f"{seen / wall:9,.0f} tokens/s  {seen / cpu:9,.0f} tokens per CPU second"
        print(f"{name:18s} {speed}  EV {ev:.4f}", flush=True)


if __name__ == "__main__":
    main()
