"""Classifies pictures of handwritten digits with the net of a finished run.

`python -m src.classify_image RUN_FOLDER IMAGE...` prints what the net says of each picture, and draws it into
RUN_FOLDER/classified.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

if not __package__:  # as in `python src/classify_image.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src import methods
from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.datasets.photographs import read
from src.evaluate import load_trained
from src.negatives.codes import NUM_CLASSES
from src.pictures.figures import HEIGHTS, draw_label_bars, label_heights, new_figure, save_figure
from src.training.log import HEADLINES
from src.training.validation import scores_for


def headlines(scores: dict[str, Tensor]) -> dict[str, int]:
    """The label of one image by each headline rule that there are scores for ([10])."""
    return {rule: int(scores[rule].argmax()) for rule in HEADLINES if rule in scores}


def columns(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the net says of one image, of each label ([10] each), in the order in which people read it.

    Each layer's goodness ("G_1"..), the sum that decides, and the read-out's probabilities in percent ("read-out"); a
    net without goodness has the last alone. `scores` ([10]) are by each layer's goodness and by the headline rules.
    """
    layers = [of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")]
    named = {f"G_{layer}": of_layer for layer, of_layer in enumerate(layers, start=1)}
    if "goodness" in scores:
        named[source("goodness", scores)] = scores["goodness"]
    return named | {source("one_pass", scores): label_heights(scores["one_pass"], "one_pass")}


def source(rule: str, scores: dict[str, Tensor]) -> str:
    """The column that a headline rule goes by."""
    if rule == "one_pass":
        return "read-out"
    return "sum from G_2" if "goodness_all_layers" in scores else "sum"


def table(scores: dict[str, Tensor]) -> str:
    """The `columns` of one image's scores ([10]) as text, and the labels chosen."""
    cells = [["label", *map(str, range(NUM_CLASSES))]]
    for name, values in columns(scores).items():
        form = "{:.2f} %" if name == source("one_pass", scores) else "{:.1f}"
        cells.append([name, *map(form.format, values.tolist())])
    aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
    chosen = {f"{HEADLINES[rule]} ({source(rule, scores)}):": label for rule, label in headlines(scores).items()}
    said = [f"{how.ljust(max(map(len, chosen)))} {label}" for how, label in chosen.items()]
    return "\n".join([*map("  ".join, zip(*aligned, strict=True)), *said])


def draw(original: Image.Image, pixels: Tensor, scores: dict[str, Tensor]) -> Figure:
    """One image as given and as the net sees it (uint8 [28, 28]), and its scores ([10]) by the headline rules."""
    chosen = headlines(scores)
    widths = [1, 1] + len(chosen) * [1.4]
    figure = new_figure(2.7 * sum(widths), 3.4)
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    titles = {"as given": original, "as the net sees it, 28 x 28": pixels}
    for axis, (title, picture) in zip(axes, titles.items(), strict=False):
        axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
        axis.set(title=title, xticks=[], yticks=[])
    for axis, (rule, label) in zip(axes[2:], chosen.items(), strict=True):
        draw_label_bars(axis, label_heights(scores[rule], rule), label)
        axis.set(title=f"{HEADLINES[rule].capitalize()}: {label}", xlabel="label", ylabel=HEIGHTS[rule])
        if rule == "one_pass":
            axis.set_ylim(0, 100)
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
        config = load_saved(arguments.folder)
        net = load_trained(arguments.folder, device="cpu")  # a few images need no GPU
        originals, pixels = zip(*map(read, arguments.images), strict=True)
        images = torch.stack(pixels).flatten(1)
        scores = scores_for(methods.named(config.method).scores, net, images, config.evaluation.batch_size)
        paths = picture_paths(arguments.folder / "classified", arguments.images)
        paths[0].parent.mkdir(exist_ok=True)
        for number, (image, path) in enumerate(zip(arguments.images, paths, strict=True)):
            of_image = {rule: of_classes[number] for rule, of_classes in scores.items()}
            print(f"{image}\n{table(of_image)}")
            print(f"picture: {save_figure(draw(originals[number], pixels[number], of_image), path)}\n")


if __name__ == "__main__":
    main()
