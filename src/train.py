"""Training: the update of the supervised net (section 3.3: three passes with the same weights, then one update of every
layer and the read-out), and what it shares with those of the other experiments: rates, smoothing, the epoch loop.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.cuda_graph import GraphedUpdate
from src.data import Examples, jitter, shuffled_batches, to_unit
from src.layers import logistic_loss
from src.model import FFNet
from src.samples import embed_label, embed_neutral

Step = Callable[..., dict[str, Tensor]]  # an update from a mini-batch, as `train_step`


def gain(epoch: int, epochs: int) -> float:
    """Factor of all learning rates in `epoch` of 1..`epochs`: 1 for the first half, then linear towards zero."""
    return min(1.0, (1 + 2 * (epochs - epoch)) / epochs)


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    readout_learning_rate: float,
    readout_weight_decay: float,
    momentum: float,
    decay_in_momentum: bool,
) -> torch.optim.SGD:
    """W <- W + eps (g - wc W) for weights, b <- b + eps g for biases, and the read-out with rates of its own.

    `parameters` come with their names, on their device: those named readout... are the read-out's; of the others, those
    with "bias" in their name are biases. g is the smoothed gradient of `train_step`. SGD's own momentum would not do:
    it does not damp the first gradient, and it smooths the decay along with the gradient. `decay_in_momentum` asks for
    the latter, on biases too.
    """
    bias_decay = weight_decay if decay_in_momentum else 0.0
    weights, biases, readout = [], [], []
    for name, parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # g starts at zero
        group = readout if name.startswith("readout") else biases if "bias" in name else weights
        group.append(parameter)
    groups = [
        (weights, learning_rate, weight_decay),
        (biases, learning_rate, bias_decay),
        (readout, readout_learning_rate, readout_weight_decay),
    ]
    return torch.optim.SGD(
        [
            {
                "params": group,
                "initial_lr": rate,
                # A tensor, so that a captured CUDA graph sees it change.
                "lr": torch.tensor(rate, device=group[0].device),
                "weight_decay": 0.0 if decay_in_momentum else decay,
                "smoothed_decay": decay if decay_in_momentum else 0.0,
                "gradient_momentum": momentum,
            }
            for group, rate, decay in groups
            if group
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


def update(optimizer: torch.optim.SGD, losses: Sequence[Tensor]) -> None:
    """g <- 0.9 g + 0.1 gradient of the sum of `losses` (scalars), and one step of everything."""
    new_share = age_gradients(optimizer)
    (new_share * sum(losses)).backward()  # adds to g
    optimizer.step()


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
        the negative has no less goodness), and "readout_loss", the read-out's cross-entropy (scalar).
    """
    # Neutral pass: trains the read-out, and says which wrong labels are hard.
    logits = model.logits(embed_neutral(images))
    readout_loss = F.cross_entropy(logits, labels)
    negative_labels = draw_negative_labels(logits.detach(), labels)

    # Positive and negative pass: a local loss for each layer. Their sum has the gradients of the parts, because
    # no layer's loss depends on another layer's weights.
    losses, goodness_logits, _ = model.local_losses(embed_label(images, labels), embed_label(images, negative_labels))
    update(optimizer, [*losses, readout_loss])

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


def readout_figures(readout_loss: Tensor, count: int) -> dict[str, Tensor]:
    """What a step that trains no layer by itself returns, of the mean read-out loss over `count` images."""
    no_layer = readout_loss.new_zeros(0, count)
    return step_figures(no_layer, no_layer, readout_loss.detach())


READOUT = "the read-out"


class Diverged(RuntimeError):
    """A loss is no longer a finite number. The message names it."""

    def __init__(self, of: str, loss: float):
        super().__init__(f"the loss of {of} became {loss}")
        self.of = of


def check_finite(losses: Sequence[float], readout_loss: float) -> None:
    """
    Raises:
        Diverged: one of the losses, of layers 1.. or the read-out, is infinite or not a number.
    """
    named = {f"layer {layer}": loss for layer, loss in enumerate(losses, start=1)} | {READOUT: readout_loss}
    for name, loss in named.items():
        if not math.isfinite(loss):
            raise Diverged(name, loss)


class Phase(NamedTuple):
    """So many epochs with one kind of update, whose rates fall to zero towards the end of them (`gain`).

    `step` makes an update from images in [0, 1] ([B, D]) and labels ([B]), and returns sums over the batch.
    """

    epochs: int
    optimizer: torch.optim.SGD
    step: Callable[[Tensor, Tensor], dict[str, Tensor]]


def gain_of(phases: Sequence[Phase], epoch: int) -> tuple[Phase, float]:
    """The phase that `epoch` of 1.. belongs to, and the factor of its learning rates."""
    for phase in phases:
        if epoch <= phase.epochs:
            return phase, gain(epoch, phase.epochs)
        epoch -= phase.epochs
    raise ValueError("the last phase has ended before")


def train_epochs(
    phases: Sequence[Phase],
    examples: Examples,
    *,
    first_epoch: int = 1,
    batch_size: int,
    max_shift: int,
    generator: torch.Generator,
    cuda_graph: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Trains phase after phase; an epoch is a pass over all `examples`, shuffled each time.

    Args:
        first_epoch: counted through all phases; later than 1 if the earlier ones were done before.
        max_shift: jitter of the images, in pixels; 0 for none.
        generator: on the examples' device; orders and jitters (and is what the steps draw from, where they do).
        cuda_graph: launch each update on a CUDA device as one graph.

    Yields:
        after each epoch, the means of the step's figures (on the device: the host need not wait).

    Raises:
        Diverged: on the CPU, at the step whose loss is infinite or not a number. (On a GPU the host would have to
            wait; the epoch's figures tell there.)
    """
    before = 0  # epochs of the phases before
    for phase in phases:
        first_of_phase = max(first_epoch - before, 1)
        before += phase.epochs
        if first_of_phase <= phase.epochs:
            yield from _train_phase(phase, examples, first_of_phase, batch_size, max_shift, generator, cuda_graph)


def _train_phase(
    phase: Phase,
    examples: Examples,
    first_epoch: int,
    batch_size: int,
    max_shift: int,
    generator: torch.Generator,
    cuda_graph: bool,
) -> Iterator[dict[str, Tensor]]:
    totals: dict[str, Tensor] = {}

    def update_from(batch: Tensor) -> None:
        images = to_unit(jitter(examples.images[batch], max_shift=max_shift, generator=generator))
        sums = phase.step(images, examples.labels[batch])
        if batch.device.type == "cpu":
            check_finite(sums["loss"].tolist(), sums["readout_loss"].item())
        for name, value in sums.items():
            if name not in totals:
                totals[name] = torch.zeros_like(value)
            totals[name] += value

    run = GraphedUpdate(update_from, generator) if cuda_graph else update_from
    for epoch in range(first_epoch, phase.epochs + 1):
        set_gain(phase.optimizer, gain(epoch, phase.epochs))
        for batch in shuffled_batches(n=len(examples), batch_size=batch_size, generator=generator):
            run(batch)
        yield {name: total / len(examples) for name, total in totals.items()}
        for total in totals.values():
            total.zero_()
