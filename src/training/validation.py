"""What a net says of examples, and its errors by every way to classify: over every example."""

import torch
from torch import Tensor

from src.datasets.batches import Examples, to_unit
from src.methods.net import Net


def scores_for(net: Net, images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """`net.scores` of `images` (uint8 [N, D] -> each [N, classes]), `batch_size` at a time."""
    batches = [net.scores(to_unit(batch)) for batch in images.split(batch_size)]
    return {rule: torch.cat([of_batch[rule] for of_batch in batches]) for rule in batches[0]}


def count_errors(scores: dict[str, Tensor], examples: Examples) -> dict[str, int]:
    """Wrongly classified examples, by rule."""
    return {rule: int((of_classes.argmax(dim=1) != examples.labels).sum()) for rule, of_classes in scores.items()}
