"""Pictures of a run, drawn at its end and by `python -m src.plots RUN_FOLDER`."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor, nn

from src.backprop import BackpropNet
from src.checkpoint import write_atomically
from src.config import ConfigError, composed, load_saved, one_line_errors
from src.data import SIDE, Examples, to_unit
from src.experiment import tested
from src.layers import goodness
from src.model import FFNet
from src.recurrent import FIRST_AVERAGED, LAST_AVERAGED, RecurrentFFNet
from src.runlog import HEADLINE_RULES, headline, read_metrics
from src.samples import NUM_CLASSES, blurring, hybrids, random_masks
from src.unsupervised import UnsupervisedFFNet

DPI = 110
# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
POSITIVE, NEGATIVE = COLOURS[:2]
GREY = "#999999"
HEIGHTS = {"goodness": "goodness above the lowest one's", "one_pass": "probability (%)"}


def plot_run(folder: Path, model: nn.Module, test: Examples, scores: dict[str, Tensor]) -> list[Path]:
    """All pictures of a finished run that have a meaning for its kind of net.

    Args:
        folder: with the config.yaml and the metrics.jsonl of the run.
        test, scores: the test images and the model's `scores_for` them, all on the model's device.

    Returns:
        the files written into `folder`.
    """
    scores = {rule: of_classes.cpu() for rule, of_classes in scores.items()}
    images, labels = test.images.cpu(), test.labels.cpu()
    rule = headline(scores)
    chosen = scores[rule].argmax(dim=1)
    figures = {
        "learning_curve": draw_learning_curve(read_metrics(folder)),
        "receptive_fields": draw_receptive_fields(first_weight(model)),
        "confusion": draw_confusion(chosen, labels, rule),
        "most_wrong": draw_most_wrong(images, labels, scores[rule], rule),
    }
    by_layer = [of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")]
    if by_layer:
        goodnesses, true = torch.stack(by_layer), F.one_hot(labels, NUM_CLASSES).bool()  # [L, N, 10], [N, 10]
        figures["goodness"] = draw_goodness(
            goodnesses[:, true], goodnesses[:, ~true], thetas(model), ("true label", "wrong labels")
        )
    if isinstance(model, UnsupervisedFFNet):
        config = OmegaConf.load(folder / "config.yaml")
        masks = random_masks(
            len(images), blurring(SIDE, config.unsupervised.blurs), torch.Generator().manual_seed(config.seed)
        )
        one_of_each = [int((labels == label).nonzero()[0]) for label in range(NUM_CLASSES)]
        figures["hybrids"] = draw_hybrids(images[one_of_each], masks[:NUM_CLASSES])
        figures["goodness"] = draw_goodness(
            *goodness_with_hybrids(model, test.images, masks), thetas(model), ("test images", "hybrids of them")
        )
    if isinstance(model, RecurrentFFNet):
        right = (chosen == labels).nonzero().flatten()[:3].tolist()
        shown = right + most_wrong(scores[rule], labels, rule, count=3)
        over_time = (
            model.goodness_over_time(to_unit(test.images[shown])).sum(dim=1).cpu()
        )  # [T, L, N, 10] -> [T, N, 10]
        figures["goodness_over_time"] = draw_goodness_over_time(shown, images[shown], labels[shown], over_time)
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all, and closes `figure`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"optimize": True})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
    return path


def first_weight(model: nn.Module) -> Tensor:
    """What the first hidden layer gives the pixels: [d_1, 784], or [locations, channels, field^2] of local receptive
    fields. Pixels that held a label's code are 0: their weights would outshine the rest."""
    weight = (model.weights[0] if isinstance(model, BackpropNet) else model.layers[0].weight).detach().cpu().clone()
    if isinstance(model, FFNet) and not isinstance(model, UnsupervisedFFNet):
        weight[:, :NUM_CLASSES] = 0
    return weight


def thetas(model: nn.Module) -> list[float]:
    return [layer.theta for layer in model.layers]


@torch.no_grad()
def goodness_with_hybrids(
    model: UnsupervisedFFNet, images: Tensor, masks: Tensor, batch_size: int = 1000
) -> tuple[Tensor, Tensor]:
    """G_l of images (uint8 [N, 784]) and of the hybrids that `masks` (bool [N, 784]) make of them (each [L, N])."""
    batches = []
    for positives, mask in zip(images.split(batch_size), masks.split(batch_size), strict=True):
        positives = to_unit(positives)
        both = torch.cat([positives, hybrids(positives, mask.to(positives.device))])
        batches.append(torch.stack([goodness(h).view(2, -1) for h in model.activities(both)]))  # [L, 2, B]
    return torch.cat(batches, dim=2).cpu().unbind(dim=1)


