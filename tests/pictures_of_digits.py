"""Pictures of MNIST's test digits as people photograph and draw them, and how often a net errs on them.

`python tests/pictures_of_digits.py RUN_FOLDER` prints the errors on 500 pictures of each kind. Each picture's random
numbers come from its kind and its digit's number, so that it is the same each time. The code was made with test digits
0 to 2999, which are not counted.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
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
BLUE, BLACK, PENCIL, WHITE = (40, 50, 150), (25, 25, 30), (85, 85, 90), (240, 240, 235)


# --- Ink --------------------------------------------------------------------------------------------------


def cropped(digit: Array) -> Array:
    """An MNIST digit (uint8 [28, 28]) without its margin."""
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def printed(digit: Array, height: int) -> Array:
    """The digit enlarged, its longer side `height` pixels."""
    small = np.pad(cropped(digit), 1)
    scale = height / (max(small.shape) - 2)
    size = round(small.shape[1] * scale), round(small.shape[0] * scale)
    return cv2.resize(small.astype(np.float32) / 255, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)


def drawn(digit: Array, height: int, pen: float) -> Array:
    """The digit's middle line drawn with a round pen `pen` pixels wide, its longer side then `height` pixels."""
    large = (printed(digit, 160) > 0.5).astype(np.uint8) * 255
    rows, columns = np.nonzero(cv2.ximgproc.thinning(np.pad(large, 1)))
    rows, columns = rows - rows.min(), columns - columns.min()
    scale, margin = (height - pen) / max(rows.max(), columns.max()), int(pen / 2) + 2
    points = set(zip(rows.tolist(), columns.tolist(), strict=True))
    size = round(rows.max() * scale) + 2 * margin, round(columns.max() * scale) + 2 * margin
    ink = np.zeros(size, np.uint8)
    for row, column in points:
        for down, right in ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1)):
            if (row + down, column + right) in points:
                ends = [
                    (round((x * scale + margin) * 16), round((y * scale + margin) * 16))
                    for y, x in ((row, column), (row + down, column + right))
                ]
                cv2.line(ink, *ends, 255, max(1, round(pen)), cv2.LINE_AA, shift=4)
    return ink.astype(np.float32) / 255


def in_a_row(inks: Sequence[Array], gap: int) -> Array:
    """Side by side, `gap` pixels apart, on one line."""
    height = max(len(ink) for ink in inks)
    cells = [np.pad(ink, ((height - len(ink), 0), (0, gap))) for ink in inks]
    return np.concatenate(cells, axis=1)[:, :-gap]


