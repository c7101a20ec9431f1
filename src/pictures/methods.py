"""What can be drawn of a trained net, for each method's kind of net."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from src.datasets.batches import Examples, to_unit
from src.layers.connections import Connections
from src.layers.layer import activities
from src.methods import recurrent, supervised, unsupervised
from src.methods.net import Net
from src.negatives.codes import one_hot
from src.negatives.masks import mixed, random_masks
from src.pictures import figures

FIRST, LAST = recurrent.FIRST_AVERAGED, recurrent.LAST_AVERAGED


def pictures_of(net: Net, test: Examples, scores: dict[str, Tensor], training: Any) -> dict[str, Figure]:
    """Figures of a net on the CPU, by file name: of its first weights, and of what its method has of its own.

    `scores`: what it says of the `test` images, by rule ([N, K]); `training`: its method's values.
    """
    drawn = {}
    if first := [part for part in net.modules() if isinstance(part, Connections) and part.seen == net.shape]:
        weight = first[0].weight.detach().clone()
        if isinstance(net, supervised.Net):  # those of the label's numbers would outshine the rest
            weight[:, : net.classes] = 0
        drawn["receptive_fields"] = figures.draw_receptive_fields(weight, net.shape)
    if "goodness_layer_1" in scores:
        drawn["goodness"] = draw_goodness_of_labels(net, test, scores)
    if isinstance(net, supervised.Net) and training.adversarial:
        drawn["adversarial"] = draw_adversarial(net, test, training.adversarial)
    if isinstance(net, unsupervised.Net):
        drawn |= draw_hybrids(net, test, training.blurs)
    if isinstance(net, recurrent.Net):
        right = (scores["goodness"].argmax(dim=1) == test.labels).nonzero().flatten()[:3].tolist()
        shown = right + figures.most_wrong(scores["goodness"], test.labels, "goodness", count=3)
        goodness = net.goodness_over_time(to_unit(test.images[shown])).sum(dim=1)  # [T, L, N, K] -> [T, N, K]
        drawn["goodness_over_time"] = draw_goodness_over_time(test, shown, goodness)
    return drawn


def draw_goodness_of_labels(net: Net, test: Examples, scores: dict[str, Tensor]) -> Figure:
    """That of the layers for the true labels and for the wrong ones."""
    goodnesses = torch.stack([of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")])
    true = test.labels[:, None] == torch.arange(goodnesses.shape[2])  # [N, K]; the goodnesses are [L, N, K]
    return figures.draw_goodness({"true label": goodnesses[:, true], "wrong labels": goodnesses[:, ~true]}, net.layers)


@torch.no_grad()
def draw_adversarial(net: supervised.Net, test: Examples, length: float) -> Figure:
    """Images of up to ten classes, the same moved, under their hardest wrong label, and what has been added."""
    examples = test.first_of_each_class()[:10]
    images, labels = to_unit(examples.images), examples.labels
    wrong_labels = net.scores(images)["one_pass"].scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    # Each of them twice, as every second one is moved. A label's numbers are not.
    codes = one_hot(torch.cat([labels, wrong_labels]).repeat_interleave(2), net.classes)
    pixels = net.first.of_pixels(images.repeat_interleave(2, dim=0), net.classes)
    added = (supervised.moved(net.first, pixels, codes, length).x - pixels.x)[::2]
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


def draw_goodness_over_time(test: Examples, numbers: Sequence[int], goodness: Tensor) -> Figure:
    """The goodness of each label ([T, N, K]) at iterations 1..T, for test images of such `numbers`."""
    chosen, labels = recurrent.averaged(goodness).argmax(dim=1), test.labels[numbers]
    figure, axes = figures.beside_images(test, numbers, columns=3)
    for axis, true, choice, of_image in zip(axes, labels.tolist(), chosen.tolist(), goodness.unbind(1), strict=True):
        draw_curves(axis, of_image, {choice: figures.NEGATIVE, true: figures.POSITIVE})
        axis.set_title(f"true {true}, chosen {choice}", size=9)
    marked = "blue: the true label, orange: a wrong one that is chosen, as it has the most in the shaded iterations"
    figure.suptitle(f"Goodness of each label, all layers together ({marked})", size=11)
    return figure


def draw_settling(net: recurrent.Net, image: Tensor) -> Figure:
    """The goodness of one image (uint8 [D]) under each label over the iterations, all layers together."""
    goodness = net.goodness_over_time(to_unit(image[None])).sum(dim=1)[:, 0]  # [T, L, 1, K] -> [T, K]
    chosen, second = recurrent.averaged(goodness).topk(2).indices.tolist()
    figure = figures.new_figure(6.4, 2.8)
    draw_curves(figure.subplots(), goodness, {chosen: figures.POSITIVE, second: figures.NEGATIVE})
    figure.suptitle(f"Goodness of each label: the one with the most in iterations {FIRST} to {LAST} is chosen", size=9)
    return figure


def draw_curves(axis: Axes, goodness: Tensor, colours: dict[int, str]) -> None:
    """The goodness of an image under each label ([T, K]) over the iterations; labels without a colour are grey.

    Shown is its distance from the mean of all labels', which rises and falls far more than they differ.
    """
    iterations = range(1, len(goodness) + 1)
    axis.axvspan(FIRST - 0.5, LAST + 0.5, color="0.92")
    axis.plot(iterations, (goodness - goodness.mean(dim=1, keepdim=True)).numpy(), color="0.6", linewidth=1)
    for label, colour in colours.items():
        axis.lines[label].set(color=colour, linewidth=2.2, zorder=3)
        end = axis.lines[label].get_xydata()[-1]
        axis.annotate(str(label), end, (5, 0), textcoords="offset points", color=colour, va="center")
    axis.tick_params(labelsize=8)
    axis.set(xticks=iterations, xlabel="iteration", ylabel="above the labels' mean")
