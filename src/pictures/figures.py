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

from src.datasets.batches import Examples
from src.layers.fields import Map
from src.layers.layer import FFLayer
from src.layers.losses import WITHOUT_THRESHOLD
from src.training.checkpoint import write_atomically
from src.training.log import HEADLINES, scalars

DPI = 110
# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
POSITIVE, NEGATIVE = COLOURS[:2]
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


def show_image(axis: Axes, image: Tensor, shape: Map, greys: str) -> None:
    """An image (uint8 [D]) without ticks: in colour if it has three channels, else in `greys`."""
    pixels = image.view(shape).numpy()
    axis.imshow(pixels if shape.channels == 3 else pixels.mean(axis=2), cmap=greys, vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])


def draw_rows(rows: dict[str, Tensor], shape: Map, title: str) -> Figure:
    """Named rows of equally many images of such a shape (each uint8 [N, D])."""
    count = len(next(iter(rows.values())))
    figure = new_figure(0.95 * count + 0.5, 0.95 * len(rows) + 0.55)
    for row, (name, images) in zip(figure.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            show_image(axis, image, shape, "gray")
        row[0].set_ylabel(name, size=11)
    figure.suptitle(title, size=10)
    return figure


def beside_images(test: Examples, numbers: Sequence[int], columns: int) -> tuple[Figure, list[Axes]]:
    """Test images of such numbers in so many columns, and right of each an empty plot for what is said of it."""
    lines = max(1, -(-len(numbers) // columns))
    figure = new_figure(12, 0.7 + 8.5 / columns * lines)
    axes = figure.subplots(lines, 2 * columns, width_ratios=[1, 6.4 / columns] * columns, squeeze=False).reshape(-1, 2)
    for axis in (*axes[:, 0], *axes[len(numbers) :, 1]):
        axis.set_axis_off()
    for axis, number in zip(axes[:, 0], numbers, strict=False):
        show_image(axis, test.images[number], test.shape, "gray_r")
        axis.set_title(f"test image {number}", size=8)
    return figure, list(axes[: len(numbers), 1])


def draw_learning_curve(metrics: list[dict]) -> Figure:
    """Of the records of metrics.jsonl: the losses of layers and read-out, the pairs that the layers order wrongly, and
    the validation error by the headline rules, as far as there are any.
    """
    panels: dict[str, dict[str, dict[int, float]]] = {}  # title -> curve -> figures by epoch
    for record in metrics:
        for name, figure in scalars(record).items():
            title, _, curve = name.partition("/")
            if title != "gain" and (title != "validation error (%)" or curve in HEADLINES):
                panels.setdefault(title, {}).setdefault(HEADLINES.get(curve, curve), {})[record["epoch"]] = figure
    figure = new_figure(max(6, 4.7 * len(panels)), 4)
    axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.set_prop_cycle(color=COLOURS)
        for name, by_epoch in sorted(curves.items()):
            axis.plot([*by_epoch], [*by_epoch.values()], label=name, marker=".")
        axis.set(title=title, xlabel="epoch", **({"yscale": "log"} if title == "loss" else {"ylim": (0, None)}))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def draw_goodness(goodnesses: dict[str, Tensor], layers: Sequence[FFLayer]) -> Figure:
    """How far the goodness of positives and of negatives ([L, N], [L, M], by name) lie apart in each layer, and the
    layer's threshold theta, if its loss has one.
    """
    figure = new_figure(4.2 * len(layers), 3.6)
    axes = figure.subplots(1, len(layers), squeeze=False)[0]
    for number, (axis, layer, *both) in enumerate(zip(axes, layers, *goodnesses.values(), strict=True), start=1):
        low, high = np.quantile(torch.cat(both).numpy(), [0.001, 0.999]).tolist()  # torch's takes 2**24 at most
        for values, colour, name in zip(both, (POSITIVE, NEGATIVE), goodnesses, strict=True):
            style = {"weights": torch.full_like(values, 100 / len(values)).numpy(), "color": colour, "alpha": 0.6}
            axis.hist(values.clamp(low, high).numpy(), bins=60, range=(low, high), label=name, **style)
        if layer.loss not in WITHOUT_THRESHOLD:
            axis.axvline(layer.theta, color="black", linestyle="--", label=f"threshold {layer.theta:g}")
        axis.set(title=f"Layer {number}", xlabel="goodness", ylabel="test cases (%)")
        axis.set_ylim(top=1.4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(loc="upper left", framealpha=1)
    return figure


def draw_receptive_fields(weight: Tensor, seen: Map) -> Figure:
    """Weights of first-layer units that see an image ([d_1, D]), those with the largest first, each on a scale of its
    own; of three channels in colour. Of local receptive fields ([locations, channels, field^2 * seen.channels]), a
    block for each location, where it lies in the image.
    """
    height, width, channels = seen
    rows, columns, gap = 8, 16, 2
    if weight.dim() == 3:
        height = width = round((weight.shape[2] / channels) ** 0.5)
        rows, columns, gap = 4, 6, 1
    locations = weight.view(-1, weight.shape[-2], height, width, channels)
    blocks = [mosaic(strongest(of_location, rows * columns), columns, gap) for of_location in locations]
    picture = mosaic(torch.stack(blocks), round(len(blocks) ** 0.5), gap=4)
    picture = ((1 + picture) / 2).nan_to_num(1) if channels == 3 else picture.mean(dim=2)
    # Whole pixels of the screen for each weight look even, and few colours keep the file small.
    width, height = (max(1, round(960 / picture.shape[1])) * picture.shape[side] / DPI for side in (1, 0))
    figure = Figure(figsize=(width, height + 0.35))  # inches; the rest is the title's
    axis = figure.add_axes((0, 0, 1, height / figure.get_figheight()))
    axis.imshow(picture.numpy(), cmap=colormaps["PuOr"].resampled(21), vmin=-1, vmax=1, interpolation="nearest")
    axis.set_axis_off()
    scale = "grey: zero" if channels == 3 else "orange: negative, purple: positive"
    figure.suptitle(f"Weights of first-layer units, smoothed ({scale})", size=10, y=1 - 0.1 / figure.get_figheight())
    return figure


def strongest(fields: Tensor, count: int) -> Tensor:
    """The largest of `fields` ([units, height, width, channels]), each divided by its largest weight.

    Each weight is averaged with its neighbours: what the initial ones left of noise would hide what was learned.
    """
    fields = F.avg_pool2d(fields.movedim(3, 1), 3, stride=1, padding=1).movedim(1, 3)
    fields = fields[fields.flatten(1).norm(dim=1).argsort(descending=True)[:count]]
    return fields / fields.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)


def mosaic(pictures: Tensor, columns: int, gap: int) -> Tensor:
    """Pictures ([N, h, w, C]) in rows of `columns`, with `gap` pixels of NaN between them ([H, W, C])."""
    tiles = F.pad(pictures, (0, 0, 0, gap, 0, gap, 0, -len(pictures) % columns), value=torch.nan)
    rows = tiles.unflatten(0, (-1, columns)).transpose(1, 2)  # [rows, h, columns, w, C]
    return rows.flatten(2, 3).flatten(0, 1)[:-gap, :-gap]


def draw_confusion(scores: Tensor, labels: Tensor, rule: str) -> Figure:
    """How often each label is chosen by a headline rule's scores ([N, K]) per class ([N]).

    The colour is for the mistakes, which the diagonal would drown.
    """
    classes = scores.shape[1]
    counts = torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2).view(classes, classes)
    mistakes = counts.clone().fill_diagonal_(0)
    figure = new_figure(*(inches * max(1, classes / 16) for inches in (6.4, 5.6)))  # cells with room for four digits
    axis = figure.subplots()
    picture = axis.imshow(mistakes.numpy(), cmap="cividis_r", vmin=0, vmax=max(1, mistakes.max().item()))
    for label, choice in counts.nonzero().tolist():
        number = axis.text(choice, label, counts[label, choice].item(), size=8, ha="center", va="center")
        number.set_color("white" if mistakes[label, choice] > mistakes.max() / 2 else "black")
    wrong = f"{mistakes.sum()} of {len(labels):,} test images wrong ({100 * mistakes.sum() / len(labels):.2f} %)"
    axis.set(xlabel="chosen label", ylabel="true label", xticks=range(classes), yticks=range(classes))
    axis.set_title(f"{wrong}, {HEADLINES[rule]}")
    figure.colorbar(picture, label="mistakes", shrink=0.8)
    return figure


def label_heights(scores: Tensor, rule: str) -> Tensor:
    """What bars show of a headline rule's scores ([..., K]): see HEIGHTS."""
    return scores - scores.amin(dim=-1, keepdim=True) if rule == "goodness" else 100 * scores.softmax(dim=-1)


def draw_label_bars(axis: Axes, heights: Tensor, marked: int) -> None:
    """A bar for each label ([K]), the marked label's in another colour, and as many labels as there is room for."""
    labels = range(len(heights))
    axis.bar(labels, heights.tolist(), color=[POSITIVE if label == marked else NEGATIVE for label in labels])
    axis.set_xticks(labels[:: -(-len(labels) // 10)])
    axis.tick_params(labelsize=8)


def most_wrong(scores: Tensor, labels: Tensor, rule: str, count: int) -> list[int]:
    """Up to `count` examples whose true label is furthest below the chosen one by a headline rule ([N, K])."""
    heights = label_heights(scores, rule)
    margin = heights.amax(dim=1) - heights.gather(1, labels[:, None]).squeeze(1)
    return [number for number in margin.argsort(descending=True)[:count].tolist() if margin[number] > 0]


def draw_most_wrong(test: Examples, scores: Tensor, rule: str, count: int = 12) -> Figure:
    """The `most_wrong` test images by a headline rule's scores ([N, K]), with those of all labels."""
    shown = most_wrong(scores, test.labels, rule, count)
    figure, axes = beside_images(test, shown, columns=4)
    for axis, number in zip(axes, shown, strict=True):
        axis.set_title(f"true {test.labels[number]}, chosen {scores[number].argmax()}", size=9)
        draw_label_bars(axis, label_heights(scores[number], rule), test.labels[number].item())
    title = f"Test images most wrongly classified {HEADLINES[rule]}, and each label's {HEIGHTS[rule]}"
    figure.suptitle(f"{title} (blue: the true one's)", size=11)
    return figure
