"""Connections against the full matrix that loops over locations make, and nets of local fields against NumPy."""

from functools import partial

import nets
import numpy as np
import pytest
import torch
from nets import MNIST_MAP, RATES, assert_close, full_matrix, optimizer_for, seen_by

from src.layers.connections import Connections
from src.layers.fields import Map
from src.layers.layer import activities
from src.methods import unsupervised
from src.methods.unsupervised import step
from src.training.optimiser import descend

PEER, THRESHOLD, TEMPERATURE = 0.03, 0.5, 2.0  # at this threshold neither positives nor negatives are all certain
SHAPES = {
    "dense": (Map(3, 4, 2), Map(1, 1, 5), {}),
    "local": (Map(8, 8, 2), Map(3, 3, 4), dict(field=4, stride=2)),  # section 3.2
    "topographic": (Map(8, 8, 3), Map(8, 8, 2), dict(field=5, padding=2)),  # section 4
    "in tiles": (Map(8, 8, 3), Map(8, 8, 2), dict(field=5, padding=2, tile=4)),
    "in oblong tiles": (Map(6, 9, 1), Map(6, 9, 2), dict(field=3, padding=1, tile=3)),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def connections(shape: str, dtype: torch.dtype = torch.float32) -> Connections:
    seen, own, fields = SHAPES[shape]
    made = Connections(seen, own, std=0.3, generator=torch.Generator().manual_seed(0), dtype=dtype, **fields)
    made.weight.grad = torch.zeros_like(made.weight)
    return made


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@every_shape
def test_products_are_those_of_the_full_matrix(shape):
    ours = connections(shape)
    n, dz = random(7, ours.seen.size), random(7, ours.own.size)
    with torch.no_grad():
        torch.testing.assert_close(ours(n), n @ full_matrix(ours).T)
        torch.testing.assert_close(ours.back(dz), dz @ full_matrix(ours))


@every_shape
def test_a_unit_sees_its_field_and_nothing_else(shape):
    """Also at the border, where the square is cut."""
    ours = connections(shape)
    seen, own, fields = SHAPES[shape]
    matrix = full_matrix(ours).view(*own, *seen)
    for row in range(own.height):
        for column in range(own.width):
            first = [fields.get("stride", 1) * place - fields.get("padding", 0) for place in (row, column)]
            expected = torch.zeros(seen.height, seen.width, dtype=torch.bool)
            down, across = (slice(max(at, 0), max(at, 0) + fields.get("field", 9) + min(at, 0)) for at in first)
            expected[down, across] = True
            assert torch.equal((matrix[row, column] != 0).all(dim=(0, 3)), expected)
            assert torch.equal((matrix[row, column] != 0).any(dim=(0, 3)), expected)


@every_shape
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_the_gradient_is_that_of_the_full_matrix_within_the_fields(shape, dtype, tolerance):
    """And no weight outside of a field ever moves, after decay neither."""
    ours = connections(shape, dtype)
    optimizer, expected = optimizer_for(ours), 0
    outside = full_matrix(ours) == 0
    for seed in range(3):
        n, dz = random(150, ours.seen.size, seed=seed), random(150, ours.own.size, seed=seed + 9)
        expected = 0.9 * expected + 0.1 * (dz.T @ n)
        with torch.no_grad():
            ours.smooth(dz.split(60), n.split(60), 0.9)
        assert_close(full_matrix(ours, ours.weight.grad), expected.masked_fill(outside, 0).numpy(), tolerance)
        descend(optimizer)
        assert torch.equal(full_matrix(ours) == 0, outside)


@every_shape
def test_products_are_of_the_asked_dtype_and_follow_the_weights(shape):
    exact, rounded = connections(shape), connections(shape, torch.bfloat16)
    n = random(6, exact.seen.size)
    with torch.no_grad():
        for _ in range(3):
            assert rounded(n).dtype == torch.bfloat16
            error = (rounded(n) - exact(n)).norm() / exact(n).norm()
            assert 1e-4 < error < 0.01
            for each in (exact, rounded):
                each.weight *= -1.5
    # Loaded weights are rounded at once: a graph that is compiled or exported next would have those of before.
    rounded.load_state_dict(connections(shape).state_dict())
    assert torch.equal(rounded.rounded, connections(shape).weight.bfloat16())


small_net = partial(
    nets.small_net, 784, method=unsupervised, shape=MNIST_MAP, grids=[4, 3, 2], field=10,
    threshold=THRESHOLD, temperature=TEMPERATURE, peer_normalisation=PEER,
)  # fmt: skip

# The squares of the paper's layers.
FIRST = dict(grid=4, side=28, below=1, field=10, stride=6)
SECOND = dict(grid=3, side=4, below=3, field=2, stride=1)
THIRD = dict(grid=2, side=3, below=3, field=2, stride=1)


def reference(x, weight, bias, mean_activity, shape):
    """A layer's local loss and its gradients in float64, case by case and grid point by grid point: losses of the pairs
    ([B]), goodness ([2B]), activities ([2B, d_l]), gradients of weight and bias, and the new running mean.
    """
    x, weight, bias, mean_activity = (np.asarray(part, dtype=np.float64) for part in (x, weight, bias, mean_activity))
    locations, channels, _ = weight.shape
    squares = [seen_by(location, **shape) for location in range(locations)]
    size = len(x) // 2
    n = np.array([row / (np.sqrt(np.mean(row**2)) + 1e-8) for row in x])
    z = [np.concatenate([w @ row[square] for w, square in zip(weight, squares, strict=True)]) + bias for row in n]
    h = np.maximum(z, 0)
    goodness = (h**2).sum(axis=1)
    mean_activity = 0.9 * mean_activity + 0.1 * h[:size].mean(axis=0)
    pull = PEER * (mean_activity.mean() - mean_activity)

    p = 1 / (1 + np.exp(-(goodness - THRESHOLD * h.shape[1]) / TEMPERATURE))
    weight_gradient, bias_gradient, losses = np.zeros_like(weight), np.zeros_like(bias), np.zeros(size)
    for case in range(2 * size):
        if case < size:
            losses[case] -= np.log(p[case]) / 2
            dz = (-(1 - p[case]) * h[case] / TEMPERATURE - pull) / size
        else:
            losses[case - size] -= np.log(1 - p[case]) / 2
            dz = p[case] * h[case] / TEMPERATURE / size
        bias_gradient += dz
        for location, slopes in enumerate(dz.reshape(locations, channels)):
            weight_gradient[location] += np.outer(slopes, n[case, squares[location]])
    return losses, goodness, h, weight_gradient, bias_gradient, mean_activity


def test_a_training_step_against_numpy():
    net, generator = small_net([48, 27, 16]), torch.Generator().manual_seed(1)
    for layer in net.layers:
        layer.bias.data.normal_(0, 0.3, generator=generator)
        layer.mean_activity.uniform_(0, 2, generator=generator)
    before = [
        [x.detach().clone() for x in (layer.below.weight, layer.bias, layer.mean_activity)] for layer in net.layers
    ]
    x = torch.rand(40, 784, generator=generator)
    with torch.no_grad():
        activity = activities(net.layers, x)
    figures = step(net, optimizer_for(net), *x.split(20), torch.arange(20) % 10)
    rate, decay = RATES["learning_rate"], RATES["weight_decay"]
    for index, (layer, (weight, bias, mean)) in enumerate(zip(net.layers, before, strict=True)):
        shape = (FIRST, SECOND, THIRD)[index]
        losses, goodness, x, weight_gradient, bias_gradient, mean = reference(x, weight, bias, mean, shape)
        new_weight = weight.numpy() - rate * (0.1 * weight_gradient + decay * weight.numpy())
        for ours, theirs in (
            (figures["loss"][index], losses.sum()), (activity[index], x), (layer.goodness(activity[index]), goodness),
            (layer.below.weight.grad, 0.1 * weight_gradient), (layer.bias.grad, 0.1 * bias_gradient),
            (layer.below.weight.detach(), new_weight), (layer.bias.detach(), bias.numpy() - rate * 0.1 * bias_gradient),
        ):  # fmt: skip
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.mean_activity, mean, rtol=1e-5)


@pytest.mark.parametrize("scale", ["fan_in", "fan_out"])
def test_the_layers_of_the_paper_and_their_start_values(scale):
    layers = small_net([2048, 1980, 2048], weight_scale=scale).layers
    assert [tuple(layer.below.weight.shape) for layer in layers] == [(16, 128, 100), (9, 220, 512), (4, 512, 880)]
    for layer in layers:
        weight = layer.below.weight.detach()
        _, channels, fan_in = weight.shape
        variance = 1 / (fan_in if scale == "fan_in" else channels)
        assert weight.mean().item() == pytest.approx(0, abs=4 * (variance / weight.numel()) ** 0.5)
        assert weight.var(dim=(1, 2)).numpy() == pytest.approx(variance, rel=0.06)  # at every location
        assert not layer.bias.any()
        assert torch.equal(layer.mean_activity, torch.full_like(layer.bias, 0.5))
        assert layer.theta == THRESHOLD * len(layer.bias)
