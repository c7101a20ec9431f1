"""Training (section 3.3): three passes with the same weights, then one update of every layer and the read-out."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from src.cuda_graph import GraphedUpdate
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

    g is the smoothed gradient of `train_step`. SGD's own momentum would not do: it does not damp the first
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
    device = model.readout_weight.device
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "initial_lr": rate,
                "lr": torch.tensor(rate, device=device),  # a tensor, so that a captured CUDA graph sees it change
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
        group["lr"].fill_(value * group["initial_lr"])


@torch.no_grad()
def age_gradients(optimizer: torch.optim.SGD) -> float:
    """g <- 0.9 g, with g kept in `parameter.grad`; returns 0.1, the weight of the gradient that is yet to be added."""
    for group in optimizer.param_groups:
        momentum, decay = group["gradient_momentum"], group["smoothed_decay"]
        gradients = [parameter.grad for parameter in group["params"]]
        torch._foreach_mul_(gradients, momentum)
        if decay:
            torch._foreach_add_(gradients, group["params"], alpha=(1 - momentum) * decay)
    return 1 - momentum


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
    new_share = age_gradients(optimizer)
    (new_share * (sum(losses) + readout_loss)).backward()  # adds to g: g <- 0.9 g + 0.1 gradient
    optimizer.step()

    positive, negative = goodness_logits.unbind(dim=1)  # each [L, B]
    return step_figures(positive, negative, readout_loss.detach())


def step_figures(positive: Tensor, negative: Tensor, readout_loss: Tensor) -> dict[str, Tensor]:
    """What `train_step` returns, of the logits of positives and negatives (each [L, B]) and the mean read-out loss."""
    count = positive.shape[1]
    return {
        "loss": logistic_loss(positive, negative) * count,
        "pairs_ordered_wrongly": (negative >= positive).sum(dim=1),
        "readout_loss": readout_loss * count,
    }


class Diverged(RuntimeError):
    """A loss is no longer a finite number. The message names it."""


def check_finite(layer_losses: list[float], readout_loss: float) -> None:
    """
    Raises:
        Diverged: one of the losses is infinite or not a number.
    """
    losses = {f"layer {layer}": loss for layer, loss in enumerate(layer_losses, start=1)} | {
        "the read-out": readout_loss
    }
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise Diverged(f"the loss of {name} became {loss}")


def train_epochs(
    model: FFNet,
    optimizer: torch.optim.SGD,
    examples: Examples,
    *,
    epochs: int,
    first_epoch: int = 1,
    batch_size: int,
    negatives: str,
    max_shift: int,
    generator: torch.Generator,
    step: Callable[..., dict[str, Tensor]] = train_step,
    cuda_graph: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Trains for `epochs` passes over all `examples`, shuffled each time.

    Args:
        first_epoch: later than 1 if the earlier ones were done before.
        negatives: "hard" or "uniform".
        max_shift: jitter of the images, in pixels; 0 for none.
        generator: on the examples' device; orders, jitters and draws negatives.
        step: `train_step`, or the same update computed otherwise (src/fast.py).
        cuda_graph: launch each update on a CUDA device as one graph.

    Yields:
        after each epoch, the means of `train_step`'s figures (on the device: the host need not wait).

    Raises:
        Diverged: on the CPU, at the step whose loss is infinite or not a number. (On a GPU the host would have to
            wait; the epoch's figures tell there.)
    """
    layers, device = len(model.layers), model.readout_weight.device
    totals = {
        "loss": torch.zeros(layers, device=device),
        "pairs_ordered_wrongly": torch.zeros(layers, device=device),
        "readout_loss": torch.zeros((), device=device),
    }

    def draw_negative_labels(logits: Tensor, labels: Tensor) -> Tensor:
        if negatives == "hard":
            return hard_negative_labels(logits, labels, generator)
        return uniform_negative_labels(labels, generator)

    def update(batch: Tensor) -> None:
        images = to_unit(jitter(examples.images[batch], max_shift=max_shift, generator=generator))
        sums = step(model, optimizer, images, examples.labels[batch], draw_negative_labels)
        if device.type == "cpu":
            check_finite(sums["loss"].tolist(), sums["readout_loss"].item())
        for name, total in totals.items():
            total += sums[name]

    if cuda_graph:
        update = GraphedUpdate(update, generator)
    for epoch in range(first_epoch, epochs + 1):
        set_gain(optimizer, gain(epoch, epochs))
        for batch in shuffled_batches(n=len(examples), batch_size=batch_size, generator=generator):
            update(batch)
        yield {name: total / len(examples) for name, total in totals.items()}
        for total in totals.values():
            total.zero_()
