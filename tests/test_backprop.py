"""The back-propagation baseline (section 3.1): its update against NumPy, start values, precision."""

import pytest
import reference
import reference_others
import torch
import torch.nn.functional as F
from nets import BATCH, HIDDEN_DIMS, INPUT_DIM, assert_close, batch, optimizer_for

from src.backprop import BackpropNet, train_step
from src.classify import class_scores
from src.train import gain, set_gain


def net(input_dim: int = INPUT_DIM, hidden_dims: list[int] = HIDDEN_DIMS, **options) -> BackpropNet:
    return BackpropNet(input_dim, hidden_dims, generator=torch.Generator().manual_seed(0), **options)


def tensors(seed: int, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, _ = batch(seed, size)
    return torch.tensor(images).float(), torch.tensor(labels)


@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_updates_are_those_of_numpy(decay_in_momentum, momentum):
    model = net()
    weights, biases = (
        [parameter.detach().double().numpy() for parameter in part] for part in (model.weights, model.biases)
    )
    state = reference.new_state(weights, biases)
    state.softmax = state.smooth_softmax = torch.zeros(10, HIDDEN_DIMS[-1]).double().numpy()  # of the last layer alone
    smoothing = dict(momentum=momentum, decay_in_momentum=decay_in_momentum)
    optimizer = optimizer_for(model, learning_rate=0.5, **smoothing)
    steps = 6  # the first moves the softmax alone, which starts at zero
    for step in range(steps):
        images, labels = tensors(step, size=BATCH - step % 2)
        set_gain(optimizer, gain(epoch=step + 1, epochs=steps))
        figures = train_step(model, optimizer, images, labels)
        state, loss = reference_others.backprop_step(
            state, images.numpy(), labels.numpy(),
            eps=0.5, eps_sup=0.1, wc=0.02, wc_sup=0.03, gain=reference.gain(step + 1, steps), **smoothing,
        )  # fmt: skip
        assert_close(figures["readout_loss"], loss)
        assert figures["loss"].shape == figures["pairs_ordered_wrongly"].shape == (0,)
        for index, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
            assert_close(weight, state.weights[index])
            assert_close(bias, state.biases[index])
            assert_close(-weight.grad, state.smooth_weights[index])
            assert_close(-bias.grad, state.smooth_biases[index])
        assert_close(model.readout_weight, state.softmax)
        assert_close(-model.readout_weight.grad, state.smooth_softmax)
    assert all(torch.tensor(bias).abs().max() > 1e-4 for bias in state.biases)  # the hidden layers have moved

    images, _ = tensors(100, size=30)
    scores = class_scores(model, images)
    last = reference_others.plain_forward(images.numpy(), state.weights, state.biases)[-1]
    assert list(scores) == ["one_pass"]
    assert_close(scores["one_pass"], last @ state.softmax.T)


def test_start_values():
    model = net(784, [400, 300])
    for weight, bias, fan_in in zip(model.weights, model.biases, (784, 400), strict=True):
        assert weight.mean().item() == pytest.approx(0, abs=4 * (2 / fan_in / weight.numel()) ** 0.5)
        assert weight.var().item() == pytest.approx(2 / fan_in, rel=0.02)
        assert bias.shape == (len(weight),) and not bias.any()
    assert model.readout_weight.shape == (10, 300) and not model.readout_weight.any()


def test_the_mean_square_of_the_activities_is_kept():
    model = net(784, [2000] * 4)
    h = torch.randn(50, 784, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in model.weights:
            h = F.relu(h @ weight.T)
            assert h.square().mean().item() == pytest.approx(1, rel=0.15)


def test_bf16_products_stay_near_fp32_and_keep_fp32_weights():
    models = [net(matmul_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for model in models:
        optimizer = optimizer_for(model)
        for step in range(20):
            train_step(model, optimizer, *tensors(step, size=20))
    exact, rounded = (dict(model.named_parameters()) for model in models)
    for name, ours in rounded.items():
        assert ours.dtype == ours.grad.dtype == torch.float32
        # Biases have moved by little from zero, and the ReLU of few units may have been switched otherwise.
        allowed = 0.1 if name.startswith("biases") else 0.03
        assert 0 < (ours - exact[name]).norm() / exact[name].norm() < allowed, name
