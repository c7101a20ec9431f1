"""Local receptive fields: who sees what, and the layer against NumPy loops over the grid points."""

import numpy as np
import pytest
import torch
from nets import LAYER, RATES, optimizer_for, seen_by

from src.layers.layer import FFLayer
from src.layers.local import LocalFFLayer, local_layers
from src.layers.stack import activities
from src.methods.unsupervised import UnsupervisedNet, step

PEER, THRESHOLD, TEMPERATURE = 0.03, 0.5, 2.0  # at this threshold neither positives nor negatives are all certain


def small_layers(hidden_dims=(48, 27, 16), weight_scale="fan_in", **options) -> list[FFLayer]:
    """With the grids of the paper; 3, 3 and 4 channels."""
    options = LAYER | dict(threshold=THRESHOLD, temperature=TEMPERATURE, peer_normalisation=PEER) | options
    generator = torch.Generator().manual_seed(0)
    return local_layers(hidden_dims, [4, 3, 2], field=10, weight_scale=weight_scale, generator=generator, **options)


def images(seed: int, count: int = 5) -> torch.Tensor:
    return torch.rand(count, 784, generator=torch.Generator().manual_seed(seed))


# The squares of the paper's layers.
FIRST = dict(grid=4, side=28, below=1, field=10, stride=6)
SECOND = dict(grid=3, side=4, below=3, field=2, stride=1)
THIRD = dict(grid=2, side=3, below=3, field=2, stride=1)


def test_the_tests_know_who_sees_a_pixel():
    """The second and third rows of squares see row 13, the first two columns of them column 7."""
    assert [location for location in range(16) if 13 * 28 + 7 in seen_by(location, **FIRST)] == [4, 5, 8, 9]


@pytest.mark.parametrize(("index", "shape"), [*enumerate([FIRST, SECOND, THIRD])], ids=["first", "second", "third"])
def test_every_unit_sees_its_square_and_nothing_else(index, shape):
    layer = small_layers()[index]
    with torch.no_grad():
        z = layer.total_input(torch.eye(shape["side"] ** 2 * shape["below"]))  # one input at a time
    expected = torch.zeros_like(z)
    locations, channels, _ = layer.weight.shape
    assert locations == shape["grid"] ** 2
    for location in range(locations):
        for channel in range(channels):
            expected[seen_by(location, **shape), location * channels + channel] = layer.weight.data[location, channel]
    assert torch.equal(z, expected)


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
    net, generator = UnsupervisedNet(small_layers()), torch.Generator().manual_seed(1)
    for layer in net.layers:
        layer.bias.data.normal_(0, 0.3, generator=generator)
        layer.mean_activity.uniform_(0, 2, generator=generator)
    before = [[x.detach().clone() for x in (layer.weight, layer.bias, layer.mean_activity)] for layer in net.layers]
    x = torch.cat([images(0, 20), images(1, 20)])
    with torch.no_grad():
        activity = activities(net.layers, x, [None] * 3)
    figures = step(net, optimizer_for(net), *x.split(20), torch.arange(20) % 10)
    rate, decay = RATES["learning_rate"], RATES["weight_decay"]
    for index, (layer, (weight, bias, mean)) in enumerate(zip(net.layers, before, strict=True)):
        shape = (FIRST, SECOND, THIRD)[index]
        losses, goodness, x, weight_gradient, bias_gradient, mean = reference(x, weight, bias, mean, shape)
        new_weight = weight.numpy() - rate * (0.1 * weight_gradient + decay * weight.numpy())
        for ours, theirs in (
            (figures["loss"][index], losses.sum()), (activity[index], x), (layer.goodness(activity[index]), goodness),
            (layer.weight.grad, 0.1 * weight_gradient), (layer.bias.grad, 0.1 * bias_gradient),
            (layer.weight.detach(), new_weight), (layer.bias.detach(), bias.numpy() - rate * 0.1 * bias_gradient),
        ):  # fmt: skip
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.mean_activity, mean, rtol=1e-5)


@pytest.mark.parametrize("scale", ["fan_in", "fan_out"])
def test_the_layers_of_the_paper_and_their_start_values(scale):
    layers = small_layers([2048, 1980, 2048], weight_scale=scale)
    assert [tuple(layer.weight.shape) for layer in layers] == [(16, 128, 100), (9, 220, 512), (4, 512, 880)]
    for layer in layers:
        _, channels, fan_in = layer.weight.shape
        variance = 1 / (fan_in if scale == "fan_in" else channels)
        assert layer.weight.mean().item() == pytest.approx(0, abs=4 * (variance / layer.weight.numel()) ** 0.5)
        assert layer.weight.detach().var(dim=(1, 2)).numpy() == pytest.approx(variance, rel=0.06)  # at every location
        assert not layer.bias.any()
        assert torch.equal(layer.mean_activity, torch.full_like(layer.bias, 0.5))
        assert layer.theta == THRESHOLD * len(layer.bias)


def test_one_location_that_sees_everything_is_a_fully_connected_layer():
    """The same random numbers, the same net."""
    options = LAYER | dict(weight_std=0.1)
    local = LocalFFLayer(28, 1, field=28, stride=1, channels=7, generator=torch.Generator().manual_seed(0), **options)
    dense = FFLayer(784, 7, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(local(images(0)), dense(images(0)))
