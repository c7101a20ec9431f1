"""The epoch loop of all experiments.

What is random in training is drawn here, in this order: for each epoch the order of the images, then, for each batch,
the shifts of its images and whatever the update draws.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.config.values import ConfigError
from src.datasets.batches import Examples, jitter, shuffled_batches, to_unit
from src.training.cuda_graph import GraphedUpdate
from src.training.optimiser import SGD, gain, set_gain

# An update from images in [0, 1] ([B, D]), labels ([B]) and a generator; it returns `step_figures`.
Step = Callable[[Tensor, Tensor, torch.Generator], dict[str, Tensor]]


class Phase(NamedTuple):
    """So many epochs with one kind of update, whose rates fall to zero towards the end of them (`gain`)."""

    epochs: int
    optimizer: SGD
    step: Step
    readout_rate: str = "readout_learning_rate"  # which value the read-out's loss depends on


def step_figures(layers: Sequence[tuple[Tensor, Tensor]], readout_loss: Tensor) -> dict[str, Tensor]:
    """What a step returns: sums over its B images.

    Args:
        layers: of each layer with a loss of its own, the loss of each pair ([B]) and the goodness of the positives and,
            after them, of the negatives ([2B]).
        readout_loss: the cross-entropy of the read-out, summed (scalar).

    Returns:
        "loss" ([L]), "pairs_ordered_wrongly" ([L]; the negative has no less goodness) and "readout_loss".
    """
    if not layers:
        none = readout_loss.new_zeros(0)
        return {"loss": none, "pairs_ordered_wrongly": none.long(), "readout_loss": readout_loss}
    losses, goodnesses = (torch.stack(part) for part in zip(*layers, strict=True))
    positive, negative = goodnesses.chunk(2, dim=1)
    return {
        "loss": losses.sum(dim=1),
        "pairs_ordered_wrongly": (negative >= positive).sum(dim=1),
        "readout_loss": readout_loss,
    }


def train_epochs(
    phases: Sequence[Phase],
    examples: Examples,
    *,
    first_epoch: int = 1,
    batch_size: int,
    max_shift: int,
    generator: torch.Generator,
    cuda_graph: bool = False,
) -> Iterator[dict[str, Any]]:
    """Trains phase after phase; an epoch is a pass over all `examples`, shuffled each time.

    Args:
        first_epoch: counted through all phases; later than 1 if the earlier ones were done before.
        max_shift: jitter of the images, in pixels; 0 for none.
        generator: on the examples' device.
        cuda_graph: launch each update on a CUDA device as one graph.

    Yields:
        after each epoch, its "gain" and the means of the step's figures, as Python numbers.

    Raises ConfigError after an epoch in which a loss was infinite or not a number, with the rate that it depends on.
    """
    before = 0  # epochs of the phases before
    for phase in phases:
        totals: dict[str, Tensor] = {}

        def update(batch: Tensor, step: Step = phase.step, totals: dict[str, Tensor] = totals) -> None:
            images = to_unit(jitter(examples.images[batch], examples.shape, max_shift, generator))
            for name, figures in step(images, examples.labels[batch], generator).items():
                if name not in totals:
                    totals[name] = torch.zeros_like(figures)
                totals[name] += figures

        run = GraphedUpdate(update, generator) if cuda_graph else update
        for epoch in range(max(first_epoch - before, 1), phase.epochs + 1):
            of_epoch = gain(epoch, phase.epochs)
            set_gain(phase.optimizer, of_epoch)
            for batch in shuffled_batches(n=len(examples), batch_size=batch_size, generator=generator):
                run(batch)
            figures = {name: (total / len(examples)).tolist() for name, total in totals.items()}  # CPU-GPU sync point
            losses = {f"layer {layer}": loss for layer, loss in enumerate(figures["loss"], start=1)}
            for of, loss in (losses | {"the read-out": figures["readout_loss"]}).items():
                if not math.isfinite(loss):
                    rate = "learning_rate" if of in losses else phase.readout_rate
                    wrong = f"the loss of {of} became {loss} in epoch {before + epoch}"
                    raise ConfigError(f"{wrong}; a lower training.{rate} may help")
            yield {"gain": of_epoch, **figures}
            for total in totals.values():
                total.zero_()
        before += phase.epochs
