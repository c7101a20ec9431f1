"""What a net says of examples, and its errors by every rule of classification: over every example."""

import torch
from torch import Tensor, nn

from src.classify import class_scores
from src.data import to_unit


def scores_for(model: nn.Module, images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """`class_scores` of `images` (uint8 [N, D] -> each [N, 10]), `batch_size` at a time."""
    batches = [class_scores(model, to_unit(batch)) for batch in images.split(batch_size)]
    return {rule: torch.cat([scores[rule] for scores in batches]) for rule in batches[0]}


def count_errors(scores: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Wrongly classified examples by rule, as scalar tensors on the device (reading one makes the host wait)."""
    return {rule: (of_classes.argmax(dim=1) != labels).sum() for rule, of_classes in scores.items()}
