"""Masks of large regions of ones and zeros, of which hybrid images are made (section 3.2)."""

from functools import cache

import torch
from torch import Tensor

from src.layers.fields import Map


@cache
def blurring(side: int, blurs: int, device: torch.device) -> Tensor:
    """`blurs` times [1/4, 1/2, 1/4] along an axis of `side` pixels, as one matrix ([side, side]).

    At an edge the outermost pixel stands in for the one beyond it. In fp32, as some GPUs know no float64: multiples of
    4^-`blurs`, so that with up to six blurs along each axis bits are blurred exactly.
    """
    once = torch.eye(side, dtype=torch.float64) / 2
    for pixel in range(side):
        for neighbour in (pixel - 1, pixel + 1):
            once[pixel, min(max(neighbour, 0), side - 1)] += 1 / 4
    return torch.linalg.matrix_power(once, blurs).float().to(device)


def random_masks(count: int, shape: Map, blurs: int, generator: torch.Generator) -> Tensor:
    """Random bits, blurred along both axes, then compared with 0.5; one for all channels of a pixel.

    bool [count, shape.size], on the generator's device.
    """
    down, across = (blurring(side, blurs, generator.device) for side in (shape.height, shape.width))
    size = (count, shape.height, shape.width)
    bits = torch.randint(0, 2, size, generator=generator, device=generator.device).to(down.dtype)
    return (down @ bits @ across.T > 0.5)[..., None].expand(count, *shape).flatten(1)


def mixed(images: Tensor, masks: Tensor) -> Tensor:
    """Each of `images` ([B, D], B at least 2) where its mask is 1, another one of them where it is 0."""
    return torch.where(masks, images, images.roll(1, dims=0))
