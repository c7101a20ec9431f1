"""What a net says of examples, and its errors by every way to classify: over every example."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.datasets.batches import Examples, to_unit

Scores = Callable[[nn.Module, Tensor], dict[str, Tensor]]  # `scores` of a method's module


def scores_for(scores: Scores, net: nn.Module, images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """A method's `scores` of `images` (uint8 [N, D] -> each [N, 10]), `batch_size` at a time."""
    batches = [scores(net, to_unit(batch)) for batch in images.split(batch_size)]
    return {rule: torch.cat([of_batch[rule] for of_batch in batches]) for rule in batches[0]}


def count_errors(scores: dict[str, Tensor], examples: Examples) -> dict[str, int]:
    """Wrongly classified examples, by rule."""
    return {rule: int((of_classes.argmax(dim=1) != examples.labels).sum()) for rule, of_classes in scores.items()}
