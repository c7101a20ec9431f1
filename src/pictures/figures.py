"""The drawing of pictures: figures of what is given, without a window and without a change of matplotlib's backend."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from src.config.values import SIDE
from src.negatives.codes import NUM_CLASSES
from src.training.checkpoint import write_atomically
from src.training.log import HEADLINES

DPI = 110
# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
POSITIVE, NEGATIVE = COLOURS[:2]
GREY = "#999999"
HEIGHTS = {"goodness": "goodness above the lowest one's", "one_pass": "probability (%)"}


def new_figure(width: float, height: float) -> Figure:
    """So many inches wide and high."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"optimize": True})
    write_atomically(path, buffer.getvalue())
    return path


def show_digit(axis: Axes, image: Tensor, colours: str, title: str = "") -> None:
    """An image (uint8 [784]) without ticks."""
    axis.imshow(image.view(SIDE, SIDE).numpy(), cmap=colours, vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, size=8)


def draw_rows(rows: dict[str, Tensor], title: str) -> Figure:
    """Named rows of equally many images (each uint8 [N, 784])."""
    count = len(next(iter(rows.values())))
    figure = new_figure(0.95 * count + 0.5, 0.95 * len(rows) + 0.55)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            show_digit(axis, image, "gray")
        row[0].set_ylabel(name, size=11)
    figure.suptitle(title, size=10)
    return figure


def draw_learning_curve(metrics: list[dict]) -> Figure:
    """Of the records of metrics.jsonl: each layer's loss and pairs ordered wrongly, where layers have losses of their
    own; the cross-entropy, where some epochs train by that alone; and the validation error by the headline rules, where
    there was a validation.
    """
    layered = [record for record in metrics if record["loss"]]
    validated = [record for record in metrics if "validation_errors" in record]
    marker = "o" if len(metrics) < 20 else None

    panels = 2 * bool(layered) + (len(layered) < len(metrics)) + bool(validated)
    figure = new_figure(max(6, 4.7 * panels), 4)
    axes = figure.subplots(1, panels, sharex=True, squeeze=False)
    remaining = iter(axes[0])
    if layered:
        losses, pairs = next(remaining), next(remaining)
        epochs = [record["epoch"] for record in layered]
        for layer in range(len(layered[0]["loss"])):
            style = {"color": COLOURS[layer % len(COLOURS)], "label": f"layer {layer + 1}", "marker": marker}
            losses.plot(epochs, [record["loss"][layer] for record in layered], **style)
            pairs.plot(epochs, [100 * record["pairs_ordered_wrongly"][layer] for record in layered], **style)
        losses.set(title="Local loss of each layer", ylabel="loss of a pair", yscale="log")
        pairs.set(title="Pairs ordered wrongly while training", ylabel="pairs (%)")
    if len(layered) < len(metrics):
        axis = next(remaining)
        epochs = [record["epoch"] for record in metrics]
        axis.plot(epochs, [record["readout_loss"] for record in metrics], color=COLOURS[0], marker=marker)
        axis.set(title="Softmax over the classes", ylabel="cross-entropy (nats)", yscale="log")
        if layered:
            axis.axvline(layered[-1]["epoch"] + 0.5, color="black", linestyle=":", label="from here, read-outs alone")
    if validated:
        axis = next(remaining)
        when = [record["epoch"] for record in validated]
        for (rule, how), colour in zip(HEADLINES.items(), COLOURS, strict=False):
            if rule in validated[0]["validation_errors"]:
                errors = [100 * record["validation_errors"][rule] / record["validation_images"] for record in validated]
                axis.plot(when, errors, "o-", color=colour, label=how)
        axis.set(title="Validation error", ylabel="error (%)", ylim=(0, 1.1 * axis.get_ylim()[1]))
    for axis in axes[0]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return figure


