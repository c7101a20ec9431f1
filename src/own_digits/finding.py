"""Handwritten digits found in photographs and drawings, made what MNIST's authors made of theirs
(https://yann.lecun.com/exdb/mnist/).

OpenCV does the work. It is imported here alone, and nothing that trains imports this module.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import center_of_mass
from torch import Tensor

from src.datasets.idx import DataError

try:
    import cv2
except ImportError as error:
    sys.exit(f"error: finding digits in pictures needs OpenCV: pip install -r requirements-demo.txt ({error})")

Array = np.ndarray  # masks are uint8 [H, W] of 0 and 1

# MNIST's digits
SIDE = 28  # pixels
BOX = 20  # pixels: the longer side
CENTRE = 14  # row and column of the centre of mass, to half a pixel
STROKE = 0.135  # the mean width of a stroke, as a part of the longer side
WIDEST = 1.5  # times its height: 0.35 % of the training set are wider

# What is looked for in a picture
Image.MAX_IMAGE_PIXELS = 125_000_000  # Pillow refuses twice as many; telephones have up to 200 million
SHOWN, LARGE, SMALL = 2000, 1000, 200  # pixels: longest side of the picture, of what ink and paper are looked for in
DETAIL = 160  # pixels: longest side of a digit whose strokes are made thicker or thinner
STEP = 28  # of lightness and colour, in 256ths: the edge of a sheet
LAB_SCALE = np.float32([2.55, 1, 1])  # of OpenCV's Lab in bytes
FAINT = 8  # CIE76 difference of colours: less is the paper's grain
NO_INK = "no digit stands out from the background"
MOST = 30  # digits in one picture; more are a page of text


@dataclass(frozen=True)
class Digit:
    """A digit as MNIST has it, bright ink on black (uint8 [28, 28]), and its box in the upright picture (left, top,
    right, bottom in pixels).
    """

    pixels: Tensor
    box: tuple[int, int, int, int]


# --- From a file to digits --------------------------------------------------------------------------------


def read(path: Path) -> Image.Image:
    """The picture at `path`, upright, scaled down to at most 2,000 x 2,000 pixels.

    Raises:
        DataError: there is no picture, or it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.draft("RGB", (SHOWN, SHOWN))  # a JPEG is decoded at a half, a quarter or an eighth, if need be
                image.load()
            image = ImageOps.exif_transpose(image)
            if max(image.size) > SHOWN:
                image = image.convert("RGBA") if image.mode in ("1", "P", "PA") else image
                image.thumbnail((SHOWN, SHOWN), Image.Resampling.BOX)
    except Exception as error:  # what damaged bytes raise in Pillow is not documented
        raise DataError(f"{path}: cannot be read; a picture such as a PNG or JPEG is needed ({error})") from error
    return image


def digits(image: Image.Image, *, single: bool = False) -> list[Digit]:
    """The digits in `image`, line by line from left to right.

    Args:
        single: there is one digit, in however many parts.

    Raises:
        DataError: nothing can be told; the message says why.
    """
    colours = coloured(ImageOps.exif_transpose(image))
    if colours.shape[:2] == (SIDE, SIDE) and (digit := of_mnist(colours)):
        return [digit]
    height, width = colours.shape[:2]
    if min(height, width) < max(12, max(height, width) / 20):
        raise DataError(f"a picture of {width} x {height} pixels is too small or too narrow for a digit")
    scale = min(1.0, LARGE / max(height, width))
    ink, sheet = ink_of(np.rint(255 * (resized(colours, LARGE) if scale < 1 else colours)).astype(np.uint8))
    grain = np.median(ink[sheet > 0])
    mask = without_lines((ink > max(FAINT, 5 * grain, 0.12 * ink.max())).astype(np.uint8), sheet)
    if mask.sum() < 10:
        raise DataError(NO_INK)
    inner = mask * inner_part(sheet, 0.04)  # without slivers of the desk
    mask *= ink > 0.9 * otsu(ink[(inner if inner.any() else mask) > 0])
    parts = apart(inside(mask, sheet), single=single)
    return in_reading_order(
        [Digit(as_mnist(ink, part), tuple(round(edge / scale) for edge in box_of(part))) for part in parts]
    )


def coloured(image: Image.Image) -> Array:
    """RGB from 0 to 1 (float32 [H, W, 3]); what is transparent is black if the rest is rather bright, else white."""
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float32)
        grey = (grey / (255 if grey.max() <= 255 else 65_535)).clip(0, 1)
        return np.repeat(grey[:, :, None], 3, axis=2)
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    rgb, alpha = pixels[:, :, :3], pixels[:, :, 3:]
    bright = (rgb * alpha).sum() > 0.5 * 3 * alpha.sum()
    return rgb * alpha + (1 - alpha) * (not bright)


