"""Classifies handwritten digits in photographs and drawings with the net of a finished run.

`python -m src.classify_image RUN_FOLDER IMAGE...` prints what the net says of each digit in each picture, from left to
right, and saves copies with boxes in RUN_FOLDER/classified. With `--single`, there is one digit in a picture, in
however many parts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

if not __package__:  # as in `python src/classify_image.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.values import ConfigError
from src.datasets.idx import DataError
from src.evaluate import load_trained
from src.methods.net import Net
from src.own_digits.finding import SIDE, Digit, coloured, digits, read
from src.pictures.figures import NEGATIVE, label_heights
from src.training.log import HEADLINES
from src.training.validation import scores_for


def headlines(scores: dict[str, Tensor]) -> dict[str, int]:
    """The label of one image by each headline rule that there are scores for ([10])."""
    return {rule: int(scores[rule].argmax()) for rule in HEADLINES if rule in scores}


def columns(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the net says of each label of one image ([10] each), in the order in which people read it: each layer's
    goodness ("G_1"..), the one that decides, the read-out's probabilities in percent, as far as there are any.
    """
    layers = [of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")]
    named = {f"G_{layer}": of_layer for layer, of_layer in enumerate(layers, start=1)}
    if "goodness" in scores:
        named["goodness"] = scores["goodness"]
    return named | {"read-out": label_heights(scores["one_pass"], "one_pass")}


def table(scores: dict[str, Tensor]) -> str:
    """The `columns` of one image's scores ([10]) as text, and the labels chosen."""
    cells = [["label", *map(str, range(10))]]
    for name, values in columns(scores).items():
        form = "{:.2f} %" if name == "read-out" else "{:.1f}"
        cells.append([name, *map(form.format, values.tolist())])
    aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
    said = [f"{HEADLINES[rule]}: {label}" for rule, label in headlines(scores).items()]
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


def boxed(original: Image.Image, found: Sequence[Digit]) -> Image.Image:
    """A copy with a box around each digit."""
    image = Image.fromarray(np.rint(255 * coloured(original)).astype(np.uint8))
    for digit in found:
        ImageDraw.Draw(image).rectangle(digit.box, outline=NEGATIVE, width=max(1, max(image.size) // 150))
    return image


def net_for_digits(folder: Path) -> Net:
    """As `load_trained`, on the CPU, as a few images need no GPU. Raises ConfigError, too, if the net is for others."""
    net = load_trained(folder, device="cpu")
    if (net.shape, net.classes) != ((SIDE, SIDE, 1), 10):
        raise ConfigError(f"{folder}: its net is not for grey images of {SIDE} x {SIDE} pixels in ten classes")
    return net


def scores_of(net: Net, found: Sequence[Digit]) -> list[dict[str, Tensor]]:
    """What the net says of each digit: scores ([10]) by rule."""
    scores = scores_for(net, torch.stack([digit.pixels for digit in found]).flatten(1), batch_size=100)
    return [{rule: of_all[number] for rule, of_all in scores.items()} for number in range(len(found))]


def find(path: Path, *, single: bool = False) -> tuple[Image.Image, list[Digit]]:
    """The picture at `path`, upright, and the digits in it. Raises DataError as `read` and `digits`, with the path."""
    image = read(path)
    try:
        return image, digits(image, single=single)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Classifies the digits in photographs and drawings with the net of a run."
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("images", type=Path, metavar="IMAGE", nargs="+", help="PNG, JPEG or another kind of picture")
    parser.add_argument("--single", action="store_true", help="one digit in each picture, in however many parts")
    arguments = parser.parse_args()
    with one_line_errors():
        net, target = net_for_digits(arguments.folder), arguments.folder / "classified"
        if target.resolve() in {path.resolve().parent for path in arguments.images}:
            raise ConfigError(f"{target} is where pictures are drawn into; none of the given ones may be there")
        pictures = [find(path, single=arguments.single) for path in arguments.images]
        for number, (path, (original, found)) in enumerate(zip(arguments.images, pictures, strict=True), start=1):
            picture = target / f"{number}_{path.stem}.png"
            print(f"{path}\n{answer(scores_of(net, found))}")
            try:
                target.mkdir(exist_ok=True)
                boxed(original, found).save(picture)
                print(f"picture: {picture}\n")
            except OSError as error:  # somebody else's run, for example
                print(f"no picture: {error}\n")


if __name__ == "__main__":
    main()
