"""Local losses: what a layer makes of the goodness of positives and negatives (sections 2 and 3.3).

Every public function of this module can be chosen by its name, `model.loss=NAME`. It takes the goodness of B positives
and of the negatives that they are paired with (each [..., B]), the threshold theta and the temperature, and returns the
loss of each pair ([..., B]). Its derivatives by the two are found by autograd, unless they are written out in
DERIVATIVES.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> Tensor:
    """-1/2 [log p(positive) + log(1 - p(negative))], p = sigmoid((G - theta) / T): the paper's (equation 1).

    The half absorbs the 2 of d(h^2)/dh, as the Matlab code does: with the sum of squares and T = 1, -dloss/dz is
    (1 - p) h on positives and -p h on negatives, and that is the convention of the learning rate.
    """
    return (F.softplus((theta - positive) / temperature) + F.softplus((negative - theta) / temperature)) / 2


def _logistic(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> tuple[Tensor, Tensor]:
    too_low, too_high = ((theta - positive) / temperature).sigmoid(), ((negative - theta) / temperature).sigmoid()
    return -too_low / (2 * temperature), too_high / (2 * temperature)


def fitted_threshold(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> Tensor:
    """Equation 1 with the theta that makes it least over the mini-batch, at which the mean of p is 1/2.

    So nothing is learned by making all more active, or all less. As the loss is flat in this theta, the derivatives are
    those of a fixed one.
    """
    G = torch.cat([positive, negative], dim=-1).detach()
    low, high = G.aminmax(dim=-1, keepdim=True)
    for _ in range(20):  # bisection
        middle = (low + high) / 2
        too_low = ((G - middle) / temperature).sigmoid().mean(dim=-1, keepdim=True) > 0.5
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return logistic(positive, negative, theta=middle, temperature=temperature)


def symba(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> Tensor:
    """T/2 log(1 + exp((G- - G+) / T)): SymBa (Lee and Song 2023, arXiv 2303.08418), with alpha = 1 / T.

    Only the difference within a pair counts, as it does when the labels are compared; theta does not. The factor T/2
    keeps the learning rate's meaning: with the sum of squares, -dloss/dz is q h on positives and -q h on negatives,
    q = sigmoid((G- - G+) / T).
    """
    return temperature / 2 * F.softplus((negative - positive) / temperature)


def _symba(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> tuple[Tensor, Tensor]:
    half_q = torch.sigmoid((negative - positive) / temperature) / 2
    return -half_q, half_q


DERIVATIVES = {logistic: _logistic, symba: _symba}  # dloss/dG of the positives and of the negatives (each [..., B])
WITHOUT_THRESHOLD = {fitted_threshold, symba}