def of_mnist(colours: Array) -> Digit | None:
    """A picture of MNIST's size, if it is in MNIST's manner: a digit of MNIST's size, edges all black or all white."""
    grey = np.rint(255 * colours.mean(axis=2))
    edge = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    ink = np.abs(grey - edge)
    if edge not in (0, 255) or not ink.any():
        return None
    left, top, right, bottom = box_of((ink > 0).astype(np.uint8))
    if max(right - left, bottom - top) not in (BOX - 1, BOX):  # 19 in one image of the test set
        return None
    off_centre = np.abs(np.subtract(center_of_mass(ink), CENTRE)).max()
    pixels = torch.from_numpy(ink.astype(np.uint8)) if off_centre < 1 else centred(ink[top:bottom, left:right])
    return Digit(pixels, (left, top, right, bottom))


def in_reading_order(found: list[Digit]) -> list[Digit]:
    """Lines from top to bottom, each from left to right."""
    lines: list[list[Digit]] = [[]]
    for digit in sorted(found, key=lambda digit: digit.box[1] + digit.box[3]):
        if lines[-1] and (digit.box[1] + digit.box[3]) / 2 > lines[-1][0].box[3]:
            lines.append([])
        lines[-1].append(digit)
    return [digit for line in lines for digit in sorted(line, key=lambda digit: digit.box)]


# --- Small helpers ----------------------------------------------------------------------------------------


