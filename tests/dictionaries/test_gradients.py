"""Every written-out gradient against autograd of the loss as the papers print it, dense and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurollm.dictionaries.kernels import DenseCode, Encoder, SparseCode, largest_columns, product, threads
from neurollm.dictionaries.training import LEARNERS

D, F, K, N = 10, 48, 4, 32


def learner_of(name, *, seed=0, dead=0, **options):
    """A learner with random weights of ordinary size."""
    training = LEARNERS[name].options(batch_size=N, precision="float32", device="cpu", **options)
    learner = LEARNERS[name](D, F, K, training.resolve(D, F, 10_000), seed)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in learner.parameters.items():
        spread = 0.3 if weight.ndim == 1 else 1.0
        weight += spread * torch.randn(weight.shape, generator=generator)
        if key == "log_threshold":
            weight -= 0.5
    if dead:
        learner.is_dead[-dead:] = True
        learner.refresh()
    return learner


def batch(seed=1):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def leaves(learner):
    return {name: weight.detach().double().requires_grad_() for name, weight in learner.parameters.items()}


def mean_square(residual):
    return residual.square().sum() / (N * D)


class Jump(torch.autograd.Function):
    """pre · H(pre − θ) with the pseudo-derivative of equation 11 of Rajamanoharan et al. (2024b)."""

    @staticmethod
    def forward(ctx, pre, theta, width):
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx, upstream):
        pre, theta = ctx.saved_tensors
        kernel = (((pre - theta) / ctx.width).abs() < 0.5).double()
        return upstream * (pre > theta), -(theta / ctx.width * kernel * upstream).sum(0), None


class Step(torch.autograd.Function):
    """H(pre − θ), equation 12."""

    @staticmethod
    def forward(ctx, pre, theta, width):
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).double()

    @staticmethod
    def backward(ctx, upstream):
        pre, theta = ctx.saved_tensors
        kernel = (((pre - theta) / ctx.width).abs() < 0.5).double()
        return None, -(kernel / ctx.width * upstream).sum(0), None


def kept(pre, chosen):
    return torch.zeros_like(pre).masked_scatter(chosen, pre[chosen]).relu()


def topk_loss(p, x, training):
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(K).indices, True)
    acts = kept(pre, chosen)
    error = x - acts @ p["W_dec"] - p["b_dec"]
    return mean_square(error), error, pre, acts


def batchtopk_code(p, x):
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    limit = pre.relu().reshape(-1).topk(K * N).values[-1]
    return pre, kept(pre, pre >= limit)


def batchtopk_loss(p, x, training):
    pre, acts = batchtopk_code(p, x)
    error = x - acts @ p["W_dec"] - p["b_dec"]
    return mean_square(error), error, pre, acts


def matryoshka_loss(p, x, training):
    pre, acts = batchtopk_code(p, x)
    edges = [round(share * F) for share in training.widths]
    errors = [x - acts[:, :m] @ p["W_dec"][:m] - p["b_dec"] for m in edges]
    return sum(mean_square(error) for error in errors) / len(edges), errors[-1], pre, acts


def relu_loss(p, x, training, weight=0.7):
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    acts = pre.relu()
    error = x - acts @ p["W_dec"] - p["b_dec"]
    if training.penalty == "l1":
        penalty = (acts * p["W_dec"].norm(dim=1)).sum() / (N * D)
    else:
        rate, target = (acts / (1 + acts)).mean(0), K / F
        penalty = (target * (target / rate).log() + (1 - target) * ((1 - target) / (1 - rate)).log()).sum() / D
    return mean_square(error) + weight * penalty, error, pre, acts


def gated_loss(p, x, training, weight=0.7):
    v = (x - p["b_dec"]) @ p["W_enc"].T
    gate = v + p["b_gate"]
    acts = (v * p["r_mag"].exp() + p["b_mag"]).relu() * (gate > 0)
    error = x - acts @ p["W_dec"] - p["b_dec"]
    auxiliary = gate.relu() @ p["W_dec"].detach() + p["b_dec"].detach() - x
    penalty = (gate.relu() * p["W_dec"].norm(dim=1)).sum() / (N * D)
    return mean_square(error) + mean_square(auxiliary) + weight * penalty, error, gate, acts


def jumprelu_loss(p, x, training, weight=0.7):
    theta = p["log_threshold"].exp()
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    acts = Jump.apply(pre, theta, training.bandwidth)
    error = x - acts @ p["W_dec"] - p["b_dec"]
    l0 = Step.apply(pre, theta, training.bandwidth).sum() / N
    return mean_square(error) + weight * (l0 / K - 1) ** 2, error, pre, acts


def auxk_loss(p, pre, error, dead, training):
    """Gao et al. (2024), A.2: only encoder, its bias and the decoder of dead features have a gradient."""
    error = error.detach()
    acts = pre[:, -dead:].relu()
    if dead > training.auxk:
        acts = kept(acts, torch.zeros_like(acts, dtype=torch.bool).scatter(1, acts.topk(training.auxk).indices, True))
    share = min(1.0, dead / training.auxk)
    again = acts @ p["W_dec"][-dead:]
    return training.auxk_coefficient * share * (again - error).square().sum() / error.square().sum()


CASES = [
    ("topk", topk_loss, {}),
    ("batchtopk", batchtopk_loss, {}),
    ("matryoshka", matryoshka_loss, {}),
    ("relu", relu_loss, {"sparsity": 0.7, "sparsity_warmup": 0.0}),
    ("relu", relu_loss, {"sparsity": 0.7, "sparsity_warmup": 0.0, "penalty": "kl"}),
    ("gated", gated_loss, {"sparsity": 0.7, "sparsity_warmup": 0.0}),
    ("jumprelu", jumprelu_loss, {"sparsity": 0.7, "sparsity_warmup": 0.0, "bandwidth": 0.8}),
]


@pytest.mark.parametrize("dead", [0, 3, 9])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("name", "loss", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_gradients_are_those_of_the_printed_loss(name, loss, options, sparse, dead):
    learner = learner_of(name, dead=dead, auxk=5, **options)
    if "density" in learner.carried:
        learner.carried["density"].fill_(0.0 if sparse else 1.0)
    x = batch()
    found = learner.gradients(x)
    p = leaves(learner)
    value, error, _, acts = loss(p, x.double(), learner.training)
    if dead:
        b_dec = p["b_dec"].detach()
        bias = p[learner.bias]
        dead_pre = (x.double() - b_dec) @ p["W_enc"].T + bias
        value = value + auxk_loss(p, dead_pre, error, dead, learner.training)
    expected = torch.autograd.grad(value, list(p.values()))
    assert found.keys() == p.keys()
    for key, gradient in zip(p, expected, strict=True):
        size = float(gradient.abs().max())
        assert size > 0
        np.testing.assert_allclose(found[key].double(), gradient, atol=2e-5 * size, err_msg=key)
    assert float(learner.sums[2]) == float((acts > 0).sum())
    np.testing.assert_allclose(float(learner.sums[0]), float(error.detach().square().sum()), rtol=1e-5)


def test_a_smaller_batch_has_the_same_mean_activation_under_kl():
    """The last batch of an epoch: its share of the loss is smaller, the mean activations are not."""
    learner = learner_of("relu", sparsity=0.7, sparsity_warmup=0.0, penalty="kl")
    half = batch()[: N // 2]
    twice = learner.gradients(torch.cat([half, half]))
    once = learner.gradients(half)
    for key, gradient in twice.items():
        torch.testing.assert_close(2 * once[key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["relu", "gated", "topk"])
def test_gradients_agree_with_finite_differences(name):
    """The losses above are themselves differentiable where no activation is at its corner."""
    options = {} if name == "topk" else {"sparsity": 0.7, "sparsity_warmup": 0.0}
    learner = learner_of(name, **options)
    loss = {case[0]: case[1] for case in CASES if case[2].get("penalty") is None}[name]
    x = batch().double()
    found = learner.gradients(batch())
    generator = torch.Generator().manual_seed(3)
    for key in found:
        direction = torch.randn(found[key].shape, generator=generator).double()
        values = []
        for sign in (1e-6, -1e-6):
            p = {n: w.double() + (sign * direction if n == key else 0) for n, w in learner.parameters.items()}
            if name == "gated" and key in ("W_dec", "b_dec"):
                break  # its third term counts them as constants: no finite difference can
            values.append(float(loss(p, x, learner.training)[0]))
        if values:
            slope = (values[0] - values[1]) / 2e-6
            assert slope == pytest.approx(float((found[key].double() * direction).sum()), rel=2e-4)


def test_unit_decoder_gradient_has_no_parallel_part():
    learner = learner_of("topk")
    learner.parameters["W_dec"] /= learner.parameters["W_dec"].norm(dim=1, keepdim=True)
    before = learner.parameters["W_dec"].clone()
    learner.step(batch(), 0.5)
    gradient = learner.parameters["W_dec"].grad
    assert float((gradient * before).sum(1).abs().max()) < 1e-6 * float(gradient.norm(dim=1).max())
    np.testing.assert_allclose(learner.parameters["W_dec"].norm(dim=1), 1.0, rtol=1e-6)


def test_free_decoder_keeps_its_whole_gradient():
    learner = learner_of("relu", sparsity=0.7)
    before = learner.parameters["W_dec"].clone()
    learner.step(batch(), 0.5)
    assert float((learner.parameters["W_dec"].grad * before).sum(1).abs().max()) > 1e-4
    assert float((learner.parameters["W_dec"].norm(dim=1) - 1).abs().max()) > 1e-2


def test_nonnegative_decoder_stays_nonnegative():
    learner = learner_of("topk", nonnegative=True)
    for step in range(20):
        learner.step(batch(step), 0.5)
    decoder = learner.parameters["W_dec"]
    assert float(decoder.min()) == 0.0 and bool((decoder.sum(1) > 0).all())


@pytest.mark.parametrize("n_columns", [7, 48, 1030])
def test_codes_agree_with_dense_algebra(n_columns):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, n_columns, generator=generator).relu()
    matrix[matrix < 1.2] = 0
    matrix[4] = 0  # a row without any entry
    weight, x = torch.randn(n_columns, 6, generator=generator), torch.randn(30, 6, generator=generator)
    mask = matrix > 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    code = SparseCode(mask.nonzero()[:, 1], offsets, n_columns)
    values, dense = matrix[mask], DenseCode(30, n_columns)
    np.testing.assert_allclose(code.dense(values), matrix)
    np.testing.assert_allclose(code.decode(values, weight), matrix @ weight, atol=1e-5)
    np.testing.assert_allclose(code.dots(x, weight), (x @ weight.T)[mask], atol=1e-5)
    np.testing.assert_allclose(code.gram(values, x), matrix.T @ x, atol=1e-5)
    np.testing.assert_allclose(code.column_sums(values), matrix.sum(0), rtol=1e-5)
    assert torch.equal(code.active_columns(values), dense.active_columns(matrix))
    half = values > values.median()
    np.testing.assert_allclose(code.subset(half).dense(values[half]), matrix * (matrix > values.median()))
    np.testing.assert_allclose(dense.gram(matrix, x), matrix.T @ x, atol=1e-5)


@pytest.mark.parametrize(("n_columns", "k"), [(40, 3), (64 * 8 + 5, 8), (4096, 32), (30, 30)])
def test_the_largest_columns_are_found(n_columns, k):
    pre = np.random.default_rng(0).standard_normal((50, n_columns)).astype(np.float32)
    found = np.sort(largest_columns(pre, k), axis=1)
    assert np.array_equal(found, np.sort(np.argsort(-pre, axis=1)[:, :k], axis=1))


def with_threads(number, function):
    """What a function gives when the kernels have so many threads of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threads():
            assert torch.get_num_threads() == 1
            found = function()
        assert torch.get_num_threads() == number
        return found
    finally:
        torch.set_num_threads(before)


