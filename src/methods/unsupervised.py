"""The unsupervised net: real images against negative images, no label in any of them (section 3.2).

Read-outs learn the classes from the activities, along the way and, as in the paper, after the hidden layers have
learned; they send nothing into them. Hidden layers are fully connected or have local receptive fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from src.config import values
from src.config.values import SIDE, ConfigError, choices, number, one_of, widths
from src.datasets.batches import Examples, to_unit
from src.layers.layer import FFLayer, LayerModel, length_normalise
from src.layers.local import local_layers
from src.layers.readout import Readout
from src.layers.stack import activities, dense_layers, normalised, thresholds
from src.methods import Published
from src.negatives import images as negative_images
from src.negatives.masks import mixed, random_masks
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer, momentum_of

SECTION = "3.2"
SMALLEST_BATCH = 2  # a hybrid is made of two images
NEGATIVE_IMAGES = choices(negative_images)
PUBLISHED = [
    Published("unsupervised", "Hinton's paper", "4 x 2000", "100", "one_pass", "1.37"),
    Published("local_receptive_fields", "Hinton's paper, local fields", "2048-1980-2048", "60", "one_pass", "1.16"),
]


@dataclass
class Model(LayerModel):
    hidden_dims: list[int] = widths(at_least=2, reason="because the read-out leaves the first one out")
    weight_scale: str = one_of("fan_in", "fan_out")
    grids: list[int] | None = values.MISSING
    field: int = number(at_least=1, below=SIDE + 1)

    def check_together(self) -> None:
        """Raises ConfigError if there are `grids` of which no `local_layers` can be made."""
        if self.grids is None:
            return
        grids, dims, first = self.grids, self.hidden_dims, self.grids[0] if self.grids else 0
        one_less = first >= len(grids) and grids == list(range(first, first - len(grids), -1))
        if len(grids) != len(dims):
            raise ConfigError(f"model.grids={grids}: must name as many layers as model.hidden_dims")
        if not one_less:
            rule = "each grid must have one location less per side than the one below, as [4, 3, 2] has"
            raise ConfigError(f"model.grids={grids}: {rule}")
        if self.field == SIDE or (SIDE - self.field) % (first - 1):
            rule = f"squares of so many pixels cannot be spread evenly over {SIDE} pixels at {first} locations per side"
            raise ConfigError(f"model.field={self.field}: {rule}")
        for dim, grid in zip(dims, grids, strict=True):
            if dim % grid**2:
                rule = f"{dim} units cannot be shared out evenly to {grid} x {grid} locations (model.grids={grids})"
                raise ConfigError(f"model.hidden_dims={dims}: {rule}")


@dataclass
class Training(values.Training):
    negatives: str = one_of(*NEGATIVE_IMAGES)
    blurs: int = number(at_least=0)
    readout_epochs: int = number(at_least=0)


class UnsupervisedNet(nn.Module):
    """Hidden layers 1..L over the pixels, and read-outs, by rule: of layers 2..L (the paper's), of all layers, and, to
    see what each layer knows, of every layer alone.
    """

    def __init__(self, layers: Sequence[FFLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        dims = [len(layer.bias) for layer in layers]
        features = {"one_pass": sum(dims[1:]), "one_pass_all_layers": sum(dims)}
        features |= {f"one_pass_layer_{layer}": dim for layer, dim in enumerate(dims, start=1)}
        self.readouts = nn.ModuleDict({rule: Readout(count) for rule, count in features.items()})

    def activities(self, x: Tensor) -> list[Tensor]:
        """The activity h_l of every hidden layer (x: [B, 784] -> L tensors [B, d_l])."""
        return activities(self.layers, x)

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


def new_net(*, hidden_dims: Sequence[int], grids: Sequence[int] | None, field: int, **options) -> UnsupervisedNet:
    """A new net, with local receptive fields if there are `grids`; `options` are those of every layer."""
    if grids:
        return UnsupervisedNet(local_layers(hidden_dims, grids, field=field, **options))
    return UnsupervisedNet(dense_layers(SIDE * SIDE, hidden_dims, **options))


@torch.no_grad()
def step(net: UnsupervisedNet, optimizer: SGD, images: Tensor, negatives: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update of the layers, and of the read-outs beside them; returns `step_figures`.

    Args:
        images: pixels in [0, 1] ([B, 784]), the positives; negatives: as many; labels: for the read-outs alone ([B]).
    """
    momentum = momentum_of(optimizer)
    n, figures, positives = length_normalise(torch.cat([images, negatives])), [], []
    for layer in net.layers:
        h = layer(n)
        figures.append(layer.learn(n, h, momentum))
        n = length_normalise(h)  # what is handed on is numbers: no gradient of the layer above reaches this one
        positives.append(n[: len(images)])
    readout_loss = net.learn_readouts(positives, labels, momentum)
    descend(optimizer)
    return step_figures(figures, readout_loss)


@torch.no_grad()
def readout_step(
    net: UnsupervisedNet, optimizer: SGD, images: Tensor, labels: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """One update of the read-outs, which are all that `optimizer` has, while the layers stay as they are."""
    all_n = normalised(net.layers, length_normalise(images))
    readout_loss = net.learn_readouts(all_n, labels, momentum_of(optimizer))
    descend(optimizer)
    return step_figures([], readout_loss)


def phases(
    net: UnsupervisedNet, *, epochs: int, readout_epochs: int, negatives: str, blurs: int, compile: bool, **rates
) -> list[Phase]:
    """Layers and read-outs together, then the read-outs alone, whose g goes on from what it was.

    `rates` are those of `make_optimizer`.
    """
    optimizer = make_optimizer(net.named_parameters(), **rates)
    update = compiled(step) if compile else step
    make_negatives = partial(NEGATIVE_IMAGES[negatives], blurs=blurs)

    def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return update(net, optimizer, images, make_negatives(images, generator), labels)

    readouts = [(name, parameter) for name, parameter in net.named_parameters() if name.startswith("readout")]
    readout_optimizer = make_optimizer(readouts, **rates)
    return [
        Phase(epochs, optimizer, update_from),
        Phase(readout_epochs, readout_optimizer, partial(readout_step, net, readout_optimizer)),
    ]


@torch.no_grad()
def scores(net: UnsupervisedNet, images: Tensor) -> dict[str, Tensor]:
    """By the read-outs, the paper's first; no label is written anywhere ([B, 784] -> each [B, 10])."""
    features = net.features(normalised(net.layers, length_normalise(images)))
    return {rule: net.readouts[rule](n) for rule, n in features.items()}


def pictures(net: UnsupervisedNet, test: Examples, scores: dict[str, Tensor], *, blurs: int, **_) -> dict:
    """First-layer weights, hybrids, and the goodness of test images and of hybrids of them."""
    from src.pictures.figures import draw_goodness, draw_receptive_fields

    device = net.layers[0].weight.device
    masks = random_masks(len(test), SIDE, blurs, torch.Generator().manual_seed(0))
    one_of_each = test.first_of_each_class().images
    goodnesses = goodness_with_hybrids(net, test.images.to(device), masks.to(device))
    return {
        "receptive_fields": draw_receptive_fields(net.layers[0].weight.detach().cpu()),
        "hybrids": draw_hybrids(one_of_each, masks[: len(one_of_each)]),
        "goodness": draw_goodness(*goodnesses, thresholds(net.layers), ("test images", "hybrids of them")),
    }


@torch.no_grad()
def goodness_with_hybrids(
    net: UnsupervisedNet, images: Tensor, masks: Tensor, batch_size: int = 1000
) -> tuple[Tensor, Tensor]:
    """G_l of images (uint8 [N, 784]) and of the hybrids that `masks` (bool [N, 784]) make of them (each [L, N])."""
    batches = []
    for positives, mask in zip(images.split(batch_size), masks.split(batch_size), strict=True):
        positives = to_unit(positives)
        both = net.activities(torch.cat([positives, mixed(positives, mask)]))
        goodnesses = [layer.goodness(h).view(2, -1) for layer, h in zip(net.layers, both, strict=True)]
        batches.append(torch.stack(goodnesses))  # [L, 2, B]
    return torch.cat(batches, dim=2).cpu().unbind(dim=1)


def draw_hybrids(images: Tensor, masks: Tensor):
    """A row of images (uint8 [N, 784]), one of masks (bool [N, 784]), one of the hybrids that they make (a Figure)."""
    from src.pictures.figures import draw_rows

    return draw_rows(
        {"image": images, "mask": 255 * masks, "hybrid": mixed(images, masks)},
        "A hybrid is the image where the mask is white, and the image to its left where it is black\n"
        "(for the first one, the last)",
    )
