"""Pictures of a run, drawn at its end and by `python -m src.plots RUN_FOLDER`."""

import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from src.checkpoint import write_atomically
from src.classify import by_goodness
from src.config import ConfigError, composed, load_saved, one_line_errors
from src.data import SIDE, Examples, load_mnist
from src.evaluate import Outputs, outputs_for
from src.experiment import load_trained
from src.model import FFNet
from src.runlog import HEADLINE_RULES, read_metrics
from src.samples import NUM_CLASSES

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
POSITIVE, NEGATIVE = COLOURS[:2]


def plot_run(folder: Path, model: FFNet, test: Examples, outputs: Outputs) -> list[Path]:
    """All pictures of a finished run; `outputs` are the model's for the `test` images.

    Returns:
        the files written into `folder`.
    """
    outputs = Outputs(outputs.goodnesses.cpu(), outputs.logits.cpu())
    images, labels = test.images.cpu(), test.labels.cpu()
    chosen = by_goodness(outputs.goodnesses, range(2, len(model.layers) + 1))
    figures = {
        "learning_curve": draw_learning_curve(read_metrics(folder)),
        "goodness": draw_goodness(outputs.goodnesses, labels, [layer.theta for layer in model.layers]),
        "receptive_fields": draw_receptive_fields(model.layers[0].weight.detach().cpu()),
        "confusion": draw_confusion(chosen, labels),
        "most_wrong": draw_most_wrong(images, labels, outputs.goodnesses[1:].sum(dim=0)),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all, and closes `figure`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
    return path


def draw_learning_curve(metrics: list[dict]) -> Figure:
    """Of the records of metrics.jsonl: each layer's loss and pairs ordered wrongly, and the validation error by both
    rules where there was a validation."""
    epochs = [record["epoch"] for record in metrics]
    validated = [record for record in metrics if "validation_errors" in record]
    marker = "o" if len(epochs) < 20 else None

    panels = 3 if validated else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.7 * panels, 4), sharex=True, layout="constrained")
    for layer in range(len(metrics[0]["loss"])):
        style = {"color": COLOURS[layer % len(COLOURS)], "label": f"layer {layer + 1}", "marker": marker}
        axes[0].plot(epochs, [record["loss"][layer] for record in metrics], **style)
        shares = [100 * record["pairs_ordered_wrongly"][layer] for record in metrics]
        axes[1].plot(epochs, shares, **style)
    axes[0].set(title="Local loss of each layer", ylabel="logistic loss / 2 (nats)", yscale="log")
    axes[1].set(title="Pairs ordered wrongly while training", ylabel="pairs (%)")
    if validated:
        for rule, colour in zip(HEADLINE_RULES, COLOURS, strict=False):
            errors = [100 * record["validation_errors"][rule] / record["validation_images"] for record in validated]
            when = [record["epoch"] for record in validated]
            axes[2].plot(when, errors, "o-", color=colour, label=rule.replace("_", " "))
        axes[2].set(title="Validation error", ylabel="error (%)", ylim=(0, 1.1 * axes[2].get_ylim()[1]))
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def draw_goodness(goodnesses: Tensor, labels: Tensor, thresholds: list[float]) -> Figure:
    """How far the goodness under the true label and under the nine wrong ones lie apart in each layer ([L, N, 10]), and
    the layer's threshold theta."""
    true = torch.nn.functional.one_hot(labels, NUM_CLASSES).bool()
    depth = len(goodnesses)
    figure, axes = plt.subplots(1, depth, figsize=(4.2 * depth, 3.6), squeeze=False, layout="constrained")
    for number, (axis, goodness, theta) in enumerate(zip(axes[0], goodnesses, thresholds, strict=True), start=1):
        limits = torch.quantile(goodness.flatten(), torch.tensor([0.001, 0.999]))
        bins = torch.linspace(limits[0].item(), limits[1].item(), 61).tolist()
        for cases, colour, name in ((true, POSITIVE, "true label"), (~true, NEGATIVE, "wrong labels")):
            values = goodness[cases].clamp(*limits)
            axis.hist(values, bins=bins, weights=[100 / len(values)] * len(values), color=colour, alpha=0.6, label=name)
        axis.axvline(theta, color="black", linestyle="--", label=f"threshold {theta:g}")
        axis.set(title=f"Layer {number}", xlabel="goodness", ylabel="test cases (%)")
        axis.set_ylim(top=1.4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(loc="upper left")
    return figure


def draw_receptive_fields(weight: Tensor, rows: int = 8, columns: int = 16) -> Figure:
    """Incoming weights ([d_1, 784]) of the first layer's units, those with the largest first, each on its own scale.

    The ten pixels of the label are left out, as their weights would outshine the rest. Each weight is averaged with its
    eight neighbours, because what the initial weights left of noise would hide what was learned.
    """
    fields = weight.clone()
    fields[:, :NUM_CLASSES] = 0
    fields = torch.nn.functional.avg_pool2d(fields.view(-1, 1, SIDE, SIDE), 3, stride=1, padding=1).flatten(1)
    largest_first = fields.norm(dim=1).argsort(descending=True)[: rows * columns]
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 0.62, rows * 0.62 + 0.7), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, unit in zip(axes.flat, largest_first.tolist(), strict=False):
        field = fields[unit].view(SIDE, SIDE)
        limit = field.abs().max().item()
        axis.imshow(field, cmap="PuOr", vmin=-limit, vmax=limit)
    figure.suptitle("Weights of first-layer units, smoothed (orange: negative, purple: positive)", size=10)
    return figure


