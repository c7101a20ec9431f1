"""Training (section 3.3): three passes with the same weights, then one update of every layer and the read-out."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data import Examples, jitter, shuffled_batches, to_unit
from src.layers import logistic_loss
from src.model import FFNet
from src.samples import embed_label, embed_neutral, hard_negative_labels, uniform_negative_labels


def gain(epoch: int, epochs: int) -> float:
    """Factor of all learning rates in `epoch` of 1..`epochs`: 1 for the first half, then linear towards zero."""
    return min(1.0, (1 + 2 * (epochs - epoch)) / epochs)


def make_optimizer(
    model: FFNet,
    *,
    learning_rate: float,
    weight_decay: float,
    readout_learning_rate: float,
    readout_weight_decay: float,
    momentum: float,
    decay_in_momentum: bool,
) -> torch.optim.SGD:
    """W <- W + eps (g - wc W) for weights, b <- b + eps g for biases, and the read-out with rates of its own.

    g is the smoothed gradient of `smooth_gradients`. SGD's own momentum would not do: it does not damp the first
    gradient, and it smooths the decay along with the gradient. `decay_in_momentum` asks for the latter, on biases too.
    """
    bias_decay = weight_decay if decay_in_momentum else 0.0
    groups = [
        ([layer.weight for layer in model.layers], learning_rate, weight_decay),
        ([layer.bias for layer in model.layers], learning_rate, bias_decay),
        ([model.readout_weight], readout_learning_rate, readout_weight_decay),
    ]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # g starts at zero
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "initial_lr": rate,
                "lr": rate,
                "weight_decay": 0.0 if decay_in_momentum else decay,
                "smoothed_decay": decay if decay_in_momentum else 0.0,
                "gradient_momentum": momentum,
            }
            for parameters, rate, decay in groups
        ],
        fused=True,
    )


def set_gain(optimizer: torch.optim.SGD, value: float) -> None:
    """Every learning rate = `value` times the one it started with."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["initial_lr"]


def smooth_gradients(optimizer: torch.optim.SGD, loss: Tensor) -> None:
    """g <- 0.9 g + 0.1 dloss/dparameter, with g kept in `parameter.grad`, where backward adds to what is there."""
    for group in optimizer.param_groups:
        momentum = group["gradient_momentum"]
        with torch.no_grad():
            for parameter in group["params"]:
                parameter.grad.mul_(momentum)
                if group["smoothed_decay"]:
                    parameter.grad.add_(parameter, alpha=(1 - momentum) * group["smoothed_decay"])
    ((1 - momentum) * loss).backward()


def train_step(
    model: FFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    draw_negative_labels: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """One update from a mini-batch.

    Args:
        images: pixels in [0, 1] ([B, D]); labels: true classes ([B], int64).
        draw_negative_labels: wrong labels ([B]) from the neutral pass's logits ([B, 10]) and `labels`.

    Returns:
        sums over the batch: the logistic "loss" of each layer ([L]), "pairs_ordered_wrongly" by each layer ([L], where
        the negative has the higher goodness), and "readout_loss", the read-out's cross-entropy (scalar).
    """
    # Neutral pass: trains the read-out, and says which wrong labels are hard.
    logits = model.logits(embed_neutral(images))
    readout_loss = F.cross_entropy(logits, labels)
    negative_labels = draw_negative_labels(logits.detach(), labels)

    # Positive and negative pass: a local loss for each layer. Their sum has the gradients of the parts, because
    # no layer's loss depends on another layer's weights.
    losses, goodness_logits = model.local_losses(embed_label(images, labels), embed_label(images, negative_labels))
    smooth_gradients(optimizer, sum(losses) + readout_loss)
    optimizer.step()

    positive, negative = goodness_logits.unbind(dim=1)  # each [L, B]
    return {
        "loss": logistic_loss(positive, negative) * len(labels),
        "pairs_ordered_wrongly": (negative >= positive).sum(dim=1),
        "readout_loss": readout_loss.detach() * len(labels),
    }


def train_epochs(
    model: FFNet,
    optimizer: torch.optim.SGD,
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    negatives: str,
    max_shift: int,
    generator: torch.Generator,
) -> Iterator[dict[str, Tensor]]:
    """Trains for `epochs` passes over all `examples`, shuffled each time.

    Args:
        negatives: "hard" or "uniform".
        max_shift: jitter of the images, in pixels; 0 for none.
        generator: on the examples' device; orders, jitters and draws negatives.

    Yields:
        after each epoch, the means of `train_step`'s figures (on the device: the host need not wait).
    """

    def draw_negative_labels(logits: Tensor, labels: Tensor) -> Tensor:
        if negatives == "hard":
            return hard_negative_labels(logits, labels, generator)
        return uniform_negative_labels(labels, generator)

    for epoch in range(1, epochs + 1):
        set_gain(optimizer, gain(epoch, epochs))
        totals: dict[str, Tensor] = {}
        for batch in shuffled_batches(n=len(examples), batch_size=batch_size, generator=generator):
            images = jitter(examples.images[batch], max_shift=max_shift, generator=generator)
            sums = train_step(model, optimizer, to_unit(images), examples.labels[batch], draw_negative_labels)
            totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
        yield {name: total / len(examples) for name, total in totals.items()}