def draw_learning_curve(metrics: list[dict]) -> Figure:
    """Of the records of metrics.jsonl: each layer's loss and pairs ordered wrongly, where layers have losses of their
    own; the cross-entropy, where some epochs train by that alone; and the validation error by the headline rules, where
    there was a validation.
    """
    layered = [record for record in metrics if record["loss"]]
    validated = [record for record in metrics if "validation_errors" in record]
    marker = "o" if len(metrics) < 20 else None

    panels = 2 * bool(layered) + (len(layered) < len(metrics)) + bool(validated)
    figure, axes = plt.subplots(
        1, panels, figsize=(max(6, 4.7 * panels), 4), sharex=True, squeeze=False, layout="constrained"
    )
    remaining = list(axes[0])
    if layered:
        losses, pairs = remaining.pop(0), remaining.pop(0)
        epochs = [record["epoch"] for record in layered]
        for layer in range(len(layered[0]["loss"])):
            style = {"color": COLOURS[layer % len(COLOURS)], "label": f"layer {layer + 1}", "marker": marker}
            losses.plot(epochs, [record["loss"][layer] for record in layered], **style)
            pairs.plot(epochs, [100 * record["pairs_ordered_wrongly"][layer] for record in layered], **style)
        losses.set(title="Local loss of each layer", ylabel="logistic loss / 2 (nats)", yscale="log")
        pairs.set(title="Pairs ordered wrongly while training", ylabel="pairs (%)")
    if len(layered) < len(metrics):
        axis = remaining.pop(0)
        epochs = [record["epoch"] for record in metrics]
        axis.plot(epochs, [record["readout_loss"] for record in metrics], color=COLOURS[0], marker=marker)
        axis.set(title="Softmax over the classes", ylabel="cross-entropy (nats)", yscale="log")
        if layered:
            axis.axvline(layered[-1]["epoch"] + 0.5, color="black", linestyle=":", label="from here, read-outs alone")
    if validated:
        axis = remaining.pop(0)
        when = [record["epoch"] for record in validated]
        for (rule, how), colour in zip(HEADLINE_RULES.items(), COLOURS, strict=False):
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


def draw_goodness(positive: Tensor, negative: Tensor, thresholds: Sequence[float], names: tuple[str, str]) -> Figure:
    """How far the goodness of positives and of negatives ([L, N], [L, M]), so named, lie apart in each layer, and the
    layer's threshold theta."""
    depth = len(thresholds)
    figure, axes = plt.subplots(1, depth, figsize=(4.2 * depth, 3.6), squeeze=False, layout="constrained")
    for layer, (axis, theta, *goodnesses) in enumerate(
        zip(axes[0], thresholds, positive, negative, strict=True), start=1
    ):
        limits = torch.quantile(torch.cat(goodnesses), torch.tensor([0.001, 0.999]))
        bins = torch.linspace(limits[0].item(), limits[1].item(), 61).tolist()
        for values, colour, name in zip(goodnesses, (POSITIVE, NEGATIVE), names, strict=True):
            weights = [100 / len(values)] * len(values)
            axis.hist(values.clamp(*limits), bins=bins, weights=weights, color=colour, alpha=0.6, label=name)
        axis.axvline(theta, color="black", linestyle="--", label=f"threshold {theta:g}")
        axis.set(title=f"Layer {layer}", xlabel="goodness", ylabel="test cases (%)")
        axis.set_ylim(top=1.4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(loc="upper left", framealpha=1)
    return figure


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
    figure = plt.figure(figsize=(max(width, 5), height + strip))
    axis = figure.add_axes((0, 0, width / figure.get_figwidth(), height / (height + strip)))
    axis.imshow(picture, cmap=plt.get_cmap("PuOr", 21), vmin=-1, vmax=1, interpolation="nearest")
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
    largest_first = fields.flatten(1).norm(dim=1).argsort(descending=True)[: rows * columns]
    fields = fields[largest_first]
    return mosaic(fields / fields.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-12), columns, gap)


def mosaic(pictures: Tensor, columns: int, gap: int) -> Tensor:
    """Pictures ([N, h, w]) in rows of `columns`, with `gap` pixels of NaN between them ([H, W])."""
    missing = -len(pictures) % columns
    tiles = F.pad(pictures, (0, gap, 0, gap, 0, missing), value=torch.nan)
    height, width = tiles.shape[1:]
    grid = tiles.view(-1, columns, height, width).transpose(1, 2)  # [rows, h, columns, w]
    return grid.reshape(-1, columns * width)[:-gap, :-gap]


def draw_hybrids(images: Tensor, masks: Tensor) -> Figure:
    """A row of images (uint8 [N, 784]), one of masks (bool [N, 784]) and one of the hybrids that they make."""
    rows = {"image": images, "mask": 255 * masks, "hybrid": hybrids(images, masks)}
    figure, axes = plt.subplots(3, len(images), figsize=(0.95 * len(images) + 0.5, 3.4), layout="constrained")
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.view(SIDE, SIDE), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, size=11)
    figure.suptitle(
        "A hybrid is the image where the mask is white, and the image to its left where it is black\n"
        "(for the first one, the last)",
        size=10,
    )
    return figure


