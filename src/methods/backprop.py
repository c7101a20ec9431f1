"""The back-propagation baseline: the same stack of ReLU layers, trained end to end on the classes (section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import number
from src.layers.connections import around, check_field, maps_of, rows_that_matter, select
from src.layers.dropout import dropout_mask, dropout_masks, dropped
from src.layers.fields import Map
from src.layers.layer import ReLULayer
from src.layers.readout import Readout
from src.methods.net import Net as AnyNet
from src.negatives.codes import one_hot
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer


@dataclass
class Model(values.Model):
    field: int | None = values.MISSING
    standardise: bool = values.MISSING

    def check_images(self, shape: Map, classes: int) -> None:
        """Raises ConfigError if there are no such fields."""
        check_field(shape, self.hidden_dims, self.field)


@dataclass
class Training(values.Training):
    dropout: float = number(at_least=0, below=1)
    input_dropout: float = number(at_least=0, below=1)
    adversarial: float = number(at_least=0)


class Net(AnyNet):
    """Hidden layers h_l = relu(W_l h_{l-1} + b_l) over the image, and a read-out of the last one.

    W_l ~ N(0, 2 / d_{l-1}), which keeps the mean square of the activities (He et al. 2015).
    """

    def __init__(self, model: Model, shape: Map, classes: int, *, generator: torch.Generator, dtype: torch.dtype):
        super().__init__(model, shape, classes)
        maps = maps_of(shape, model.hidden_dims, model.field)
        options = {"gain": 2**0.5, "generator": generator, "dtype": dtype}
        self.layers = nn.ModuleList(ReLULayer(around(*ends, model.field, **options)) for ends in pairwise(maps))
        self.readout = Readout(maps[-1].size, classes)

    def activities(self, images: Tensor, masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """h_0..h_L ([B, D] -> L + 1 tensors [B, d_l]); `masks`: of dropout (each [B, d_l])."""
        all_h = [self.standardised(images)]
        for layer, mask in zip(self.layers, masks or [None] * len(self.layers), strict=True):
            all_h.append(dropped(layer(all_h[-1]), mask))
        return all_h

    def phases(self, training: Training) -> list[Phase]:
        """One."""
        optimizer = make_optimizer(self, training)
        update = compiled(step, self) if training.compile else step
        scale = 1 / (1 - training.dropout)  # of `dropout_masks`

        def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            p = training.input_dropout
            images = dropped(images, dropout_mask(images.shape, p, generator, scale=1 / (1 - p)))
            masks = dropout_masks(self.layers, len(images), training.dropout, generator)
            return update(self, optimizer, images, labels, masks=masks, scale=scale, adversarial=training.adversarial)

        return [Phase(training.epochs, optimizer, update_from, readout_rate="learning_rate")]

    @torch.no_grad()
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """By the read-out."""
        return {"one_pass": self.readout(self.activities(self.checked(images))[-1])}


@torch.no_grad()
def step(
    net: Net,
    optimizer: SGD,
    images: Tensor,
    labels: Tensor,
    *,
    masks: Sequence[Tensor | None] | None = None,
    scale: float = 1.0,
    adversarial: float = 0.0,
) -> dict[str, Tensor]:
    """One update of all weights by the gradient of the mean cross-entropy; returns `step_figures`.

    It is written out as the other methods' are, to be compared with them: what Forward-Forward does without is the one
    line that carries dz down through the weights.

    Args:
        images: in [0, 1] ([B, D]); labels: true classes ([B], int64).
        masks: of dropout, for each layer's activities ([B, d_l]); its entries are 0 or `scale`.
        adversarial: how far every second image is moved (`adversarial_images`).
    """
    if adversarial:
        images = images.clone()
        images[::2] = adversarial_images(net, images[::2], labels[::2], adversarial)
    all_h = net.activities(images, masks)
    logits = net.readout(all_h[-1])
    readout_loss = net.readout.learn(all_h[-1], logits, labels, optimizer.momentum)

    d_logits = net.readout.error(logits, labels)
    rows = rows_that_matter(d_logits.abs().amax(dim=1))
    all_h = [select(h, rows) for h in all_h]
    dh = select(d_logits, rows) @ net.readout.weight
    for index, layer in reversed(list(enumerate(net.layers))):
        dz = dh * (all_h[index + 1] > 0) * scale
        layer.bias.grad.lerp_(dz.sum(dim=0), 1 - optimizer.momentum)
        layer.below.smooth([dz], [all_h[index]], optimizer.momentum)
        if index > 0:
            dh = layer.below.back(dz)
    descend(optimizer)
    return step_figures([], readout_loss)


def adversarial_images(net: Net, images: Tensor, labels: Tensor, length: float) -> Tensor:
    """Each image moved by `length` (L2) to where the cross-entropy of its class is higher ([B, D] -> [B, D]).

    As `src.methods.supervised.adversarial_pixels`, but the slope is carried down through all layers.
    """
    all_h = net.activities(images)
    wrong = net.readout(all_h[-1]).scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    # softmax - one-hot, divided by 1 - p(true), of which fp32 keeps nothing where the net is sure
    dh = (wrong - one_hot(labels, net.classes)) @ net.readout.weight
    for layer, h in zip(reversed(net.layers), reversed(all_h), strict=False):
        dh = layer.below.back(dh * (h > 0))
    return images + length * F.normalize(dh)
