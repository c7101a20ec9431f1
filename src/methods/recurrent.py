"""The recurrent net: the image below, the label above, and hidden layers that settle between them (section 3.4)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import ConfigError, choices, number, one_of
from src.layers.connections import around, check_field, maps_of
from src.layers.dropout import dropout_masks, dropped
from src.layers.fields import Map
from src.layers.layer import FFLayer, LayerModel, activities, length_normalise
from src.layers.readout import Readout
from src.methods.net import Net as AnyNet
from src.methods.net import together
from src.negatives import wrong_labels
from src.negatives.codes import one_hot
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer

AT_ONCE = 5000  # images under a label that settle at a time; a matter of memory
WRONG_LABELS = choices(wrong_labels)


@dataclass
class Model(LayerModel):
    weight_gain: float = number(at_least=0)
    damping: float = number(at_least=0, below=1)
    iterations: int = number(at_least=1)
    first_learning_iteration: int = number(at_least=1)
    deciding_iterations: list[int] = values.MISSING
    field: int | None = values.MISSING
    standardise: bool = values.MISSING

    def check_images(self, shape: Map, classes: int) -> None:
        """Raises ConfigError if no iteration would learn or decide, or there are no such fields."""
        first, last = self.first_learning_iteration, self.iterations
        if first > last:
            raise ConfigError(f"model.first_learning_iteration={first}: must be at most model.iterations, {last}")
        deciding = self.deciding_iterations
        if len(deciding) != 2 or not 1 <= deciding[0] <= deciding[1] <= last:
            rule = f"must be the first and the last of iterations within 1..{last}"
            raise ConfigError(f"model.deciding_iterations={deciding}: {rule}")
        check_field(shape, self.hidden_dims, self.field)


@dataclass
class Training(values.Training):
    negatives: str = one_of(WRONG_LABELS)
    dropout: float = number(at_least=0, below=1)


class Iteration(NamedTuple):
    """All layers, for K labels of each of B images; lists over the layers 1..L."""

    n: list[Tensor]  # what they see: image ([B, d_0]), n of layers 1..L one iteration before, label (each [K B, d_l])
    drive: list[Tensor]  # relu(z) ([K B, d_l])
    h: list[Tensor]  # the states ([K B, d_l])


class Net(AnyNet):
    """Hidden layers 1..L between image and label, and a read-out of their states after a single bottom-up pass.

    h(t) = damping h(t-1) + (1 - damping) relu(W n(below) + V n(above) + b), of its neighbours' states at t-1;
    W ~ N(0, weight_gain^2 / d_{l-1}), V ~ N(0, weight_gain^2 / d_{l+1}).
    """

    def __init__(self, model: Model, shape: Map, classes: int, *, generator: torch.Generator, dtype: torch.dtype):
        super().__init__(model, shape, classes)

        maps = [*maps_of(shape, model.hidden_dims, model.field), Map(1, 1, classes)]
        options = {"gain": model.weight_gain, "generator": generator, "dtype": dtype}
        self.layers = nn.ModuleList(
            FFLayer(*(around(seen, own, model.field, **options) for seen in (below, above)), **model.of_layer())
            for below, own, above in zip(maps, maps[1:], maps[2:], strict=False)
        )
        self.readout = Readout(sum(model.hidden_dims), classes)
        self.damping = model.damping
        self.iterations = model.iterations
        self.first_learning_iteration = model.first_learning_iteration
        self.deciding_iterations = model.deciding_iterations

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        """The states that the iterations start from: one pass without the label ([B, d_0] -> tensors [B, d_l])."""
        return activities(self.layers, self.standardised(images))

    def settle(
        self, images: Tensor, labels: Tensor, states: list[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> Iterator[Iteration]:
        """The iterations; in each, all layers follow what their neighbours were in the one before.

        Args:
            images: in [0, 1] ([B, d_0]); labels: one for each image, K times over ([K B]).
            states: of layers 1..L to start from (each [K B, d_l]).
            masks: of dropout, for what both neighbours see of layers 1..L (each [B, d_l]).
        """
        dtype = self.layers[0].below.dtype  # cast once for both neighbours
        image = length_normalise(self.standardised(images)).to(dtype)
        label = length_normalise(one_hot(labels, self.classes)).to(dtype)
        # The part of z that all iterations share is computed once.
        held = [layer.bias for layer in self.layers]
        held[0] = held[0] + self.layers[0].below(image).repeat(len(labels) // len(images), 1)
        held[-1] = held[-1] + self.layers[-1].above(label)
        masks = masks or [None] * len(states)
        for _ in range(self.iterations):
            seen = (dropped(length_normalise(h), mask).to(dtype) for h, mask in zip(states, masks, strict=True))
            n = [image, *seen, label]
            drive = []
            for layer, z, below, above in zip(self.layers, held, n, n[2:], strict=False):
                if below is not image:
                    z = z + layer.below(below)
                if above is not label:
                    z = z + layer.above(above)
                drive.append(F.relu(z))
            states = [torch.lerp(now, before, self.damping) for now, before in zip(drive, states, strict=True)]
            yield Iteration(n, drive, states)

    @torch.no_grad()
    def goodness_over_time(self, images: Tensor) -> Tensor:
        """Goodness of every layer under every label after every iteration ([B, d_0] -> [T, L, B, classes])."""
        parts = []
        for some in images.split(-(-AT_ONCE // self.classes)):
            labels = torch.arange(self.classes, device=images.device).repeat_interleave(len(some))
            start = [h.repeat(self.classes, 1) for h in self.bottom_up(some)]
            over_time = [
                torch.stack([layer.goodness(h) for layer, h in zip(self.layers, now.h, strict=True)])
                for now in self.settle(some, labels, start)
            ]
            parts.append(torch.stack(over_time).unflatten(2, (self.classes, -1)))  # [T, L, classes, B]
        return torch.cat(parts, dim=3).transpose(2, 3)

    def deciding(self, over_time: Tensor) -> Tensor:
        """The mean over the iterations that decide ([T, ...] -> [...])."""
        first, last = self.deciding_iterations
        return over_time[first - 1 : last].mean(dim=0)

    def phases(self, training: Training) -> list[Phase]:
        """One."""
        optimizer = make_optimizer(self, training)
        update = compiled(step, self) if training.compile else step

        def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            noise = images.new_empty(len(images), self.classes).exponential_(generator=generator)
            masks = dropout_masks(self.layers, len(images), training.dropout, generator)
            return update(self, optimizer, images, labels, noise, choose=WRONG_LABELS[training.negatives], masks=masks)

        return [Phase(training.epochs, optimizer, update_from)]

    @torch.no_grad()
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """By goodness and in one pass.

        Rules: "goodness" (of all hidden layers, averaged over the deciding iterations, the paper's), "one_pass" (the
        read-out's logits after the bottom-up pass), "goodness_and_one_pass" (both, each standardised over the labels,
        added), "goodness_all_iterations", "goodness_layer_1".. (one layer alone, deciding iterations).
        """
        over_time = self.goodness_over_time(self.checked(images))  # [T, L, B, classes]
        goodnesses = self.deciding(over_time)
        goodness, logits = goodnesses.sum(dim=0), self.readout(features(self.bottom_up(images)))
        return {
            "goodness": goodness,
            "one_pass": logits,
            "goodness_and_one_pass": together(goodness, logits),
            "goodness_all_iterations": over_time.mean(dim=0).sum(dim=0),
            **{f"goodness_layer_{layer}": of_layer for layer, of_layer in enumerate(goodnesses, start=1)},
        }


def features(states: list[Tensor]) -> Tensor:
    """What the read-out sees: the normalised states of all layers (each [B, d_l] -> [B, sum of d_l])."""
    return torch.cat([length_normalise(h) for h in states], dim=1)


@torch.no_grad()
def step(
    net: Net,
    optimizer: SGD,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    masks: Sequence[Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """One update from a mini-batch; arguments and result are those of `src.methods.supervised.step`.

    Each layer learns at the iterations from its own goodness. What its neighbours were one iteration before is taken as
    given: nothing is propagated back through time, and dh/dz is (1 - damping) 1[z > 0]. The `masks` of `Net.settle` are
    the same for the positive and the negative of an image, and at all iterations.
    """
    # The bottom-up pass trains the read-out and says which wrong labels are hard.
    states = net.bottom_up(images)
    x = features(states)
    logits = net.readout(x)
    both = torch.cat([labels, choose(logits, labels, noise)])
    readout_loss = net.readout.learn(x, logits, labels, optimizer.momentum)

    # Positives and, below them, negatives start from its states, and settle.
    iterations = list(net.settle(images, both, [h.repeat(2, 1) for h in states], masks))
    learning = iterations[net.first_learning_iteration - 1 :]
    image, *n, label = zip(*(now.n for now in learning), strict=True)
    n = [image[0], *n, label[0]]  # which are held
    learned = []
    for index, layer in enumerate(net.layers):
        h = [now.h[index] for now in learning]
        gates = [now.drive[index] > 0 for now in learning]
        how = {"below": n[index], "above": n[index + 2], "gates": gates, "dh_dz": 1 - net.damping}
        learned.append(layer.learn(h, optimizer.momentum, **how))
    descend(optimizer)
    return step_figures(learned, readout_loss)
