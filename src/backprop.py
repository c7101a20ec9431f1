"""The back-propagation baseline (section 3.1): the same stack of ReLU layers, trained end to end on the classes."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.linear import linear
from src.samples import NUM_CLASSES
from src.train import readout_figures, update


class BackpropNet(nn.Module):
    """Hidden layers h_l = relu(W_l h_{l-1} + b_l) over the pixels, and a linear softmax on the last one, without bias.

    Args:
        input_dim, hidden_dims: d_0 and d_1..d_L.
        generator: source of the initial weights, W_l ~ N(0, 2 / d_{l-1}), which keeps the mean square of the activities
            (He et al. 2015); biases and softmax start at zero.
        matmul_dtype: of the matrix products.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        *,
        generator: torch.Generator,
        matmul_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        dims = list(pairwise([input_dim, *hidden_dims]))
        self.weights = nn.ParameterList(
            (2 / fan_in) ** 0.5 * torch.randn(fan_out, fan_in, generator=generator) for fan_in, fan_out in dims
        )
        self.biases = nn.ParameterList(torch.zeros(fan_out) for _, fan_out in dims)
        self.readout_weight = nn.Parameter(torch.zeros(NUM_CLASSES, dims[-1][1]))
        self.matmul_dtype = matmul_dtype

    def logits(self, images: Tensor) -> Tensor:
        """Of the classes ([B, D], pixels in [0, 1] -> [B, 10])."""
        h = images
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = F.relu(linear(h, weight, self.matmul_dtype) + bias)
        return linear(h, self.readout_weight, self.matmul_dtype)


def train_step(net: BackpropNet, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update of all weights by the gradient of the mean cross-entropy.

    Returns:
        as `src.train.train_step`; "readout_loss" is the only loss.
    """
    loss = F.cross_entropy(net.logits(images), labels)
    update(optimizer, [loss])
    return readout_figures(loss, len(images))
