"""The read-out: a linear softmax over the classes, without a bias, that starts from zero (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.layers.connections import smooth_outer


class Readout(nn.Module):
    """Logits of the classes from normalised activities; nothing is sent back into them.

    Always in fp32: a few columns cost little, and rounded logits would tie.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ([B, features] -> [B, classes])."""
        return F.linear(features, self.weight)

    def learn(self, features: Tensor, logits: Tensor, labels: Tensor, momentum: float) -> Tensor:
        """Adds the gradient of the mean cross-entropy to g; returns the cross-entropy, summed (scalar)."""
        smooth_outer(self.weight.grad, self.error(logits, labels), features, momentum, torch.float32)
        return F.cross_entropy(logits, labels, reduction="sum")

    @staticmethod
    def error(logits: Tensor, labels: Tensor) -> Tensor:
        """The derivative of the mean cross-entropy by the logits, (softmax - one-hot) / B ([B, classes])."""
        return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])) / len(labels)
