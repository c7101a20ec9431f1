"""Classifies handwritten digits in photographs and drawings with the net of a finished run.

`python -m src.classify_image RUN_FOLDER IMAGE...` prints what the net says of each digit in each picture, from left to
right, and draws it into RUN_FOLDER/classified. With `--single`, there is one digit in a picture, in however many parts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

if not __package__:  # as in `python src/classify_image.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.values import ConfigError
from src.datasets.idx import DataError
from src.evaluate import load_trained
from src.methods.net import Net
from src.own_digits.finding import SIDE, Digit, coloured, digits, read
from src.pictures.figures import HEIGHTS, NEGATIVE, draw_label_bars, label_heights, new_figure, save_figure
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
    cells = [["label", *map(str, range(10))]]
    for name, values in columns(scores).items():
        form = "{:.2f} %" if name == source("one_pass", scores) else "{:.1f}"
        cells.append([name, *map(form.format, values.tolist())])
    aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
    chosen = {f"{HEADLINES[rule]} ({source(rule, scores)}):": label for rule, label in headlines(scores).items()}
    said = [f"{how.ljust(max(map(len, chosen)))} {label}" for how, label in chosen.items()]
    return "\n".join([*map("  ".join, zip(*aligned, strict=True)), *said])


def answer(scores: Sequence[dict[str, Tensor]]) -> str:
    """What the net says of the digits of one image, as text: `scores` ([10] by rule) of each."""
    tables = [table(of_digit) for of_digit in scores]
    if len(scores) == 1:
        return tables[0]
    numbered = [f"digit {number} of {len(scores)}\n{text}" for number, text in enumerate(tables, start=1)]
    labels = [headlines(of_digit) for of_digit in scores]
    read_off = {rule: " ".join(str(chosen[rule]) for chosen in labels) for rule in labels[0]}
    return "\n".join([*numbered, *(f"all digits {HEADLINES[rule]}: {said}" for rule, said in read_off.items())])


def draw(original: Image.Image, found: Sequence[Digit], scores: Sequence[dict[str, Tensor]]) -> Figure:
    """One image as given, with a box around each digit, and a row for each: as the net sees it, and its scores ([10])
    by the headline rules.
    """
    rules = list(headlines(scores[0]))
    widths = [1.4, 1] + len(rules) * [1.4]
    figure = new_figure(2.7 * sum(widths), 3.4 * len(found))
    grid = figure.add_gridspec(len(found), len(widths), width_ratios=widths)
    given = figure.add_subplot(grid[:, 0])
    given.imshow(coloured(original))
    given.set(title="as given", xticks=[], yticks=[])
    for row, (digit, of_digit) in enumerate(zip(found, scores, strict=True)):
        left, top, right, bottom = digit.box
        given.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=NEGATIVE, linewidth=2))
        seen = figure.add_subplot(grid[row, 1])
        seen.imshow(digit.pixels.numpy(), cmap="gray", vmin=0, vmax=255)
        seen.set(title="as the net sees it, 28 x 28", xticks=[], yticks=[])
        for column, (rule, label) in enumerate(headlines(of_digit).items(), start=2):
            axis = figure.add_subplot(grid[row, column])
            draw_label_bars(axis, label_heights(of_digit[rule], rule), label)
            axis.set(title=f"{HEADLINES[rule].capitalize()}: {label}", xlabel="label", ylabel=HEIGHTS[rule])
            if rule == "one_pass":
                axis.set_ylim(0, 100)
    return figure


def net_for_digits(folder: Path) -> Net:
    """As `load_trained`, on the CPU, as a few images need no GPU. Raises ConfigError, too, if the net is for others."""
    net = load_trained(folder, device="cpu")
    if (net.shape, net.classes) != ((SIDE, SIDE, 1), 10):
        raise ConfigError(f"{folder}: its net is not for grey images of {SIDE} x {SIDE} pixels in ten classes")
    return net


def find(path: Path, *, single: bool) -> tuple[Image.Image, list[Digit]]:
    """The picture at `path`, upright, and the digits in it.

    Raises:
        DataError: there is no picture, or nothing can be told of it; names `path`.
    """
    image = read(path)
    try:
        return image, digits(image, single=single)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


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
    parser = argparse.ArgumentParser(
        description="Classifies the digits in photographs and drawings with the net of a run."
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("images", type=Path, metavar="IMAGE", nargs="+", help="PNG, JPEG or another kind of picture")
    parser.add_argument("--single", action="store_true", help="one digit in each picture, in however many parts")
    arguments = parser.parse_args()
    with one_line_errors():
        net = net_for_digits(arguments.folder)
        pictures = [find(path, single=arguments.single) for path in arguments.images]
        pixels = torch.stack([digit.pixels for _, found in pictures for digit in found]).flatten(1)
        scores = scores_for(net, pixels, batch_size=100)
        of_digits = iter([{rule: of_all[number] for rule, of_all in scores.items()} for number in range(len(pixels))])
        paths = picture_paths(arguments.folder / "classified", arguments.images)
        paths[0].parent.mkdir(exist_ok=True)
        for image, path, (original, found) in zip(arguments.images, paths, pictures, strict=True):
            said = [next(of_digits) for _ in found]
            print(f"{image}\n{answer(said)}")
            print(f"picture: {save_figure(draw(original, found, said), path)}\n")


if __name__ == "__main__":
    main()
