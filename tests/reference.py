"""An independent reference of the Forward-Forward algorithm: numpy, float64, formula by formula.

It is written from the algorithm sheet alone and shares no code with the package: its one purpose is to be
obviously right, so that the PyTorch code can be compared with it on tiny nets.

Conventions
- Arrays of cases are [B, width]. ``weights[l]`` is W_{l+1}, shape [d_{l+1}, d_l] (row = unit).
  Python lists of layers count from 0; the sheet (and the argument ``layers``) counts hidden layers from 1.
- Every "gradient" here is a rate of *improvement* and is added (ascent), never subtracted.
- The factor 2 of d(h^2)/dh is absorbed in the learning rate: the layers' gradient is HALF the derivative of
  (1/B) * sum over cases of [log p(positive) + log(1 - p(negative))].
- Labels are integers 0..9; images are the pixels in [0, 1] (no code written, not normalised).
"""

from dataclasses import dataclass

import numpy as np

CLASSES = 10


# Input and forward pass
def normalise(v, tiny):
    """n(v) = v / (sqrt(mean(v^2)) + tiny), for one vector [d] or for each row of [B, d]."""
    v = np.asarray(v, dtype=np.float64)
    return v / (np.sqrt(np.mean(v**2, axis=-1, keepdims=True)) + tiny)


def write_code(images, code):
    """x with pixels 0..9 overwritten by the label code [B, 10]; a copy, the images stay as they were."""
    written = np.array(images, dtype=np.float64, copy=True)
    written[:, :CLASSES] = code
    return written


def one_hot(labels):
    """Label code of a positive (true class) or a negative (wrong class): one-hot, [B, 10]."""
    code = np.zeros((len(labels), CLASSES))
    for case, label in enumerate(labels):
        code[case, int(label)] = 1.0
    return code


def neutral_code(n_cases):
    """Neutral label code: ten entries of 0.1, [B, 10]."""
    return np.full((n_cases, CLASSES), 0.1)


def forward(x, weights, biases, tiny):
    """h_l = relu(W_l n(h_{l-1}) + b_l), h_0 = x (code already written): the input is length-normalised too.

    x is [B, d_0]. Returns one (n_input, total_input z, activity h) per hidden layer, n_input = n(h_{l-1})
    being what the weights see, [B, d_{l-1}]; z and h are [B, d_l].
    """
    below, layers = x, []
    for w, b in zip(weights, biases, strict=True):
        n_input = normalise(below, tiny)
        z = n_input @ w.T + b
        below = np.maximum(z, 0.0)
        layers.append((n_input, z, below))
    return layers


def goodness(h):
    """G_l = sum over units of h_l^2 (before normalisation): [B, d_l] -> [B]."""
    return np.sum(np.asarray(h) ** 2, axis=1)


def p_positive(g, theta, temperature=1.0):
    """p_l = sigmoid((G_l - theta_l) / temperature): [B] -> [B]."""
    return 1.0 / (1.0 + np.exp(-(g - theta) / temperature))


# State
@dataclass
class State:
    """Everything that training changes. ``train_step`` returns a new one and leaves the old one alone."""

    weights: list  # W_l [d_l, d_{l-1}]
    biases: list  # b_l [d_l]
    means: list  # m, running mean activity on positives [d_l], start 0.5
    smooth_weights: list  # g of W_l, start 0
    smooth_biases: list  # g of b_l, start 0
    softmax: np.ndarray  # [10, d_2 + ... + d_L], start 0
    smooth_softmax: np.ndarray  # its g, start 0


def new_state(weights, biases):
    """The start: given W_l and b_l (copied), m = 0.5, all smoothed gradients 0, softmax weights 0."""
    weights = [np.array(w, dtype=np.float64, copy=True) for w in weights]
    biases = [np.array(b, dtype=np.float64, copy=True) for b in biases]
    n_features = sum(len(w) for w in weights[1:])
    return State(
        weights=weights,
        biases=biases,
        means=[np.full(len(w), 0.5) for w in weights],
        smooth_weights=[np.zeros_like(w) for w in weights],
        smooth_biases=[np.zeros_like(b) for b in biases],
        softmax=np.zeros((CLASSES, n_features)),
        smooth_softmax=np.zeros((CLASSES, n_features)),
    )


# The softmax on the neutral pass, and the hard negatives it gives
def softmax_probabilities(logits):
    """softmax(logits) case by case: [B, 10] -> [B, 10]."""
    e = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    return e / np.sum(e, axis=1, keepdims=True)


def neutral_pass(images, state, tiny):
    """Neutral code, one forward pass, linear softmax without bias: (features [B, F], logits [B, 10]).

    The features are the activities of hidden layers 2..L (all but the first), each layer normalised alone.
    """
    x = write_code(images, neutral_code(len(images)))
    activities = [h for _, _, h in forward(x, state.weights, state.biases, tiny)]
    features = np.concatenate([normalise(h, tiny) for h in activities[1:]], axis=1)
    return features, features @ state.softmax.T


