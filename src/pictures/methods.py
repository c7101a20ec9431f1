"""What can be drawn of a trained net, for each method's kind of net."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from src.datasets.batches import Examples, to_unit
from src.layers.connections import Connections
from src.layers.fields import Map
from src.layers.layer import activities
from src.methods import recurrent, supervised, unsupervised
from src.methods.net import Net
from src.negatives.codes import one_hot
from src.negatives.masks import mixed, random_masks
from src.pictures import figures


def pictures_of(net: Net, test: Examples, scores: dict[str, Tensor], training: Any) -> dict[str, Figure]:
    """Figures of a net on the CPU, by file name: of its first weights, and of what its method has of its own.

    `scores`: what it says of the `test` images, by rule ([N, K]); `training`: its method's values.
    """
    drawn = {}
    if first := [part for part in net.modules() if isinstance(part, Connections) and part.seen == net.shape]:
        weight, seen = first[0].weight.detach().clone(), net.shape
        if (fields := first[0].fields) and fields.padding:
            weight, seen = topographic_fields(first[0]), Map(fields.size, fields.size, net.shape.channels)
        if isinstance(net, supervised.Net):  # those of the label's numbers would outshine the rest
            weight[:, : net.classes] = 0
        drawn["receptive_fields"] = figures.draw_receptive_fields(weight, seen)
    if "goodness_layer_1" in scores:
        of_layers = torch.stack([of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")])
        true = test.labels[:, None] == torch.arange(net.classes)  # [N, K]; the layers' goodness is [L, N, K]
        both = {"true label": of_layers[:, true], "wrong labels": of_layers[:, ~true]}
        drawn["goodness"] = figures.draw_goodness(both, net.layers)
    if isinstance(net, supervised.Net) and training.adversarial:
        drawn["adversarial"] = draw_adversarial(net, test, training.adversarial)
    if isinstance(net, unsupervised.Net):
        drawn |= draw_hybrids(net, test, training.blurs)
    if isinstance(net, recurrent.Net):
        right = (scores["goodness"].argmax(dim=1) == test.labels).nonzero().flatten()[:3].tolist()
        shown = right + figures.most_wrong(scores["goodness"], test.labels, "goodness", count=3)
        goodness = net.goodness_over_time(to_unit(test.images[shown])).sum(dim=1)  # [T, L, N, K] -> [T, N, K]
        drawn["goodness_over_time"] = draw_goodness_over_time(net, test, shown, goodness)
    return drawn


def topographic_fields(connections: Connections) -> Tensor:
    """The weights of each unit within its own square ([own.size, field^2 * seen.channels])."""
    beyond, field = connections.fields.padding, connections.fields.size
    whole = connections.full_matrix(connections.weight.detach()).unflatten(1, connections.seen)
    whole = F.pad(whole, (0, 0, *[beyond] * 4)).unflatten(0, connections.own)
    places = product(range(connections.own.height), range(connections.own.width))
    squares = [whole[row, column, :, row : row + field, column : column + field] for row, column in places]
    return torch.cat(squares).flatten(1)


@torch.no_grad()
def draw_adversarial(net: supervised.Net, test: Examples, length: float) -> Figure:
    """Images of up to ten classes, the same moved, under their hardest wrong label, and what has been added."""
    examples = test.first_of_each_class()[:10]
    images, labels = to_unit(examples.images), examples.labels
    wrong_labels = net.scores(images)["one_pass"].scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    # Each of them twice, as every second one is moved. A label's numbers are not.
    codes = one_hot(torch.cat([labels, wrong_labels]).repeat_interleave(2), net.classes)
    pixels = net.first.of_pixels(images.repeat_interleave(2, dim=0), net.classes)
    added = (supervised.adversarial_pixels(net.first, pixels, codes, length).x - pixels.x)[::2]
    rows = {"image": images, "moved": images + added, "added": (1 + added / added.abs().max()) / 2}
    title = f"Images moved by {length:g} (L2) against the first layer's loss, and what was added (grey: nothing)"
    return figures.draw_rows({name: (255 * row).clamp(0, 255).byte() for name, row in rows.items()}, net.shape, title)


@torch.no_grad()
def draw_hybrids(net: unsupervised.Net, test: Examples, blurs: int) -> dict[str, Figure]:
    """Images of up to ten classes, masks, and the hybrids that they make; the goodness of test images and hybrids."""
    some = test.images[:: 1 + len(test) // 2000]  # as many as fit into the memory at once
    examples = test.first_of_each_class()[:10].images
    masks = random_masks(len(some), net.shape, blurs, torch.Generator().manual_seed(0))
    both = activities(net.layers, to_unit(torch.cat([some, mixed(some, masks)])))
    goodness = torch.stack([layer.goodness(h) for layer, h in zip(net.layers, both, strict=True)])  # [L, 2N]
    both = dict(zip(("test images", "hybrids of them"), goodness.chunk(2, dim=1), strict=True))
    shown = masks[: len(examples)]
    rows = {"image": examples, "mask": 255 * shown.byte(), "hybrid": mixed(examples, shown)}
    title = "A hybrid is the image where the mask is white; where it is black, that to its left (or the last)"
    return {
        "hybrids": figures.draw_rows(rows, net.shape, title),
        "goodness": figures.draw_goodness(both, net.layers),
    }


def draw_goodness_over_time(net: recurrent.Net, test: Examples, numbers: Sequence[int], goodness: Tensor) -> Figure:
    """The goodness of each label ([T, N, K]) at iterations 1..T, for test images of such `numbers`.

    Shown is its distance from the mean of all labels', which rises and falls far more than they differ.
    """
    chosen, labels = net.deciding(goodness).argmax(dim=1), test.labels[numbers]
    above = goodness - goodness.mean(dim=2, keepdim=True)
    iterations, (first, last) = range(1, len(goodness) + 1), net.deciding_iterations
    figure, axes = figures.beside_images(test, numbers, columns=3)
    for axis, true, choice, of_image in zip(axes, labels.tolist(), chosen.tolist(), above.unbind(1), strict=True):
        axis.axvspan(first - 0.5, last + 0.5, color="0.92")
        axis.plot(iterations, of_image.numpy(), color="0.6", linewidth=1)
        for label, colour in {choice: figures.NEGATIVE, true: figures.POSITIVE}.items():
            axis.lines[label].set(color=colour, linewidth=2.2, zorder=3)
            end = axis.lines[label].get_xydata()[-1]
            axis.annotate(str(label), end, (5, 0), textcoords="offset points", color=colour, va="center")
        axis.tick_params(labelsize=8)
        axis.set(xticks=iterations, xlabel="iteration", ylabel="above the labels' mean")
        axis.set_title(f"true {true}, chosen {choice}", size=9)
    marked = "blue: the true label, orange: a wrong one that is chosen, as it has the most in the shaded iterations"
    figure.suptitle(f"Goodness of each label, all layers together ({marked})", size=11)
    return figure
