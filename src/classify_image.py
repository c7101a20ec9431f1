"""Classifies handwritten digits in photographs and drawings with the net of a finished run.

`python -m src.classify_image RUN_FOLDER IMAGE...` prints what the net says of each digit in each picture, from left to
right, and draws it into RUN_FOLDER/classified. With `--single`, there is one digit in a picture, in however many parts.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

if not __package__:  # as in `python src/classify_image.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.datasets.idx import DataError
from src.pictures.figures import HEIGHTS, NEGATIVE, draw_label_bars, label_heights, new_figure, save_figure
from src.training.log import HEADLINES

with one_line_errors():  # OpenCV may be missing
    from src.own_digits.finding import Digit, coloured, digits, read
    from src.own_digits.verdict import Scores, asked, columns, headlines, source


def table(scores: Scores) -> str:
    """The `columns` of one digit's scores as text, and the labels chosen."""
    cells = [["label", *map(str, range(10))]]
    for name, values in columns(scores).items():
        form = "{:.2f} %" if name == source("one_pass", scores) else "{:.1f}"
        cells.append([name, *map(form.format, values.tolist())])
    aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
    chosen = {f"{HEADLINES[rule]} ({source(rule, scores)}):": label for rule, label in headlines(scores).items()}
    said = [f"{how.ljust(max(map(len, chosen)))} {label}" for how, label in chosen.items()]
    return "\n".join([*map("  ".join, zip(*aligned, strict=True)), *said])


def answer(scores: Sequence[Scores]) -> str:
    """What the net says of the digits of one image, as text."""
    if len(scores) == 1:
        return table(scores[0])
    numbered = [f"digit {number} of {len(scores)}\n{table(each)}" for number, each in enumerate(scores, start=1)]
    for rule in headlines(scores[0]):
        numbered.append(f"all digits {HEADLINES[rule]}: {' '.join(str(headlines(each)[rule]) for each in scores)}")
    return "\n".join(numbered)


def draw(original: Image.Image, found: Sequence[Digit], scores: Sequence[Scores]) -> Figure:
    """An image with a box around each digit, and a row for each: as the net sees it, and its scores by the headline
    rules.
    """
    widths = [1.4, 1] + len(headlines(scores[0])) * [1.4]
    figure = new_figure(2.7 * sum(widths), 3.4 * len(found))
    grid = figure.add_gridspec(len(found), len(widths), width_ratios=widths)
    given = figure.add_subplot(grid[:, 0], title="as given", xticks=[], yticks=[])
    given.imshow(coloured(original))
    for row, (digit, of_digit) in enumerate(zip(found, scores, strict=True)):
        left, top, right, bottom = digit.box
        given.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=NEGATIVE, linewidth=2))
        seen = figure.add_subplot(grid[row, 1], title="as the net sees it, 28 x 28", xticks=[], yticks=[])
        seen.imshow(digit.pixels.numpy(), cmap="gray", vmin=0, vmax=255)
        for column, (rule, label) in enumerate(headlines(of_digit).items(), start=2):
            axis = figure.add_subplot(grid[row, column])
            draw_label_bars(axis, label_heights(of_digit[rule], rule), label)
            axis.set(title=f"{HEADLINES[rule].capitalize()}: {label}", xlabel="label", ylabel=HEIGHTS[rule])
            if rule == "one_pass":
                axis.set_ylim(0, 100)
    return figure


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


def new_path(folder: Path, stem: str) -> Path:
    """STEM.png in `folder`, or STEM_2.png, STEM_3.png ... : no picture is written over another."""
    paths = (folder / f"{stem}{number}.png" for number in itertools.chain([""], map("_{}".format, itertools.count(2))))
    return next(path for path in paths if not path.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("images", type=Path, metavar="IMAGE", nargs="+", help="PNG, JPEG or another kind of picture")
    parser.add_argument("--single", action="store_true", help="one digit in each picture, in however many parts")
    arguments = parser.parse_args()
    with one_line_errors():
        _, ask = asked(arguments.folder)
        pictures = [find(path, single=arguments.single) for path in arguments.images]
        folder = arguments.folder / "classified"
        folder.mkdir(exist_ok=True)
        for path, (original, found) in zip(arguments.images, pictures, strict=True):
            scores = ask(found)
            print(f"{path}\n{answer(scores)}")
            print(f"picture: {save_figure(draw(original, found, scores), new_path(folder, path.stem))}\n")


if __name__ == "__main__":
    main()
