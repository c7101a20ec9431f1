"""One layer and the stack: the local loss, its locality, start values, normalisation, precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import HIDDEN_DIMS, INPUT_DIM, batch, optimizer_for, small_net

from src import fast, train
from src.layers import FFLayer, length_normalise
from src.linear import linear
from src.samples import embed_label, embed_neutral
from src.train import age_gradients


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, negative_labels = (torch.tensor(part) for part in batch(seed))
    images = images.float()
    return embed_label(images, labels), embed_label(images, negative_labels), labels


@pytest.mark.parametrize("trained", range(len(HIDDEN_DIMS)))
def test_no_gradient_crosses_a_layer(trained):
    model = small_net()
    losses, *_ = model.local_losses(*inputs()[:2])
    losses[trained].backward()
    for index, layer in enumerate(model.layers):
        assert (layer.weight.grad is not None) == (layer.bias.grad is not None) == (index == trained)
    assert model.layers[trained].weight.grad.abs().max() > 0
    assert model.readout_weight.grad is None


def test_the_read_out_sends_no_gradient_into_the_layers():
    model = small_net()
    positive, _, labels = inputs()
    F.cross_entropy(model.logits(embed_neutral(positive)), labels).backward()
    assert model.readout_weight.grad.abs().max() > 0
    assert all(layer.weight.grad is None and layer.bias.grad is None for layer in model.layers)


def test_the_gradients_are_those_of_a_plain_linear_layer():
    """Also where most cases have a derivative that vanishes, and where a gradient is there to be added to."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, generator=generator, requires_grad=True)
    weight = torch.randn(3, 5, generator=generator)
    upstream = torch.randn(8, 3, generator=generator)
    upstream[1:7] *= torch.tensor([0, 1e-12, 1e-30, 0, 1e-3, 1])[:, None]
    plain, ours = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    for _ in range(2):
        F.linear(x, plain).backward(upstream)
        expected, x.grad = x.grad, None
        linear(x, ours, torch.float32).backward(upstream)
        torch.testing.assert_close(ours.grad, plain.grad)
        torch.testing.assert_close(x.grad, expected)
        x.grad = None


def test_dead_units_are_revived_by_peer_normalisation_alone():
    model = small_net()
    layer = model.layers[0]
    with torch.no_grad():
        layer.bias[3] = -100.0
    model.local_losses(*inputs()[:2])[0][0].backward()
    expected = 0.03 * (layer.mean_activity.mean() - layer.mean_activity[3])
    assert expected > 0
    assert -layer.bias.grad[3].item() == pytest.approx(expected.item(), rel=1e-5)

    without = small_net(peer_normalisation=0.0)
    with torch.no_grad():
        without.layers[0].bias[3] = -100.0
    without.local_losses(*inputs()[:2])[0][0].backward()
    assert without.layers[0].bias.grad[3] == 0


def test_normalised_rows_have_mean_square_one():
    v = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    assert length_normalise(v).square().mean(dim=1).numpy() == pytest.approx(np.ones(50), rel=1e-4)
    assert torch.equal(length_normalise(torch.zeros(2, 7)), torch.zeros(2, 7))  # a layer that is silent


@pytest.mark.parametrize(("scale", "variances"), [("fan_in", [1 / 784, 1 / 400]), ("fan_out", [1 / 400, 1 / 300])])
def test_start_values(scale, variances):
    model = small_net(784, [400, 300], weight_scale=scale)
    for layer, variance in zip(model.layers, variances, strict=True):
        assert layer.weight.mean().item() == pytest.approx(0, abs=4 * (variance / layer.weight.numel()) ** 0.5)
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.02)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
        assert torch.equal(layer.mean_activity, torch.full_like(layer.bias, 0.5))
        assert layer.theta == len(layer.bias)
    assert model.readout_weight.shape == (10, 300)  # the first layer is left out
    assert not model.readout_weight.any()


def test_threshold_and_temperature_enter_the_logit():
    layer = small_net(threshold=2.0, temperature=4.0).layers[1]
    h = torch.ones(1, HIDDEN_DIMS[1])
    assert layer.logit(h).item() == pytest.approx((HIDDEN_DIMS[1] - 2 * HIDDEN_DIMS[1]) / 4)


def test_running_means_are_part_of_the_state():
    model = small_net()
    model.local_losses(*inputs()[:2])
    other = small_net(seed=1)
    other.load_state_dict(model.state_dict())
    for ours, theirs in zip(other.layers, model.layers, strict=True):
        assert torch.equal(ours.mean_activity, theirs.mean_activity)
        assert not torch.equal(ours.mean_activity, torch.full_like(ours.mean_activity, 0.5))


both_steps = pytest.mark.parametrize("train_step", [train.train_step, fast.train_step], ids=["plain", "fast"])


def steps(train_step, model, device: str = "cpu", count: int = 20):
    """`count` training steps on fresh batches with fixed negatives."""
    model = model.to(device)
    optimizer = optimizer_for(model)
    for seed in range(count):
        images, labels, wrong = (torch.tensor(part).to(device) for part in batch(seed, size=20))
        train_step(model, optimizer, images.float(), labels, lambda logits, labels, wrong=wrong: wrong)
    return model.cpu()


@both_steps
def test_bf16_products_stay_near_fp32_and_keep_fp32_weights(train_step):
    exact, rounded = steps(train_step, small_net()), steps(train_step, small_net(matmul_dtype=torch.bfloat16))
    for ours, theirs in zip(rounded.parameters(), exact.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_steps
def test_cuda_agrees_with_the_cpu(train_step, dtype):
    here = steps(train_step, small_net(matmul_dtype=dtype))
    there = steps(train_step, small_net(matmul_dtype=dtype), device="cuda")
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < (1e-4 if dtype == torch.float32 else 0.03)


def test_smoothing_adds_the_gradient_of_the_loss():
    """g <- 0.9 g + 0.1 gradient, against the gradient that autograd gives on its own."""
    model = small_net()
    layer: FFLayer = model.layers[0]
    optimizer = optimizer_for(model)
    layer.weight.grad.fill_(2.0)
    layer.bias.grad.fill_(2.0)
    (age_gradients(optimizer) * 3 * layer.bias.sum()).backward()
    assert layer.bias.grad.tolist() == pytest.approx([0.9 * 2 + 0.1 * 3] * HIDDEN_DIMS[0])
    assert layer.weight.grad.flatten().tolist() == pytest.approx([0.9 * 2] * HIDDEN_DIMS[0] * INPUT_DIM)
