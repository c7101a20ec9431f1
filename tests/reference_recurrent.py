"""An independent reference of the recurrent net (section 3.4), in the way and with the conventions of
tests/reference.py: numpy, float64, loops over iterations, layers and cases.

A layer's gradient is here the derivative of its average objective, written out for every single iteration and case.
"""

from dataclasses import dataclass

import numpy as np
from reference import (
    CLASSES,
    goodness,
    hard_negative_distribution,
    normalise,
    one_hot,
    p_positive,
    smooth_and_step,
    softmax_gradient,
)


@dataclass
class State:
    """Everything that training changes; of each smoothed value its g, too."""

    bottom_up: list  # W_l [d_l, d_{l-1}]
    top_down: list  # V_l [d_l, d_{l+1}]; of the last layer [d_L, 10]
    biases: list
    means: list
    softmax: np.ndarray  # [10, d_1 + ... + d_L]
    smooth: dict  # the same names to the same shapes


def new_state(bottom_up, top_down, biases, start_mean=0.5):
    softmax = np.zeros((CLASSES, sum(len(b) for b in biases)))
    parts = {"bottom_up": bottom_up, "top_down": top_down, "biases": biases}
    smooth = {name: [np.zeros_like(x) for x in part] for name, part in parts.items()}
    means = [np.full(len(b), start_mean) for b in biases]
    return State(**parts, means=means, softmax=softmax, smooth=smooth | {"softmax": np.zeros_like(softmax)})


def total_input(state, layer, below, above):
    """z of one layer for one case: below and above are normalised already; above None leaves it out."""
    z = state.bottom_up[layer] @ below + state.biases[layer]
    return z if above is None else z + state.top_down[layer] @ above


def bottom_up_pass(state, image, tiny):
    """h_1..h_L of one image, without a label."""
    states, below = [], normalise(image, tiny)
    for layer in range(len(state.biases)):
        states.append(np.maximum(total_input(state, layer, below, None), 0.0))
        below = normalise(states[-1], tiny)
    return states


def settle(state, image, label, *, damping, iterations, tiny, dropout=None):
    """Of one image under one label, for every iteration and layer: (below, above, z, h).

    ``dropout``, [d_l] for each layer, multiplies what the neighbours of a layer see of it.
    """
    dropout = dropout or [1.0] * len(state.biases)
    bottom, top = normalise(image, tiny), normalise(one_hot([label])[0], tiny)
    states, history = bottom_up_pass(state, image, tiny), []
    for _ in range(iterations):
        n = [bottom] + [normalise(h, tiny) * kept for h, kept in zip(states, dropout, strict=True)] + [top]
        now = []
        for layer in range(len(states)):
            below, above = n[layer], n[layer + 2]
            z = total_input(state, layer, below, above)
            now.append((below, above, z, damping * states[layer] + (1 - damping) * np.maximum(z, 0.0)))
        states = [h for _, _, _, h in now]
        history.append(now)
    return history


def read(state, images, tiny):
    """(features, logits) of the softmax after the bottom-up pass."""
    features = np.array([np.concatenate([normalise(h, tiny) for h in bottom_up_pass(state, x, tiny)]) for x in images])
    return features, features @ state.softmax.T


def negative_label_distribution(state, images, labels, tiny):
    return hard_negative_distribution(read(state, images, tiny)[1], labels)


def goodness_over_time(state, images, *, damping, iterations, tiny):
    """[T, L, B, 10]"""
    result = np.zeros((iterations, len(state.biases), len(images), CLASSES))
    for case, image in enumerate(images):
        for label in range(CLASSES):
            history = settle(state, image, label, damping=damping, iterations=iterations, tiny=tiny)
            for t, now in enumerate(history):
                for layer, (_, _, _, h) in enumerate(now):
                    result[t, layer, case, label] = goodness(h[None])[0]
    return result


def train_step(
    state, images, labels, negative_labels, *,
    damping, iterations, first_learning_iteration, eps, eps_sup, wc, wc_sup, gain, momentum=0.9,
    peer=0.03, peer_momentum=0.9, temperature=1.0, tiny, masks=None, sign=1.0, dropout=None,
):  # fmt: skip
    """One mini-batch. Returns (new state, loss of each layer summed over the cases).

    Section 4: ``masks`` are those of the full weight matrices, by name; what they leave out is set back to zero after
    the update. ``sign`` -1: the goodness is minus the sum of squares, p = sigmoid(theta - sum of squares). ``dropout``:
    that of ``settle``, for each case.
    """
    batch, layers = len(images), range(len(state.biases))
    learning = list(range(first_learning_iteration - 1, iterations))
    gradients = {name: [np.zeros_like(x) for x in getattr(state, name)] for name in ("bottom_up", "top_down", "biases")}
    losses = np.zeros(len(layers))
    positives, negatives = (
        [
            settle(state, x, k, damping=damping, iterations=iterations, tiny=tiny, dropout=kept)
            for x, k, kept in zip(images, codes, dropout or [None] * batch, strict=True)
        ]
        for codes in (labels, negative_labels)
    )
    means = []
    for layer in layers:
        mean_now = np.mean([[history[t][layer][3] for t in learning] for history in positives], axis=(0, 1))
        means.append(peer_momentum * state.means[layer] + (1 - peer_momentum) * mean_now)
        pull = peer * (means[layer].mean() - means[layer])
        for histories, wanted in ((positives, 1.0), (negatives, -1.0)):
            for history in histories:
                for t in learning:
                    below, above, z, h = history[t][layer]
                    right = p_positive(wanted * sign * goodness(h[None]), wanted * sign * len(h), temperature)[0]
                    losses[layer] -= np.log(right) / 2 / len(learning)
                    # d h / d z = 1 - damping
                    dz = wanted * sign * (1 - right) / temperature * h * (1 - damping) * (z > 0)
                    if wanted > 0:
                        dz = dz + pull
                    dz = dz / (batch * len(learning))
                    gradients["bottom_up"][layer] += np.outer(dz, below)
                    gradients["top_down"][layer] += np.outer(dz, above)
                    gradients["biases"][layer] += dz
    features, logits = read(state, images, tiny)

    new = State([], [], [], means, None, {"bottom_up": [], "top_down": [], "biases": []})
    how = {"momentum": momentum, "decay_in_momentum": False}
    for name, of_layers in gradients.items():
        for layer, gradient in enumerate(of_layers):
            value, smooth = smooth_and_step(
                getattr(state, name)[layer], state.smooth[name][layer], gradient,
                rate=gain * eps, decay=wc, is_bias=name == "biases", **how,
            )  # fmt: skip
            mask = masks[name][layer] if masks and name in masks else 1.0
            getattr(new, name).append(value * mask)
            new.smooth[name].append(smooth * mask)
    new.softmax, new.smooth["softmax"] = smooth_and_step(
        state.softmax, state.smooth["softmax"], softmax_gradient(features, logits, labels),
        rate=gain * eps_sup, decay=wc_sup, is_bias=False, **how,
    )  # fmt: skip
    return new, losses