def placed(ink: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """`ink` anywhere on a sheet of `shape`, with a little paper around it."""
    canvas = np.zeros(shape, np.float32)
    height, width = ink.shape
    top, left = (
        int(rng.integers(length // 20, max(length - ink_length - length // 20, length // 20 + 1)))
        for length, ink_length in zip(shape, ink.shape, strict=True)
    )
    canvas[top : top + height, left : left + width] = ink
    return canvas


# --- Paper, light and camera ------------------------------------------------------------------------------


def paper(shape: tuple[int, int], colour: Sequence[float], rng: np.random.Generator) -> Array:
    """A sheet with a grain."""
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


def written(sheet: Array, ink: Array, colour: Sequence[float]) -> Array:
    """`sheet` with `ink` on it."""
    return sheet + ink[:, :, None] * (np.float32(colour) - sheet)


def lines(sheet: Array, spacing: float, *, squared: bool, rng: np.random.Generator) -> Array:
    """`sheet` with printed lines from edge to edge, and often a red margin on ruled paper."""
    colours = [(150, 180, 220), (120, 150, 210), (170, 170, 175), (130, 130, 135), (80, 80, 90), (60, 90, 170)]
    colour, thickness = colours[rng.integers(len(colours))], max(1.0, spacing / rng.uniform(25, 50))
    printed_lines = np.zeros(sheet.shape[:2], np.uint8)
    height, width = printed_lines.shape
    first, last = (np.array([0, 0]), np.array([width, height]) * 16)

    def draw(at: float, axis: int, target: Array) -> None:
        start, end = first.copy(), last.copy()
        start[axis] = end[axis] = round(at * 16)
        cv2.line(target, start.tolist(), end.tolist(), 255, max(1, round(thickness)), cv2.LINE_AA, shift=4)

    for at in np.arange(rng.uniform(0, spacing), height, spacing):
        draw(at, 1, printed_lines)
    if squared:
        for at in np.arange(rng.uniform(0, spacing), width, spacing):
            draw(at, 0, printed_lines)
    sheet = written(sheet, printed_lines.astype(np.float32) / 255, colour)
    if not squared and rng.random() < 0.5:
        margin = np.zeros_like(printed_lines)
        draw(rng.uniform(0.02, 0.15) * width, 0, margin)
        sheet = written(sheet, margin.astype(np.float32) / 255, (220, 110, 120))
    return sheet


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


def held(picture: Array, rng: np.random.Generator, degrees: float, background: Array | None = None) -> Array:
    """Photographed from not quite above: turned and in perspective, on `background`, or up to the sheet's edges."""
    height, width = picture.shape[:2]
    target = (height, width) if background is None else background.shape[:2]
    centre = np.float32([target[1] / 2, target[0] / 2])
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    turn = np.deg2rad(rng.uniform(-degrees, degrees))
    rotation = np.float32([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    seen = (corners - [width / 2, height / 2]) @ rotation.T * (1.12 if background is None else 1) + centre
    seen += rng.uniform(-0.012, 0.012, (4, 2)) * [width, height]
    if background is not None:
        room = (np.float32(target[::-1]) - [width, height]) / 2
        seen += rng.uniform(-0.8, 0.8, 2) * room
    matrix = cv2.getPerspectiveTransform(corners, np.float32(seen))
    border = {"borderMode": cv2.BORDER_REPLICATE} if background is None else {"borderValue": 0}
    warped = cv2.warpPerspective(picture, matrix, target[::-1], flags=cv2.INTER_LINEAR, **border)
    if background is None:
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


def sheet_colour(rng: np.random.Generator) -> Array:
    return np.float32([235, 232, 225]) * rng.uniform(0.8, 1.05)


def ink_colour(rng: np.random.Generator) -> Sequence[int]:
    return [BLACK, BLACK, BLUE, PENCIL][rng.integers(4)]


def on_sheet(ink: Array, rng: np.random.Generator, *, ruling: str = "", shape: tuple[int, int] = (480, 640)) -> Array:
    """A sheet, blank or with lines, and the ink on it."""
    blank = paper(shape, sheet_colour(rng), rng)
    if ruling:
        # Of the digit's height: a school-book's line is about as high, a square may be a third.
        spacing = len(ink) * (rng.uniform(0.3, 0.6) if ruling == "squared" else rng.uniform(0.5, 1.2))
        blank = lines(blank, spacing, squared=ruling == "squared", rng=rng)
    return written(blank, placed(ink, shape, rng), ink_colour(rng))


def height(rng: np.random.Generator) -> int:
    return int(rng.integers(140, 300))


def plain(digit: Array, rng: np.random.Generator) -> Image.Image:
    return photographed(on_sheet(printed(digit, height(rng)), rng), rng)


def ruled(digit: Array, rng: np.random.Generator) -> Image.Image:
    return photographed(held(on_sheet(printed(digit, height(rng)), rng, ruling="ruled"), rng, 4), rng)


def squared(digit: Array, rng: np.random.Generator) -> Image.Image:
    return photographed(held(on_sheet(printed(digit, height(rng)), rng, ruling="squared"), rng, 4), rng)


def shaded(digit: Array, rng: np.random.Generator) -> Image.Image:
    return photographed(lit(on_sheet(printed(digit, height(rng)), rng), rng), rng)


def desk(digit: Array, rng: np.random.Generator) -> Image.Image:
    sheet = on_sheet(printed(digit, height(rng)), rng)
    room = tuple(round(length * rng.uniform(1.25, 1.8)) for length in sheet.shape[:2])
    return photographed(held(sheet, rng, 12, wood(room, rng)), rng)


def colour(digit: Array, rng: np.random.Generator) -> Image.Image:
    """Ink and paper of about equal lightness and far apart in hue."""
    hue, lightness = rng.uniform(0, 2 * np.pi), rng.uniform(45, 70)
    lab = [(lightness + rng.uniform(-3, 3), 38 * np.cos(turn), 38 * np.sin(turn)) for turn in (hue, hue + np.pi)]
    inks, sheet = cv2.cvtColor(np.float32([lab]), cv2.COLOR_LAB2RGB)[0].clip(0, 1) * 255
    shape = (480, 640)
    return photographed(written(paper(shape, sheet, rng), placed(printed(digit, height(rng)), shape, rng), inks), rng)


def polarity(digit: Array, rng: np.random.Generator) -> Image.Image:
    """Chalk on a board, white on a dark screen."""
    boards = [(30, 60, 45), (20, 20, 20), (0, 0, 0), (20, 40, 90)]
    shape = (480, 640)
    board = paper(shape, boards[rng.integers(4)], rng)
    return photographed(written(board, placed(printed(digit, height(rng)), shape, rng), WHITE), rng)


def place(digit: Array, rng: np.random.Generator) -> Image.Image:
    """A digit in a corner, and a large sheet."""
    shape = int(rng.integers(500, 1400)), int(rng.integers(500, 1400))
    canvas = np.zeros(shape, np.float32)
    ink = printed(digit, int(min(shape) * rng.uniform(0.15, 0.3)))
    top, left = (
        round(rng.choice([0.03, 0.97]) * (length - ink_length))
        for length, ink_length in zip(shape, ink.shape, strict=True)
    )
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return photographed(written(paper(shape, sheet_colour(rng), rng), canvas, ink_colour(rng)), rng)


def size(digit: Array, rng: np.random.Generator) -> Image.Image:
    """From a thumbnail of 40 pixels to a photograph of 2,000, the digit from a tenth to nine tenths of its height."""
    side = round(40 * 50 ** rng.random())
    share = rng.uniform(max(0.1, 16 / side), 0.85)
    shape = side, round(side * rng.uniform(1, 1.4))
    ink = placed(printed(digit, round(side * share)), shape, rng)
    return photographed(written(paper(shape, sheet_colour(rng), rng), ink, ink_colour(rng)), rng)


def off_middle(digit: Array, rng: np.random.Generator) -> Image.Image:
    """MNIST's own pixels in 28 x 28, out of the middle, white on black or black on white."""
    ink, canvas = cropped(digit), np.zeros((SIDE, SIDE), np.uint8)
    top, left = (int(rng.choice([0, SIDE - length])) for length in ink.shape)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return Image.fromarray(canvas if rng.random() < 0.5 else 255 - canvas)


def transparent(digit: Array, rng: np.random.Generator) -> Image.Image:
    """White or black strokes on nothing."""
    shape = (400, 400)
    alpha = placed(drawn(digit, 250, 24), shape, rng)
    layer = np.full((*shape, 4), rng.choice([0, 255]), np.uint8)
    layer[:, :, 3] = 255 * alpha
    return Image.fromarray(layer)


def pen(share: float) -> Callable[[Array, np.random.Generator], Image.Image]:
    """Drawn on a tablet, 500 pixels high, with a pen of that share of the height."""

    def draw(digit: Array, rng: np.random.Generator) -> Image.Image:
        canvas = placed(drawn(digit, 500, 500 * share), (700, 700), rng)
        return Image.fromarray((255 * (1 - canvas)).astype(np.uint8))

    return draw


def pen_on_paper(digit: Array, rng: np.random.Generator) -> Image.Image:
    """Written with a ballpoint or a felt pen on a sheet that lies on a desk, lined or not, in uneven light."""
    tall = height(rng)
    ink = drawn(digit, tall, max(2.5, tall * rng.uniform(0.02, 0.12)))
    sheet = on_sheet(ink, rng, ruling=str(rng.choice(["", "ruled", "squared"])))
    room = tuple(round(length * rng.uniform(1.25, 1.6)) for length in sheet.shape[:2])
    return photographed(lit(held(sheet, rng, 8, wood(room, rng)), rng), rng)


KINDS = {
    "plain": plain, "ruled": ruled, "squared": squared, "shaded": shaded, "desk": desk, "colour": colour,
    "polarity": polarity, "place": place, "size": size, "off_middle": off_middle, "transparent": transparent,
    "pen 1/5": pen(1 / 5), "pen 1/8": pen(1 / 8), "pen 1/20": pen(1 / 20), "pen 1/40": pen(1 / 40),
    "pen 1/80": pen(1 / 80), "pen on paper": pen_on_paper,
}  # fmt: skip


def side_by_side(images: Array, rng: np.random.Generator) -> Image.Image:
    """Two or three digits written next to each other."""
    tall = int(rng.integers(100, 140))
    inks = [printed(image, round(tall * rng.uniform(0.85, 1.15))) for image in images]
    return photographed(on_sheet(in_a_row(inks, round(tall * rng.uniform(0.12, 0.4))), rng), rng)


# --- What no one can tell ---------------------------------------------------------------------------------


def blank(rng: np.random.Generator) -> Image.Image:
    sheet = paper((480, 640), sheet_colour(rng), rng)
    ruling = rng.integers(3)
    if ruling:
        sheet = held(lines(sheet, rng.uniform(40, 150), squared=ruling == 2, rng=rng), rng, 4)
    return photographed(lit(sheet, rng), rng)


def scribble(rng: np.random.Generator) -> Image.Image:
    """A pen led across the whole sheet."""
    canvas = np.full((480, 640, 3), 255, np.uint8)
    points = (rng.uniform(0.03, 0.97, (int(rng.integers(25, 60)), 2)) * [640, 480]).astype(np.int32)
    cv2.polylines(canvas, [points], False, BLACK, int(rng.integers(3, 14)), cv2.LINE_AA)
    return Image.fromarray(canvas)


def blurred(digit: Array, rng: np.random.Generator) -> Image.Image:
    """So much out of focus that the digit is a spot."""
    tall = height(rng)
    sheet = on_sheet(printed(digit, tall), rng)
    return photographed(cv2.GaussianBlur(sheet, (0, 0), tall * rng.uniform(0.2, 0.3)), rng)


# --- The table --------------------------------------------------------------------------------------------


SEVERAL = "two or three digits"
NOTHING = {"blank": blank, "scribble": scribble}  # and "blurred", which is of digits


def pictures(kind: str, images: Array, numbers: Sequence[int]) -> Iterator[tuple[Image.Image, list[int]]]:
    """A picture of a kind for each of `numbers`, of that one of `images` (uint8 [N, 28, 28]), and the numbers of all
    digits in it.
    """
    for number in numbers:
        rng = np.random.default_rng([*kind.encode(), number])
        several = [(number + step) % len(images) for step in range(rng.integers(2, 4) if kind == SEVERAL else 1)]
        if kind == SEVERAL:
            yield side_by_side(images[several], rng), several
        elif kind in NOTHING:
            yield NOTHING[kind](rng), []
        else:
            yield (blurred if kind == "blurred" else KINDS[kind])(images[number], rng), several


def tried(kind: str, net: nn.Module, test: Examples, numbers: Sequence[int]) -> tuple[int, int]:
    """How many pictures of a kind are wrongly classified by goodness, and how many are refused."""
    images, found, there, refused = test.images.view(-1, SIDE, SIDE).numpy(), [], [], 0
    for picture, digit_numbers in pictures(kind, images, numbers):
        try:
            found.append(digits(picture))
            there.append(digit_numbers)
        except DataError:
            refused += 1

    if not found:
        return 0, refused
    pixels = torch.stack([digit.pixels for of_picture in found for digit in of_picture]).flatten(1)
    chosen = iter(scores_for(net, pixels, 1000)["goodness"].argmax(dim=1).tolist())
    labels = [test.labels[of_picture].tolist() for of_picture in there]
    return sum([next(chosen) for _ in ours] != theirs for ours, theirs in zip(found, labels, strict=True)), refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data-root", help="where the data are, if no longer where the run found them")
    parser.add_argument("--first", type=int, default=3000, help="the first test digit")
    parser.add_argument("--count", type=int, default=500, help="pictures of each kind")
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, SEVERAL, "blurred", *NOTHING], metavar="KIND")
    arguments = parser.parse_args()
    with one_line_errors():
        config, net = load_saved(arguments.folder), load_trained(arguments.folder, device="cpu")
        test = load_test(config.dataset, arguments.data_root or config.data.root, "cpu")
        numbers = range(arguments.first, arguments.first + arguments.count)
        print("| kind of picture | wrong (%) | refused (%) |\n| --- | --- | --- |")
        for kind in arguments.kinds:
            wrong, refused = tried(kind, net, test, numbers)
            print(f"| {kind} | {100 * wrong / len(numbers):.1f} | {100 * refused / len(numbers):.1f} |", flush=True)


if __name__ == "__main__":
    main()
