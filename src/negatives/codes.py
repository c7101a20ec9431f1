"""Label codes, written over the first ten pixels of an image (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 10


def embed(images: Tensor, code: Tensor) -> Tensor:
    """A copy of `images` ([B, D], pixels in [0, 1]) whose pixels 0..9 hold `code` ([B, 10] or [10])."""
    return torch.cat([code.expand(len(images), NUM_CLASSES), images[:, NUM_CLASSES:]], dim=1)


def one_hot(labels: Tensor) -> Tensor:
    """The code of labels ([B], int64 -> [B, 10]): of a positive if they are true, of a negative if they are wrong."""
    return F.one_hot(labels, NUM_CLASSES).float()


def neutral(images: Tensor) -> Tensor:
    """The neutral code, ten entries of 0.1 on the images' device, which favours no label."""
    return images.new_full((NUM_CLASSES,), 1 / NUM_CLASSES)
