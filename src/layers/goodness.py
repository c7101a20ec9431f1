"""Goodness: how active a layer is, as one number a sample (section 2).

Every public function of this module can be chosen by its name, `model.goodness=NAME`. It takes the activities of a
layer before they are normalised ([B, d], none of them negative) and returns the goodness of each sample ([B]). Its
slope is found by autograd, unless it is written out in SLOPES.
"""

import torch
from torch import Tensor


def sum_of_squares(h: Tensor) -> Tensor:
    """G = sum over units of h^2: the paper's."""
    return torch.linalg.vector_norm(h, dim=1).square()


def sum_of_activities(h: Tensor) -> Tensor:
    """G = sum over units of h: weak activities count as much as strong ones."""
    return h.sum(dim=1)


def minus_sum_of_squares(h: Tensor) -> Tensor:
    """G = -sum over units of h^2: positives are to have low activity (sections 3 and 4)."""
    return -sum_of_squares(h)


SLOPES = {sum_of_squares: lambda h: 2 * h, minus_sum_of_squares: lambda h: -2 * h}  # dG/dh ([B, d] -> [B, d])
