"""Label codes, written over the first K numbers of an image, K the number of classes (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embed(images: Tensor, code: Tensor) -> Tensor:
    """A copy of `images` ([B, D], in [0, 1]) whose first K numbers hold `code` ([B, K] or [K])."""
    classes = code.shape[-1]
    return torch.cat([code.expand(len(images), classes), images[:, classes:]], dim=1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """The code of labels ([B], int64 -> [B, K]): of a positive if they are true, of a negative if they are wrong."""
    return F.one_hot(labels, classes).float()


def neutral(images: Tensor, classes: int) -> Tensor:
    """The neutral code, K entries of 1 / K for each image, which favours no label ([B, K])."""
    return images.new_full((len(images), classes), 1 / classes)
