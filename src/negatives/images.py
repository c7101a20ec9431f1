"""Negative images, made of positive ones without any label (section 3.2).

Every public function of this module can be chosen by its name, `training.negatives=NAME`, where images are negatives.
It takes B positives (in [0, 1], [B, shape.size]), their shape, a generator on their device and, as a keyword, the value
`training.blurs`, and returns as many negatives.
"""

import torch
from torch import Tensor

from src.layers.fields import Map
from src.negatives.masks import mixed, random_masks


def hybrids(images: Tensor, shape: Map, generator: torch.Generator, *, blurs: int) -> Tensor:
    """Two images joined by a mask of large regions: the shape of short strokes stays right, what lies further apart
    does not fit together.
    """
    return mixed(images, random_masks(len(images), shape, blurs, generator))