def hard_negative_distribution(logits, labels):
    """What the wrong label is sampled from: softmax with the true class masked out, renormalised; [B, 10].

    Taken over the other classes' logits alone, which equals p_k / (1 - p_true) and is safe when p_true rounds
    to 1. The true class has probability exactly 0.
    """
    result = np.zeros_like(logits, dtype=np.float64)
    for case, true in enumerate(labels):
        others = [k for k in range(CLASSES) if k != int(true)]
        result[case, others] = softmax_probabilities(logits[case : case + 1, others])[0]
    return result


def negative_label_distribution(state, images, labels, tiny):
    """What a step that starts at ``state`` draws its negatives from: softmax weights BEFORE their update."""
    return hard_negative_distribution(neutral_pass(images, state, tiny)[1], labels)


# Training
def gain(epoch, epochs):
    """1 for the first half of the epochs, then linear: (1 + 2 (E - e)) / E, for e = 1..E."""
    if 2 * epoch <= epochs:
        return 1.0
    return (1.0 + 2.0 * (epochs - epoch)) / epochs


def layer_gradients(
    positive, negative, m, *, peer=0.03, peer_momentum=0.9, temperature=1.0, loss="logistic", of=(1, 1)
):
    """One layer's (gradient of W, gradient of b, new m): gradient = (positives + negatives) / B.

    ``positive`` and ``negative`` are that layer's (n_input, z, h) from ``forward``; B is the number of
    positives; the threshold theta_l is d_l. Nothing here is smoothed, decayed or scaled yet.

    ``of``: whether it learns of positives and of negatives (section 5).
    Loss "logistic": the half of the paper's. Loss "symba": T/2 log(1 + exp((G- - G+) / T)), for each pair.
    """
    n_pos, _, h_pos = positive
    n_neg, _, h_neg = negative
    batch, theta = h_pos.shape
    p_pos = p_positive(goodness(h_pos), theta, temperature)[:, None]
    p_neg = p_positive(goodness(h_neg), theta, temperature)[:, None]
    # m <- 0.9 m + 0.1 * mean over the batch of h_l (positives), before it is used
    new_m = peer_momentum * m + (1.0 - peer_momentum) * np.mean(h_pos, axis=0) if of[0] else m
    # Positives: (1 - p) h / T + lambda (mean over units of m - m), the latter not gated by the ReLU
    if loss == "logistic":
        push_pos, push_neg = (1.0 - p_pos) / temperature, -p_neg / temperature
    else:
        q = 1.0 / (1.0 + np.exp((goodness(h_pos) - goodness(h_neg)) / temperature))[:, None]
        push_pos, push_neg = q, -q
    d_pos = of[0] * (push_pos * h_pos + peer * (np.mean(new_m) - new_m))
    d_neg = of[1] * push_neg * h_neg
    gradient_w = (d_pos.T @ n_pos + d_neg.T @ n_neg) / batch
    gradient_b = (d_pos.sum(axis=0) + d_neg.sum(axis=0)) / batch
    return gradient_w, gradient_b, new_m


def pair_losses(h_pos, h_neg, *, temperature, loss):
    """One layer's loss of each pair, up to a factor: [B, d_l] each -> [B]."""
    g_pos, g_neg, theta = goodness(h_pos), goodness(h_neg), h_pos.shape[1]
    if loss == "logistic":
        return np.logaddexp(0.0, -(g_pos - theta) / temperature) + np.logaddexp(0.0, (g_neg - theta) / temperature)
    return np.logaddexp(0.0, (g_neg - g_pos) / temperature)


def adversarial_images(images, labels, negative_labels, state, length, tiny, **which_loss):
    """Each image moved by ``length`` along the gradient of the first layer's loss of its pair: [B, d_0].

    Positive and negative are moved alike. The gradient is found by central differences, pixel by pixel; the pixels
    that hold the label stay.
    """

    def losses(moved):
        h_pos, h_neg = (
            forward(write_code(moved, one_hot(chosen)), state.weights[:1], state.biases[:1], tiny)[0][2]
            for chosen in (labels, negative_labels)
        )
        return pair_losses(h_pos, h_neg, **which_loss)

    gradient, by = np.zeros(images.shape), 1e-6
    for pixel in range(CLASSES, images.shape[1]):
        step = np.zeros(images.shape[1])
        step[pixel] = by
        gradient[:, pixel] = (losses(images + step) - losses(images - step)) / (2 * by)
    return images + length * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def softmax_gradient(features, logits, labels):
    """Minus the gradient of the mean cross-entropy: (1/B) sum of (one-hot - softmax) x features^T."""
    return (one_hot(labels) - softmax_probabilities(logits)).T @ features / len(features)


