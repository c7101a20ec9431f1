"""The Forward-Forward net: a stack of layers that learn alone, and a softmax read-out (section 3.3)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from src.layers import FFLayer, length_normalise
from src.linear import linear
from src.samples import NUM_CLASSES


def dense_layers(
    input_dim: int, hidden_dims: Sequence[int], *, weight_scale: str, generator: torch.Generator, **options
) -> list[FFLayer]:
    """Fully connected hidden layers 1..L.

    Args:
        input_dim, hidden_dims: d_0 and d_1..d_L.
        weight_scale: "fan_in" for W_l ~ N(0, 1 / d_{l-1}), "fan_out" for N(0, 1 / d_l).
        generator: source of the initial weights (on the CPU, so that every device starts from the same net).
        options: passed on to every `FFLayer`.
    """
    return [
        FFLayer(
            fan_in,
            fan_out,
            weight_std=(fan_in if weight_scale == "fan_in" else fan_out) ** -0.5,
            generator=generator,
            **options,
        )
        for fan_in, fan_out in pairwise([input_dim, *hidden_dims])
    ]


class FFNet(nn.Module):
    """Hidden layers 1..L over the pixels, and a read-out of the normalised activities of layers 2..L.

    Args:
        layers: at least two, as goodness and read-out leave the first layer out.
        matmul_dtype: of the matrix products of the read-out; each layer has its own.
    """

    def __init__(self, layers: Sequence[FFLayer], *, matmul_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        features = sum(len(layer.bias) for layer in layers[1:])
        self.readout_weight = nn.Parameter(torch.zeros(NUM_CLASSES, features))  # no bias
        self.matmul_dtype = matmul_dtype

    def activities(self, x: Tensor) -> list[Tensor]:
        """The activity h_l of every hidden layer for inputs x ([B, d_0] -> L tensors [B, d_l])."""
        activities = []
        for layer in self.layers:
            x = layer(x)
            activities.append(x)
        return activities

    def logits(self, x: Tensor) -> Tensor:
        """The read-out's logits for inputs x ([B, d_0] -> [B, 10]); no gradient reaches a hidden layer."""
        with torch.no_grad():
            features = torch.cat([length_normalise(h) for h in self.activities(x)[1:]], dim=1)  # layers 2..L
        return linear(features, self.readout_weight, self.matmul_dtype)

    def local_losses(self, positive: Tensor, negative: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Every layer's own loss for B positive and B negative inputs (each [B, d_0]).

        Returns:
            L losses (scalars, each with a graph that ends in its own layer), the layers' logits of the positives and
            the negatives ([L, 2, B]) and their activities (L tensors [2B, d_l]), the latter two detached.
        """
        x = torch.cat([positive, negative])  # [2B, d_0]: one matrix product a layer instead of two
        losses, logits, activities = [], [], []
        for layer in self.layers:
            loss, logit, h = layer.local_loss(x)
            losses.append(loss)
            logits.append(logit.detach().view(2, -1))
            x = h.detach()  # stop-gradient: the next layer's loss cannot reach this one
            activities.append(x)
        return losses, torch.stack(logits), activities
