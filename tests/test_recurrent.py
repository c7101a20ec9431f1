"""The recurrent net (section 3.4): its iterations and its update against NumPy."""

from functools import partial

import nets
import numpy as np
import pytest
import reference
import reference_recurrent
import torch
from nets import BATCH, SHEET_RATES, TINY, assert_close, full_matrix, optimizer_for, tensors

from src.layers.connections import Connections
from src.layers.fields import Map
from src.methods import recurrent
from src.methods.recurrent import step
from src.training.optimiser import gain, set_gain

small_net = partial(nets.small_net, method=recurrent)
COLOUR = Map(4, 6, 3)
TOPOGRAPHIC = dict(input_dim=COLOUR.size, shape=COLOUR, field=3, standardise=True)  # section 4
NETS = {
    "one layer": dict(hidden_dims=[17]),
    "two layers": dict(hidden_dims=[17, 13]),
    "three layers": dict(hidden_dims=[17, 9, 13]),
    "topographic": dict(hidden_dims=[48, 72], **TOPOGRAPHIC),
    "topographic, three layers": dict(hidden_dims=[48, 24, 72], **TOPOGRAPHIC),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(damping=0.6, iterations=6, first_learning_iteration=3, temperature=2.0, deciding_iterations=[4, 6]),
        dict(goodness="minus_sum_of_squares", temperature=5.0, dropout=0.3),
    ],
    ids=["paper", "other values", "min ssq with dropout"],
)
def test_updates_are_those_of_numpy(monkeypatch, kind, options):
    """Of fields by full weight matrices, whose missing connections are set back to zero."""
    options = options.copy()
    p = options.pop("dropout", 0.0)
    net = small_net(**NETS[kind], **options)
    width, layers = net.shape.size, net.layers
    if net.standardise:
        net.prepare(torch.randint(0, 200, (50, width), generator=torch.Generator().manual_seed(1)).byte())
    masks = {
        "bottom_up": [(full_matrix(layer.below) != 0).double().numpy() for layer in layers],
        "top_down": [(full_matrix(layer.above) != 0).double().numpy() for layer in layers],
    }

    def matrices(gradients: bool) -> dict[str, list[torch.Tensor]]:
        def of(connections: Connections) -> torch.Tensor:
            return full_matrix(connections, connections.weight.grad if gradients else connections.weight)

        biases = [layer.bias.grad if gradients else layer.bias for layer in layers]
        above = [of(layer.above) for layer in layers]
        return {"bottom_up": [of(layer.below) for layer in layers], "top_down": above, "biases": biases}

    def as_seen(images: torch.Tensor) -> np.ndarray:
        if not net.standardise:
            return images.numpy()
        mean, std = net.pixel_mean.numpy(), net.pixel_std.numpy()
        return ((images.numpy().reshape(len(images), -1, 3) - mean) / std).reshape(len(images), -1)

    state = reference_recurrent.new_state(
        *([part.detach().double().numpy() for part in kind] for kind in matrices(False).values())
    )
    how = dict(temperature=options.get("temperature", 1.0), sign=-1.0 if "goodness" in options else 1.0, masks=masks)
    optimizer = optimizer_for(net, learning_rate=0.1)
    settings = dict(damping=options.get("damping", 0.3), iterations=net.iterations, tiny=TINY)
    start, steps = [w.copy() for w in state.top_down], 4
    for number in range(steps):
        images, labels, wrong = tensors(number, size=BATCH - number % 2, dim=width)
        set_gain(optimizer, gain(epoch=number + 1, epochs=steps))
        seen = []

        def draw(logits, labels, generator, wrong=wrong, seen=seen):
            seen.append(reference.hard_negative_distribution(logits.double().numpy(), labels.numpy()))
            return wrong

        expected = reference_recurrent.negative_label_distribution(state, as_seen(images), labels.numpy(), TINY)
        rng = np.random.default_rng(number)
        dropout = [(rng.random((len(images), len(layer.bias))) >= p) / (1 - p) for layer in layers]
        kept = [torch.tensor(of_layer).float() for of_layer in dropout] if p else None
        figures = step(net, optimizer, images, labels, None, choose=draw, masks=kept)
        assert_close(torch.tensor(seen[0]), expected)
        state, losses = reference_recurrent.train_step(
            state, as_seen(images), labels.numpy(), wrong.numpy(), **settings, **SHEET_RATES | dict(eps=0.1),
            first_learning_iteration=net.first_learning_iteration, gain=reference.gain(number + 1, steps), **how,
            dropout=list(zip(*dropout, strict=True)),
        )  # fmt: skip
        assert_close(figures["loss"], losses)
        for name, parts in matrices(gradients=False).items():
            for index, (ours, g) in enumerate(zip(parts, matrices(gradients=True)[name], strict=True)):
                assert_close(ours, getattr(state, name)[index])
                assert_close(-g, state.smooth[name][index])
        for layer, means in zip(layers, state.means, strict=True):
            assert_close(layer.mean_activity, means)
        assert_close(net.readout.weight, state.softmax)
    assert all(np.abs(now - before).max() > 1e-3 for now, before in zip(state.top_down, start, strict=True))

    images, _, _ = tensors(100, size=5, dim=width)
    over_time = how["sign"] * reference_recurrent.goodness_over_time(state, as_seen(images), **settings)
    first, last = net.deciding_iterations
    deciding = over_time[first - 1 : last].mean(axis=0)
    monkeypatch.setattr(recurrent, "AT_ONCE", 20)  # two images under ten labels: in parts, of which the last is smaller
    assert_close(net.goodness_over_time(images), over_time)
    by_rule = net.scores(images)
    assert_close(by_rule["goodness"], deciding.sum(axis=0))
    assert_close(by_rule["goodness_all_iterations"], over_time.mean(axis=0).sum(axis=0))
    for index, of_layer in enumerate(deciding, start=1):
        assert_close(by_rule[f"goodness_layer_{index}"], of_layer)
    logits = reference_recurrent.read(state, as_seen(images), TINY)[1]
    assert_close(by_rule["one_pass"], logits)
    assert_close(by_rule["goodness_and_one_pass"], reference.together(deciding.sum(axis=0), logits))
    assert len(by_rule) == 4 + len(layers)


def test_a_channel_that_is_constant_is_standardised_to_zero():
    net = small_net(hidden_dims=[48], **TOPOGRAPHIC)
    images = torch.randint(0, 200, (50, COLOUR.height, COLOUR.width, 3), generator=torch.Generator().manual_seed(1))
    images[..., 1] = 37
    net.prepare(images.flatten(1).byte())
    first, constant, last = net.standardised(images.flatten(1) / 255).view(-1, 3).T
    assert not constant.any()
    for channel in (first, last):
        assert (channel.mean().item(), channel.std().item()) == pytest.approx((0, 1), abs=1e-3)
