"""What a net says of examples, and its errors by every rule of classification: over every example."""

from dataclasses import dataclass

import torch
from torch import Tensor

from src.classify import by_goodness, goodness_per_label, one_pass_logits
from src.data import to_unit
from src.model import FFNet


@dataclass(frozen=True)
class Outputs:
    """What N images bring about in a net of L layers."""

    goodnesses: Tensor  # of every layer under every label [L, N, 10]
    logits: Tensor  # of the read-out, after one pass with the neutral code [N, 10]


def outputs_for(model: FFNet, images: Tensor, batch_size: int) -> Outputs:
    """Outputs for `images` (uint8 [N, D]), `batch_size` at a time."""
    goodnesses, logits = [], []
    for batch in images.split(batch_size):
        goodnesses.append(goodness_per_label(model, to_unit(batch)))
        logits.append(one_pass_logits(model, to_unit(batch)))
    return Outputs(torch.cat(goodnesses, dim=1), torch.cat(logits))


def count_errors(outputs: Outputs, labels: Tensor) -> dict[str, Tensor]:
    """Wrongly classified examples by rule, as scalar tensors on the device (reading one makes the host wait).

    Rules: "goodness" (hidden layers 2..L, the paper's), "one_pass" (the read-out), "goodness_all_layers" (the
    first included) and "goodness_layer_1".."goodness_layer_L" (one layer alone).
    """
    depth = len(outputs.goodnesses)
    chosen = {
        "goodness": by_goodness(outputs.goodnesses, range(2, depth + 1)),
        "one_pass": outputs.logits.argmax(dim=1),
        "goodness_all_layers": by_goodness(outputs.goodnesses, range(1, depth + 1)),
        **{f"goodness_layer_{layer}": by_goodness(outputs.goodnesses, [layer]) for layer in range(1, depth + 1)},
    }
    return {rule: (labels_chosen != labels).sum() for rule, labels_chosen in chosen.items()}
