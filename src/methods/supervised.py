"""The supervised net: label codes in the image, three passes, one update (section 3.3)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import SIDE, choices, number, one_of, widths
from src.datasets.batches import Examples, to_unit
from src.layers.dropout import dropped, survivors
from src.layers.layer import FFLayer, LayerModel, length_normalise, root_mean_square
from src.layers.products import linear
from src.layers.readout import Readout
from src.layers.stack import activities, dense_layers, normalised, thresholds
from src.methods import Published
from src.negatives import wrong_labels
from src.negatives.codes import NUM_CLASSES, embed, neutral, one_hot
from src.training.compiling import RoundedWeights, compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer, momentum_of

SECTION = "3.3"
SMALLEST_BATCH = 1
WRONG_LABELS = choices(wrong_labels)
PUBLISHED = [
    Published("paper", "Hinton's paper", "4 x 2000", "60", "goodness", "1.36"),
    Published("paper_fast", "Hinton's paper, learning rate doubled", "4 x 2000", "40", "goodness", "1.46"),
    Published("paper_jitter", "Hinton's paper, images jittered", "4 x 2000", "500", "goodness", "0.64"),
    Published("matlab", "Hinton's Matlab code", "3 x 1000", "100", "goodness", "1.47"),
    Published("loewex", "loeweX's reimplementation", "3 x 1000", "100", "one_pass", "1.45"),
]


@dataclass
class Model(LayerModel):
    hidden_dims: list[int] = widths(at_least=2, reason="because goodness and read-out leave the first one out")
    weight_scale: str = one_of("fan_in", "fan_out")


@dataclass
class Training(values.Training):
    negatives: str = one_of(*WRONG_LABELS)
    dropout: float = number(at_least=0, below=1)
    input_dropout: float = number(at_least=0, below=1)
    adversarial: float = number(at_least=0)


class FFNet(nn.Module):
    """Hidden layers 1..L over the pixels, and a read-out of the normalised activities of layers 2..L."""

    def __init__(self, layers: Sequence[FFLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.readout = Readout(sum(len(layer.bias) for layer in layers[1:]))

    def product_weights(self) -> list[Tensor]:
        """Every layer's weights in the dtype of its products: one cast for several passes."""
        return [layer.weight.to(layer.matmul_dtype) for layer in self.layers]


