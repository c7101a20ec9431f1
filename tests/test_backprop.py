"""The back-propagation baseline (section 3.1): its update against NumPy and autograd."""

from functools import partial

import nets
import pytest
import reference
import reference_others
import torch
import torch.nn.functional as F
from nets import BATCH, SHEET_RATES, as_state, assert_close, assert_layers_are, full_matrix, optimizer_for, tensors

from src.layers.fields import Map
from src.methods import backprop
from src.methods.backprop import adversarial_images, step
from src.training.optimiser import gain, set_gain

small_net = partial(nets.small_net, method=backprop)


def parameters_of(net: backprop.Net) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Weights and biases of all layers."""
    return [layer.below.weight for layer in net.layers], [layer.bias for layer in net.layers]


@pytest.mark.parametrize("hidden_dims", [[17], nets.HIDDEN_DIMS], ids=["one layer", "three layers"])
@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_updates_are_those_of_numpy(hidden_dims, decay_in_momentum, momentum):
    net = small_net(hidden_dims=hidden_dims)
    state = as_state(net)
    state.softmax = state.smooth_softmax = torch.zeros(10, hidden_dims[-1]).double().numpy()  # of the last layer alone
    smoothing = dict(momentum=momentum, decay_in_momentum=decay_in_momentum)
    optimizer = optimizer_for(net, learning_rate=0.5, **smoothing)
    steps = 6  # the first moves the softmax alone, which starts at zero
    for number in range(steps):
        images, labels, _ = tensors(number, size=BATCH - number % 2)
        set_gain(optimizer, gain(epoch=number + 1, epochs=steps))
        figures = step(net, optimizer, images, labels)
        state, loss = reference_others.backprop_step(
            state, images.numpy(), labels.numpy(), **SHEET_RATES | dict(eps=0.5),
            gain=reference.gain(number + 1, steps), **smoothing,
        )  # fmt: skip
        assert_close(figures["readout_loss"], loss)
        assert figures["loss"].shape == figures["pairs_ordered_wrongly"].shape == (0,)
        assert_layers_are(net, state)
        assert_close(net.readout.weight, state.softmax)
        assert_close(-net.readout.weight.grad, state.smooth_softmax)
    assert all(torch.tensor(bias).abs().max() > 1e-4 for bias in state.biases)  # the hidden layers have moved

    images, _, _ = tensors(100, size=30)
    by_rule = net.scores(images)
    last = reference_others.plain_forward(images.numpy(), state.weights, state.biases)[-1]
    assert list(by_rule) == ["one_pass"]
    assert_close(by_rule["one_pass"], last @ state.softmax.T)


@pytest.mark.parametrize("kind", [{}, dict(shape=Map(4, 6, 3), hidden_dims=[48, 72], field=3, standardise=True)])
def test_an_update_with_dropout_is_that_of_autograd(kind):
    """Of fields (section 4) by their full matrices."""
    net, scale = small_net(**kind), 1 / (1 - 0.4)
    images, labels, _ = tensors(0, size=40, dim=net.shape.size)
    net.prepare((200 * images).byte())
    net.readout.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    optimizer = optimizer_for(net, learning_rate=0.0, readout_learning_rate=0.0, momentum=0.0)
    dims = [len(layer.bias) for layer in net.layers]
    kept = torch.rand(40, sum(dims), generator=torch.Generator().manual_seed(2)) >= 0.4
    masks = (scale * kept).split(dims, dim=1)
    matrices = [full_matrix(layer.below).requires_grad_() for layer in net.layers]
    h = ((images.view(40, -1, 3) - net.pixel_mean) / net.pixel_std).flatten(1) if net.standardise else images
    for matrix, layer, mask in zip(matrices, net.layers, masks, strict=True):
        h = mask * F.relu(F.linear(h, matrix, layer.bias))
    others = [*(layer.bias for layer in net.layers), net.readout.weight]
    expected = torch.autograd.grad(F.cross_entropy(net.readout(h), labels), [*matrices, *others])
    step(net, optimizer, images, labels, masks=masks, scale=scale)
    ours = [full_matrix(layer.below, layer.below.weight.grad) for layer in net.layers]
    for gradient, theirs, matrix in zip(ours, expected, matrices, strict=False):
        assert_close(gradient, theirs.masked_fill(matrix == 0, 0).numpy())
    for parameter, theirs in zip(others, expected[len(ours) :], strict=True):
        assert_close(parameter.grad, theirs.numpy())


@pytest.mark.parametrize("sure", [False, True], ids=["of any class", "of which the net is sure"])
def test_adversarial_images_are_moved_along_the_gradient(sure):
    net = small_net()
    net.readout.weight.data.normal_(std=10 if sure else 1, generator=torch.Generator().manual_seed(1))
    images, labels, _ = tensors(0, size=40)
    if sure:
        labels = net.readout(net.activities(images)[-1]).argmax(dim=1)
    h = pixels = images.double().requires_grad_()
    for weight, bias in zip(*parameters_of(net), strict=True):
        h = F.relu(F.linear(h, weight.double(), bias.double()))
    loss = F.cross_entropy(F.linear(h, net.readout.weight.double()), labels, reduction="none")
    assert (loss < 1e-8).any() == sure  # in fp32, p would be 1
    direction = F.normalize(torch.autograd.grad(loss.sum(), pixels)[0], eps=0.0)
    with torch.no_grad():
        assert_close(adversarial_images(net, images, labels, 0.7) - images, (0.7 * direction).numpy())
    assert_close(direction.norm(dim=1), torch.ones(40).numpy())


def test_an_update_with_adversarial_images_is_one_of_those_for_half_of_them():
    pair, (images, labels, _) = [small_net() for _ in range(2)], tensors(0)
    for net in pair:
        net.readout.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    optimizers = [optimizer_for(net) for net in pair]
    with torch.no_grad():
        moved = images.clone()
        moved[::2] = adversarial_images(pair[1], images[::2], labels[::2], 0.7)
    step(pair[0], optimizers[0], images, labels, adversarial=0.7)
    step(pair[1], optimizers[1], moved, labels)
    for ours, theirs in zip(*(net.parameters() for net in pair), strict=True):
        assert torch.equal(ours, theirs)