def draw_goodness_over_time(numbers: Sequence[int], images: Tensor, labels: Tensor, goodness: Tensor) -> Figure:
    """The goodness of each label ([T, N, 10]) at iterations 1..T, for test images (uint8 [N, 784]) of such `numbers`.

    Shown is its distance from the mean of the ten labels', which rises and falls far more than they differ.
    """
    differences = goodness - goodness.mean(dim=2, keepdim=True)
    chosen = goodness[FIRST_AVERAGED - 1 : LAST_AVERAGED].mean(dim=0).argmax(dim=1)
    iterations = range(1, len(goodness) + 1)
    rows = -(-len(images) // 3)
    figure = plt.figure(figsize=(13, 0.8 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 6, width_ratios=[1, 2.2] * 3, squeeze=False).reshape(-1, 2)
    for picture, curves in axes[len(images) :]:
        picture.set_axis_off()
        curves.set_axis_off()
    for number, (picture, curves) in enumerate(axes[: len(images)]):
        true, choice = labels[number].item(), chosen[number].item()
        picture.imshow(images[number].view(SIDE, SIDE), cmap="gray_r", interpolation="nearest")
        picture.set_axis_off()
        picture.set_title(f"test image {numbers[number]}", size=9)
        curves.axvspan(FIRST_AVERAGED - 0.5, LAST_AVERAGED + 0.5, color=GREY, alpha=0.2, linewidth=0)
        for label in range(NUM_CLASSES):
            colour = POSITIVE if label == true else NEGATIVE if label == choice else GREY
            of_label = differences[:, number, label].tolist()
            width = 1 if colour == GREY else 2.2
            curves.plot(iterations, of_label, color=colour, linewidth=width, zorder=1 + width)
        curves.set(xticks=iterations, title=f"true {true}, chosen {choice}")
        curves.tick_params(labelsize=8)
    for curves in axes[-3:, 1]:
        curves.set_xlabel("iteration")
    for curves in axes[::3, 1]:
        curves.set_ylabel("goodness above the labels' mean", size=9)
    figure.suptitle(
        "Goodness of each label, all layers together (blue: the true label, orange: a wrong one that is chosen)\n"
        f"The label with the most of it in iterations {FIRST_AVERAGED} to {LAST_AVERAGED} (shaded) is chosen",
        size=11,
    )
    return figure


def draw_confusion(chosen: Tensor, labels: Tensor, rule: str) -> Figure:
    """Counts of labels chosen by a headline rule per class (each [N]).

    The colour is for the mistakes, which the diagonal would drown.
    """
    counts = torch.bincount(labels * NUM_CLASSES + chosen, minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)
    mistakes = counts.masked_fill(torch.eye(NUM_CLASSES, dtype=torch.bool), 0)
    figure, axis = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    picture = axis.imshow(mistakes, cmap="cividis_r", vmin=0, vmax=max(1, mistakes.max().item()))
    for label in range(NUM_CLASSES):
        for choice in range(NUM_CLASSES):
            count = counts[label, choice].item()
            dark = mistakes[label, choice] > mistakes.max() / 2
            if count:
                axis.text(choice, label, count, ha="center", va="center", color="white" if dark else "black", size=9)
    wrong = mistakes.sum().item()
    share = f"{wrong} of {len(labels):,} test images wrong ({100 * wrong / len(labels):.2f} %)"
    axis.set(
        title=f"{share}, {HEADLINE_RULES[rule]}",
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
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(3, 8, width_ratios=[1, 1.6] * 4).reshape(-1, 2)
    for picture, bars in axes:
        picture.set_axis_off()
        bars.set_axis_off()
    for (picture, bars), image in zip(axes, most_wrong(scores, labels, rule, count), strict=False):
        picture.imshow(images[image].view(SIDE, SIDE), cmap="gray_r", interpolation="nearest")
        picture.set_title(f"test image {image}", size=8)
        bars.set_axis_on()
        bars.set_title(f"true {labels[image]}, chosen {chosen[image]}", size=9)
        draw_label_bars(bars, heights[image], labels[image].item())
    figure.suptitle(
        f"Test images most wrongly classified {HEADLINE_RULES[rule]}, "
        f"and each label's {HEIGHTS[rule]} (blue: the true one's)",
        size=11,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the pictures of a run into its folder.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data-root", help="where MNIST is, if no longer where the run found it")
    arguments = parser.parse_args()
    with one_line_errors():
        # The run's own device may not be on this machine.
        config = load_saved(arguments.folder, composed("device=auto"), "evaluate", ["device=auto"])
        if not (arguments.folder / "model.pt").is_file():
            metrics = read_metrics(arguments.folder) if (arguments.folder / "metrics.jsonl").is_file() else []
            finished = (arguments.folder / "result.json").is_file()
            why = "its net was not kept" if finished else "it is not finished"
            if not metrics:
                raise ConfigError(f"{arguments.folder}: of this run there is nothing to draw ({why})")
            print(save_figure(draw_learning_curve(metrics), arguments.folder / "learning_curve.png"))
            print(f"The other pictures need the net of this run ({why}: no model.pt).")
            return
        config.data.root = arguments.data_root or config.data.root
        for path in plot_run(arguments.folder, *tested(config, arguments.folder)):
            print(path)


if __name__ == "__main__":
    main()
