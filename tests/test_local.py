"""Local receptive fields: who sees what, and the layer against NumPy loops over the grid points."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src import fast, unsupervised
from src.checkpoint import load_model, save_model
from src.layers import FFLayer
from src.linear import FEW_CASES
from src.local import LocalFFLayer, local_layers, local_linear
from src.train import Step, make_optimizer
from src.unsupervised import UnsupervisedFFNet

RATES = dict(learning_rate=0.05, weight_decay=0.02, readout_learning_rate=0.1, readout_weight_decay=0.03)
PEER, THRESHOLD, TEMPERATURE = 0.03, 0.5, 2.0  # at this threshold neither positives nor negatives are all certain
SMALL = ([48, 27, 16], [4, 3, 2])  # 3, 3 and 4 channels


def small_layers(hidden_dims=SMALL[0], grids=SMALL[1], *, seed=0, weight_scale="fan_in", dtype=torch.float32):
    return local_layers(
        hidden_dims,
        grids,
        field=10,
        weight_scale=weight_scale,
        generator=torch.Generator().manual_seed(seed),
        threshold=THRESHOLD,
        temperature=TEMPERATURE,
        peer_normalisation=PEER,
        peer_momentum=0.9,
        initial_mean_activity=0.5,
        matmul_dtype=dtype,
    )


def images(seed: int, count: int = 5) -> torch.Tensor:
    return torch.rand(count, 784, generator=torch.Generator().manual_seed(seed))


def one_step(
    model: UnsupervisedFFNet, optimizer: torch.optim.SGD, seed: int = 0, train_step: Step = fast.unsupervised_step
) -> None:
    positive, negative = (images(2 * seed + part, 20).to(model.readout_weight.device) for part in (0, 1))
    train_step(model, optimizer, positive, torch.arange(20, device=positive.device) % 10, lambda _: negative)


def optimizer_for(model: UnsupervisedFFNet) -> torch.optim.SGD:
    return make_optimizer(model.named_parameters(), **RATES, momentum=0.9, decay_in_momentum=False)


# The squares of the paper's layers: grid, side of the grid below, channels below, side of a square, stride.
FIRST = SimpleNamespace(grid=4, side=28, below=1, field=10, stride=6)
SECOND = SimpleNamespace(grid=3, side=4, below=3, field=2, stride=1)
THIRD = SimpleNamespace(grid=2, side=3, below=3, field=2, stride=1)
every_layer = pytest.mark.parametrize(
    ("index", "shape"), [(0, FIRST), (1, SECOND), (2, THIRD)], ids=["first", "second", "third"]
)


def seen_by(location: int, shape: SimpleNamespace) -> list[int]:
    """Indices of the inputs of a location, in the order of its weights."""
    top, left = (shape.stride * place for place in divmod(location, shape.grid))
    return [
        (row * shape.side + column) * shape.below + channel
        for row in range(top, top + shape.field)
        for column in range(left, left + shape.field)
        for channel in range(shape.below)
    ]


SEEN_BY_SECOND = torch.tensor([seen_by(location, SECOND) for location in range(9)])


@every_layer
def test_every_unit_sees_its_square_and_nothing_else(index, shape):
    layer = small_layers()[index]
    z = layer.total_input(torch.eye(shape.side**2 * shape.below))  # one input at a time
    expected = np.zeros(z.shape, dtype=np.float32)
    weight = layer.weight.detach().numpy()
    channels = weight.shape[1]
    for location in range(shape.grid**2):
        for channel in range(channels):
            expected[seen_by(location, shape), location * channels + channel] = weight[location, channel]
    assert np.array_equal(z.detach().numpy(), expected)


def reference(x, weight, bias, mean_activity, shape):
    """`FFLayer.local_loss` and its gradients in float64, case by case and grid point by grid point.

    Returns:
        loss, logits ([2B]), activities ([2B, d_l]), gradients of weight and bias, and the new running mean.
    """
    x, weight, bias, mean_activity = (np.asarray(part, dtype=np.float64) for part in (x, weight, bias, mean_activity))
    locations, channels, _ = weight.shape
    squares = [seen_by(location, shape) for location in range(locations)]
    size = len(x) // 2
    n = np.array([row / (np.sqrt(np.mean(row**2)) + 1e-8) for row in x])
    z = np.zeros((2 * size, locations * channels))
    for case in range(2 * size):
        for location in range(locations):
            for channel in range(channels):
                unit = location * channels + channel
                z[case, unit] = np.dot(weight[location, channel], n[case, squares[location]]) + bias[unit]
    h = np.maximum(z, 0)
    logits = ((h**2).sum(axis=1) - THRESHOLD * h.shape[1]) / TEMPERATURE
    mean_activity = 0.9 * mean_activity + 0.1 * h[:size].mean(axis=0)
    pull = PEER * (mean_activity.mean() - mean_activity)

    p = 1 / (1 + np.exp(-logits))
    weight_gradient, bias_gradient, loss = np.zeros_like(weight), np.zeros_like(bias), 0.0
    for case in range(2 * size):
        if case < size:  # positive; its peer normalisation is linear in the total input
            loss += (-np.log(p[case]) / 2 - np.dot(pull, z[case])) / size
            dz = (-(1 - p[case]) * h[case] / TEMPERATURE - pull) / size
        else:
            loss += -np.log(1 - p[case]) / 2 / size
            dz = p[case] * h[case] / TEMPERATURE / size
        bias_gradient += dz
        for location in range(locations):
            for channel in range(channels):
                slope = dz[location * channels + channel]
                weight_gradient[location, channel] += slope * n[case, squares[location]]
    return loss, logits, h, weight_gradient, bias_gradient, mean_activity


@every_layer
def test_the_local_loss_against_numpy(index, shape):
    layer = small_layers()[index]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.bias.normal_(0, 0.3, generator=generator)
        layer.mean_activity.uniform_(0, 2, generator=generator)
    x = torch.rand(10, shape.side**2 * shape.below, generator=generator)
    before = layer.weight.detach(), layer.bias.detach(), layer.mean_activity.clone()
    expected_loss, expected_logits, expected_h, *expected = reference(x, *before, shape)
    loss, logits, h = layer.local_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(logits.detach(), expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(h.detach(), expected_h, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((layer.weight.grad, layer.bias.grad, layer.mean_activity), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_step", [unsupervised.train_step, fast.unsupervised_step], ids=["plain", "fast"])
def test_a_training_step_against_numpy(train_step):
    model = UnsupervisedFFNet(small_layers())
    before = [(layer.weight.detach().clone(), layer.bias.detach().clone(), [0.5]) for layer in model.layers]
    optimizer = optimizer_for(model)
    one_step(model, optimizer, train_step=train_step)
    x = torch.cat([images(0, 20), images(1, 20)])
    for layer, (weight, bias, mean), shape in zip(model.layers, before, (FIRST, SECOND, THIRD), strict=True):
        _, _, x, weight_gradient, bias_gradient, mean = reference(x, weight, bias, mean * len(bias), shape)
        weight = weight.numpy() - 0.05 * (0.1 * weight_gradient + 0.02 * weight.numpy())
        np.testing.assert_allclose(layer.weight.detach(), weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.bias.detach(), bias.numpy() - 0.05 * 0.1 * bias_gradient, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(layer.mean_activity, mean, rtol=1e-5)


@pytest.mark.parametrize("trained", range(3))
def test_no_gradient_crosses_a_layer(trained):
    model = UnsupervisedFFNet(small_layers())
    model.local_losses(images(0), images(1))[0][trained].backward()
    for index, layer in enumerate(model.layers):
        assert (layer.weight.grad is not None) == (layer.bias.grad is not None) == (index == trained)
    assert (model.layers[trained].weight.grad.abs().amax(dim=(1, 2)) > 0).all()  # at every location


def test_a_location_learns_nothing_from_pixels_it_does_not_see():
    layer = small_layers()[0]
    upstream = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))

    def gradient(n: torch.Tensor) -> torch.Tensor:
        layer.weight.grad = None
        layer.total_input(n).backward(upstream)
        return layer.weight.grad

    n = images(0)
    before = gradient(n)
    pixel = 13 * 28 + 7  # the second and third rows of squares see row 13, the first two columns of them column 7
    n[:, pixel] += 1
    changed = (gradient(n) != before).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [4, 5, 8, 9]


def test_the_gradients_are_those_of_a_plain_product():
    """Of weights and inputs, where most derivatives vanish, too, and where a gradient is there to be added to."""
    generator = torch.Generator().manual_seed(0)
    layer = small_layers()[1]
    n = torch.randn(8, 4 * 4 * 3, generator=generator, requires_grad=True)
    upstream = torch.randn(8, 27, generator=generator)
    upstream[1:7] *= torch.tensor([0, 1e-12, 1e-30, 0, 1e-3, 1])[:, None]
    plain = layer.weight.detach().clone().requires_grad_()
    for _ in range(2):
        torch.einsum("blk,lck->blc", n[:, SEEN_BY_SECOND], plain).flatten(1).backward(upstream)
        expected, n.grad = n.grad, None
        layer.total_input(n).backward(upstream)
        torch.testing.assert_close(layer.weight.grad, plain.grad)
        torch.testing.assert_close(n.grad, expected)
        n.grad = None


@pytest.mark.parametrize("cases", [1, 8, FEW_CASES + 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_the_written_out_weight_gradient_is_added_to_what_is_there(cases, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    layer = small_layers(dtype=dtype)[1]
    n, dz = (torch.randn(cases, dim, generator=generator) for dim in (4 * 4 * 3, 27))
    layer.weight.grad = torch.ones_like(layer.weight)
    fast.add_local_weight_gradient(layer, dz, n)
    expected = torch.einsum("blc,blk->lck", dz.view(cases, 9, 3), n[:, SEEN_BY_SECOND])
    assert (layer.weight.grad - 1 - expected).norm() <= tolerance * expected.norm()


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


def steps(dtype: torch.dtype, device: str = "cpu") -> UnsupervisedFFNet:
    model = UnsupervisedFFNet(small_layers(dtype=dtype), matmul_dtype=dtype).to(device)
    optimizer = optimizer_for(model)
    for seed in range(10):
        one_step(model, optimizer, seed)
    return model.cpu()


def test_bf16_products_stay_near_fp32_and_keep_fp32_weights():
    for ours, theirs in zip(steps(torch.bfloat16).parameters(), steps(torch.float32).parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype):
    for ours, theirs in zip(steps(dtype, "cuda").parameters(), steps(dtype).parameters(), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < (1e-4 if dtype == torch.float32 else 0.03)


def test_a_saved_net_is_read_again(tmp_path):
    model, other = UnsupervisedFFNet(small_layers()), UnsupervisedFFNet(small_layers(seed=1))
    one_step(model, optimizer_for(model))
    save_model(model, tmp_path / "model.pt")
    load_model(other, tmp_path / "model.pt")
    for ours, theirs in zip(other.activities(images(5)), model.activities(images(5)), strict=True):
        assert torch.equal(ours, theirs)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_one_location_that_sees_everything_is_a_fully_connected_layer():
    """The same random numbers, the same net."""
    options = dict(
        threshold=1.0,
        temperature=1.0,
        peer_normalisation=PEER,
        peer_momentum=0.9,
        initial_mean_activity=0.5,
        matmul_dtype=torch.float32,
        weight_std=0.1,
    )
    local = LocalFFLayer(28, 1, field=28, stride=1, channels=7, generator=torch.Generator().manual_seed(0), **options)
    dense = FFLayer(784, 7, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(local(images(0)), dense(images(0)))


def test_products_are_of_the_dtype_of_the_patches():
    patches, weight = torch.full((2, 3, 1), 1.01), torch.ones(2, 4, 1)
    z = local_linear(patches.bfloat16(), weight)
    assert z.dtype == torch.float32
    assert torch.equal(z, torch.full((3, 8), torch.tensor(1.01).bfloat16().item()))
