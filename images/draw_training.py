"""Draws images/training.png, how one mini-batch trains the net.

`python -m images.draw_training [data root]` from the repository root; the data root is `datasets` by default.
The digit and the read-out's prediction are real: a 3 x 200 net is trained on the spot for 200 mini-batches.
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from src.config.loading import composed, load
from src.datasets import table
from src.datasets.batches import to_unit
from src.experiment import new_net
from src.negatives.codes import embed, neutral, one_hot
from src.negatives.wrong_labels import hard
from src.training.epochs import train_epochs

FOLDER = Path(__file__).parent
DIGIT = 50_031  # of the training file, a four; not among the images that the small net is trained on
# Units of the drawing are pixels at a width of 900; shown that wide, the picture has the font sizes it names.
WIDTH, HEIGHT = 900, 506.25
# Of Okabe and Ito's palette, which the colour-blind can tell apart, but for the grey.
NEUTRAL, POSITIVE, NEGATIVE, GRADIENT = "#555555", "#0072B2", "#D55E00", "#009E73"
TOPS = {"neutral": 6, "positive": 132, "negative": 258}  # of the rows
LANES = {name: top + 78 for name, top in TOPS.items()}  # where the passes run
COLOURS = dict(zip(TOPS, (NEUTRAL, POSITIVE, NEGATIVE), strict=True))
LAYERS = (182, 346, 510)  # left edges
LAYER_WIDTH = 128
FORKS = {"positive": 102, "negative": 116}  # where, in a layer, its activity goes to its loss


def example(root: str) -> tuple[Tensor, int, int, Tensor]:
    """An image ([1, 784]), its class, the wrong label drawn for it, and the read-out's logits ([1, 10])."""
    images, _, _ = table.load("mnist", root, "cpu", validation_images=0)
    torch.set_num_threads(1)
    config = load(composed("model.hidden_dims=[200,200,200]", "training.epochs=1", "precision=fp32", "device=cpu"))
    net = new_net(config, images.shape, images.classes)
    generator = torch.Generator().manual_seed(0)
    phases = net.phases(config.training)
    list(train_epochs(phases, images[:20_000], batch_size=100, max_shift=0, generator=generator))
    image, label = to_unit(images.images[[DIGIT]]), images.labels[[DIGIT]]
    logits = net.scores(image)["one_pass"]
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return image, label.item(), hard(logits, label, noise).item(), logits


def text(x: float, y: float, words: str, **style) -> None:
    plt.text(x, y, words, **({"fontsize": 10, "ha": "center", "va": "center"} | style))


def line(points: list[tuple[float, float]], colour: str, width: float = 1.6) -> None:
    style = {"solid_capstyle": "butt", "solid_joinstyle": "miter"}
    plt.plot(*zip(*points, strict=True), color=colour, lw=width, zorder=2, **style)


def arrow(points: list[tuple[float, float]], colour: str, width: float = 1.6) -> None:
    """Straight lines through `points`, the last of which is the tip."""
    *_, (x0, y0), (x, y) = points
    length = math.hypot(x - x0, y - y0)
    dx, dy = (x - x0) / length, (y - y0) / length
    neck, half = (x - 10 * dx, y - 10 * dy), 4 + width
    line([*points[:-1], neck], colour, width)
    corners = [(x, y), (neck[0] - half * dy, neck[1] + half * dx), (neck[0] + half * dy, neck[1] - half * dx)]
    plt.gca().add_patch(plt.Polygon(corners, fc=colour, ec="none", zorder=2))


def dot(x: float, y: float, colour: str) -> None:
    """Where a path forks."""
    plt.plot(x, y, "o", ms=4.5, color=colour)


def box(x: float, y: float, width: float, height: float, face: str, edge: str, zorder: int = 1) -> None:
    shape = "round,pad=0,rounding_size=5"
    plt.gca().add_patch(FancyBboxPatch((x, y), width, height, shape, fc=face, ec=edge, zorder=zorder))


def strip(x: float, y: float, height: float, words: str, middle: float) -> None:
    """One operation, which the passes run through from left to right."""
    box(x, y, 22, height, "white", "black", zorder=3)
    text(x + 11, middle, words, rotation=90)


def stop(x: float, y: float) -> None:
    """The mark of a stop-gradient on a pass that runs to the right."""
    for side in (-3, 3):
        line([(x + side, y - 8), (x + side, y + 8)], "black", 2)


def draw_input(name: str, note: str, image: Tensor) -> None:
    """The image, with its first ten pixels enlarged above it."""
    top, size, cell = TOPS[name], 78.75, 14  # 78.75: a pixel of the image is five of the picture
    text(9, top + 8, f"{name} pass", ha="left", weight="bold", color=COLOURS[name])
    text(133, LANES[name] - 19, note)
    shades = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    plt.imshow(image.view(28, 28), extent=(9, 9 + size, top + 39 + size, top + 39), **shades)
    plt.imshow(image[:, :10], extent=(9, 149, top + 33, top + 18), **shades)
    frame = {"fill": False, "ec": "#888888", "lw": 0.8}
    plt.gca().add_patch(plt.Rectangle((9, top + 39), size, size, **frame))
    for k, value in enumerate(image[0, :10]):
        plt.gca().add_patch(plt.Rectangle((9 + cell * k, top + 18), cell, 15, **frame))
        ink = "white" if value > 0.5 else NEUTRAL
        text(16 + cell * k, top + 26, str(k), va="center_baseline", color=ink)
    line([(9, top + 33), (9, top + 39)], "#888888", 0.8)
    line([(149, top + 33), (9 + size * 10 / 28, top + 39)], "#888888", 0.8)


