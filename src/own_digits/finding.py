"""Handwritten digits found in photographs and drawings, made what MNIST's authors made of theirs
(https://yann.lecun.com/exdb/mnist/).

OpenCV does the work. It is imported here alone, and nothing that trains imports this module.
"""

import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
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

Array = np.ndarray  # pictures are uint8 [H, W, 3], ink is float32 [H, W], masks are uint8 [H, W] of 0 and 1

# MNIST's digits
SIDE = 28  # pixels
BOX = 20  # pixels: the longer side of the ink
CENTRE = 14  # row and column of the centre of mass, to half a pixel
STROKE = 0.135  # the mean width of a stroke, as a part of the longer side
WIDEST = 1.5  # times its height: 0.35 % of the training set are wider

# What is looked for in a picture
Image.MAX_IMAGE_PIXELS = 125_000_000  # Pillow refuses twice as many; telephones have up to 200 million
SHOWN, LARGE, SMALL = 2000, 1000, 200  # pixels: longest side of the picture, of what ink and paper are looked for in
DETAIL = 160  # pixels: longest side of a digit whose strokes are made thicker or thinner
STEP = 28  # of lightness and colour, in 256ths: the edge of a sheet
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

    Raises DataError if there is no picture, or it cannot be read.
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
    """The digits in an upright `image`, line by line from left to right.

    Args:
        single: there is one digit, in however many parts.

    Raises DataError if nothing can be told; the message says why.
    """
    picture = np.rint(255 * coloured(image)).astype(np.uint8)
    height, width = picture.shape[:2]
    if (height, width) == (SIDE, SIDE) and (digit := of_mnist(picture)):
        return [digit]
    if min(height, width) < max(12, max(height, width) / 20):
        raise DataError(f"a picture of {width} x {height} pixels is too small or too narrow for a digit")
    sheet, back = sheet_of(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB))
    ink = contrast(sheet)
    mask = (ink > max(FAINT, 5 * np.median(ink), 0.12 * ink.max())).astype(np.uint8)
    mask = without_lines(mask, ink)
    if mask.sum() < 10:
        raise DataError(NO_INK)
    level, _ = cv2.threshold(ink[mask > 0].clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    parts = apart(uncut(mask * (ink > 0.9 * level)), single=single)
    found = [Digit(as_mnist(ink, part), box_of(cv2.perspectiveTransform(corners_of(part), back))) for part in parts]
    found.sort(key=lambda digit: digit.box[1] + digit.box[3])
    lines = np.cumsum([0, *(digit.box[1] + digit.box[3] > 2 * above.box[3] for above, digit in pairwise(found))])
    return [found[n] for n in sorted(range(len(found)), key=lambda n: (lines[n], found[n].box))]


def coloured(image: Image.Image) -> Array:
    """RGB from 0 to 1 (float32 [H, W, 3]); what is transparent is black if the rest is rather bright, else white."""
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float32)
        bits = max(1, np.ceil(np.log2(grey.max() + 1)))  # of whatever depth, or numbers in [0, 1]
        grey = (grey / (2**bits - 1)).clip(0, 1)
        return np.repeat(grey[:, :, None], 3, axis=2)
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    rgb, alpha = pixels[:, :, :3], pixels[:, :, 3:]
    bright = (rgb * alpha).sum() > 0.5 * 3 * alpha.sum()
    return rgb * alpha + (1 - alpha) * (not bright)


def of_mnist(picture: Array) -> Digit | None:
    """A picture of MNIST's size, if it is in MNIST's manner: a digit of MNIST's size, edges all black or all white."""
    grey = picture.mean(axis=2)
    edge = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    ink = np.rint(np.abs(grey - edge))
    left, top, right, bottom = box_of((ink > 0).astype(np.uint8))
    if edge not in (0, 255) or max(right - left, bottom - top) not in (BOX - 1, BOX):  # 19 in one of the test set
        return None
    off_centre = np.abs(np.subtract(center_of_mass(ink), CENTRE)).max()
    pixels = torch.from_numpy(ink.astype(np.uint8)) if off_centre < 1 else centred(ink[top:bottom, left:right])
    return Digit(pixels, (left, top, right, bottom))


