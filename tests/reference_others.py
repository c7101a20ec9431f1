"""Independent references of the other experiments, in the way and with the conventions of tests/reference.py.

Section 3.1, back-propagation; section 3.2, the masks, the hybrids and the update of the unsupervised net.
"""

from dataclasses import dataclass, replace

import numpy as np
from reference import (
    CLASSES,
    State,
    forward,
    goodness,
    layer_gradients,
    normalise,
    one_hot,
    p_positive,
    smooth_and_step,
    softmax_gradient,
    softmax_probabilities,
    stepped_layers,
)


# Section 3.2: masks and hybrids
def blurred_line(line):
    """[1/4, 1/2, 1/4] along one line of pixels, the outermost of which stand in for those beyond them."""
    last = len(line) - 1
    return [line[max(k - 1, 0)] / 4 + line[k] / 2 + line[min(k + 1, last)] / 4 for k in range(last + 1)]


def blurred(image, blurs):
    """`blurs` times: every row blurred, then every column; [side, side]."""
    image = np.array(image, dtype=np.float64)
    for _ in range(blurs):
        image = np.array([blurred_line(row) for row in image])
        image = np.array([blurred_line(column) for column in image.T]).T
    return image


# Figures of a step
def cross_entropy(logits, labels):
    """-log softmax of the true class, summed over cases."""
    return -np.sum(one_hot(labels) * np.log(softmax_probabilities(logits)))


def logistic_loss(h_pos, h_neg, temperature):
    """-1/2 [log p(positive) + log(1 - p(negative))], summed over cases, and the pairs that are ordered wrongly."""
    theta = h_pos.shape[1]
    p_pos, p_neg = (p_positive(goodness(h), theta, temperature) for h in (h_pos, h_neg))
    return -np.sum(np.log(p_pos) + np.log(1 - p_neg)) / 2, np.sum(goodness(h_neg) >= goodness(h_pos))


# Section 3.2: the unsupervised net
@dataclass
class Readout:
    """A linear softmax without bias over the normalised activities of ``layers`` (counted from 1)."""

    layers: list
    weight: np.ndarray  # [10, sum of their widths]
    smooth: np.ndarray  # its g


def new_readout(layers, dims):
    """The start: all zeros; ``dims`` are d_1..d_L."""
    width = sum(dims[layer - 1] for layer in layers)
    return Readout(layers, np.zeros((CLASSES, width)), np.zeros((CLASSES, width)))


def read(readout, activities, tiny):
    """(features [B, F], logits [B, 10]) of one read-out from h_1..h_L, each layer normalised alone."""
    features = np.concatenate([normalise(activities[layer - 1], tiny) for layer in readout.layers], axis=1)
    return features, features @ readout.weight.T


def readouts_step(readouts, activities, labels, *, rate, decay, tiny, **how):
    """Every read-out's update: (new read-outs by rule, their cross-entropies by rule, summed over cases)."""
    new, losses = {}, {}
    for rule, readout in readouts.items():
        features, logits = read(readout, activities, tiny)
        losses[rule] = cross_entropy(logits, labels)
        weight, smooth = smooth_and_step(
            readout.weight, readout.smooth, softmax_gradient(features, logits, labels),
            rate=rate, decay=decay, is_bias=False, **how,
        )  # fmt: skip
        new[rule] = replace(readout, weight=weight, smooth=smooth)
    return new, losses


def unsupervised_step(
    state, readouts, images, negatives, labels, *, eps, eps_sup, wc, wc_sup, gain, momentum=0.9, peer=0.03,
    peer_momentum=0.9, temperature=1.0, tiny, decay_in_momentum=False,
):  # fmt: skip
    """One mini-batch: the layers learn real images against ``negatives``, the read-outs the real images' labels.

    Everything is computed with the old weights. Of ``state`` the softmax is not used: ``readouts`` are in its place.
    Returns (new state, new read-outs, figures summed over the batch).
    """
    how = {"momentum": momentum, "decay_in_momentum": decay_in_momentum}
    positive, negative = (forward(x, state.weights, state.biases, tiny) for x in (images, negatives))
    per_layer = [
        layer_gradients(pos, neg, m, peer=peer, peer_momentum=peer_momentum, temperature=temperature)
        for pos, neg, m in zip(positive, negative, state.means, strict=True)
    ]
    new: State = stepped_layers(state, per_layer, rate=gain * eps, decay=wc, **how)
    new_readouts, losses = readouts_step(
        readouts, [h for _, _, h in positive], labels, rate=gain * eps_sup, decay=wc_sup, tiny=tiny, **how
    )
    layer_losses = [logistic_loss(p[2], n[2], temperature) for p, n in zip(positive, negative, strict=True)]
    figures = {
        "loss": [loss for loss, _ in layer_losses],
        "pairs_ordered_wrongly": [count for _, count in layer_losses],
        "readout_loss": losses["one_pass"],
    }
    return new, new_readouts, figures


# Section 3.1: back-propagation
def plain_forward(images, weights, biases):
    """h_l = relu(W_l h_{l-1} + b_l), h_0 = image, nothing normalised: [h_0, .., h_L], each [B, d_l]."""
    activities = [np.asarray(images, dtype=np.float64)]
    for w, b in zip(weights, biases, strict=True):
        activities.append(np.maximum(activities[-1] @ w.T + b, 0.0))
    return activities


def backprop_gradients(images, labels, weights, biases, softmax):
    """Minus the gradients of the mean cross-entropy: (of W_l, of b_l, of the softmax, cross-entropy summed)."""
    activities = plain_forward(images, weights, biases)
    logits = activities[-1] @ softmax.T
    error = (one_hot(labels) - softmax_probabilities(logits)) / len(images)  # [B, 10]
    of_softmax = error.T @ activities[-1]
    of_weights, of_biases = [], []
    error = error @ softmax
    for layer in reversed(range(len(weights))):
        error = np.where(activities[layer + 1] > 0, error, 0.0)  # through the ReLU: [B, d_l]
        of_weights.insert(0, error.T @ activities[layer])
        of_biases.insert(0, error.sum(axis=0))
        error = error @ weights[layer]
    return of_weights, of_biases, of_softmax, cross_entropy(logits, labels)


def backprop_step(
    state, images, labels, *, eps, eps_sup, wc, wc_sup, gain, momentum=0.9, decay_in_momentum=False
):  # fmt: skip
    """One mini-batch. Returns (new state, cross-entropy summed over the batch); the running means are not used."""
    how = {"momentum": momentum, "decay_in_momentum": decay_in_momentum}
    of_weights, of_biases, of_softmax, loss = backprop_gradients(
        images, labels, state.weights, state.biases, state.softmax
    )
    per_layer = list(zip(of_weights, of_biases, state.means, strict=True))
    new = stepped_layers(state, per_layer, rate=gain * eps, decay=wc, **how)
    new.softmax, new.smooth_softmax = smooth_and_step(
        state.softmax, state.smooth_softmax, of_softmax, rate=gain * eps_sup, decay=wc_sup, is_bias=False, **how
    )
    return new, loss