def resized(picture: Array, longest: int) -> Array:
    """`picture` ([H, W, ...]) with a longest side of `longest` pixels."""
    scale = longest / max(picture.shape[:2])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def disc(diameter: float) -> Array:
    """A structuring element with an odd diameter in pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * round(diameter / 2) + 1] * 2)


def otsu(values: Array) -> float:
    """The level that parts `values` ([N], positive) best into low and high ones."""
    level, _ = cv2.threshold((255 * values / values.max()).astype(np.uint8)[None], 0, 255, cv2.THRESH_OTSU)
    return level * values.max() / 255


def box_of(mask: Array) -> tuple[int, int, int, int]:
    """Left, top, right and bottom."""
    left, top, width, height = cv2.boundingRect(mask)
    return left, top, left + width, top + height


# --- The sheet and the ink --------------------------------------------------------------------------------


def ink_of(rgb: Array) -> tuple[Array, Array]:
    """How far each pixel's colour is from that of the paper around it (uint8 [H, W, 3] -> float32 [H, W], CIE76), and a
    mask of the sheet.
    """
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    small = resized(lab, SMALL)
    sheet = sheet_of(small)
    filled = cv2.inpaint(small, 1 - sheet, 3, cv2.INPAINT_TELEA)  # what is beside the sheet looks like its edge
    side = min(cv2.boundingRect(sheet)[2:])
    near, far = (cv2.medianBlur(filled, min(int(share * side) | 1, 255)).astype(np.float32) for share in (0.4, 0.9))
    # Near by is better in uneven light; but where a bold digit is most of what is near, that is not the paper.
    bold = np.abs(near - far).sum(axis=2, keepdims=True)
    bold = bold > 0.35 * np.percentile(np.abs(filled - far).sum(axis=2), 99)
    paper = cv2.resize(np.where(bold, far, near), lab.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    sheet = cv2.resize(sheet, lab.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.linalg.norm((lab - paper) / LAB_SCALE, axis=2) * sheet, sheet


def sheet_of(lab: Array) -> Array:
    """A mask of the paper, a little inside its edges (of Lab in 8 bits [h, w, 3]).

    The sheet is the largest even and convex area that surrounds none of another colour; beside it lies the desk.
    """
    even = cv2.medianBlur(lab, 15)  # without strokes and lines
    edges = cv2.morphologyEx(even, cv2.MORPH_GRADIENT, disc(3)).sum(axis=2) > STEP
    smooth = cv2.erode((~edges).astype(np.uint8), disc(7))
    _, areas = cv2.connectedComponents(smooth, connectivity=4)
    depth = cv2.distanceTransform(np.pad(smooth, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    candidates = []  # each area, the rectangle around it, its colour
    for n in np.unique(areas[depth > 0.13 * min(smooth.shape)]):  # wider than strokes
        area = (areas == n).astype(np.uint8)
        (outline, *_), _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if cv2.contourArea(outline) > 0.6 * cv2.contourArea(cv2.convexHull(outline)):
            corners = np.rint(cv2.boxPoints(cv2.minAreaRect(outline))).astype(np.int32)
            rectangle = cv2.fillConvexPoly(np.zeros_like(smooth), corners, 1)
            candidates.append((area > 0, rectangle, np.median(even[area > 0], axis=0)))
    sheets = [
        rectangle
        for _, rectangle, colour in candidates
        if not any(np.abs(other - colour).max() > 25 and rectangle[area].mean() > 0.5 for area, _, other in candidates)
    ]
    return max(sheets, key=np.sum, default=np.ones_like(smooth))


def without_lines(mask: Array, sheet: Array) -> Array:
    """`mask` without the lines printed across the sheet; strokes that cross a line stay whole."""
    side = min(cv2.boundingRect(sheet)[2:])
    thin = mask & ~cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(side / 20))
    straight = cv2.HoughLines(thin, 1, np.pi / 360, int(0.4 * side))
    if straight is None:
        return mask
    # Turned so that most of what is straight runs along the rows or the columns.
    angle = float(np.median((np.rad2deg(straight[:20, 0, 1]) + 45) % 90 - 45))
    height, width = mask.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    cos, sin = np.abs(turn[0, :2])
    size = round(width * cos + height * sin), round(width * sin + height * cos)
    turn[:, 2] += [(size[0] - width) / 2, (size[1] - height) / 2]
    turned, paper = (cv2.warpAffine(of, turn, size, flags=cv2.INTER_NEAREST) for of in (mask, sheet))
    rows = rows_of(turned, paper)
    columns = np.ascontiguousarray(rows_of(np.ascontiguousarray(turned.T), np.ascontiguousarray(paper.T)).T)
    if not (rows.any() or columns.any()):
        return mask
    longer = int(2 * max(1, thickness(rows), thickness(columns.T))) + 1  # than a line is thick
    across_rows = cv2.morphologyEx(turned & ~columns, cv2.MORPH_OPEN, np.ones((longer, 1), np.uint8))
    across_columns = cv2.morphologyEx(turned & ~rows, cv2.MORPH_OPEN, np.ones((1, longer), np.uint8))
    strokes = turned & ~(rows | columns) | rows & across_rows | columns & across_columns
    strokes = turned & cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, disc(longer / 2))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(strokes)
    remains = np.flatnonzero(stats[:, 2:4].min(axis=1) <= 1.5 * longer)  # of lines: hardly thicker than they were
    strokes[np.isin(parts, remains)] = 0
    return cv2.warpAffine(strokes, cv2.invertAffineTransform(turn), (width, height), flags=cv2.INTER_NEAREST)


def rows_of(mask: Array, sheet: Array) -> Array:
    """Of `mask`, the lines that run along its rows, nearly straight, from one side of the sheet to the other."""
    width = cv2.boundingRect(sheet)[2]
    runs = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((1, max(12, width // 40)), np.uint8))
    joined = cv2.dilate(runs, np.ones((3, width // 12 + 1), np.uint8))
    _, parts = cv2.connectedComponents(joined)
    at_edge = parts * (inner_part(sheet, 0.01) == 0)
    runs[~np.isin(parts, np.intersect1d(*np.array_split(at_edge, 2, axis=1))) | (parts == 0)] = 0
    met = crossings(runs)
    if (np.abs(met - np.median(met)) <= 1).mean() < 0.5:  # printed lines are as many everywhere
        return np.zeros_like(mask)
    # Where a line is thicker, there is ink on it.
    return runs & ~cv2.morphologyEx(runs, cv2.MORPH_OPEN, np.ones((int(1.7 * thickness(runs)) + 2, 1), np.uint8))


def crossings(rows: Array) -> Array:
    """How many lines each column meets ([H, W] -> [W])."""
    return ((rows[1:] > 0) & (rows[:-1] == 0)).sum(axis=0) + (rows[0] > 0)


def thickness(rows: Array) -> float:
    """How thick lines along the rows typically are, in pixels (0 without lines)."""
    met = crossings(rows)
    return float(np.median(rows.sum(axis=0)[met > 0] / met[met > 0])) if met.any() else 0.0


def inner_part(sheet: Array, margin: float) -> Array:
    """`sheet` without its edge, as wide as that part of the picture's longer side (and a pixel at least)."""
    width = 2 * max(1, round(margin * max(sheet.shape))) + 1
    return cv2.erode(np.pad(sheet, 1), np.ones((width, width), np.uint8))[1:-1, 1:-1]


