"""Pictures of MNIST's test digits as people photograph and draw them, and how often a net errs on them.

`python tests/pictures_of_digits.py RUN_FOLDER` prints the errors on 500 pictures of each kind. Each picture's random
numbers come from its kind and its digit's number, so that it is the same each time. The code was made with test digits
0 to 2999, which are not counted.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script: src/ is beside tests/

from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.datasets.batches import Examples
from src.datasets.idx import DataError
from src.datasets.table import load_test
from src.evaluate import load_trained
from src.own_digits.finding import SIDE, digits
from src.training.validation import scores_for

Array = np.ndarray  # pictures are float32 [H, W, 3] of 0..255; ink is float32 [H, W] of 0..1
BLUE, BLACK, PENCIL = (40, 50, 150), (25, 25, 30), (85, 85, 90)
SHAPE = (480, 640)  # of most sheets
NEXT = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))  # a point and its neighbours: down, right


# --- Ink --------------------------------------------------------------------------------------------------


def printed(digit: Array, height: int) -> Array:
    """An MNIST digit (uint8 [28, 28]) without its margin, enlarged, its longer side `height` pixels."""
    points = np.argwhere(digit)
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
    small = np.pad(digit[top : bottom + 1, left : right + 1], 1)
    scale = height / (max(small.shape) - 2)
    size = round(small.shape[1] * scale), round(small.shape[0] * scale)
    return cv2.resize(small.astype(np.float32) / 255, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)


def strokes(shape: Sequence[int], ends: Iterable, thickness: float) -> Array:
    """Straight lines, each from a point (x, y) to another."""
    ink = np.zeros(shape, np.uint8)
    for line in ends:
        points = [[round(at * 16) for at in point] for point in line]
        cv2.line(ink, *points, 255, max(1, round(thickness)), cv2.LINE_AA, shift=4)
    return ink.astype(np.float32) / 255


def drawn(digit: Array, height: int, pen: float) -> Array:
    """The digit's middle line drawn with a round pen `pen` pixels wide, its longer side then `height` pixels."""
    large = (printed(digit, 160) > 0.5).astype(np.uint8) * 255
    middle = np.argwhere(cv2.ximgproc.thinning(np.pad(large, 1)))
    middle -= middle.min(axis=0)
    scale, margin = (height - pen) / middle.max(), int(pen / 2) + 2
    shape = [round(length * scale) + 2 * margin for length in middle.max(axis=0).tolist()]
    points = set(map(tuple, middle.tolist()))
    near = [((row, column), (row + down, column + right)) for row, column in points for down, right in NEXT]
    ends = [[[at * scale + margin for at in point[::-1]] for point in pair] for pair in near if pair[1] in points]
    return strokes(shape, ends, pen)


def in_a_row(inks: Sequence[Array], gap: int) -> Array:
    """Side by side, `gap` pixels apart, on one line."""
    height = max(len(ink) for ink in inks)
    cells = [np.pad(ink, ((height - len(ink), 0), (0, gap))) for ink in inks]
    return np.concatenate(cells, axis=1)[:, :-gap]


