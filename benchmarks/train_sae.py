"""Speed and quality of training a TopK SAE, side by side with what others use.

Same activations, order, width, k, batch size, number of tokens, learning-rate schedule and
Adam for all; every one keeps its own recipe otherwise (initial norms, auxiliary loss, gradient clipping).
Quality is measured on held-out rows with our float64 metrics for all.

    python benchmarks/train_sae.py                     # synthetic activations, d = 256, F = 4,096
    python benchmarks/train_sae.py --store FOLDER      # a harvested ActivationStore
    python benchmarks/train_sae.py --device cuda --d 2048 --features 16384 --dtypes bfloat16
    python benchmarks/train_sae.py --crossover         # density from which on dense products win

Peers take part where they are installed (pip install sae-lens eai-sparsify dictionary-learning):

* SAELens: its `SAETrainer` with a `TopKTrainingSAE`; bfloat16 is its autocast;
* dictionary_learning: its `TopKTrainer.update`; bfloat16 by autocast around it;
* sparsify: its fused encoder and embedding-bag decoder with torch's Adam and unit decoder rows;
* loop: the twenty lines one writes oneself, with `embedding_bag` for the decoder.

The roofline is the speed of a training that spends all its multiplications, 2 d F + 8 k d for a
token, at the speed of the encoder's product in that dtype, measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from neurollm.dictionaries import TopKSAE, TopKTraining, evaluate_dictionary
from neurollm.dictionaries.kernels import DenseCode, SparseCode, threads
from neurollm.dictionaries.training.selected import TopKLearner
from neurollm.models import Site

PLANTED = 20_261
Weights = dict[str, torch.Tensor]


def synthetic(n: int, d: int, n_planted: int, seed: int) -> torch.Tensor:
    """Rows with 20 of `n_planted` directions active, with a heavy-tailed choice, and noise."""
    generator = torch.Generator().manual_seed(PLANTED)  # not a seed that any initial weights are drawn with
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
        n = min(args.tokens, 400_000)
        train, held_out = synthetic(n, args.d, 4096, 1), synthetic(20_000, args.d, 4096, 2)
    mean = train.mean(0)
    scale = (train.shape[1] / (train - mean).square().sum(1).mean()) ** 0.5
    return (train - mean) * scale, (held_out - mean) * scale


class Job:
    """What is to be trained: sizes, schedule and batches."""

    def __init__(self, args: argparse.Namespace, rows: torch.Tensor) -> None:
        self.rows, self.device = rows, args.device
        self.d, self.n_features, self.k = rows.shape[1], args.features, args.k
        self.batch, self.steps = args.batch_size, args.tokens // args.batch_size
        # The start for short trainings, see the option; SAELens and sparsify begin with short encoders, too.
        options = TopKTraining(
            batch_size=self.batch, device=args.device, decay=0.2, warmup=0.02, encoder_init=args.encoder_init
        )
        self.training = options.resolve(self.d, self.n_features, self.steps * self.batch)

    def batches(self) -> Iterator[torch.Tensor]:
        """Batches for ever, again from the start when the rows are used up."""
        step = 0
        while True:
            at = step * self.batch % (len(self.rows) - self.batch + 1)
            yield self.rows[at : at + self.batch].to(self.device)
            step += 1

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.training.rate(step / self.steps)

    def each(self, update: Callable[[torch.Tensor, int], None]) -> None:
        """Go through all steps."""
        for step, x in zip(range(self.steps), self.batches(), strict=False):
            update(x, step)


def neurollm(job: Job, dtype: str) -> Weights:
    """This package."""
    training = TopKTraining(**{**job.training.to_dict(), "precision": dtype})
    learner = TopKLearner(job.d, job.n_features, job.k, training)
    learner.calibrate(next(job.batches()))
    with threads():
        job.each(lambda x, step: learner.step(x, step / job.steps))
    return learner.weights()


def loop(job: Job, dtype: str) -> Weights:
    """Twenty lines of torch."""
    torch.manual_seed(0)
    decoder = functional.normalize(torch.randn(job.n_features, job.d, device=job.device), dim=1)
    W_dec, W_enc = decoder.clone().requires_grad_(), decoder.T.clone().requires_grad_()
    b_enc = torch.zeros(job.n_features, device=job.device, requires_grad=True)
    b_dec = torch.zeros(job.d, device=job.device, requires_grad=True)
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=0.0, fused=True)

    def update(x: torch.Tensor, step: int) -> None:
        adam.param_groups[0]["lr"] = job.rate(step)
        with torch.autocast(job.device, torch.bfloat16, enabled=dtype == "bfloat16"):
            top = ((x - b_dec) @ W_enc + b_enc).topk(job.k, dim=1, sorted=False)
        values = top.values.float().relu()
        x_hat = functional.embedding_bag(top.indices, W_dec, per_sample_weights=values, mode="sum") + b_dec
        loss = (x_hat - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    job.each(update)
    return {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}


def saelens(job: Job, dtype: str) -> Weights:
    """SAELens' own trainer."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=job.d, d_sae=job.n_features, k=job.k, device=job.device))
    config = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr=job.training.learning_rate,
        lr_end=0.0,
        lr_warm_up_steps=int(job.training.warmup * job.steps),
        lr_decay_steps=int(job.training.decay * job.steps),
        device=job.device,
        autocast=dtype == "bfloat16",
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=config, sae=sae, data_provider=job.batches()).fit()
    sae.fold_W_dec_norm()
    return {name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def dictionary_learning(job: Job, dtype: str) -> Weights:
    """The trainer of dictionary_learning."""
    if "nnsight" not in sys.modules and importlib.util.find_spec("nnsight") is None:
        # Imported by the package's __init__, used by no trainer.
        sys.modules["nnsight"] = types.SimpleNamespace(LanguageModel=None)
    from dictionary_learning.trainers.top_k import TopKTrainer

    warmup, decay = int(job.training.warmup * job.steps), int((1 - job.training.decay) * job.steps)
    trainer = TopKTrainer(
        steps=job.steps,
        activation_dim=job.d,
        dict_size=job.n_features,
        k=job.k,
        layer=0,
        lm_name="",
        lr=job.training.learning_rate,
        warmup_steps=max(1, warmup),
        decay_start=decay,
        seed=0,
        device=job.device,
    )

    def update(x: torch.Tensor, step: int) -> None:
        with torch.autocast(job.device, torch.bfloat16, enabled=dtype == "bfloat16"):
            trainer.update(step, x)

    job.each(update)
    state = trainer.ae.state_dict()
    return {
        "W_enc": state["encoder.weight"].T,
        "W_dec": state["decoder.weight"].T,
        "b_enc": state["encoder.bias"],
        "b_dec": state["b_dec"],
    }


def sparsify(job: Job, dtype: str) -> Weights:
    """sparsify's SparseCoder with torch's Adam; its autocast is for CUDA alone, so bfloat16 is asked for around it."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    config = SparseCoderConfig(num_latents=job.n_features, k=job.k)
    if not torch.cuda.is_available():  # it asks CUDA about bfloat16 at every forward
        torch.cuda.is_bf16_supported = lambda *_: False
    coder = SparseCoder(job.d, config, device=job.device)
    adam = torch.optim.Adam(coder.parameters(), lr=0.0)

    def update(x: torch.Tensor, step: int) -> None:
        coder.set_decoder_norm_to_unit_norm()
        adam.param_groups[0]["lr"] = job.rate(step)
        with torch.autocast(job.device, torch.bfloat16, enabled=dtype == "bfloat16"):
            fvu = coder(x).fvu
        fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    job.each(update)
    return {
        "W_enc": coder.encoder.weight.T,
        "W_dec": coder.W_dec,
        "b_enc": coder.encoder.bias,
        "b_dec": coder.b_dec,
    }


PEERS = {
    "neurollm": (neurollm, None),
    "loop": (loop, None),
    "SAELens": (saelens, "sae-lens"),
    "sparsify": (sparsify, "eai-sparsify"),
    "dictionary_learning": (dictionary_learning, "dictionary-learning"),
}


def installed(package: str | None) -> bool:
    """Whether a package is there."""
    try:
        return package is None or bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def product_rate(job: Job, dtype: str) -> float:
    """Multiplications and additions per second of the encoder's product, at its best."""
    kind = getattr(torch, dtype)
    x = torch.randn(job.batch, job.d, device=job.device, dtype=kind)
    weight = torch.randn(job.n_features, job.d, device=job.device, dtype=kind)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        functional.linear(x, weight).sum(0)[0].item() if job.device != "cpu" else functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return 2 * job.batch * job.d * job.n_features / best


def crossover(job: Job) -> None:
    """Time of the four products of a step with a sparse and with a dense code."""
    weight = functional.normalize(torch.randn(job.n_features, job.d), dim=1)
    x = torch.randn(job.batch, job.d)
    print("density   sparse ms   dense ms")
    for density in (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2):
        mask = torch.rand(job.batch, job.n_features) < density
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        sparse = SparseCode(mask.nonzero()[:, 1], offsets, job.n_features)
        dense = DenseCode(job.batch, job.n_features)
        matrix = torch.rand(job.batch, job.n_features) * mask
        times = []
        for code, values in ((sparse, matrix[mask]), (dense, matrix)):
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                code.decode(values, weight)
                code.dots(x, weight)
                code.gram(values, x)
                code.gram(values, x)
                best = min(best, time.perf_counter() - start)
                sparse._transposed = None
            times.append(1e3 * best)
        print(f"{density:7.3f} {times[0]:11.1f} {times[1]:10.1f}", flush=True)


def main() -> None:
    """Run all and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="folder of an ActivationStore; default: synthetic activations")
    parser.add_argument("--tokens", type=int, default=409_600)
    parser.add_argument("--d", type=int, default=256, help="dimensions of the synthetic activations")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--encoder-init", default="fitted", help="neurollm: fitted, transpose or random")
    parser.add_argument("--crossover", action="store_true")
    args = parser.parse_args()
    train, held_out = load(args)
    job = Job(args, train)
    sizes = f"d {job.d}, F {job.n_features}, k {job.k}, batch {job.batch}, {job.steps * job.batch:,} tokens"
    print(f"{sizes}, {torch.get_num_threads()} threads, {args.device}, torch {torch.__version__}")
    if args.crossover:
        with threads():
            crossover(job)
        return
    speeds: dict[tuple[str, str], float] = {}
    print(f"{'':20s} {'dtype':9s} {'tokens/s':>9s} {'roofline':>9s} {'FVU':>8s} {'L0':>6s}")
    for dtype in args.dtypes:
        rate = product_rate(job, dtype)
        roofline = rate / (2 * job.d * job.n_features + 8 * job.k * job.d)
        print(f"{'roofline':20s} {dtype:9s} {roofline:9,.0f} {'':9s} {rate / 1e9:,.0f} GF/s", flush=True)
        for name in args.only:
            train_one, package = PEERS[name]
            if not installed(package):
                print(f"{name:20s} is not installed")
                continue
            start = time.perf_counter()
            weights = {key: weight.detach().float().cpu() for key, weight in train_one(job, dtype).items()}
            speed = job.steps * job.batch / (time.perf_counter() - start)
            speeds[name, dtype] = speed
            found = evaluate_dictionary(TopKSAE(Site(0), weights, job.k), held_out)
            share = f"{100 * speed / roofline:8.0f}%"
            print(f"{name:20s} {dtype:9s} {speed:9,.0f} {share} {found.fvu:8.4f} {found.l0:6.2f}", flush=True)
            gc.collect()
    best = {name: max(s for (n, _), s in speeds.items() if n == name) for name in {n for n, _ in speeds}}
    for name, speed in sorted(best.items()):
        if name != "neurollm" and "neurollm" in best:
            print(f"neurollm's best is {best['neurollm'] / speed:.1f} times the best of {name}")


if __name__ == "__main__":
    main()
