"""Pictures of handwritten digits, made what MNIST's authors made of theirs (https://yann.lecun.com/exdb/mnist/)."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from src.config.values import SIDE
from src.datasets.idx import DataError

BOX = 20  # pixels: the longer side of a digit in MNIST
CENTRE = 14  # row and column of a digit's centre of mass in MNIST, to half a pixel
LONGEST_SIDE = 1000  # pixels of what is looked at; a larger photo only brings more noise
FAINT = 0.1  # of the strongest ink: below this, JPEG's ripples
NOISE = 8  # median deviations of the border, 5.4 standard deviations of Gaussian noise: one pixel in 10^7 has more


def upright(image: Image.Image) -> Image.Image:
    """A copy on white, turned as its EXIF data say: RGB, or if it had 16 bits, floats of 0..255 (mode F)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32)
        return Image.fromarray(grey / 257 if grey.max() > 255 else grey)  # 65,535 becomes 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def as_mnist(image: Image.Image) -> Tensor:
    """The one digit in `image`, as MNIST has it: bright ink on black (uint8 [28, 28]).

    The ink's box is scaled to `BOX` pixels, and its centre of mass put into the middle; a 28 x 28 image on black stays
    as it is.

    Raises:
        DataError: nothing stands out from the background.
    """
    grey = upright(image)
    grey = grey if grey.mode == "F" else grey.convert("L")
    grey.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    levels = torch.from_numpy(np.array(grey, dtype=np.float32))  # [H, W], 0..255
    ink = ink_of(levels)
    if grey.size == (SIDE, SIDE) and edges(levels).median() == 0:
        return levels.round().to(torch.uint8)
    (top, bottom), (left, right) = extent(ink.sum(dim=1)), extent(ink.sum(dim=0))
    ink = ink[top:bottom, left:right]
    height, width = (max(1, round(BOX * length / max(ink.shape))) for length in ink.shape)
    digit = Image.fromarray(ink.numpy()).resize((width, height), Image.Resampling.BOX)
    return centred(torch.from_numpy(np.array(digit)))


def edges(levels: Tensor) -> Tensor:
    """The outermost pixels ([H, W] -> [N])."""
    return torch.cat([levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]])


def ink_of(levels: Tensor) -> Tensor:
    """How much ink each pixel has (grey levels [H, W] -> [H, W] from 0, the background, to 1, the strongest ink).

    Light that fades evenly from one edge to the opposite one is made up for. The background is then the median of the
    outermost pixels, and the ink is dark where that is nearer to the brightest pixel than to the darkest. A pixel is
    background if it differs by less than `FAINT` of what the strongest ink does, or by less than `NOISE` times what
    the outermost pixels typically do (by half of the strongest ink at most).
    """
    contrast = levels.max() - levels.min()
    for axis, length in enumerate(levels.shape):
        fading = levels.select(axis, -1).median() - levels.select(axis, 0).median()
        if abs(fading) < contrast / 2:  # else it is ink along an edge
            ramp = fading * torch.linspace(-0.5, 0.5, length)
            levels = levels - (ramp if axis else ramp[:, None])
    border = edges(levels)
    differences = levels - border.median()
    if -differences.min() > differences.max():
        differences = -differences
    strongest, noise = differences.max(), NOISE * (border - border.median()).abs().median()
    if strongest <= max(noise, 1):
        raise DataError("no digit stands out from the background; best is dark ink amid evenly lit white paper")
    ink = differences / strongest
    return ink.where(ink >= max(FAINT, min(noise / strongest, 0.5)), 0)


def extent(profile: Tensor) -> tuple[int, int]:
    """First and one past the last entry of `profile` ([N], not all 0) that holds more than a speck of ink."""
    inked = (profile > 0.001 * profile.sum()).nonzero()
    return int(inked[0]), int(inked[-1]) + 1


def centred(digit: Tensor) -> Tensor:
    """`digit` (at most [28, 28], any scale) with its brightest pixel 255, in the middle of uint8 [28, 28]."""
    canvas = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    corner = []
    for axis, length in enumerate(digit.shape):
        mass = digit.sum(dim=1 - axis)
        centre = (mass * torch.arange(length)).sum() / mass.sum()
        corner.append(min(max(round(CENTRE - centre.item()), 0), SIDE - length))
    (top, left), (height, width) = corner, digit.shape
    canvas[top : top + height, left : left + width] = (255 * digit / digit.max()).round().to(torch.uint8)
    return canvas


def read(path: Path) -> tuple[Image.Image, Tensor]:
    """The picture at `path` for people (at most 400 x 400 pixels) and for the net (uint8 [28, 28]).

    Raises:
        DataError: there is no picture, it cannot be read, or there is no digit in it.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'there is no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
            pixels = as_mnist(image)
            original = upright(image)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # what damaged bytes raise in Pillow is not documented
        raise DataError(f"{path}: cannot be read; a PNG or JPEG file of one digit is needed ({error})") from error
    original.thumbnail((400, 400))
    return original, pixels
