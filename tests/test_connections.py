"""Connections against the full matrix that loops over locations make, and start values of local fields."""

import pytest
import torch
from nets import MNIST_MAP, assert_close, full_matrix, optimizer_for, seen_by, small_net

from src.layers.connections import Connections
from src.layers.fields import Map
from src.methods import unsupervised
from src.training.optimiser import descend

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


def test_each_location_has_a_matrix_of_its_square():
    ours = connections("local")
    matrix = full_matrix(ours).unflatten(0, (9, 4))
    for location, weight in enumerate(ours.weight):
        inputs = seen_by(location, grid=3, side=8, below=2, field=4, stride=2)
        assert torch.equal(matrix[location][:, inputs], weight)


@pytest.mark.parametrize("scale", ["fan_in", "fan_out"])
def test_the_layers_of_the_paper_and_their_start_values(scale):
    local = dict(method=unsupervised, shape=MNIST_MAP, grids=[4, 3, 2], field=10)
    layers = small_net(784, [2048, 1980, 2048], weight_scale=scale, threshold=0.5, **local).layers
    assert [tuple(layer.below.weight.shape) for layer in layers] == [(16, 128, 100), (9, 220, 512), (4, 512, 880)]
    for layer in layers:
        weight = layer.below.weight.detach()
        _, channels, fan_in = weight.shape
        variance = 1 / (fan_in if scale == "fan_in" else channels)
        assert weight.mean().item() == pytest.approx(0, abs=4 * (variance / weight.numel()) ** 0.5)
        assert weight.var(dim=(1, 2)).numpy() == pytest.approx(variance, rel=0.06)  # at every location
        assert not layer.bias.any()
        assert torch.equal(layer.mean_activity, torch.full_like(layer.bias, 0.5))
        assert layer.theta == 0.5 * len(layer.bias)