def smooth_and_step(value, smooth, gradient, *, rate, decay, is_bias, momentum, decay_in_momentum):
    """One parameter's (new value, new g). ``rate`` = gain * eps.

    Sheet: g <- mu g + (1 - mu) gradient;            W <- W + rate (g - wc W);  b <- b + rate g (no decay).
    Seed:  g <- mu g + (1 - mu) (gradient - wc W);   W <- W + rate g;           b as W, wc included.
    """
    if decay_in_momentum:
        new_smooth = momentum * smooth + (1.0 - momentum) * (gradient - decay * value)
        return value + rate * new_smooth, new_smooth
    new_smooth = momentum * smooth + (1.0 - momentum) * gradient
    if is_bias:
        return value + rate * new_smooth, new_smooth
    return value + rate * (new_smooth - decay * value), new_smooth


def stepped_layers(state, per_layer, *, rate, decay, **how):
    """A new state after one update of all layers, given each one's (gradient of W, gradient of b, new m).

    The softmax is not updated: it stays what it is in ``state``.
    """
    new = State([], [], [], [], [], state.softmax, state.smooth_softmax)
    for layer, (gradient_w, gradient_b, new_m) in enumerate(per_layer):
        w, smooth_w = smooth_and_step(
            state.weights[layer], state.smooth_weights[layer], gradient_w,
            rate=rate, decay=decay, is_bias=False, **how,
        )  # fmt: skip
        b, smooth_b = smooth_and_step(
            state.biases[layer], state.smooth_biases[layer], gradient_b,
            rate=rate, decay=decay, is_bias=True, **how,
        )  # fmt: skip
        new.weights.append(w)
        new.biases.append(b)
        new.means.append(new_m)
        new.smooth_weights.append(smooth_w)
        new.smooth_biases.append(smooth_b)
    return new


def train_step(
    state, images, labels, negative_labels, *, eps, eps_sup, wc, wc_sup, momentum=0.9, peer=0.03, peer_momentum=0.9,
    gain, temperature=1.0, tiny, decay_in_momentum=False, loss="logistic", adversarial=0.0,
    of=(1, 1),
):  # fmt: skip
    """One mini-batch: three passes (positive, neutral, negative) with the same weights, then one update.

    ``negative_labels`` are given (draw them from ``negative_label_distribution(state, ...)``, i.e. with the
    softmax weights before this step's update). Returns a NEW State; ``state`` is not touched.
    ``adversarial``: how far every second image is moved against the first layer, but for the neutral pass.
    """
    # Three passes, all with the weights of `state`.
    moved = images
    if adversarial:
        moved, which_loss = images.copy(), {"temperature": temperature, "loss": loss}
        moved[::2] = adversarial_images(
            images[::2], labels[::2], negative_labels[::2], state, adversarial, tiny, **which_loss
        )
    positives = forward(write_code(moved, one_hot(labels)), state.weights, state.biases, tiny)
    features, logits = neutral_pass(images, state, tiny)
    negatives = forward(write_code(moved, one_hot(negative_labels)), state.weights, state.biases, tiny)

    per_layer = [
        layer_gradients(pos, neg, m, peer=peer, peer_momentum=peer_momentum, temperature=temperature, loss=loss, of=of)
        for pos, neg, m in zip(positives, negatives, state.means, strict=True)
    ]
    # One update of everything.
    how = {"momentum": momentum, "decay_in_momentum": decay_in_momentum}
    new = stepped_layers(state, per_layer, rate=gain * eps, decay=wc, **how)
    new.softmax, new.smooth_softmax = smooth_and_step(
        state.softmax, state.smooth_softmax, softmax_gradient(features, logits, labels),
        rate=gain * eps_sup, decay=wc_sup, is_bias=False, **how,
    )  # fmt: skip
    return new


# The two ways to classify: by the arg-max of these, or of the logits of `neutral_pass`
def goodness_per_label(images, state, layers, tiny):
    """Run the net once per label with that label's code and add up G_l over ``layers`` (counted from 1): [B, 10]."""
    result = np.zeros((len(images), CLASSES))
    for label in range(CLASSES):
        x = write_code(images, one_hot([label] * len(images)))
        passes = forward(x, state.weights, state.biases, tiny)
        for layer in layers:
            result[:, label] += goodness(passes[layer - 1][2])
    return result


def together(*scores):
    """The sum of scores by several rules, each with mean 0 and standard deviation 1 over the labels (each [B, K])."""
    return sum((each - each.mean(axis=1)[:, None]) / each.std(axis=1, ddof=1)[:, None] for each in scores)