class FirstLayer:
    """The first layer on the same images under several label codes.

    W n(x) = (W_image x_image + W_code x_code) / rms(x): the first product, of all pixels but ten, serves every code.
    The second is made in fp32.

    Args:
        images: pixels in [0, 1] ([B, 784]); weight: the layer's, in the dtype of its products.
    """

    def __init__(self, layer: FFLayer, images: Tensor, weight: Tensor):
        self.layer = layer
        self.images = embed(images, images.new_zeros(NUM_CLASSES))
        self.product = linear(self.images, weight, layer.matmul_dtype)  # [B, d_1]

    def inputs(self, codes: Tensor) -> Tensor:
        """x, for one or more codes of every image ([K B, 10] -> [K B, 784])."""
        return embed(self.images.repeat(len(codes) // len(self.images), 1), codes)

    def activity(self, codes: Tensor, x: Tensor) -> Tensor:
        """h = relu(W n(x) + b), for x = `inputs(codes)` ([K B, 784] -> [K B, d_1])."""
        image_part = self.product.repeat(len(codes) // len(self.product), 1)
        product = image_part.addmm_(codes, self.layer.weight[:, :NUM_CLASSES].T)
        return torch.addcmul(self.layer.bias, product, 1 / root_mean_square(x)).relu_()


def adversarial_images(layer: FFLayer, images: Tensor, codes: Tensor, weight: Tensor, length: float) -> Tensor:
    """Each image moved by `length` to where the first layer's loss of its pair is higher ([B, 784] -> [B, 784]).

    Adversarial training (Goodfellow et al. 2015, arXiv 1412.6572; with steps of one L2 norm, Miyato et al. 2018, arXiv
    1704.03976), but local: the loss is the first layer's own, and no other layer has a part in it. The positive and the
    negative of an image are moved alike, so that the label remains all that tells them apart.

    Args:
        layer: the first one; weight: its weights in the dtype of its products.
        codes: of the positives and, below them, the negatives ([2B, 10]).
    """
    first = FirstLayer(layer, images, weight)
    x = first.inputs(codes)
    n, h = length_normalise(x), first.activity(codes, x)
    # Where the layer is sure, these derivatives are beyond fp32 (for T = 1, from a margin of 90). MPS has no fp64.
    G = layer.goodness(h).to(torch.float32 if h.device.type == "mps" else torch.float64)
    _, *dloss_dG = layer.loss(*G.chunk(2), theta=layer.theta, temperature=layer.temperature)
    dloss_dG = torch.stack(dloss_dG)  # [2, B]
    largest = dloss_dG.abs().amax(dim=0).clamp_min(torch.finfo(G.dtype).tiny)
    dloss_dG = (dloss_dG / largest).float()  # their common size does not matter
    dn = linear(layer.derivative(h, dloss_dG.flatten(), gate=h > 0), weight.T, layer.matmul_dtype)
    dx = dn - n * (dn * n).mean(dim=1, keepdim=True)  # times rms(x), which is the same for both codes
    direction = embed(sum(dx.chunk(2)), dx.new_zeros(NUM_CLASSES))
    return images + length * F.normalize(direction)


def new_net(*, hidden_dims: Sequence[int], **options) -> FFNet:
    """A new net; `options` are those of `dense_layers`."""
    return FFNet(dense_layers(SIDE * SIDE, hidden_dims, **options))


@torch.no_grad()
def step(
    net: FFNet,
    optimizer: SGD,
    choose_wrong_labels: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    masks: Sequence[Tensor] | None = None,
    scale: float = 1.0,
    rounded: Sequence[Tensor] | None = None,
    adversarial: float = 0.0,
) -> dict[str, Tensor]:
    """Three passes of a mini-batch with the same weights, then one update of every layer and the read-out.

    Args:
        choose_wrong_labels: one of src/negatives/wrong_labels.py; noise: what it takes ([B, 10]).
        images: pixels in [0, 1] ([B, 784]); labels: true classes ([B], int64).
        masks: of dropout, for the activities of each layer in the neutral, the positive and the negative pass
            ([3B, d_l]); its entries are 0 or `scale`.
        rounded: every layer's weights in the dtype of its products, if they are kept; they are written again.
        adversarial: how far every second image is moved for the latter two passes (`adversarial_images`).

    Returns:
        `step_figures`.
    """
    weights = rounded or net.product_weights()
    first = FirstLayer(net.layers[0], images, weights[0])
    neutral_masks, pair_masks = [None] * len(weights), [None] * len(weights)
    if masks:
        neutral_masks, pair_masks = zip(*(mask.tensor_split([len(images)]) for mask in masks), strict=True)

    # Neutral pass: trains the read-out, and says which wrong labels are hard.
    features = neutral_features(net, first, weights, neutral_masks)
    logits = net.readout(features)
    wrong_labels = choose_wrong_labels(logits, labels, noise)
    momentum = momentum_of(optimizer)
    readout_loss = net.readout.learn(features, logits, labels, momentum)

    # Positive and negative pass, one below the other. A layer learns as soon as its activity is known.
    if adversarial:  # half of the images are left as they are (Goodfellow et al. 2015, section 6)
        every_second = one_hot(torch.cat([labels[::2], wrong_labels[::2]]))
        images = images.clone()
        images[::2] = adversarial_images(net.layers[0], images[::2], every_second, weights[0], adversarial)
        first = FirstLayer(net.layers[0], images, weights[0])
    codes = one_hot(torch.cat([labels, wrong_labels]))
    x = first.inputs(codes)
    h = dropped(first.activity(codes, x), pair_masks[0])
    figures = [net.layers[0].learn(length_normalise(x), h, momentum, scale)]
    for layer, weight, mask in zip(net.layers[1:], weights[1:], pair_masks[1:], strict=True):
        n = length_normalise(h)  # what is handed on is numbers: no gradient of this layer reaches the one below
        h = dropped(layer(n, weight), mask)
        figures.append(layer.learn(n, h, momentum, scale))
    descend(optimizer)
    for copy, layer in zip(rounded or [], net.layers, strict=False):
        copy.copy_(layer.weight)
    return step_figures(figures, readout_loss)


def neutral_features(
    net: FFNet, first: FirstLayer, weights: Sequence[Tensor], masks: Sequence[Tensor | None]
) -> Tensor:
    """What the read-out sees: the normalised activities of layers 2..L under the neutral code ([B, d_2 + .. + d_L])."""
    codes = neutral(first.images).expand(len(first.images), NUM_CLASSES)
    h = dropped(first.activity(codes, first.inputs(codes)), masks[0])
    return torch.cat(normalised(net.layers[1:], length_normalise(h), weights[1:], masks[1:]), dim=1)


def phases(
    net: FFNet,
    *,
    epochs: int,
    negatives: str,
    dropout: float,
    input_dropout: float,
    adversarial: float,
    compile: bool,
    **rates,
) -> list[Phase]:
    """One: everything learns together. `rates` are those of `make_optimizer`."""
    optimizer = make_optimizer(net.named_parameters(), **rates)
    update = compiled(step) if compile else step
    rounding = compile and net.layers[0].matmul_dtype != torch.float32
    rounded = RoundedWeights([layer.weight for layer in net.layers], net.layers[0].matmul_dtype) if rounding else None
    scale = (1 - dropout) ** -0.5  # keeps the mean sum of squares

    def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = images.new_empty(len(images), NUM_CLASSES).exponential_(generator=generator)
        # An image has the same pixels in all three passes. Their scale does not matter, as inputs are normalised.
        images = dropped(images, survivors(images.shape, input_dropout, 1.0, generator))
        shapes = [(3 * len(images), len(layer.bias)) for layer in net.layers]
        masks = [survivors(shape, dropout, scale, generator) for shape in shapes] if dropout else None
        with rounded.written() if rounded else nullcontext() as weights:
            return update(
                net, optimizer, WRONG_LABELS[negatives], images, labels, noise, masks, scale, weights, adversarial
            )

    return [Phase(epochs, optimizer, update_from)]


@torch.no_grad()
def scores(net: FFNet, images: Tensor) -> dict[str, Tensor]:
    """The two ways to classify, for images whose first pixels are free ([B, 784] -> each [B, 10]).

    Rules: "goodness" (hidden layers 2..L, the paper's), "one_pass" (the read-out's logits after a single pass with the
    neutral code), "goodness_all_layers" (the first included), "goodness_and_one_pass" (the latter and the logits, each
    standardised over the labels, added), "goodness_layer_1".. (one layer alone).
    """
    weights = net.product_weights()
    first = FirstLayer(net.layers[0], images, weights[0])
    per_label = []
    for label in range(NUM_CLASSES):
        codes = one_hot(torch.full((len(images),), label, device=images.device))
        h = first.activity(codes, first.inputs(codes))
        all_h = [h, *activities(net.layers[1:], h, weights[1:])]
        per_label.append(torch.stack([layer.goodness(h) for layer, h in zip(net.layers, all_h, strict=True)]))
    goodnesses = torch.stack(per_label, dim=2)  # [L, B, 10]
    all_layers = goodnesses.sum(dim=0)
    logits = net.readout(neutral_features(net, first, weights, [None] * len(weights)))
    return {
        "goodness": goodnesses[1:].sum(dim=0),
        "one_pass": logits,
        "goodness_all_layers": all_layers,
        "goodness_and_one_pass": standardised(all_layers) + standardised(logits),
        **{f"goodness_layer_{layer}": of_layer for layer, of_layer in enumerate(goodnesses, start=1)},
    }


def standardised(scores: Tensor) -> Tensor:
    """Each image's scores, with mean 0 and standard deviation 1 over the labels ([B, 10] -> [B, 10])."""
    deviation, mean = torch.std_mean(scores, dim=1, keepdim=True)
    return (scores - mean) / (deviation + 1e-8)


def pictures(net: FFNet, test: Examples, scores: dict[str, Tensor], *, adversarial: float, **_) -> dict:
    """First-layer weights, the goodness of test images under their true and under wrong labels, and adversarial images
    where the net has learned from such.
    """
    from src.pictures.figures import draw_goodness_of_labels, draw_receptive_fields

    weight = net.layers[0].weight.detach().cpu().clone()
    weight[:, :NUM_CLASSES] = 0  # those of the label's pixels would outshine the rest
    return {
        "receptive_fields": draw_receptive_fields(weight),
        "goodness": draw_goodness_of_labels(scores, test.labels, thresholds(net.layers)),
        **({"adversarial": draw_adversarial(net, test.first_of_each_class(), adversarial)} if adversarial else {}),
    }


@torch.no_grad()
def draw_adversarial(net: FFNet, examples: Examples, length: float):
    """A row of images, one of the `adversarial_images` of them under their true and their hardest wrong label, and one
    of what has been added (a Figure).
    """
    from src.pictures.figures import draw_rows

    examples = examples.to(net.layers[0].weight.device)
    images, labels = to_unit(examples.images), examples.labels
    wrong_labels = scores(net, images)["one_pass"].scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    codes = one_hot(torch.cat([labels, wrong_labels]))
    moved = adversarial_images(net.layers[0], images, codes, net.product_weights()[0], length)
    added = moved - images
    pixels = {"image": images, "moved": moved, "added": (1 + added / added.abs().max()) / 2}
    return draw_rows(
        {name: (255 * row).clamp(0, 255).byte().cpu() for name, row in pixels.items()},
        f"Images moved by {length:g} (L2) against the first layer's loss, and what was added (grey: nothing)",
    )