def draw_layer(number: int, x: float) -> None:
    """A layer with its three operations, and below it the loss that is its own."""
    box(x, 24, LAYER_WIDTH, 354, "#F2F2F2", "#888888")
    text(x + 64, 38, f"layer {number}", weight="bold")
    for offset, words in ((8, "normalise"), (38, f"$W_{number}, b_{number}$"), (68, "ReLU")):
        strip(x + offset, 52, 318, words, 150)
    for name, fork in FORKS.items():
        arrow([(x + fork, LANES[name]), (x + fork, 402)], COLOURS[name])
        dot(x + fork, LANES[name], COLOURS[name])
    arrow([(x + 49, 402), (x + 49, 371)], GRADIENT, 2.6)

    box(x, 402, LAYER_WIDTH, 76, "white", GRADIENT)
    text(x + 64, 414, f"local loss {number}", weight="bold")
    text(x + 64, 431, rf"$G_{number} = \sum h_{number}^2$")
    text(x + 64, 449, rf"$\theta_{number}$", fontsize=11)
    line([(x + 64, 457), (x + 64, 471)], "black")
    for name, verb, side in (("negative", "lower", -1), ("positive", "raise", 1)):
        text(x + 64 + 37 * side, 449, verb, color=COLOURS[name])
        arrow([(x + 64 + 10 * side, 464), (x + 64 + 54 * side, 464)], COLOURS[name], 2.2)


def draw_passes() -> None:
    """The way of each image through the layers."""
    for name, lane in LANES.items():
        start = 88
        for x in LAYERS:
            arrow([(start, lane), (x + 8, lane)], COLOURS[name])
            start = x + (FORKS.get(name, LAYER_WIDTH) if x == LAYERS[-1] else LAYER_WIDTH)
            line([(x + 8, lane), (start, lane)], COLOURS[name])
            if x != LAYERS[0] and name in FORKS:
                stop(x - 18, lane)
    for x in LAYERS[1:]:
        text(x - 18, 273, "stop-gradient", rotation=90)


def draw_readout(label: int, wrong: int, logits: Tensor) -> None:
    """The read-out of layers 2 and 3, and the way of its prediction into the negative image."""
    x, lane = 682, LANES["neutral"]
    box(x, 24, 208, 124, "#F2F2F2", "#888888")
    text(x + 104, 38, "read-out", weight="bold")
    for offset, words in ((8, "normalise"), (42, "$W$"), (76, "softmax")):
        strip(x + offset, 66, 74, words, 103)
    box(x + 138, 66, 62, 74, "white", GRADIENT)
    text(x + 169, 103, "cross-\nentropy\nloss")
    second, third = LAYERS[2] - 18, LAYERS[2] + LAYER_WIDTH  # where the activities of layers 2 and 3 leave
    dot(second, lane, NEUTRAL)
    arrow([(second, lane), (second, 12), (656, 12), (656, lane), (x + 8, lane)], NEUTRAL)
    arrow([(third, lane), (647, lane), (647, 122), (x + 8, 122)], NEUTRAL)
    stop(670, lane)
    stop(670, 122)
    arrow([(x + 19, 103), (x + 138, 103)], NEUTRAL)
    arrow([(x + 169, 66), (x + 169, 50), (x + 53, 50), (x + 53, 66)], GRADIENT, 2.6)
    arrow([(x + 87, 140), (x + 87, 172)], NEUTRAL)

    text(x + 104, 192, f"its prediction,\ntrue class {label} masked")
    masked = logits[0].index_fill(0, torch.tensor([label]), -torch.inf).softmax(0)
    for k, probability in enumerate(masked):
        colour, centre = NEGATIVE if k == wrong else "#999999", x + 14 + 20 * k
        plt.bar(centre, -76 * probability / masked.max(), width=16, bottom=298, color=colour)
        text(centre, 308, str(k), color=NEGATIVE if k == wrong else "black")
        if k == label:
            plt.plot(centre, 289, "x", ms=7, mew=1.4, color="black")
        if k == wrong:
            edge = x + 212  # along which the way passes by what is written below, whichever label it starts from
            arrow([(centre, 318), (centre, 330), (edge, 330), (edge, 493), (48, 493), (48, 378)], NEGATIVE)
            text(edge - 10, 352, "one wrong label\nsampled from it", ha="right", color=NEGATIVE)
    line([(x + 4, 298), (x + 204, 298)], "black", 1)
    arrow([(x + 4, 440), (x + 32, 440)], GRADIENT, 2.6)
    text(x + 42, 440, "gradient, stays\nin its layer", ha="left")


def main(root: str = "datasets") -> None:
    image, label, wrong, logits = example(root)
    figure = plt.figure(figsize=(WIDTH / 96, HEIGHT / 96), facecolor="white")
    figure.add_axes((0, 0, 1, 1)).axis("off")
    draw_input("neutral", "ten pixels\nof 0.1", embed(image, neutral(image, 10)))
    draw_input("positive", f"true\nlabel {label}", embed(image, one_hot(torch.tensor([label]), 10)))
    draw_input("negative", f"wrong\nlabel {wrong}", embed(image, one_hot(torch.tensor([wrong]), 10)))
    for number, x in enumerate(LAYERS, start=1):
        draw_layer(number, x)
    draw_passes()
    draw_readout(label, wrong, logits)
    plt.xlim(0, WIDTH)
    plt.ylim(HEIGHT, 0)
    figure.savefig(FOLDER / "training.png", dpi=1600 / (WIDTH / 96))


if __name__ == "__main__":
    main(*sys.argv[1:])
