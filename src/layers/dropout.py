"""Dropout (Srivastava et al. 2014), as each kind of net needs it. None is left at test."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def dropout_mask(shape: Sequence[int], p: float, generator: torch.Generator, scale: float = 1.0) -> Tensor | None:
    """What activities or pixels are multiplied by: 0 with probability `p`, else `scale`; for p = 0 None."""
    if p == 0:
        return None
    return torch.empty(shape, device=generator.device).bernoulli_(1 - p, generator=generator).mul_(scale)


def dropout_masks(layers: Iterable[nn.Module], count: int, p: float, generator: torch.Generator) -> list[Tensor | None]:
    """Masks for `count` activities of each layer ([count, d_l]), which keep the mean, as is usual."""
    return [dropout_mask((count, len(layer.bias)), p, generator, scale=1 / (1 - p)) for layer in layers]


def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` ([K B, D]), K times as many rows as the `dropout_mask` ([B, D]), times that."""
    return x if mask is None else (x.unflatten(0, (-1, len(mask))) * mask).flatten(0, 1)