def draw_confusion(chosen: Tensor, labels: Tensor) -> Figure:
    """Counts of chosen labels per class (each [N]); the colour is for the mistakes, which the diagonal would drown."""
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
    axis.set(
        title=f"{wrong} of {len(labels):,} test images wrong ({100 * wrong / len(labels):.2f} %), by goodness",
        xlabel="chosen label", ylabel="true label", xticks=range(NUM_CLASSES), yticks=range(NUM_CLASSES),
    )  # fmt: skip
    figure.colorbar(picture, label="mistakes", shrink=0.8)
    return figure


def draw_label_goodness(axis: Axes, goodness: Tensor, marked: int) -> None:
    """Bars for the goodness of each label ([10]) above the lowest one's, the marked label's in another colour."""
    draw_label_bars(axis, goodness - goodness.min(), marked)


def draw_label_bars(axis: Axes, values: Tensor, marked: int) -> None:
    """A bar for each label ([10]), the marked label's in another colour."""
    colours = [POSITIVE if label == marked else NEGATIVE for label in range(NUM_CLASSES)]
    axis.bar(range(NUM_CLASSES), values.tolist(), color=colours)
    axis.set_xticks(range(NUM_CLASSES))
    axis.tick_params(labelsize=8)


def draw_most_wrong(images: Tensor, labels: Tensor, goodness: Tensor, count: int = 12) -> Figure:
    """The test images (uint8 [N, 784]) whose true label has the most goodness ([N, 10]) too little, with all ten."""
    true = goodness.gather(1, labels[:, None]).squeeze(1)
    chosen = goodness.argmax(dim=1)
    margin = goodness.max(dim=1).values - true  # 0 where the true label is chosen
    most_wrong = [image for image in margin.argsort(descending=True)[:count].tolist() if chosen[image] != labels[image]]
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(3, 8, width_ratios=[1, 1.6] * 4).reshape(-1, 2)
    for picture, bars in axes:
        picture.set_axis_off()
        bars.set_axis_off()
    for (picture, bars), image in zip(axes, most_wrong, strict=False):
        picture.imshow(images[image].view(SIDE, SIDE), cmap="gray_r")
        picture.set_title(f"test image {image}", size=8)
        bars.set_axis_on()
        bars.set_title(f"true {labels[image]}, chosen {chosen[image]}", size=9)
        draw_label_goodness(bars, goodness[image], labels[image].item())
    figure.suptitle(
        "The most wrongly classified test images, and the goodness of each label above the lowest one's "
        "(layers 2 to L; blue: the true label)",
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
            if not metrics:
                raise ConfigError(f"{arguments.folder}: there is nothing to draw yet, not one epoch is done")
            print(save_figure(draw_learning_curve(metrics), arguments.folder / "learning_curve.png"))
            print("This run is not finished (no model.pt); the other pictures need its net.")
            return
        model = load_trained(config, arguments.folder)
        device = model.readout_weight.device
        _, _, test = load_mnist(root=arguments.data_root or config.data.root, device=device, validation_images=0)
        outputs = outputs_for(model, test.images, config.evaluation.batch_size)
        for path in plot_run(arguments.folder, model, test, outputs):
            print(path)


if __name__ == "__main__":
    main()
