"""The two ways to classify of section 3.3. Both take images in [0, 1] ([B, D]) whose first pixels are free."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.layers import goodness
from src.model import FFNet
from src.samples import NUM_CLASSES, embed_label, embed_neutral


@torch.no_grad()
def goodness_per_label(model: FFNet, images: Tensor) -> Tensor:
    """G_l of every hidden layer under every label: ten forward passes ([B, D] -> [L, B, 10])."""
    per_label = []
    for label in range(NUM_CLASSES):
        labels = torch.full((len(images),), label, device=images.device)
        per_label.append(torch.stack([goodness(h) for h in model.activities(embed_label(images, labels))]))
    return torch.stack(per_label, dim=2)


def by_goodness(goodnesses: Tensor, layers: Sequence[int]) -> Tensor:
    """The label with the highest goodness summed over `layers` (1-based) ([L, B, 10] -> [B])."""
    return goodnesses[[layer - 1 for layer in layers]].sum(dim=0).argmax(dim=1)


@torch.no_grad()
def one_pass_logits(model: FFNet, images: Tensor) -> Tensor:
    """The read-out's logits after a single pass with the neutral code ([B, D] -> [B, 10])."""
    return model.logits(embed_neutral(images))


def one_pass(model: FFNet, images: Tensor) -> Tensor:
    """The read-out's choice ([B, D] -> [B])."""
    return one_pass_logits(model, images).argmax(dim=1)
