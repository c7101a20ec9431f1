"""The recurrent net (section 3.4): its iterations and its update against NumPy, who sees whom, start values."""

from functools import partial

import nets
import numpy as np
import pytest
import reference
import reference_recurrent
import torch
from nets import BATCH, SHEET_RATES, TINY, assert_close, optimizer_for, tensors

from src.layers.layer import FFLayer
from src.methods import recurrent
from src.methods.recurrent import step
from src.training.optimiser import gain, set_gain

DAMPING, ITERATIONS = 0.3, 8
small_net = partial(
    nets.small_net,
    method=recurrent,
    weight_gain=0.7,
    damping=DAMPING,
    iterations=ITERATIONS,
    first_learning_iteration=1,
)


@pytest.mark.parametrize("hidden_dims", [[17], [17, 13], [17, 9, 13]], ids=["one layer", "two layers", "three layers"])
@pytest.mark.parametrize("options", [{}, dict(damping=0.6, iterations=5, first_learning_iteration=3, temperature=2.0)])
def test_updates_are_those_of_numpy(monkeypatch, hidden_dims, options):
    net = small_net(hidden_dims=hidden_dims, **options)
    parameters = zip(*((layer.below.weight, layer.above.weight, layer.bias) for layer in net.layers), strict=True)
    state = reference_recurrent.new_state(*([part.detach().double().numpy() for part in kind] for kind in parameters))
    optimizer = optimizer_for(net, learning_rate=0.3)
    settings = dict(damping=options.get("damping", DAMPING), iterations=net.iterations, tiny=TINY)
    start, steps = [w.copy() for w in state.top_down], 4
    for number in range(steps):
        images, labels, wrong = tensors(number, size=BATCH - number % 2)
        set_gain(optimizer, gain(epoch=number + 1, epochs=steps))
        seen = []

        def draw(logits, labels, generator, wrong=wrong, seen=seen):
            seen.append(reference.hard_negative_distribution(logits.double().numpy(), labels.numpy()))
            return wrong

        expected = reference_recurrent.negative_label_distribution(state, images.numpy(), labels.numpy(), TINY)
        figures = step(net, optimizer, images, labels, None, choose=draw)
        assert_close(torch.tensor(seen[0]), expected)
        state, losses = reference_recurrent.train_step(
            state, images.numpy(), labels.numpy(), wrong.numpy(), **settings, **SHEET_RATES | dict(eps=0.3),
            first_learning_iteration=net.first_learning_iteration, temperature=options.get("temperature", 1.0),
            gain=reference.gain(number + 1, steps),
        )  # fmt: skip
        assert_close(figures["loss"], losses)
        for index, layer in enumerate(net.layers):
            parts = {"bottom_up": layer.below.weight, "top_down": layer.above.weight, "biases": layer.bias}
            for name, ours in parts.items():
                assert_close(ours, getattr(state, name)[index])
                assert_close(-ours.grad, state.smooth[name][index])
            assert_close(layer.mean_activity, state.means[index])
        assert_close(net.readout.weight, state.softmax)
    assert all(np.abs(now - before).max() > 1e-3 for now, before in zip(state.top_down, start, strict=True))

    images, _, _ = tensors(100, size=5)
    over_time = reference_recurrent.goodness_over_time(state, images.numpy(), **settings)
    monkeypatch.setattr(recurrent, "AT_ONCE", 20)  # two images under ten labels: in parts, of which the last is smaller
    assert_close(net.goodness_over_time(images), over_time)
    by_rule = net.scores(images)
    assert_close(by_rule["goodness"], over_time[2:5].mean(axis=0).sum(axis=0))
    assert_close(by_rule["goodness_all_iterations"], over_time.mean(axis=0).sum(axis=0))
    for index in range(len(hidden_dims)):
        assert_close(by_rule[f"goodness_layer_{index + 1}"], over_time[2:5, index].mean(axis=0))
    assert_close(by_rule["one_pass"], reference_recurrent.read(state, images.numpy(), TINY)[1])
    assert len(by_rule) == 3 + len(hidden_dims)


def test_a_layer_sees_only_its_neighbours_one_iteration_before():
    """A change of the label reaches layer L at iteration 1, layer L - 1 at iteration 2, and so on."""
    net = small_net()
    images, labels, wrong = tensors(1)
    with torch.no_grad():
        start = net.bottom_up(images)
        pairs = zip(net.settle(images, labels, start), net.settle(images, wrong, start), strict=True)
        for iteration, (ours, theirs) in enumerate(pairs, start=1):
            reached = [not torch.equal(a, b) for a, b in zip(ours.h, theirs.h, strict=True)]
            assert reached == [iteration >= 3, iteration >= 2, True]


def test_start_values():
    net = small_net(784, [400, 300])
    for layer, below, above in zip(net.layers, (784, 400), (300, 10), strict=True):
        assert isinstance(layer, FFLayer)
        for weight, fan_in in ((layer.below.weight, below), (layer.above.weight, above)):
            assert weight.shape == (len(layer.bias), fan_in)
            assert weight.std().item() == pytest.approx(0.7 * fan_in**-0.5, rel=0.05)
        assert not layer.bias.any() and (layer.mean_activity == 0.5).all()
    assert net.readout.weight.shape == (10, 700) and not net.readout.weight.any()
