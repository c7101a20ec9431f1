"""The supervised net: label codes in the image, three passes, one update (section 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import ConfigError, choices, number, one_of, widths
from src.layers.connections import Connections, maps_of
from src.layers.dropout import dropout_mask, dropped
from src.layers.fields import Map
from src.layers.layer import FFLayer, LayerModel, activities, length_normalise, root_mean_square
from src.layers.readout import Readout
from src.methods.net import Net as AnyNet
from src.methods.net import together
from src.negatives import wrong_labels
from src.negatives.codes import embed, neutral, one_hot
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer

WRONG_LABELS = choices(wrong_labels)


@dataclass
class Model(LayerModel):
    hidden_dims: list[int] = widths(at_least=2, reason="because goodness and read-out leave the first one out")
    weight_scale: str = one_of(["fan_in", "fan_out"])

    def check_images(self, shape: Map, classes: int) -> None:
        """Raises ConfigError if the label's K numbers would take more than half of the image."""
        if shape.size < 2 * classes:
            wrong = f"the labels of {classes} classes are written over the first {classes} numbers of an image"
            raise ConfigError(f"method=supervised: {wrong}, which has only {shape.size}; it needs {2 * classes}")


@dataclass
class Training(values.Training):
    negatives: str = one_of(WRONG_LABELS)
    input_dropout: float = number(at_least=0, below=1)
    adversarial: float = number(at_least=0)
    sleep: int = number(at_least=0)


class Pixels(NamedTuple):
    """Images under any label: `x` without their first K numbers ([B, D]), and `Wx`, the first layer's ([B, d_1])."""

    x: Tensor
    Wx: Tensor


class FirstLayer(FFLayer):
    """The layer that sees the image and its label code: h = relu(W n(x) + b).

    W n(x) = (W x_image + W x_code) / rms(x): the first product, of all numbers but K, serves every code. The second is
    made in fp32.
    """

    def of_pixels(self, images: Tensor, classes: int) -> Pixels:
        """Of images in [0, 1] ([B, D])."""
        x = embed(images, images.new_zeros(classes))
        return Pixels(x, self.below(x).float())

    def under(self, pixels: Pixels, codes: Tensor) -> tuple[Tensor, Tensor]:
        """n(x) and h with one or more codes of every image ([K B, classes] -> [K B, D], [K B, d_1])."""
        times = len(codes) // len(pixels.x)
        x = embed(pixels.x.repeat(times, 1), codes)
        Wx = pixels.Wx.repeat(times, 1).addmm_(codes, self.below.weight[:, : codes.shape[1]].T)
        rms = root_mean_square(x)
        return x / rms, torch.addcmul(self.bias, Wx, 1 / rms).relu_()


class Net(AnyNet):
    """Hidden layers 1..L over the image, and a read-out of the normalised activities of layers 2..L."""

    def __init__(self, model: Model, shape: Map, classes: int, *, generator: torch.Generator, dtype: torch.dtype):
        super().__init__(model, shape, classes)
        stack = dense_stack(shape, model.hidden_dims, model.weight_scale, generator=generator, dtype=dtype)
        kinds = [FirstLayer] + [FFLayer] * (len(stack) - 1)
        self.layers = nn.ModuleList(kind(below, **model.of_layer()) for kind, below in zip(kinds, stack, strict=True))
        self.readout = Readout(sum(model.hidden_dims[1:]), classes)
        self.register_buffer("updates", torch.tensor(0))  # done so far, with training.sleep

    @property
    def first(self) -> FirstLayer:
        return self.layers[0]

    def features(self, pixels: Pixels) -> Tensor:
        """What the read-out sees under the neutral code: n(h) of layers 2..L ([B, d_2 + .. + d_L])."""
        _, h = self.first.under(pixels, neutral(pixels.x, self.classes))
        return torch.cat([length_normalise(h) for h in activities(self.layers[1:], h)], dim=1)

    def phases(self, training: Training) -> list[Phase]:
        """One: everything learns together."""
        optimizer = make_optimizer(self, training)
        update = compiled(step, self) if training.compile else step
        how = {"choose": WRONG_LABELS[training.negatives], "adversarial": training.adversarial, "sleep": training.sleep}

        def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            noise = images.new_empty(len(images), self.classes).exponential_(generator=generator)
            # An image has the same pixels in all three passes. Their scale does not matter, as inputs are normalised.
            images = dropped(images, dropout_mask(images.shape, training.input_dropout, generator))
            return update(self, optimizer, images, labels, noise, **how)

        return [Phase(training.epochs, optimizer, update_from)]

    @torch.no_grad()
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """For images whose first K numbers are free.

        Rules: "goodness" (hidden layers 2..L, the paper's), "one_pass" (the read-out's logits after a single pass with
        the neutral code), "goodness_all_layers" (the first included), "goodness_and_one_pass" (the latter and the
        logits, each standardised over the labels, added), "goodness_layer_1".. (one layer alone).
        """
        pixels = self.first.of_pixels(self.checked(images), self.classes)
        per_label = []
        for label in range(self.classes):
            _, h = self.first.under(pixels, one_hot(images.new_full((len(images),), label).long(), self.classes))
            all_h = [h, *activities(self.layers[1:], h)]
            per_label.append(torch.stack([layer.goodness(h) for layer, h in zip(self.layers, all_h, strict=True)]))
        goodnesses = torch.stack(per_label, dim=2)  # [L, B, classes]
        all_layers, logits = goodnesses.sum(dim=0), self.readout(self.features(pixels))
        return {
            "goodness": goodnesses[1:].sum(dim=0),
            "one_pass": logits,
            "goodness_all_layers": all_layers,
            "goodness_and_one_pass": together(all_layers, logits),
            **{f"goodness_layer_{layer}": of_layer for layer, of_layer in enumerate(goodnesses, start=1)},
        }


