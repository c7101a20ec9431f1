"""Layers and what they are made of: normalisation, start values, smoothed gradients."""

import pytest
import torch
from nets import on_cuda, small_net

from src.layers.connections import FEW_SAMPLES, Connections, rows_that_matter, select, smooth_outer
from src.layers.layer import FFLayer, length_normalise
from src.methods import backprop, recurrent

DENSE, BOTH_WAYS = [(400, 784), (300, 400)], [(400, 784), (400, 300), (300, 400), (300, 10)]


def test_normalised_rows_have_mean_square_one():
    v = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    torch.testing.assert_close(length_normalise(v).square().mean(dim=1), torch.ones(50), rtol=1e-4, atol=0)
    assert torch.equal(length_normalise(torch.zeros(2, 7)), torch.zeros(2, 7))  # a layer that is silent


@pytest.mark.parametrize(
    ("values", "shapes", "variances", "read"),
    [
        (dict(weight_scale="fan_in"), DENSE, [1 / 784, 1 / 400], 300),  # the read-out leaves the first layer out
        (dict(weight_scale="fan_out"), DENSE, [1 / 400, 1 / 300], 300),
        (dict(method=backprop), DENSE, [2 / 784, 2 / 400], 300),
        (dict(method=recurrent), BOTH_WAYS, [0.49 / seen for _, seen in BOTH_WAYS], 700),
    ],
    ids=["fan_in", "fan_out", "backprop", "recurrent"],
)
def test_start_values(values, shapes, variances, read):
    net = small_net(784, [400, 300], threshold=2.0, **values)
    weights = [part.weight.detach() for part in net.modules() if isinstance(part, Connections)]
    assert [tuple(weight.shape) for weight in weights] == shapes
    for weight, variance in zip(weights, variances, strict=True):  # within four standard errors
        assert weight.mean().item() == pytest.approx(0, abs=4 * (variance / weight.numel()) ** 0.5)
        assert weight.var().item() == pytest.approx(variance, rel=4 * (2 / weight.numel()) ** 0.5)
    for layer, own in zip(net.layers, (400, 300), strict=True):
        assert layer.bias.shape == (own,) and not layer.bias.any()
        assert isinstance(layer, FFLayer) == (values.get("method") is not backprop)
        if isinstance(layer, FFLayer):
            assert (layer.mean_activity == 0.5).all() and layer.theta == 2 * len(layer.bias)
    assert net.readout.weight.shape == (10, read) and not net.readout.weight.any()


@pytest.mark.parametrize("shape", [(), (3,)], ids=["one", "several"])
@pytest.mark.parametrize("samples", [1, 8, FEW_SAMPLES, FEW_SAMPLES + 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
def test_outer_products_are_smoothed(device, shape, samples, dtype):
    """In bf16 where there are many, or on a GPU."""
    generator = torch.Generator().manual_seed(0)
    dz, x = (torch.randn(*shape, samples, width, generator=generator).to(device) for width in (4, 5))
    g = torch.ones(*shape, 4, 5, device=device)
    smooth_outer(g, dz, x, 0.9, dtype)
    exact = torch.einsum("...bi,...bj->...ij", dz.double(), x.double())
    error = (g - 0.9 - 0.1 * exact).norm() / (0.1 * exact).norm()
    rounded = dtype == torch.bfloat16 and (samples > FEW_SAMPLES or device == "cuda")
    assert 1e-4 < error < 0.01 if rounded else error < 1e-6


def test_samples_whose_derivative_vanishes_are_left_out_on_a_cpu():
    derivatives = torch.tensor([-0.1, 0, 1e-12, 2, 1e-30, -1e-9])
    rows = rows_that_matter(derivatives)
    assert rows.tolist() == [0, 3, 5]
    assert torch.equal(select(derivatives[:, None], rows), derivatives[[0, 3, 5], None])
    assert rows_that_matter(derivatives.to("meta")) is None and select(derivatives, None) is derivatives