def placed(ink: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """`ink` anywhere on a sheet of `shape`, with a little paper around it."""
    room = [(side // 20, side - of_ink - side // 20) for side, of_ink in zip(shape, ink.shape, strict=True)]
    top, left = (int(rng.integers(least, max(most, least + 1))) for least, most in room)
    canvas = np.zeros(shape, np.float32)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


# --- Paper, light and camera ------------------------------------------------------------------------------


def paper(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A sheet with a grain."""
    colour = np.float32([235, 232, 225]) * rng.uniform(0.8, 1.05)
    grain = rng.normal(0, 1, shape).astype(np.float32)
    grain = 2 * grain + 8 * cv2.GaussianBlur(grain, (0, 0), 2)
    return np.float32(colour) + grain[:, :, None]


def wood(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A desk: brown, grey, dark or pale, plain or with a grain."""
    colours = [(130, 90, 55), (90, 60, 40), (60, 62, 66), (30, 30, 32), (160, 130, 95), (120, 125, 130), (40, 70, 110)]
    colour = np.float32(colours[rng.integers(len(colours))])
    grain = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), sigmaX=40, sigmaY=2)
    strength = rng.choice([0, 8, 20]) / grain.std()
    return colour + strength * grain[:, :, None] + rng.normal(0, 2, (*shape, 1)).astype(np.float32)


def inked(sheet: Array, ink: Array, colour: Sequence[float]) -> Array:
    return sheet + ink[:, :, None] * (np.float32(colour) - sheet)


def written(sheet: Array, ink: Array, rng: np.random.Generator) -> Array:
    """With a pen or a pencil."""
    return inked(sheet, ink, [BLACK, BLACK, BLUE, PENCIL][rng.integers(4)])


def lines(sheet: Array, spacing: float, *, squared: bool, rng: np.random.Generator) -> Array:
    """`sheet` with printed lines from edge to edge, and often a red margin on ruled paper."""
    colours = [(150, 180, 220), (120, 150, 210), (170, 170, 175), (130, 130, 135), (80, 80, 90), (60, 90, 170)]
    colour, thickness = colours[rng.integers(len(colours))], max(1.0, spacing / rng.uniform(25, 50))
    height, width = shape = sheet.shape[:2]
    ends = [[(0, y), (width, y)] for y in np.arange(rng.uniform(0, spacing), height, spacing)]
    if squared:
        ends += [[(x, 0), (x, height)] for x in np.arange(rng.uniform(0, spacing), width, spacing)]
    sheet = inked(sheet, strokes(shape, ends, thickness), colour)
    if squared or rng.random() >= 0.5:
        return sheet
    x = rng.uniform(0.02, 0.15) * width
    return inked(sheet, strokes(shape, [[(x, 0), (x, height)]], thickness), (220, 110, 120))


def lit(picture: Array, rng: np.random.Generator) -> Array:
    """In light that fades to one side by up to two thirds, half of the time with the shadow of a hand or telephone."""
    height, width = picture.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    along = (x * np.cos(angle) + y * np.sin(angle)) / 1.42
    light = 1 - rng.uniform(0.1, 0.33) * (1 + along)
    if rng.random() < 0.5:
        edge = rng.uniform(-0.5, 0.5) + 0.2 * np.sin(3 * (x * np.sin(angle) - y * np.cos(angle)))
        light *= 1 - 0.35 / (1 + np.exp(-(along - edge) / rng.uniform(0.02, 0.1)))
    return picture * light[:, :, None].astype(np.float32)


def held(picture: Array, rng: np.random.Generator, degrees: float, desk: float = 0.0) -> Array:
    """Photographed from not quite above: turned and in perspective, on a desk up to `desk` times as large, or up to the
    sheet's edges.
    """
    height, width = target = picture.shape[:2]
    if desk:
        target = tuple(round(length * rng.uniform(1.25, desk)) for length in target)
        background = wood(target, rng)
    centre = np.float32([target[1] / 2, target[0] / 2])
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    turn = np.deg2rad(rng.uniform(-degrees, degrees))
    rotation = np.float32([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    seen = (corners - [width / 2, height / 2]) @ rotation.T * (1 if desk else 1.12) + centre
    seen += rng.uniform(-0.012, 0.012, (4, 2)) * [width, height]
    if desk:
        room = (np.float32(target[::-1]) - [width, height]) / 2
        seen += rng.uniform(-0.8, 0.8, 2) * room
    matrix = cv2.getPerspectiveTransform(corners, np.float32(seen))
    border = {"borderValue": 0} if desk else {"borderMode": cv2.BORDER_REPLICATE}
    warped = cv2.warpPerspective(picture, matrix, target[::-1], flags=cv2.INTER_LINEAR, **border)
    if not desk:
        return warped
    covered = cv2.warpPerspective(np.ones((height, width), np.float32), matrix, target[::-1])
    shadow = 1 - 0.4 * cv2.GaussianBlur(np.roll(covered, (4, 4), (0, 1)), (0, 0), 4)
    return np.where(covered[:, :, None] > 0.5, warped, background * shadow[:, :, None])


def photographed(picture: Array, rng: np.random.Generator) -> Image.Image:
    """Through a lens, with a sensor's noise, as JPEG."""
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.0)) + rng.normal(0, 2, picture.shape)
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(file)


# --- Kinds of pictures ------------------------------------------------------------------------------------


def on_sheet(ink: Array, rng: np.random.Generator, ruling: str = "") -> Array:
    """A sheet, blank or with lines, and the ink on it."""
    sheet = paper(SHAPE, rng)
    if ruling:
        # Of the digit's height: a school-book's line is about as high, a square may be a third.
        spacing = len(ink) * (rng.uniform(0.3, 0.6) if ruling == "squared" else rng.uniform(0.5, 1.2))
        sheet = lines(sheet, spacing, squared=ruling == "squared", rng=rng)
    return written(sheet, placed(ink, SHAPE, rng), rng)


def on_paper(digit: Array, rng: np.random.Generator, ruling: str = "", where: str = "") -> Image.Image:
    """Printed, on a sheet that lies on a desk, in uneven light, or fills the picture."""
    sheet = on_sheet(printed(digit, int(rng.integers(140, 300))), rng, ruling)
    if ruling:
        sheet = held(sheet, rng, 4)
    if where:
        sheet = lit(sheet, rng) if where == "shaded" else held(sheet, rng, 12, desk=1.8)
    return photographed(sheet, rng)


def size(digit: Array, rng: np.random.Generator) -> Image.Image:
    """From a thumbnail of 40 pixels to a photograph of 2,000, the digit from a tenth to nine tenths of its height."""
    side = round(40 * 50 ** rng.random())
    share = rng.uniform(max(0.1, 16 / side), 0.85)
    shape = side, round(side * rng.uniform(1, 1.4))
    ink = placed(printed(digit, round(side * share)), shape, rng)
    return photographed(written(paper(shape, rng), ink, rng), rng)


def pen(digit: Array, rng: np.random.Generator, share: float) -> Image.Image:
    """Drawn on a tablet, 500 pixels high, with a pen of that share of the height."""
    canvas = placed(drawn(digit, 500, 500 * share), (700, 700), rng)
    return Image.fromarray((255 * (1 - canvas)).astype(np.uint8))


def pen_on_paper(digit: Array, rng: np.random.Generator) -> Image.Image:
    """Written with a ballpoint or a felt pen on a sheet that lies on a desk, lined or not, in uneven light."""
    tall = int(rng.integers(140, 300))
    ink = drawn(digit, tall, max(2.5, tall * rng.uniform(0.02, 0.12)))
    sheet = on_sheet(ink, rng, str(rng.choice(["", "ruled", "squared"])))
    return photographed(lit(held(sheet, rng, 8, desk=1.6), rng), rng)


KINDS = {
    "plain": on_paper, "ruled": partial(on_paper, ruling="ruled"), "squared": partial(on_paper, ruling="squared"),
    "shaded": partial(on_paper, where="shaded"), "desk": partial(on_paper, where="desk"), "size": size,
    **{f"pen 1/{part}": partial(pen, share=1 / part) for part in (5, 8, 20, 40, 80)}, "pen on paper": pen_on_paper,
}  # fmt: skip


def side_by_side(images: Array, rng: np.random.Generator) -> Image.Image:
    """Two or three digits written next to each other."""
    tall = int(rng.integers(100, 140))
    inks = [printed(image, round(tall * rng.uniform(0.85, 1.15))) for image in images]
    return photographed(on_sheet(in_a_row(inks, round(tall * rng.uniform(0.12, 0.4))), rng), rng)


def blank(rng: np.random.Generator) -> Image.Image:
    sheet, ruling = paper(SHAPE, rng), rng.integers(3)
    if ruling:
        sheet = held(lines(sheet, rng.uniform(40, 150), squared=ruling == 2, rng=rng), rng, 4)
    return photographed(lit(sheet, rng), rng)


def scribble(rng: np.random.Generator) -> Image.Image:
    """A pen led across the whole sheet."""
    canvas = np.full((*SHAPE, 3), 255, np.uint8)
    points = (rng.uniform(0.03, 0.97, (int(rng.integers(25, 60)), 2)) * [640, 480]).astype(np.int32)
    cv2.polylines(canvas, [points], False, BLACK, int(rng.integers(3, 14)), cv2.LINE_AA)
    return Image.fromarray(canvas)


SEVERAL, NOTHING = "two or three digits", {"blank": blank, "scribble": scribble}  # nothing that anyone can tell


# --- The table --------------------------------------------------------------------------------------------


def pictures(kind: str, images: Array, numbers: Sequence[int]) -> Iterator[tuple[Image.Image, list[int]]]:
    """A picture of a kind for each of `numbers`, of that one of `images` (uint8 [N, 28, 28]), and the numbers of all
    digits in it.
    """
    for number in numbers:
        rng = np.random.default_rng([*kind.encode(), number])
        if kind in KINDS:
            yield KINDS[kind](images[number], rng), [number]
        elif kind in NOTHING:
            yield NOTHING[kind](rng), []
        else:
            several = [(number + step) % len(images) for step in range(rng.integers(2, 4))]
            yield side_by_side(images[several], rng), several


def tried(kind: str, net: nn.Module, test: Examples, numbers: Sequence[int]) -> tuple[int, int]:
    """How many pictures of a kind are wrongly classified by goodness, and how many are refused."""
    wrong = refused = 0
    for picture, there in pictures(kind, test.images.view(-1, SIDE, SIDE).numpy(), numbers):
        try:
            pixels = torch.stack([digit.pixels for digit in digits(picture)]).flatten(1)
        except DataError:
            refused += 1
        else:
            wrong += scores_for(net, pixels, 50)["goodness"].argmax(dim=1).tolist() != test.labels[there].tolist()
    return wrong, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data-root", help="where the data are, if no longer where the run found them")
    parser.add_argument("--count", type=int, default=500, help="pictures of each kind")
    arguments = parser.parse_args()
    with one_line_errors():
        config, net = load_saved(arguments.folder), load_trained(arguments.folder, device="cpu")
        test = load_test(config.dataset, arguments.data_root or config.data.root, "cpu")
        print("| kind of picture | wrong (%) | refused (%) |\n| --- | --- | --- |")
        for kind in (*KINDS, SEVERAL, *NOTHING):
            wrong, refused = tried(kind, net, test, range(3000, 3000 + (count := arguments.count)))
            print(f"| {kind} | {100 * wrong / count:.1f} | {100 * refused / count:.1f} |", flush=True)


if __name__ == "__main__":
    main()
