"""Hidden layers with local receptive fields and no weight sharing (section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.config.values import SIDE
from src.layers.layer import FFLayer
from src.layers.products import smooth_outer


class LocalFFLayer(FFLayer):
    """An `FFLayer` on a grid of locations: the channels of a location see a square of the grid below, and nothing else.

    Activities are ordered location by location, row by row. Goodness, normalisation and loss are of the whole layer.

    Args:
        side, channels_below: the inputs are `side` x `side` grid points (or pixels) of so many channels each.
        field: side of the square that a location sees, in points of the grid below.
        stride: from one square to the next, in such points, too.
        channels: units per location, each with weights of its own.
        options: those of `FFLayer`.
    """

    def __init__(self, side: int, channels_below: int, *, field: int, stride: int, channels: int, **options):
        locations = ((side - field) // stride + 1) ** 2
        fan_in = field**2 * channels_below
        super().__init__(fan_in, locations * channels, **options)  # so many weights, in another shape
        self.weight = nn.Parameter(self.weight.detach().view(locations, channels, fan_in))
        self.side, self.field, self.stride = side, field, stride

    def total_input(self, n: Tensor, weight: Tensor | None = None) -> Tensor:
        """z = W n + b, each location from its square ([B, side^2 * channels_below] -> [B, locations * channels])."""
        patches = self.patches(n.to(self.matmul_dtype))
        weight = (self.weight if weight is None else weight).to(patches.dtype)
        z = torch.bmm(patches, weight.mT).transpose(0, 1)  # [B, locations, channels]
        return z.to(self.bias.dtype, memory_format=torch.contiguous_format).flatten(1).add_(self.bias)

    def patches(self, n: Tensor) -> Tensor:
        """What every location sees ([B, side^2 * channels_below] -> [locations, B, field^2 * channels_below])."""
        points = n.unflatten(1, (self.side, self.side, -1))
        squares = points.unfold(1, self.field, self.stride).unfold(2, self.field, self.stride)
        # [B, grid, grid, channels_below, field, field] -> [grid, grid, B, field, field, channels_below]
        return squares.permute(1, 2, 0, 4, 5, 3).flatten(3).flatten(0, 1)

    def smooth_gradient(self, dz: Tensor, n: Tensor, momentum: float) -> None:
        """As `FFLayer.smooth_gradient`, at every location with what it sees."""
        self.bias.grad.lerp_(dz.sum(dim=0), 1 - momentum)
        # [locations, B, channels]; contiguous, because a batched product of a strided operand is slow.
        dz = dz.unflatten(1, (len(self.weight), -1)).transpose(0, 1).contiguous()
        smooth_outer(self.weight.grad, dz, self.patches(n.to(self.matmul_dtype)), momentum, self.matmul_dtype)


def local_layers(
    hidden_dims: Sequence[int], grids: Sequence[int], *, field: int, weight_scale: str, **options
) -> list[FFLayer]:
    """Hidden layers 1..L with local receptive fields, over images of 28 x 28 pixels.

    In the first layer, squares of `field` x `field` pixels are spread evenly over the image; from the second on, a
    location sees all channels of 2 x 2 adjacent locations below.

    Args:
        hidden_dims: d_1..d_L; layer l has d_l / grids_l^2 channels.
        grids: layer l has grids_l x grids_l locations, one less per side from layer to layer.
        weight_scale: "fan_in" for weights ~ N(0, 1 / inputs of a unit), "fan_out" for N(0, 1 / channels).
        options: passed on to every `LocalFFLayer`.
    """
    layers, side, channels_below = [], SIDE, 1
    stride = (SIDE - field) // (grids[0] - 1)
    for dim, grid in zip(hidden_dims, grids, strict=True):
        channels = dim // grid**2
        fan = field**2 * channels_below if weight_scale == "fan_in" else channels
        shape = {"field": field, "stride": stride, "channels": channels}
        layers.append(LocalFFLayer(side, channels_below, **shape, weight_std=fan**-0.5, **options))
        side, channels_below, field, stride = grid, channels, 2, 1
    return layers
