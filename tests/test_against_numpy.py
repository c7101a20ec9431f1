"""The whole algorithm against an independent float64 NumPy implementation of the sheet (tests/reference.py)."""

import pytest
import reference
import torch
from nets import BATCH, SHEET_RATES, TINY, as_state, assert_close, assert_layers_are, optimizer_for, small_net, tensors

from src.layers.layer import activities, length_normalise
from src.methods.supervised import adversarial_pixels, step
from src.negatives.codes import embed, neutral, one_hot
from src.training.optimiser import gain, set_gain


@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize(("temperature", "peer", "peer_momentum", "m"), [(1.0, 0.03, 0.9, 0.5), (2.5, 0.2, 0.7, 0.3)])
@pytest.mark.parametrize("loss", ["logistic", "symba"])
@pytest.mark.parametrize("adversarial", [0, 0.7])
def test_training_steps(decay_in_momentum, temperature, peer, peer_momentum, m, loss, adversarial):
    both = dict(loss=loss, temperature=temperature, peer_momentum=peer_momentum)
    net = small_net(**both, peer_normalisation=peer, initial_mean_activity=m)
    state = as_state(net)
    for means in state.means:
        assert means.tolist() == pytest.approx([m] * len(means))
    optimizer = optimizer_for(net, decay_in_momentum=decay_in_momentum)
    for number in range(4):
        images, labels, wrong = tensors(number, size=BATCH - number)  # the last batch of an epoch is smaller
        set_gain(optimizer, gain(epoch=number + 1, epochs=4))
        drawn_from = []

        def choose(logits, labels, noise, wrong=wrong, drawn_from=drawn_from):
            drawn_from.append(reference.hard_negative_distribution(logits.double().numpy(), labels.numpy()))
            return wrong

        expected = reference.negative_label_distribution(state, images.numpy(), labels.numpy(), TINY)
        step(net, optimizer, images, labels, None, choose=choose, adversarial=adversarial)
        assert_close(torch.tensor(drawn_from[0]), expected)
        state = reference.train_step(
            state, images.numpy(), labels.numpy(), wrong.numpy(), **SHEET_RATES, gain=reference.gain(number + 1, 4),
            **both, peer=peer, tiny=TINY, decay_in_momentum=decay_in_momentum, adversarial=adversarial,
        )  # fmt: skip
        assert_layers_are(net, state)
        assert_close(net.readout.weight, state.softmax)
        assert_close(-net.readout.weight.grad, state.smooth_softmax)


def test_goodness_and_the_scores_of_every_class():
    net = small_net()
    net.readout.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    state = as_state(net)
    state.softmax[:] = net.readout.weight.detach().numpy()
    images, _, _ = tensors(0, size=40)

    ours = activities(net.layers, embed(images, neutral(images, 10)))
    written = reference.write_code(images.numpy(), reference.neutral_code(len(images)))
    theirs = reference.forward(written, state.weights, state.biases, TINY)
    for layer, h, (_, _, expected) in zip(net.layers, ours, theirs, strict=True):
        assert_close(h, expected)
        assert_close(layer.goodness(h), reference.goodness(expected))

    by_rule = net.scores(images)
    alone = {f"goodness_layer_{layer}": [layer] for layer in (1, 2, 3)}
    rules = {"goodness": [2, 3], "goodness_all_layers": [1, 2, 3], **alone}
    assert by_rule.keys() == {*rules, "one_pass", "goodness_and_one_pass"}
    for rule, layers in rules.items():
        assert_close(by_rule[rule], reference.goodness_per_label(images.numpy(), state, layers, TINY))
    logits = reference.neutral_pass(images.numpy(), state, TINY)[1]
    assert_close(by_rule["one_pass"], logits)
    goodness = reference.goodness_per_label(images.numpy(), state, [1, 2, 3], TINY)
    assert_close(by_rule["goodness_and_one_pass"], reference.together(goodness, logits))


@pytest.mark.parametrize("loss", ["logistic", "symba"])
def test_every_second_image_is_moved_by_the_whole_length_however_sure_the_layer_is(loss):
    net = small_net(784, [50, 12], loss=loss)
    layer, weight = net.first, net.first.below.weight
    images, labels, _ = tensors(0, size=40, dim=784)
    codes = one_hot(torch.cat([labels % 5, labels % 5 + 5]), 10)
    with torch.no_grad():
        weight[:, :5] += 0.3  # these labels make the layer active, the others silence most of it
        weight[:, 5:10] -= 0.3
        weight *= 4
        positive, negative = layer.goodness(layer(length_normalise(embed(images.repeat(2, 1), codes)))).chunk(2)
        layer.theta = (positive.min() + negative.max()).item() / 2
        assert negative.min() > 0
        assert positive.min() - negative.max() > 2 * 104  # where sigmoid(-104) is 0 in fp32
        pixels = layer.of_pixels(images, 10)
        x, Wx = adversarial_pixels(layer, pixels, codes, 0.7)
        torch.testing.assert_close(Wx, layer.below(x))
    shift = x - pixels.x
    assert shift[::2].norm(dim=1).tolist() == pytest.approx([0.7] * 20, rel=1e-4)
    assert not shift[:, :10].any() and not shift[1::2].any()


@pytest.mark.parametrize(("sleep", "kinds"), [(0, "ppppp"), (1, "pnpnp"), (2, "ppnnp")])
def test_updates_on_positives_and_on_negatives_take_turns(sleep, kinds):
    """Section 5, also across a resumption, as the net counts its updates."""
    net, again = small_net(), small_net()
    state, optimizers = as_state(net), [optimizer_for(each) for each in (net, again)]
    for number, kind in enumerate(kinds):
        images, labels, wrong = tensors(number)
        if number == 3:
            again.load_state_dict(net.state_dict())
            for ours, theirs in zip(again.parameters(), net.parameters(), strict=True):
                ours.grad.copy_(theirs.grad)
        for each, optimizer in zip((net, again), optimizers, strict=True):
            step(each, optimizer, images, labels, None, choose=lambda *_, wrong=wrong: wrong, sleep=sleep)
        state = reference.train_step(
            state, images.numpy(), labels.numpy(), wrong.numpy(), **SHEET_RATES, gain=1.0, tiny=TINY,
            of=(1, 1) if not sleep else (kind == "p", kind == "n"),
        )  # fmt: skip
        assert_layers_are(net, state)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("epochs", [1, 2, 5, 60, 100])
def test_gain(epochs):
    ours = [gain(epoch, epochs) for epoch in range(1, epochs + 1)]
    assert ours == pytest.approx([reference.gain(epoch, epochs) for epoch in range(1, epochs + 1)])
