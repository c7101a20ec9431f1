"""Unsupervised Forward-Forward (section 3.2): real images are positive, hybrids of two of them negative.

No label is written into an image. Read-outs learn the classes from the activities, along the way and, as in the paper,
after the hidden layers have learned; they send nothing into them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.layers import FFLayer, length_normalise
from src.linear import linear
from src.model import FFNet
from src.samples import NUM_CLASSES
from src.train import readout_figures, step_figures, update


class UnsupervisedFFNet(FFNet):
    """An `FFNet` with further read-outs, to see what each layer knows: of every layer alone, and of all of them."""

    def __init__(self, layers: Sequence[FFLayer], *, matmul_dtype: torch.dtype = torch.float32):
        super().__init__(layers, matmul_dtype=matmul_dtype)
        dims = [len(layer.bias) for layer in layers]
        self.readout_all_layers_weight = nn.Parameter(torch.zeros(NUM_CLASSES, sum(dims)))
        self.readout_layer_weights = nn.ParameterList(nn.Parameter(torch.zeros(NUM_CLASSES, dim)) for dim in dims)

    def readouts(self, activities: Sequence[Tensor]) -> dict[str, Tensor]:
        """The logits of every read-out ([B, 10]) by rule, from detached activities of all layers (each [B, d_l])."""
        inputs = self.readout_inputs(activities)
        return {rule: linear(x, weight, self.matmul_dtype) for rule, (x, weight) in inputs.items()}

    def readout_inputs(self, activities: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """What every read-out sees of the activities ([B, d], in the dtype of the products), and its weights, by rule.

        Rules: "one_pass" (layers 2..L, the paper's), "one_pass_all_layers" (the first included) and
        "one_pass_layer_1".. (one layer alone).
        """
        dims = [h.shape[1] for h in activities]
        features = torch.cat([length_normalise(h) for h in activities], dim=1).to(self.matmul_dtype)  # for all at once
        inputs = {
            "one_pass": (features[:, dims[0] :], self.readout_weight),
            "one_pass_all_layers": (features, self.readout_all_layers_weight),
        }
        read = zip(features.split(dims, dim=1), self.readout_layer_weights, strict=True)
        return inputs | {f"one_pass_layer_{layer}": pair for layer, pair in enumerate(read, start=1)}


def train_step(
    model: UnsupervisedFFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    make_negatives: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """One update of the layers, and of the read-outs beside them.

    Args:
        images: pixels in [0, 1] ([B, D]), the positives; labels: for the read-outs alone ([B]).
        make_negatives: as many negatives from the positives.

    Returns:
        as `src.train.train_step`; "readout_loss" is that of the read-out of layers 2..L.
    """
    losses, goodness_logits, activities = model.local_losses(images, make_negatives(images))
    readout_losses = cross_entropies(model, [h[: len(images)] for h in activities], labels)
    update(optimizer, [*losses, *readout_losses.values()])
    positive, negative = goodness_logits.unbind(dim=1)  # each [L, B]
    return step_figures(positive, negative, readout_losses["one_pass"].detach())


def readout_step(
    model: UnsupervisedFFNet, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """One update of the read-outs, which are all that `optimizer` has, while the layers stay as they are."""
    with torch.no_grad():
        activities = model.activities(images)
    readout_losses = cross_entropies(model, activities, labels)
    update(optimizer, list(readout_losses.values()))
    return readout_figures(readout_losses["one_pass"], len(images))


def cross_entropies(model: UnsupervisedFFNet, activities: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """The mean cross-entropy of every read-out, by rule."""
    return {rule: F.cross_entropy(logits, labels) for rule, logits in model.readouts(activities).items()}