# --- Small helpers ----------------------------------------------------------------------------------------


def resized(picture: Array, longest: int) -> Array:
    """`picture` ([H, W, ...]) with a longest side of `longest` pixels."""
    scale = longest / max(picture.shape[:2])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def disc(diameter: float) -> Array:
    """A structuring element with an odd diameter in pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * round(diameter / 2) + 1] * 2)


def box_of(mask: Array) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask, or of points (float32 [1, N, 2])."""
    left, top, width, height = cv2.boundingRect(mask)
    return left, top, left + width, top + height


def corners_of(mask: Array) -> Array:
    """Of the box around what is in `mask`, clockwise from the upper left one (float32 [1, 4, 2])."""
    left, top, right, bottom = box_of(mask)
    return np.float32([[(left, top), (right, top), (right, bottom), (left, bottom)]])


# --- The sheet and the ink --------------------------------------------------------------------------------


def sheet_of(lab: Array) -> tuple[Array, Array]:
    """The sheet of paper, cut out and turned upright, and the matrix [2, 3] that leads back into the picture (of Lab in
    8 bits).

    The sheet is the largest even and convex area that surrounds none of another colour; beside it lies the desk.
    """
    small = resized(lab, SMALL)
    even = cv2.medianBlur(small, 15)  # without strokes and lines
    edges = cv2.morphologyEx(even, cv2.MORPH_GRADIENT, disc(3)).sum(axis=2) > STEP
    smooth = cv2.erode((~edges).astype(np.uint8), disc(7))
    _, areas = cv2.connectedComponents(smooth, connectivity=4)
    wide = cv2.distanceTransform(smooth, cv2.DIST_L2, 5) > 0.13 * min(smooth.shape)  # than strokes
    candidates = []  # each area, its colour, the four corners around it, what lies within them
    for n in np.unique(areas[wide]):
        area = areas == n
        spread = cv2.dilate(area.astype(np.uint8), disc(4))  # back to the edges
        (outline, *_), _ = cv2.findContours(spread, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if cv2.contourArea(outline) > 0.6 * cv2.contourArea(cv2.convexHull(outline)):
            corners = cv2.approxPolyN(outline, 4)[0]
            within = cv2.fillConvexPoly(np.zeros_like(smooth), np.rint(corners).astype(np.int32), 1)
            candidates.append((area, np.median(even[area], axis=0), corners, within))
    sheets = [
        (within.sum(), corners)
        for _, colour, corners, within in candidates
        if not any(np.abs(its - colour).max() > 25 and within[area].mean() > 0.35 for area, its, _, _ in candidates)
    ]
    _, corners = max(sheets, key=lambda sheet: sheet[0], default=(0, corners_of(np.ones_like(smooth))[0]))
    x, y = (corners - corners.mean(axis=0)).T
    corners = np.float32(corners[np.arctan2(y, x).argsort()]) * (max(lab.shape) / SMALL)
    size = np.array([np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])])
    width, height = np.rint(size * min(1, LARGE / size.max())).astype(int).tolist()
    back = cv2.getPerspectiveTransform(np.float32([(0, 0), (width, 0), (width, height), (0, height)]), corners)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(lab, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE), back


