"""Classifies pictures of handwritten digits with the net of a finished run.

`python -m src.classify_image RUN_FOLDER IMAGE...` prints what the net says of each picture, and draws it into
RUN_FOLDER/classified.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from src.classify import by_goodness
from src.config import composed, load_saved, one_line_errors
from src.digit_image import read
from src.evaluate import outputs_for
from src.experiment import load_trained
from src.plots import draw_label_bars, draw_label_goodness, save_figure


def table(goodnesses: Tensor, probabilities: Tensor) -> str:
    """What the net says of one image, as text, from G_l ([L, 10]) and the read-out's probabilities ([10])."""
    depth = len(goodnesses)
    header = ["label", *(f"G_{layer}" for layer in range(1, depth + 1)), "sum from G_2", "read-out"]
    rows = [
        [str(label), *(f"{goodness:.1f}" for goodness in [*column, column[1:].sum()]), f"{100 * probability:.2f} %"]
        for label, (column, probability) in enumerate(zip(goodnesses.T, probabilities, strict=True))
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    chosen, one_pass = choices(goodnesses, probabilities)
    return "\n".join([*lines, f"by goodness (sum from G_2): {chosen}", f"in one pass (read-out):     {one_pass}"])


def choices(goodnesses: Tensor, probabilities: Tensor) -> tuple[int, int]:
    """The labels chosen by goodness, as the paper does ([L, 10]), and by the read-out ([10])."""
    by_sum = by_goodness(goodnesses[:, None], range(2, len(goodnesses) + 1))
    return int(by_sum), int(probabilities.argmax())


def draw(original: Image.Image, pixels: Tensor, goodnesses: Tensor, probabilities: Tensor) -> Figure:
    """One image as given and as the net sees it (uint8 [28, 28]), and the bars of `table`."""
    chosen, one_pass = choices(goodnesses, probabilities)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), width_ratios=[1, 1, 1.4, 1.4], layout="constrained")
    for axis, picture, title in zip(
        axes, (original, pixels), ("as given", "as the net sees it, 28 x 28"), strict=False
    ):
        axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
        axis.set(title=title, xticks=[], yticks=[])
    draw_label_goodness(axes[2], goodnesses[1:].sum(dim=0), chosen)
    axes[2].set(title=f"By goodness: {chosen}", xlabel="label", ylabel="sum from $G_2$, above the lowest")
    draw_label_bars(axes[3], 100 * probabilities, one_pass)
    axes[3].set(title=f"In one pass: {one_pass}", xlabel="label", ylabel="read-out's probability (%)", ylim=(0, 100))
    return figure


def picture_paths(folder: Path, images: Sequence[Path]) -> list[Path]:
    """A file in `folder` for each of `images`, named after it: no two the same, and none that is one of `images`."""
    taken = {image.resolve() for image in images}
    paths = []
    for image in images:
        path, number = folder / f"{image.stem}.png", 1
        while path.resolve() in taken:
            number += 1
            path = folder / f"{image.stem}_{number}.png"
        taken.add(path.resolve())
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Classifies pictures of one digit each with the net of a run.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("images", type=Path, metavar="IMAGE", nargs="+", help="PNG, JPEG or another kind of picture")
    arguments = parser.parse_args()
    with one_line_errors():
        # A few images need no GPU, and this machine may have none.
        config = load_saved(arguments.folder, composed("device=cpu"), "evaluate", ["device=cpu"])
        model = load_trained(config, arguments.folder)
        originals, pixels = zip(*map(read, arguments.images), strict=True)
        outputs = outputs_for(model, torch.stack(pixels).flatten(1), config.evaluation.batch_size)
        probabilities = outputs.logits.softmax(dim=1)
        paths = picture_paths(arguments.folder / "classified", arguments.images)
        paths[0].parent.mkdir(exist_ok=True)
        for number, (image, path) in enumerate(zip(arguments.images, paths, strict=True)):
            said = outputs.goodnesses[:, number], probabilities[number]
            print(f"{image}\n{table(*said)}")
            print(f"picture: {save_figure(draw(originals[number], pixels[number], *said), path)}\n")


if __name__ == "__main__":
    main()
