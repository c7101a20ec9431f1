"""The recurrent net (section 3.4): its iterations and its update against NumPy, locality, start values, precision."""

import numpy as np
import pytest
import reference
import reference_recurrent
import torch
from nets import BATCH, INPUT_DIM, LAYER_DEFAULTS, TINY, assert_close, batch, optimizer_for

from src.checkpoint import load_model, save_model
from src.classify import class_scores
from src.layers import FFLayer, length_normalise, logistic_loss
from src.recurrent import RecurrentFFNet, train_step
from src.train import gain, set_gain

LAYERS = {"two layers": [17, 13], "three layers": [17, 9, 13]}


def net(hidden_dims=(17, 13), input_dim: int = INPUT_DIM, seed: int = 0, **options) -> RecurrentFFNet:
    """With the defaults of configs/config.yaml where `options` does not say otherwise."""
    defaults = dict(weight_gain=0.7, damping=0.3, iterations=8, first_learning_iteration=1, **LAYER_DEFAULTS)
    return RecurrentFFNet(input_dim, hidden_dims, generator=torch.Generator().manual_seed(seed), **(defaults | options))


def tensors(seed: int, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, wrong = batch(seed, size)
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(wrong)


def numpy_state(model: RecurrentFFNet) -> reference_recurrent.State:
    parts = [
        [getattr(layer, name).detach().double().numpy() for layer in model.layers]
        for name in ("weight", "top_down_weight", "bias")
    ]
    return reference_recurrent.new_state(*parts)


@pytest.mark.parametrize("hidden_dims", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("options", [{}, dict(damping=0.6, iterations=5, first_learning_iteration=3, temperature=2.0)])
def test_updates_are_those_of_numpy(hidden_dims, options):
    model = net(hidden_dims, **options)
    state = numpy_state(model)
    optimizer = optimizer_for(model, learning_rate=0.3)
    settings = dict(damping=model.damping, iterations=model.iterations, tiny=TINY)
    start, steps = [w.copy() for w in state.top_down], 4
    for step in range(steps):
        images, labels, wrong = tensors(step, size=BATCH - step % 2)
        set_gain(optimizer, gain(epoch=step + 1, epochs=steps))
        seen = []

        def draw(logits, labels, wrong=wrong, seen=seen):
            seen.append(reference.hard_negative_distribution(logits.double().numpy(), labels.numpy()))
            return wrong

        expected = reference_recurrent.negative_label_distribution(state, images.numpy(), labels.numpy(), TINY)
        figures = train_step(model, optimizer, images, labels, draw)
        assert_close(torch.tensor(seen[0]), expected)
        state, losses = reference_recurrent.train_step(
            state, images.numpy(), labels.numpy(), wrong.numpy(), **settings,
            first_learning_iteration=model.first_learning_iteration, temperature=model.layers[0].temperature,
            eps=0.3, eps_sup=0.1, wc=0.02, wc_sup=0.03, gain=reference.gain(step + 1, steps),
        )  # fmt: skip
        assert_close(figures["loss"], losses)
        for index, layer in enumerate(model.layers):
            parts = {"bottom_up": layer.weight, "top_down": layer.top_down_weight, "biases": layer.bias}
            for name, ours in parts.items():
                assert_close(ours, getattr(state, name)[index])
                assert_close(-ours.grad, state.smooth[name][index])
            assert_close(layer.mean_activity, state.means[index])
        assert_close(model.readout_weight, state.softmax)
    assert all(np.abs(now - before).max() > 1e-3 for now, before in zip(state.top_down, start, strict=True))

    images, _, _ = tensors(100, size=5)
    over_time = reference_recurrent.goodness_over_time(state, images.numpy(), **settings)
    assert_close(model.goodness_over_time(images), over_time)
    scores = class_scores(model, images)
    assert_close(scores["goodness"], over_time[2:5].mean(axis=0).sum(axis=0))
    assert_close(scores["goodness_all_iterations"], over_time.mean(axis=0).sum(axis=0))
    assert_close(scores["goodness_layer_2"], over_time[2:5, 1].mean(axis=0))
    assert_close(scores["one_pass"], reference_recurrent.read(state, images.numpy(), TINY)[1])


def test_the_gradient_is_that_of_each_layers_own_loss_with_everything_before_held_fixed():
    """By autograd, without the written-out derivative: no layer's loss reaches another layer, or back in time."""
    model = net(peer_normalisation=0.0)
    images, labels, wrong = tensors(0)
    optimizer = optimizer_for(model, learning_rate=0.0, weight_decay=0.0)
    train_step(model, optimizer, images, labels, lambda logits, labels: wrong)  # g = 0.1 gradient
    codes = torch.nn.functional.one_hot(torch.cat([labels, wrong]), 10).float()
    with torch.no_grad():
        states = [h.repeat(2, 1) for h in model.bottom_up(images)]
    loss = torch.zeros(())
    for _ in range(model.iterations):
        n = [length_normalise(h) for h in (images.repeat(2, 1), *states, codes)]
        new = []
        for index, layer in enumerate(model.layers):
            z = n[index] @ layer.weight.T + n[index + 2] @ layer.top_down_weight.T + layer.bias
            new.append(model.damping * states[index] + (1 - model.damping) * z.relu())
            # half of d(h^2)/dh: the 2 is absorbed by the learning rate, see FFLayer.local_loss
            loss = loss + logistic_loss(*layer.logit(new[-1]).chunk(2)) / model.iterations
        states = [h.detach() for h in new]
    layer_parameters = [(name, p) for name, p in model.named_parameters() if not name.startswith("readout")]
    for (name, parameter), gradient in zip(
        layer_parameters, torch.autograd.grad(loss, [p for _, p in layer_parameters]), strict=True
    ):
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_a_layer_sees_only_its_neighbours_one_iteration_before():
    """A change of the label reaches layer L at iteration 1, layer L - 1 at iteration 2, and so on."""
    model = net([17, 9, 13])
    images, labels, wrong = tensors(1)
    start = model.bottom_up(images)
    with torch.no_grad():
        pairs = zip(model.settle(images, labels, start), model.settle(images, wrong, start), strict=True)
        for iteration, (ours, theirs) in enumerate(pairs, start=1):
            reached = [not torch.equal(a.h, b.h) for a, b in zip(ours, theirs, strict=True)]
            assert reached == [iteration >= 3, iteration >= 2, True]


def test_start_values():
    model = net([400, 300], input_dim=784)
    for layer, below, above in zip(model.layers, (784, 400), (300, 10), strict=True):
        assert isinstance(layer, FFLayer)
        for weight, fan_in in ((layer.weight, below), (layer.top_down_weight, above)):
            assert weight.shape == (len(layer.bias), fan_in)
            assert weight.std().item() == pytest.approx(0.7 * fan_in**-0.5, rel=0.05)
        assert not layer.bias.any() and (layer.mean_activity == 0.5).all()
    assert model.readout_weight.shape == (10, 700) and not model.readout_weight.any()


def test_bf16_products_stay_near_fp32_and_keep_fp32_weights():
    models = [net([60, 50], matmul_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for model in models:
        optimizer = optimizer_for(model)
        for step in range(10):
            images, labels, wrong = tensors(step, size=20)
            train_step(model, optimizer, images, labels, lambda logits, labels, wrong=wrong: wrong)
    exact, rounded = (dict(model.named_parameters()) for model in models)
    for name, ours in rounded.items():
        assert ours.dtype == ours.grad.dtype == torch.float32
        allowed = 0.1 if name.endswith("bias") else 0.03
        assert 0 < (ours - exact[name]).norm() / exact[name].norm() < allowed, name
    images, _, _ = tensors(100, size=20)
    goodnesses = [model.goodness_over_time(images) for model in models]
    assert (goodnesses[0] - goodnesses[1]).norm() / goodnesses[0].norm() < 0.03


def test_a_saved_net_says_the_same(tmp_path):
    trained, fresh = net(), net(seed=1)
    images, labels, wrong = tensors(0)
    train_step(trained, optimizer_for(trained), images, labels, lambda logits, labels: wrong)
    save_model(trained, tmp_path / "model.pt")
    load_model(fresh, tmp_path / "model.pt")
    for rule, ours in class_scores(trained, images).items():
        assert torch.equal(ours, class_scores(fresh, images)[rule])
