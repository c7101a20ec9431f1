"""What can be drawn of a trained net, for each method's kind of net."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from src.datasets.batches import Examples, to_unit
from src.layers.stack import thresholds
from src.methods import recurrent, supervised, unsupervised
from src.negatives.codes import one_hot
from src.negatives.masks import mixed, random_masks
from src.pictures import figures

FIRST, LAST = recurrent.FIRST_AVERAGED, recurrent.LAST_AVERAGED


def pictures_of(net: nn.Module, test: Examples, scores: dict[str, Tensor], training: Any) -> dict[str, Figure]:
    """Figures of a net on the CPU, by file name: of its first weights, and of what its method has of its own.

    `scores`: what it says of the `test` images, by rule ([N, K]); `training`: its method's values.
    """
    weight = next(parameter for parameter in net.parameters() if parameter.dim() > 1).detach().clone()
    if isinstance(net, supervised.FFNet):  # those of the label's numbers would outshine the rest
        weight[:, : scores["goodness"].shape[1]] = 0
    drawn = {"receptive_fields": figures.draw_receptive_fields(weight, test.shape)}
    if "goodness_layer_1" in scores:
        drawn["goodness"] = draw_goodness_of_labels(net, test, scores)
    if isinstance(net, supervised.FFNet) and training.adversarial:
        drawn["adversarial"] = draw_adversarial(net, test, training.adversarial)
    if isinstance(net, unsupervised.UnsupervisedNet):
        drawn |= draw_hybrids(net, test, training.blurs)
    if isinstance(net, recurrent.RecurrentFFNet):
        right = (scores["goodness"].argmax(dim=1) == test.labels).nonzero().flatten()[:3].tolist()
        shown = right + figures.most_wrong(scores["goodness"], test.labels, "goodness", count=3)
        drawn["goodness_over_time"] = draw_goodness_over_time(test, shown, goodness_over_time(net, test.images[shown]))
    return drawn


def draw_goodness_of_labels(net: nn.Module, test: Examples, scores: dict[str, Tensor]) -> Figure:
    """That of the layers for the true labels and for the wrong ones."""
    goodnesses = torch.stack([of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")])
    true = test.labels[:, None] == torch.arange(goodnesses.shape[2])  # [N, K]; the goodnesses are [L, N, K]
    both = {"true label": goodnesses[:, true], "wrong labels": goodnesses[:, ~true]}
    return figures.draw_goodness(both, thresholds(net.layers))


@torch.no_grad()
def draw_adversarial(net: supervised.FFNet, test: Examples, length: float) -> Figure:
    """Images of up to ten classes, the same moved, under their hardest wrong label, and what has been added."""
    examples = test.first_of_each_class()[:10]
    images, labels = to_unit(examples.images), examples.labels
    wrong_labels = supervised.scores(net, images)["one_pass"].scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    codes = one_hot(torch.cat([labels, wrong_labels]))
    moved = supervised.adversarial_images(net.layers[0], images, codes, net.product_weights()[0], length)
    added = moved - images
    rows = {"image": images, "moved": moved, "added": (1 + added / added.abs().max()) / 2}
    title = f"Images moved by {length:g} (L2) against the first layer's loss, and what was added (grey: nothing)"
    return figures.draw_rows({name: (255 * row).clamp(0, 255).byte() for name, row in rows.items()}, test.shape, title)


@torch.no_grad()
def draw_hybrids(net: unsupervised.UnsupervisedNet, test: Examples, blurs: int) -> dict[str, Figure]:
    """Images of up to ten classes, masks, and the hybrids that they make; the goodness of test images and hybrids."""
    some = test.images[:: 1 + len(test) // 2000]  # as many as fit into the memory at once
    examples = test.first_of_each_class()[:10].images
    masks = random_masks(len(some), test.shape[0], blurs, torch.Generator().manual_seed(0))
    both = net.activities(to_unit(torch.cat([some, mixed(some, masks)])))
    goodness = torch.stack([layer.goodness(h) for layer, h in zip(net.layers, both, strict=True)])  # [L, 2N]
    both = dict(zip(("test images", "hybrids of them"), goodness.chunk(2, dim=1), strict=True))
    masks = masks[: len(examples)]
    rows = {"image": examples, "mask": 255 * masks.byte(), "hybrid": mixed(examples, masks)}
    title = "A hybrid is the image where the mask is white, and the image to its left where it is black"
    return {
        "hybrids": figures.draw_rows(rows, test.shape, f"{title}\n(for the first one, the last)"),
        "goodness": figures.draw_goodness(both, thresholds(net.layers)),
    }


def goodness_over_time(net: recurrent.RecurrentFFNet, images: Tensor) -> Tensor:
    """That of all layers together (uint8 [N, D] -> [T, N, K])."""
    return net.goodness_over_time(to_unit(images)).sum(dim=1)


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


def draw_settling(net: recurrent.RecurrentFFNet, image: Tensor) -> Figure:
    """The goodness of one image (uint8 [D]) under each label over the iterations, all layers together."""
    goodness = goodness_over_time(net, image[None])[:, 0]  # [T, K]
    chosen, second = recurrent.averaged(goodness).topk(2).indices.tolist()
    figure = figures.new_figure(6.4, 2.8)
    draw_curves(figure.subplots(), goodness, {chosen: figures.POSITIVE, second: figures.NEGATIVE})
    deciding = f"the one with the most in iterations {FIRST} to {LAST} (shaded) is chosen"
    figure.suptitle(f"Goodness of each label: {deciding}", size=9)
    return figure


def draw_curves(axis: Axes, goodness: Tensor, colours: dict[int, str]) -> None:
    """The goodness of an image under each label ([T, K]) over the iterations; labels without a colour are grey.

    Shown is its distance from the mean of all labels', which rises and falls far more than they differ.
    """
    iterations = range(1, len(goodness) + 1)
    axis.axvspan(FIRST - 0.5, LAST + 0.5, color="0.92")
    axis.plot(iterations, goodness - goodness.mean(dim=1, keepdim=True), color="0.6", linewidth=1)
    for label, colour in colours.items():
        axis.lines[label].set(color=colour, linewidth=2.2, zorder=3)
        end = axis.lines[label].get_xydata()[-1]
        axis.annotate(str(label), end, (5, 0), textcoords="offset points", color=colour, va="center")
    axis.set_xticks(iterations)
    axis.tick_params(labelsize=8)
    axis.set(xlabel="iteration", ylabel="above the labels' mean")