def dense_stack(shape: Map, hidden_dims: list[int], weight_scale: str, **options) -> list[Connections]:
    """Dense connections of layers 1..L; "fan_in": W_l ~ N(0, 1 / d_{l-1}), "fan_out": W_l ~ N(0, 1 / d_l)."""
    maps = maps_of(shape, hidden_dims, field=None)
    fans = [(seen if weight_scale == "fan_in" else own).size for seen, own in pairwise(maps)]
    return [Connections(*ends, std=fan**-0.5, **options) for ends, fan in zip(pairwise(maps), fans, strict=True)]


@torch.no_grad()
def step(
    net: Net,
    optimizer: SGD,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    adversarial: float = 0.0,
    sleep: int = 0,
) -> dict[str, Tensor]:
    """Three passes of a mini-batch with the same weights, then one update of every layer and the read-out.

    Args:
        images: in [0, 1] ([B, D]); labels: true classes ([B], int64).
        choose: one of src/negatives/wrong_labels.py; noise: what it takes ([B, classes]).
        adversarial: how far every second image is moved for the latter two passes (`adversarial_pixels`).
        sleep: so many updates learn of positives alone, then as many of negatives alone (section 5); 0: of both.

    Returns `step_figures`.
    """
    # Neutral pass: the read-out learns from it, and says which wrong labels are hard.
    pixels = net.first.of_pixels(images, net.classes)
    features = net.features(pixels)
    logits = net.readout(features)
    both = torch.cat([labels, choose(logits, labels, noise)])
    readout_loss = net.readout.learn(features, logits, labels, optimizer.momentum)

    # Positive pass and, below it, the negative one. A layer learns as soon as it is active.
    codes = one_hot(both, net.classes)
    if adversarial:
        pixels = adversarial_pixels(net.first, pixels, codes, adversarial)
    of = None
    if sleep:
        asleep = net.updates // sleep % 2
        of = torch.stack([1 - asleep, asleep])
        net.updates += 1
    n, h = net.first.under(pixels, codes)
    learned = [net.first.learn([h], optimizer.momentum, below=[n], of=of)]
    for layer in net.layers[1:]:
        n = length_normalise(h)  # what is handed on is numbers: no gradient of this layer reaches the one below
        h = layer(n)
        learned.append(layer.learn([h], optimizer.momentum, below=[n], of=of))
    descend(optimizer)
    return step_figures(learned, readout_loss)


def adversarial_pixels(layer: FirstLayer, pixels: Pixels, codes: Tensor, length: float) -> Pixels:
    """Every second image moved by `length` (L2) to where the first layer's loss of its pair is higher.

    Adversarial training (Goodfellow et al. 2015, arXiv 1412.6572, which also leaves half of the images as they are;
    with steps of one L2 norm, Miyato et al. 2018, arXiv 1704.03976), but local: the loss is the first layer's own, and
    no other layer has a part in it. The positive and the negative of an image are moved alike, so that the label
    remains all that tells them apart. `codes`: of all positives and, below them, all negatives ([2B, classes]).
    """
    half = Pixels(*(x[::2] for x in pixels))
    codes = torch.cat([part[::2] for part in codes.chunk(2)])
    n, h = layer.under(half, codes)
    # Where the layer is sure, these derivatives are beyond fp32 (for T = 1, from a margin of 90). MPS has no fp64.
    G = layer.goodness(h).to(torch.float32 if h.device.type == "mps" else torch.float64)
    dloss_dG = torch.stack(layer.loss_slope(*G.chunk(2)))  # [2, B / 2]
    dloss_dG = dloss_dG / dloss_dG.abs().amax(dim=0).clamp_min(torch.finfo(G.dtype).tiny)  # their size does not matter
    dn = layer.below.back(dloss_dG.float().flatten()[:, None] * layer.slope(h) * (h > 0))
    dx = dn - n * (dn * n).mean(dim=1, keepdim=True)  # times rms(x), which is the same for both codes
    direction = embed(sum(dx.chunk(2)), dx.new_zeros(codes.shape[1]))
    of_moved = layer.of_pixels(half.x + length * F.normalize(direction), codes.shape[1])
    pixels = Pixels(*(x.clone() for x in pixels))
    for x, moved_x in zip(pixels, of_moved, strict=True):
        x[::2] = moved_x
    return pixels