def draw_goodness(
    positive: Tensor, negative: Tensor, thresholds: Sequence[float | None], names: tuple[str, str]
) -> Figure:
    """How far the goodness of positives and of negatives ([L, N], [L, M]), so named, lie apart in each layer, and the
    layer's threshold theta, if its loss has one."""
    depth = len(thresholds)
    figure = new_figure(4.2 * depth, 3.6)
    axes = figure.subplots(1, depth, squeeze=False)
    by_layer = zip(axes[0], thresholds, positive, negative, strict=True)
    for layer, (axis, theta, *goodnesses) in enumerate(by_layer, start=1):
        limits = torch.quantile(torch.cat(goodnesses), torch.tensor([0.001, 0.999]))
        bins = torch.linspace(limits[0].item(), limits[1].item(), 61).tolist()
        for values, colour, name in zip(goodnesses, (POSITIVE, NEGATIVE), names, strict=True):
            shares = np.full(len(values), 100 / len(values))
            axis.hist(values.clamp(*limits).numpy(), bins=bins, weights=shares, color=colour, alpha=0.6, label=name)
        if theta is not None:
            axis.axvline(theta, color="black", linestyle="--", label=f"threshold {theta:g}")
        axis.set(title=f"Layer {layer}", xlabel="goodness", ylabel="test cases (%)")
        axis.set_ylim(top=1.4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(loc="upper left", framealpha=1)
    return figure


def draw_goodness_of_labels(scores: dict[str, Tensor], labels: Tensor, thresholds: Sequence[float | None]) -> Figure:
    """`draw_goodness` of layers' `scores` ([N, 10] by rule) for the true `labels` ([N]) and the nine wrong ones."""
    goodnesses = torch.stack([of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")])
    true = F.one_hot(labels, NUM_CLASSES).bool()  # [N, 10]; the goodnesses are [L, N, 10]
    return draw_goodness(goodnesses[:, true], goodnesses[:, ~true], thresholds, ("true label", "wrong labels"))


def draw_receptive_fields(weight: Tensor, rows: int = 8, columns: int = 16) -> Figure:
    """Weights of first-layer units ([d_1, 784]), those with the largest first, each on its own scale.

    Of local receptive fields ([locations, channels, field^2]), a block for each location, where it lies in the image,
    each of half as many rows and 3/8 as many columns.
    """
    if weight.dim() == 2:
        picture, title = field_mosaic(weight, rows, columns, gap=2), "Weights of first-layer units, smoothed"
    else:
        blocks = torch.stack([field_mosaic(of_location, rows // 2, 3 * columns // 8, gap=1) for of_location in weight])
        picture = mosaic(blocks, round(len(weight) ** 0.5), gap=4)
        title = "Weights of first-layer units at each location, smoothed"
    # Whole pixels of the screen for each weight look even, and few colours keep the file small.
    scale = max(1, 960 // picture.shape[1])
    height, width = (scale * length / DPI for length in picture.shape)
    strip = 0.35  # inches, for the title
    figure = Figure(figsize=(max(width, 5), height + strip))
    axis = figure.add_axes((0, 0, width / figure.get_figwidth(), height / (height + strip)))
    axis.imshow(picture.numpy(), cmap=colormaps["PuOr"].resampled(21), vmin=-1, vmax=1, interpolation="nearest")
    axis.set_axis_off()
    figure.suptitle(f"{title} (orange: negative, purple: positive)", size=10, y=1 - 0.1 / (height + strip), va="top")
    return figure


def field_mosaic(weight: Tensor, rows: int, columns: int, gap: int) -> Tensor:
    """The largest rows of `weight` ([units, side^2]) as squares, in `mosaic`; the largest weight of each is +-1.

    Each weight is averaged with its eight neighbours, because what the initial weights left of noise would hide what
    was learned.
    """
    side = round(weight.shape[1] ** 0.5)
    fields = F.avg_pool2d(weight.view(-1, 1, side, side), 3, stride=1, padding=1).squeeze(1)
    fields = fields[fields.flatten(1).norm(dim=1).argsort(descending=True)[: rows * columns]]  # the largest first
    return mosaic(fields / fields.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-12), columns, gap)


def mosaic(pictures: Tensor, columns: int, gap: int) -> Tensor:
    """Pictures ([N, h, w]) in rows of `columns`, with `gap` pixels of NaN between them ([H, W])."""
    tiles = F.pad(pictures, (0, gap, 0, gap, 0, -len(pictures) % columns), value=torch.nan)  # whole rows of them
    height, width = tiles.shape[1:]
    grid = tiles.view(-1, columns, height, width).transpose(1, 2)  # [rows, h, columns, w]
    return grid.reshape(-1, columns * width)[:-gap, :-gap]


def draw_confusion(chosen: Tensor, labels: Tensor, rule: str) -> Figure:
    """Counts of labels chosen by a headline rule per class (each [N]).

    The colour is for the mistakes, which the diagonal would drown.
    """
    counts = torch.bincount(labels * NUM_CLASSES + chosen, minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)
    mistakes = counts.masked_fill(torch.eye(NUM_CLASSES, dtype=torch.bool), 0)
    figure = new_figure(6.4, 5.6)
    axis = figure.subplots()
    picture = axis.imshow(mistakes.numpy(), cmap="cividis_r", vmin=0, vmax=max(1, mistakes.max().item()))
    for label, choice in counts.nonzero().tolist():
        colour = "white" if mistakes[label, choice] > mistakes.max() / 2 else "black"
        axis.text(choice, label, counts[label, choice].item(), ha="center", va="center", color=colour, size=9)
    wrong = mistakes.sum().item()
    share = f"{wrong} of {len(labels):,} test images wrong ({100 * wrong / len(labels):.2f} %)"
    axis.set(
        title=f"{share}, {HEADLINES[rule]}",
        xlabel="chosen label", ylabel="true label", xticks=range(NUM_CLASSES), yticks=range(NUM_CLASSES),
    )  # fmt: skip
    figure.colorbar(picture, label="mistakes", shrink=0.8)
    return figure


def label_heights(scores: Tensor, rule: str) -> Tensor:
    """What bars show of a headline rule's scores ([..., 10]): see HEIGHTS."""
    return scores - scores.amin(dim=-1, keepdim=True) if rule == "goodness" else 100 * scores.softmax(dim=-1)


def draw_label_bars(axis: Axes, heights: Tensor, marked: int) -> None:
    """A bar for each label ([10]), the marked label's in another colour."""
    colours = [POSITIVE if label == marked else NEGATIVE for label in range(NUM_CLASSES)]
    axis.bar(range(NUM_CLASSES), heights.tolist(), color=colours)
    axis.set_xticks(range(NUM_CLASSES))
    axis.tick_params(labelsize=8)


def most_wrong(scores: Tensor, labels: Tensor, rule: str, count: int) -> list[int]:
    """Up to `count` examples whose true label is furthest below the chosen one by a headline rule ([N, 10])."""
    heights = label_heights(scores, rule)
    margin = heights.amax(dim=1) - heights.gather(1, labels[:, None]).squeeze(1)
    wrong = scores.argmax(dim=1) != labels
    return [number for number in margin.argsort(descending=True)[:count].tolist() if wrong[number]]


def draw_most_wrong(images: Tensor, labels: Tensor, scores: Tensor, rule: str, count: int = 12) -> Figure:
    """The `most_wrong` test images (uint8 [N, 784]) by a headline rule's scores ([N, 10]), with those of all labels."""
    chosen, heights = scores.argmax(dim=1), label_heights(scores, rule)
    figure = new_figure(12, 7)
    axes = figure.subplots(3, 8, width_ratios=[1, 1.6] * 4).reshape(-1, 2)
    for picture, bars in axes:
        picture.set_axis_off()
        bars.set_axis_off()
    for (picture, bars), image in zip(axes, most_wrong(scores, labels, rule, count), strict=False):
        show_digit(picture, images[image], "gray_r", f"test image {image}")
        bars.set_axis_on()
        bars.set_title(f"true {labels[image]}, chosen {chosen[image]}", size=9)
        draw_label_bars(bars, heights[image], labels[image].item())
    of_labels = f"each label's {HEIGHTS[rule]} (blue: the true one's)"
    figure.suptitle(f"Test images most wrongly classified {HEADLINES[rule]}, and {of_labels}", size=11)
    return figure
