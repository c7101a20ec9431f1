"""The unsupervised net (section 3.2): its updates against NumPy, and read-outs that leave the layers alone."""

from itertools import pairwise

import nets
import numpy as np
import pytest
import reference
import reference_others
import torch
from nets import BATCH, TINY, as_state, assert_close, assert_layers_are, optimizer_for, small_net, tensors

from src.layers.fields import Map
from src.methods import unsupervised
from src.methods.unsupervised import Net, readout_step, step
from src.training.epochs import train_epochs
from src.training.optimiser import gain, set_gain

NETS = {"dense": {}, "local": dict(hidden_dims=[16, 9, 12], shape=Map(8, 8, 3), grids=[4, 3, 2], field=2)}
RULES = {"one_pass": [2, 3], "one_pass_all_layers": [1, 2, 3], **{f"one_pass_layer_{k}": [k] for k in (1, 2, 3)}}


def layers_of(net: Net) -> dict[str, torch.Tensor]:
    """A copy of weights, biases and running means."""
    return {name: value.clone() for name, value in net.layers.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize(
    ("temperature", "peer_normalisation", "peer_momentum", "momentum"), [(1.0, 0.03, 0.9, 0.9), (2.5, 0.2, 0.7, 0.5)]
)
def test_both_updates_are_those_of_numpy(
    kind, decay_in_momentum, temperature, peer_normalisation, peer_momentum, momentum
):
    """Four of layers and read-outs together, then three of the read-outs alone.

    Of fields by full weight matrices, whose missing connections are set back to zero.
    """
    peer = dict(peer_normalisation=peer_normalisation, peer_momentum=peer_momentum)
    net = small_net(method=unsupervised, temperature=temperature, **NETS[kind], **peer)
    state, dim = as_state(net), net.shape.size
    inside = [weight != 0 for weight in state.weights]
    dims = [len(bias) for bias in state.biases]
    readouts = {rule: reference_others.new_readout(layers, dims) for rule, layers in RULES.items()}
    smoothing = dict(momentum=momentum, decay_in_momentum=decay_in_momentum)
    optimizer = optimizer_for(net, **smoothing)

    def compare(figures: dict[str, torch.Tensor], losses: dict[str, float | list]) -> None:
        for name, expected in losses.items():
            assert_close(figures[name], expected)
        assert_layers_are(net, state)
        for rule, readout in net.readouts.items():
            assert_close(readout.weight, readouts[rule].weight)
            assert_close(-readout.weight.grad, readouts[rule].smooth)

    for number in range(4):
        size = BATCH - number  # the last batch of an epoch is smaller
        (images, labels, _), (negatives, _, _) = tensors(number, size, dim), tensors(number + 1000, size, dim)
        set_gain(optimizer, gain(epoch=number + 1, epochs=4))
        ours = step(net, optimizer, images, negatives, labels)
        state, readouts, figures = reference_others.unsupervised_step(
            state, readouts, images.numpy(), negatives.numpy(), labels.numpy(), **nets.SHEET_RATES,
            gain=reference.gain(number + 1, 4), peer=peer_normalisation, peer_momentum=peer_momentum,
            temperature=temperature, tiny=TINY, **smoothing,
        )  # fmt: skip
        for of_weights in (state.weights, state.smooth_weights):
            of_weights[:] = [np.where(part, of_layer, 0) for part, of_layer in zip(inside, of_weights, strict=True)]
        compare(ours, figures)

    layers = layers_of(net)
    optimizer = optimizer_for(net.readouts, **smoothing)
    for number in range(3):
        images, labels, _ = tensors(10 + number, dim=dim)
        set_gain(optimizer, gain(epoch=number + 1, epochs=3))
        ours = readout_step(net, optimizer, images, labels)
        activities = [h for _, _, h in reference.forward(images.numpy(), state.weights, state.biases, TINY)]
        rate = 0.1 * reference.gain(number + 1, 3)
        readouts, losses = reference_others.readouts_step(
            readouts, activities, labels.numpy(), rate=rate, decay=0.03, tiny=TINY, **smoothing
        )
        assert ours["loss"].shape == ours["pairs_ordered_wrongly"].shape == (0,)
        compare({"readout_loss": ours["readout_loss"]}, {"readout_loss": losses["one_pass"]})
    assert same(layers_of(net), layers)

    images, _, _ = tensors(20, size=30, dim=dim)
    activities = [h for _, _, h in reference.forward(images.numpy(), state.weights, state.biases, TINY)]
    by_rule = net.scores(images)
    assert list(by_rule) == list(RULES)
    for rule, readout in readouts.items():
        assert_close(by_rule[rule], reference_others.read(readout, activities, TINY)[1])


SETTINGS = ["training.batch_size=10", "training.epochs=3", "training.readout_epochs=2"]


def test_the_layers_learn_first_and_the_read_outs_alone_after_them():
    net = nets.new_net("unsupervised", *SETTINGS)
    phases = net.phases(nets.configured("unsupervised", *SETTINGS).training)
    options, layers, readouts = dict(batch_size=10, max_shift=0, generator=torch.Generator()), [], []
    for figures in train_epochs(phases, nets.examples(), **options):
        layers.append(layers_of(net))
        readouts.append(net.readouts["one_pass"].weight.clone())
        assert len(figures["loss"]) == (2 if len(layers) <= 3 else 0)
    assert len(layers) == 5 and not same(layers[0], layers[1])
    assert same(layers[3], layers[2]) and same(layers[4], layers[2])
    assert not any(torch.equal(*both) for both in pairwise(readouts))
    # The rates of the read-outs start again at their full height.
    assert [phase.optimizer.param_groups[-1]["lr"].item() for phase in phases] == pytest.approx([0.1 / 3, 0.1 / 2])
