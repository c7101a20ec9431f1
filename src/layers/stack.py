"""Fully connected hidden layers, and a pass through a stack of layers."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from src.layers.dropout import dropped
from src.layers.layer import FFLayer, length_normalise
from src.layers.losses import WITHOUT_THRESHOLD


def dense_layers(input_dim: int, hidden_dims: Sequence[int], *, weight_scale: str, **options) -> list[FFLayer]:
    """Fully connected hidden layers 1..L of widths d_1..d_L = `hidden_dims` over d_0 = `input_dim` inputs.

    `weight_scale`: "fan_in" for W_l ~ N(0, 1 / d_{l-1}), "fan_out" for N(0, 1 / d_l); `options` are those of `FFLayer`.
    """
    dims = list(pairwise([input_dim, *hidden_dims]))
    fans = [fan_in if weight_scale == "fan_in" else fan_out for fan_in, fan_out in dims]
    return [FFLayer(*shape, weight_std=fan**-0.5, **options) for shape, fan in zip(dims, fans, strict=True)]


def activities(layers: Sequence[FFLayer], x: Tensor, weights: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """h of every layer, for inputs x that are not normalised yet ([B, d] -> tensors [B, d_l]); `weights`: cast ones."""
    all_h = []
    for layer, weight in zip(layers, weights or [None] * len(layers), strict=True):
        x = layer(length_normalise(x), weight)
        all_h.append(x)
    return all_h


def normalised(
    layers: Sequence[FFLayer],
    n: Tensor,
    weights: Sequence[Tensor | None] | None = None,
    masks: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """n(h) of every layer, for inputs n that are normalised ([B, d] -> tensors [B, d_l]).

    `weights`: cast ones; `masks`: of dropout (each [B, d_l]).
    """
    all_n, none = [], [None] * len(layers)
    for layer, weight, mask in zip(layers, weights or none, masks or none, strict=True):
        n = length_normalise(dropped(layer(n, weight), mask))
        all_n.append(n)
    return all_n


def thresholds(layers: Sequence[FFLayer]) -> list[float | None]:
    """theta of every layer; None where its loss does not depend on it."""
    return [None if layer.loss in WITHOUT_THRESHOLD else layer.theta for layer in layers]
