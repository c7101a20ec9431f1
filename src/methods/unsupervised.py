"""The unsupervised net: real images against negative images, no label in any of them (section 3.2).

Read-outs learn the classes from the activities, along the way and, as in the paper, after the hidden layers have
learned; they send nothing into them. Hidden layers are fully connected or have local receptive fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from src.config import values
from src.config.values import ConfigError, choices, number, one_of, widths
from src.layers.connections import Connections
from src.layers.fields import Map
from src.layers.layer import FFLayer, LayerModel, activities, length_normalise
from src.layers.readout import Readout
from src.methods.net import Net as AnyNet
from src.methods.supervised import dense_stack
from src.negatives import images as negative_images
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer

NEGATIVE_IMAGES = choices(negative_images)


@dataclass
class Model(LayerModel):
    hidden_dims: list[int] = widths(at_least=2, reason="because the read-out leaves the first one out")
    weight_scale: str = one_of(["fan_in", "fan_out"])
    grids: list[int] | None = values.MISSING
    field: int = number(at_least=1)

    def check_images(self, shape: Map, classes: int) -> None:
        """Raises ConfigError if there are `grids` of which no `local_stack` can be made over such images."""
        if self.grids is None:
            return
        grids, dims = self.grids, self.hidden_dims
        if len(grids) != len(dims) or min(grids) < 1 or any(below - grid != 1 for below, grid in pairwise(grids)):
            rule = f"must give each of {len(dims)} layers one location less per side than the one below, as [4, 3, 2]"
            raise ConfigError(f"model.grids={grids}: {rule}")
        side, across = shape.height, shape.width
        if side != across or self.field >= side or (side - self.field) % (grids[0] - 1):
            rule = f"squares of so many pixels cannot be spread evenly over {side} x {across} at {grids[0]} a side"
            raise ConfigError(f"model.field={self.field}: {rule}")
        for dim, grid in zip(dims, grids, strict=True):
            if dim % grid**2:
                rule = f"{dim} units cannot be shared out evenly to {grid} x {grid} locations (model.grids={grids})"
                raise ConfigError(f"model.hidden_dims={dims}: {rule}")


@dataclass
class Training(values.Training):
    smallest_batch = 2  # a hybrid is made of two images
    negatives: str = one_of(NEGATIVE_IMAGES)
    blurs: int = number(at_least=0)
    readout_epochs: int = number(at_least=0)


class Net(AnyNet):
    """Hidden layers 1..L over the image, and read-outs, by rule: of layers 2..L (the paper's), of all layers, and, to
    see what each layer knows, of every layer alone.
    """

    def __init__(self, model: Model, shape: Map, classes: int, *, generator: torch.Generator, dtype: torch.dtype):
        super().__init__(model, shape, classes)
        dims, options = model.hidden_dims, {"generator": generator, "dtype": dtype}
        if model.grids:
            stack = local_stack(shape, dims, model.grids, model.field, model.weight_scale, **options)
        else:
            stack = dense_stack(shape, dims, model.weight_scale, **options)
        self.layers = nn.ModuleList(FFLayer(below, **model.of_layer()) for below in stack)
        features = {"one_pass": sum(dims[1:]), "one_pass_all_layers": sum(dims)}
        features |= {f"one_pass_layer_{layer}": dim for layer, dim in enumerate(dims, start=1)}
        self.readouts = nn.ModuleDict({rule: Readout(count, classes) for rule, count in features.items()})

    def normalised(self, images: Tensor) -> list[Tensor]:
        """n(h_l) of every hidden layer ([B, D] -> tensors [B, d_l])."""
        return [length_normalise(h) for h in activities(self.layers, images)]

    def features(self, all_n: Sequence[Tensor]) -> dict[str, Tensor]:
        """What every read-out sees, by rule, of the normalised activities of all layers (each [B, d_l])."""
        dims = [n.shape[1] for n in all_n]
        n = torch.cat(all_n, dim=1)
        alone = {f"one_pass_layer_{layer}": of_layer for layer, of_layer in enumerate(n.split(dims, dim=1), start=1)}
        return {"one_pass": n[:, dims[0] :], "one_pass_all_layers": n, **alone}

    def learn_readouts(self, all_n: Sequence[Tensor], labels: Tensor, momentum: float) -> Tensor:
        """All read-outs learn from `features`; returns the loss of the paper's, summed (scalar)."""
        losses = {
            rule: self.readouts[rule].learn(n, self.readouts[rule](n), labels, momentum)
            for rule, n in self.features(all_n).items()
        }
        return losses["one_pass"]

    def phases(self, training: Training) -> list[Phase]:
        """Layers and read-outs together, then the read-outs alone, whose g goes on from what it was."""
        optimizer, of_readouts = make_optimizer(self, training), make_optimizer(self.readouts, training)
        update = compiled(step, self) if training.compile else step
        make_negatives = partial(NEGATIVE_IMAGES[training.negatives], blurs=training.blurs)

        def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return update(self, optimizer, images, make_negatives(images, self.shape, generator), labels)

        def readouts_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return readout_step(self, of_readouts, images, labels)

        return [
            Phase(training.epochs, optimizer, update_from),
            Phase(training.readout_epochs, of_readouts, readouts_from),
        ]

    @torch.no_grad()
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """By the read-outs; no label is written anywhere."""
        features = self.features(self.normalised(self.checked(images)))
        return {rule: self.readouts[rule](n) for rule, n in features.items()}


def local_stack(
    shape: Map, hidden_dims: Sequence[int], grids: Sequence[int], field: int, weight_scale: str, **options
) -> list[Connections]:
    """Connections of layers 1..L with local receptive fields: layer l has grids_l x grids_l locations.

    In the first layer, squares of `field` x `field` pixels are spread evenly over the image; from the second on, a
    location sees all channels of 2 x 2 adjacent locations below. "fan_in": W ~ N(0, 1 / inputs of a unit), "fan_out":
    W ~ N(0, 1 / channels).
    """
    stack, seen = [], shape
    stride = (shape.height - field) // (grids[0] - 1)
    for dim, grid in zip(hidden_dims, grids, strict=True):
        own = Map(grid, grid, dim // grid**2)
        fan = field**2 * seen.channels if weight_scale == "fan_in" else own.channels
        stack.append(Connections(seen, own, field=field, stride=stride, std=fan**-0.5, **options))
        seen, field, stride = own, 2, 1
    return stack


@torch.no_grad()
def step(net: Net, optimizer: SGD, images: Tensor, negatives: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update of the layers, and of the read-outs next to them; returns `step_figures`.

    Args:
        images: in [0, 1] ([B, D]), the positives; negatives: as many; labels: for the read-outs alone ([B]).
    """
    n, learned, positives = length_normalise(torch.cat([images, negatives])), [], []
    for layer in net.layers:
        h = layer(n)
        learned.append(layer.learn([h], optimizer.momentum, below=[n]))
        n = length_normalise(h)  # what is handed on is numbers: no gradient of the layer above reaches this one
        positives.append(n[: len(images)])
    readout_loss = net.learn_readouts(positives, labels, optimizer.momentum)
    descend(optimizer)
    return step_figures(learned, readout_loss)


@torch.no_grad()
def readout_step(net: Net, optimizer: SGD, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update of the read-outs, which are all that `optimizer` has, while the layers stay as they are."""
    readout_loss = net.learn_readouts(net.normalised(images), labels, optimizer.momentum)
    descend(optimizer)
    return step_figures([], readout_loss)
