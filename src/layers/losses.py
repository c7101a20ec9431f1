"""Local losses: what a layer makes of the goodness of positives and negatives (sections 2 and 3.3).

Every public function of this module can be chosen by its name, `model.loss=NAME`. It takes the goodness of B positives
and of the negatives that they are paired with (each [..., B]), the threshold theta and the temperature, and returns the
loss of each pair and its derivatives by the two (each [..., B]).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """-1/2 [log p(positive) + log(1 - p(negative))], p = sigmoid((G - theta) / T): the paper's (equation 1).

    The half absorbs the 2 of d(h^2)/dh, as the Matlab code does: with the sum of squares and T = 1, -dloss/dz is
    (1 - p) h on positives and -p h on negatives, and that is the convention of the learning rate.
    """
    positive, negative = (positive - theta) / temperature, (negative - theta) / temperature
    loss = (F.softplus(-positive) + F.softplus(negative)) / 2
    return loss, -torch.sigmoid(-positive) / (2 * temperature), torch.sigmoid(negative) / (2 * temperature)


def symba(positive: Tensor, negative: Tensor, *, theta: float, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """T/2 log(1 + exp((G- - G+) / T)): SymBa (Lee and Song 2023, arXiv 2303.08418), with alpha = 1 / T.

    Only the difference within a pair counts, as it does when the ten labels are compared; theta does not. The factor
    T/2 keeps the learning rate's meaning: with the sum of squares, -dloss/dz is q h on positives and -q h on negatives,
    q = sigmoid((G- - G+) / T).
    """
    difference = (negative - positive) / temperature
    q = torch.sigmoid(difference)
    return temperature / 2 * F.softplus(difference), -q / 2, q / 2


WITHOUT_THRESHOLD = {symba}
