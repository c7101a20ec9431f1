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