def inside(mask: Array, sheet: Array) -> Array:
    """Of `mask`, what does not touch the sheet's edge: no desk, no end of a line.

    Raises:
        DataError: that is less than what does.
    """
    _, parts = cv2.connectedComponents(mask)
    cut = mask * np.isin(parts, np.unique(parts[inner_part(sheet, 0.001) == 0]))
    if (mask - cut).sum() <= (cut * inner_part(sheet, 0.04)).sum():
        raise DataError("the ink runs off the sheet; leave paper around the digit")
    return mask - cut


# --- Digits -----------------------------------------------------------------------------------------------


def apart(mask: Array, *, single: bool) -> list[Array]:
    """A mask for each digit, or for the `single` one.

    Raises:
        DataError: much of the ink makes no digit, or there are too many.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    length = int(stats[1:, 2:4].max())  # of the largest part, in pixels
    gaps = disc(0.05 * length)  # that a pen leaves in a stroke
    closed = cv2.morphologyEx(np.pad(mask, length), cv2.MORPH_CLOSE, gaps)[length:-length, length:-length]
    _, parts, stats, _ = cv2.connectedComponentsWithStats(closed)
    large = 1 + np.flatnonzero(stats[1:, 2:4].max(axis=1) > 0.1 * length)  # the rest is dust
    closed = np.isin(parts, large).astype(np.uint8)
    if single:
        return [mask * closed]
    # What lies above one another is of one digit.
    joined = cv2.dilate(closed, np.ones((int(0.15 * length) | 1, 1), np.uint8))
    count, parts = cv2.connectedComponents(joined)
    masks = [mask * closed * (parts == n) for n in range(1, count)]
    masks = [part for part in masks if max(cv2.boundingRect(part)[2:]) > 0.35 * length]
    if len(masks) > MOST:
        raise DataError(f"there are {len(masks)} things that may be digits; {MOST} at most are looked at")
    if np.sum(masks) < 0.85 * mask.sum():
        raise DataError("there are strokes that make no digit")
    return masks


def as_mnist(ink: Array, mask: Array) -> Tensor:
    """The digit in `mask` as MNIST has it (uint8 [28, 28]): strokes of MNIST's mean width, 20 pixels long, centred.

    Args:
        ink: each pixel's contrast to the paper ([H, W]).

    Raises:
        DataError: that is no digit.
    """
    left, top, right, bottom = box_of(mask)
    if right - left > WIDEST * (bottom - top):
        raise DataError("there is something wider than a digit; are there two that touch?")
    level = np.percentile(ink[mask > 0], 75)
    crop = np.s_[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2]
    grey = (ink * cv2.dilate(mask, disc(3)))[crop] / level
    strokes = (np.pad(resized(np.pad(grey.clip(0, 1), 1), DETAIL), DETAIL // 4) > 0.5).astype(np.uint8)
    if level < 2.4 * FAINT or not strokes.any():
        raise DataError(NO_INK)
    outlines, (links,) = cv2.findContours(strokes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = sum(cv2.contourArea(outline) > 20 for outline, link in zip(outlines, links, strict=True) if link[3] >= 0)
    if holes > 3:  # an 8 has two
        raise DataError("there is a scribble, not a digit")
    # How far inside the ink a pixel lies, or outside: in a stroke, a quarter of its width on average.
    depth = cv2.distanceTransform(strokes, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - strokes, cv2.DIST_L2, 5)
    width, length = 4 * (depth[strokes > 0].mean() - 0.5), max(cv2.boundingRect(strokes)[2:])
    wider = (STROKE * length - width) / (2 * (1 - STROKE))  # on either side; what grows gets longer, too
    digit = (depth + wider).clip(0, 1)
    if width > 0.45 * length or not (digit > 0.5).any():
        raise DataError("there is a spot, not a stroke")
    left, top, right, bottom = box_of((digit > 0.5).astype(np.uint8))
    digit = resized(digit[top:bottom, left:right], BOX)
    return centred(255 * digit / digit.max())


def centred(digit: Array) -> Tensor:
    """`digit` (at most [28, 28], of 0 to 255) in the middle of uint8 [28, 28]."""
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    height, width = digit.shape
    top, left = (round(CENTRE - centre) for centre in center_of_mass(digit))
    top, left = min(max(top, 0), SIDE - height), min(max(left, 0), SIDE - width)
    canvas[top : top + height, left : left + width] = np.rint(digit)
    return torch.from_numpy(canvas)