def contrast(sheet: Array) -> Array:
    """How far each pixel's colour is from that of the paper around it (CIE76; of Lab in 8 bits)."""
    small = resized(sheet, SMALL)
    side = min(small.shape[:2])
    near, far = (cv2.medianBlur(small, min(int(share * side) | 1, 255)).astype(np.float32) for share in (0.4, 0.9))
    # Near by is better in uneven light; but where a bold digit is most of what is near, that is not the paper.
    bold = np.abs(near - far).sum(axis=2, keepdims=True)
    bold = bold > 0.35 * np.percentile(np.abs(small - far).sum(axis=2), 99)
    paper = cv2.resize(np.where(bold, far, near), sheet.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.linalg.norm((sheet - paper) * np.float32([1 / 2.55, 1, 1]), axis=2)


def without_lines(mask: Array, ink: Array) -> Array:
    """`mask` without the lines printed across the whole sheet; strokes that cross a line stay whole."""
    height, width = mask.shape
    side = min(height, width)
    thin = mask & ~cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(side / 20))
    straight = cv2.HoughLines(thin, 1, np.pi / 720, int(0.4 * side))
    depth = cv2.dilate(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.ones((3, 3)))
    lines, thickness = np.zeros_like(mask), 0.0
    for rho, theta in [] if straight is None else straight[:400, 0]:
        cos, sin = np.cos(theta), np.sin(theta)
        beyond = [(round(rho * cos - far * sin), round(rho * sin + far * cos)) for far in (-2 * LARGE, 2 * LARGE)]
        _, start, end = cv2.clipLine((0, 0, width, height), *beyond)
        x, y = np.linspace(start, end, LARGE).round().astype(int).T
        along = depth[y, x]
        whole = along[:15].any() and along[-15:].any() and (along > 0).mean() > 0.75
        if whole and (half := np.median(along)) < side / 40:
            printed = ink[y, x] < 1.5 * np.median(ink[y, x])  # else there is ink on it
            lines[y[printed], x[printed]] = 1
            thickness = max(thickness, 2 * half)
    if not thickness:
        return mask
    strokes = mask & ~cv2.dilate(lines, disc(thickness + 2))
    strokes = mask & cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, disc(3 * thickness))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(strokes)
    remains = np.flatnonzero(stats[:, 2:4].min(axis=1) <= 3 * thickness)  # of lines: hardly thicker than they were
    return strokes * ~np.isin(parts, remains)


def uncut(mask: Array) -> Array:
    """Of `mask`, what does not touch the sheet's edge: no desk, no end of a line.

    Raises DataError if that is less than what does.
    """
    _, parts = cv2.connectedComponents(mask)
    whole = mask * ~np.isin(parts, np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    if 2 * whole.sum() <= mask.sum():
        raise DataError("the ink runs off the sheet; leave paper around the digit")
    return whole


# --- Digits -----------------------------------------------------------------------------------------------


def apart(mask: Array, *, single: bool) -> list[Array]:
    """A mask for each digit, or for the `single` one.

    Raises DataError if much of the ink makes no digit, or there are too many.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    length = int(stats[1:, 2:4].max())  # of the largest part, in pixels
    _, parts, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(mask, disc(0.05 * length)))  # over a pen's gaps
    large = np.flatnonzero(stats[:, 2:4].max(axis=1) > 0.15 * length)[1:]  # the rest is dust
    if single:
        return [mask * np.isin(parts, large)]
    # Parts of one digit are above one another.
    boxes, near = np.zeros_like(mask), int(0.05 * length)
    for left, top, width, height in stats[large, :4]:
        inset = width // 8
        boxes[max(0, top - near) : top + height + near, left + inset : left + width - inset] = 1
    _, groups = cv2.connectedComponents(boxes)
    lefts, tops, widths, heights = stats[large, :4].T
    of_part = groups[tops + heights // 2, lefts + widths // 2]
    masks = [mask * np.isin(parts, large[of_part == n]) for n in np.unique(of_part)]
    whole = [each for each in masks if max(cv2.boundingRect(each)[2:]) > 0.35 * length]
    if len(whole) > MOST:
        raise DataError(f"there are {len(whole)} things that may be digits; {MOST} at most are looked at")
    if np.sum(whole) < 0.85 * mask.sum():
        raise DataError("there are strokes that make no digit")
    return whole


def as_mnist(ink: Array, mask: Array) -> Tensor:
    """The digit in `mask` as MNIST has it (uint8 [28, 28]): strokes of MNIST's mean width, 20 pixels long, centred.

    Args:
        ink: each pixel's contrast to the paper.

    Raises DataError if that is no digit.
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
    _, _, holes, _ = cv2.connectedComponentsWithStats(1 - strokes, connectivity=4)
    if (holes[1:, cv2.CC_STAT_AREA] > 20).sum() > 1 + 3:  # an 8 has two, and there is the paper around it
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
    corner = [
        min(max(round(CENTRE - centre), 0), SIDE - length)
        for centre, length in zip(center_of_mass(digit), digit.shape, strict=True)
    ]
    (top, left), (height, width) = corner, digit.shape
    canvas[top : top + height, left : left + width] = np.rint(digit)
    return torch.from_numpy(canvas)
