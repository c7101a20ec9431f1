"""The read-out: a linear softmax over the classes, without a bias, that starts from zero (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.layers.products import smooth_outer
from src.negatives.codes import NUM_CLASSES


class Readout(nn.Module):
    """Logits of the ten classes from normalised activities; nothing is sent back into them.

    Always in fp32: ten columns cost little, and rounded logits would tie.

    Args:
        features: how many activities it reads.
    """

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_CLASSES, features))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ([B, features] -> [B, 10])."""
        return F.linear(features, self.weight)

    def learn(self, features: Tensor, logits: Tensor, labels: Tensor, momentum: float) -> Tensor:
        """Smooths the gradient of the mean cross-entropy into the weight's `.grad` (`smooth_outer`).

        Returns:
            the cross-entropy, summed over the cases (scalar).
        """
        smooth_outer(self.weight.grad, self.error(logits, labels), features, momentum, torch.float32)
        return F.cross_entropy(logits, labels, reduction="sum")

    @staticmethod
    def error(logits: Tensor, labels: Tensor) -> Tensor:
        """The derivative of the mean cross-entropy by the logits, (softmax - one-hot) / B ([B, 10])."""
        return (logits.softmax(dim=1) - F.one_hot(labels, NUM_CLASSES)) / len(labels)
