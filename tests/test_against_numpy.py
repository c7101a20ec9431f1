"""The whole algorithm against an independent float64 NumPy implementation of the sheet (tests/reference.py)."""

import pytest
import reference
import torch
from nets import BATCH, TINY, as_state, assert_close, assert_layers_are, batch, optimizer_for, small_net

from src import fast, train
from src.classify import class_scores, goodness_per_label
from src.layers import goodness
from src.model import FFNet
from src.samples import embed_neutral
from src.train import gain, set_gain


@pytest.mark.parametrize("train_step", [train.train_step, fast.train_step], ids=["plain", "fast"])
@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize(
    ("temperature", "peer_normalisation", "peer_momentum", "initial_mean_activity"),
    [(1.0, 0.03, 0.9, 0.5), (2.5, 0.2, 0.7, 0.3)],
)
def test_training_steps(
    train_step, decay_in_momentum, temperature, peer_normalisation, peer_momentum, initial_mean_activity
):
    model = small_net(
        temperature=temperature,
        peer_normalisation=peer_normalisation,
        peer_momentum=peer_momentum,
        initial_mean_activity=initial_mean_activity,
    )
    state = as_state(model)
    for means in state.means:
        means[:] = initial_mean_activity
    optimizer = optimizer_for(model, decay_in_momentum=decay_in_momentum)
    for step in range(4):
        images, labels, negative_labels = batch(step, size=BATCH - step)  # the last batch of an epoch is smaller
        set_gain(optimizer, gain(epoch=step + 1, epochs=4))
        drawn_from = []

        def draw(logits, labels, wrong=negative_labels, drawn_from=drawn_from):
            drawn_from.append(reference.hard_negative_distribution(logits.double().numpy(), labels.numpy()))
            return torch.tensor(wrong)

        expected = reference.negative_label_distribution(state, images, labels, TINY)
        train_step(model, optimizer, torch.tensor(images, dtype=torch.float32), torch.tensor(labels), draw)
        assert_close(torch.tensor(drawn_from[0]), expected)
        state = reference.train_step(
            state,
            images,
            labels,
            negative_labels,
            eps=0.05,
            eps_sup=0.1,
            wc=0.02,
            wc_sup=0.03,
            gain=reference.gain(step + 1, 4),
            temperature=temperature,
            peer=peer_normalisation,
            peer_momentum=peer_momentum,
            tiny=TINY,
            decay_in_momentum=decay_in_momentum,
        )
        assert_layers_are(model, state)
        assert_close(model.readout_weight, state.softmax)
        assert_close(-model.readout_weight.grad, state.smooth_softmax)


def trained_net() -> FFNet:
    model = small_net()
    with torch.no_grad():
        model.readout_weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_goodness_and_classification():
    model = trained_net()
    state = as_state(model)
    images, _, _ = batch(0, size=40)
    ours = torch.tensor(images, dtype=torch.float32)

    x = embed_neutral(ours)
    activities = reference.forward(
        reference.write_code(images, reference.neutral_code(len(images))), state.weights, state.biases, TINY
    )
    for h, (_, _, expected) in zip(model.activities(x), activities, strict=True):
        assert_close(goodness(h), reference.goodness(expected))

    goodnesses = goodness_per_label(model, ours)
    for layer in (1, 2, 3):
        assert_close(goodnesses[layer - 1], reference.goodness_per_label(images, state, [layer], TINY))
    scores = class_scores(model, ours)
    alone = {f"goodness_layer_{layer}": [layer] for layer in (1, 2, 3)}
    rules = {"goodness": [2, 3], "goodness_all_layers": [1, 2, 3], **alone}
    assert scores.keys() == {*rules, "one_pass"}
    for rule, layers in rules.items():
        assert_close(scores[rule], reference.goodness_per_label(images, state, layers, TINY))
        expected = reference.classify_goodness(images, state, layers, TINY)
        assert scores[rule].argmax(dim=1).tolist() == expected.tolist()
    assert scores["one_pass"].argmax(dim=1).tolist() == reference.classify_one_pass(images, state, TINY).tolist()


@pytest.mark.parametrize("epochs", [1, 2, 5, 60, 100])
def test_gain(epochs):
    ours = [gain(epoch, epochs) for epoch in range(1, epochs + 1)]
    assert ours == pytest.approx([reference.gain(epoch, epochs) for epoch in range(1, epochs + 1)])