def test_threads_change_no_bit_of_what_is_found():
    generator = torch.Generator().manual_seed(0)
    z, weight = torch.randn(1_500, 16, generator=generator), torch.randn(2048, 16, generator=generator)
    pre, values = z @ weight.T, torch.rand(300_000, generator=generator)

    def everything():
        encoder = Encoder(weight, torch.zeros(2048), low=False)
        found = []
        for code in (encoder.largest(z, 8), encoder.above(z, 7.0), encoder.above(z, 1e9)):  # the last has no place
            mine = values[: len(code.columns)]
            found += [code.columns, code.offsets, code.decode(mine, weight), code.dots(z, weight), code.gram(mine, z)]
        return [*found, encoder(z), product(z, weight.T)]

    alone = with_threads(1, everything)
    top, top_offsets, decoded, dots, gram, above, above_offsets, *_, full, multiplied = alone
    assert [len(part) for part in alone[10:15]] == [0, 1_501, 1_500, 0, 2048]
    assert torch.equal(top.reshape(1_500, 8).sort(1).values, pre.topk(8, dim=1).indices.sort(1).values)
    assert torch.equal(above, (pre > 7.0).nonzero()[:, 1])
    assert torch.equal(above_offsets.diff(), (pre > 7.0).sum(1))
    matrix = SparseCode(top, top_offsets, 2048).dense(values[: len(top)])
    places = (torch.arange(1_500).repeat_interleave(8), top)
    for found, expected in (
        (decoded, matrix @ weight),
        (dots, pre[places]),
        (gram, matrix.T @ z),
        (full, pre),
        (multiplied, pre),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for number in (2, 5):
        several = with_threads(number, everything)
        assert all(torch.equal(a, b) for a, b in zip(alone[:-2], several[:-2], strict=True)), number
        torch.testing.assert_close(several[-2:], alone[-2:])
