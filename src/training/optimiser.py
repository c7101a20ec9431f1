"""The update of all weights from their smoothed gradients (the Matlab code; see docs/faithfulness.md)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd


class SGD:
    """The step of torch.optim.SGD, without its start: making one of those imports torch's compiler, for two seconds."""

    def __init__(self, param_groups: list[dict[str, Any]]):
        self.param_groups = param_groups

    def step(self) -> None:
        for group in self.param_groups:
            sgd(
                group["params"],
                [parameter.grad for parameter in group["params"]],
                [None] * len(group["params"]),
                fused=True,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )


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
) -> SGD:
    """W <- W + eps (g - wc W) for weights, b <- b + eps g for biases, and read-outs with rates of their own.

    `parameters` come with their names, on their device: those named readout... are the read-outs'; of the others, those
    with "bias" in their name are biases. -g is kept in `parameter.grad`, from zero, unless there is a g already, which
    then goes on. SGD's own momentum would not do: it does not damp the first gradient, and it smooths the decay along
    with the gradient. `decay_in_momentum` asks for the latter, on biases too.
    """
    groups = defaultdict(list)  # by rate and decay
    for name, parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if name.startswith("readout"):
            groups[readout_learning_rate, readout_weight_decay].append(parameter)
        else:
            decays = "bias" not in name or decay_in_momentum
            groups[learning_rate, weight_decay if decays else 0.0].append(parameter)
    return SGD(
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
            for (rate, decay), group in groups.items()
        ]
    )


def set_gain(optimizer: SGD, value: float) -> None:
    """Every learning rate = `value` times the one it started with."""
    for group in optimizer.param_groups:
        group["lr"].fill_(value * group["initial_lr"])


def momentum_of(optimizer: SGD) -> float:
    """With which what learns smooths its gradients."""
    return optimizer.param_groups[0]["gradient_momentum"]


@torch.no_grad()
def descend(optimizer: SGD) -> None:
    """The step of all weights, when all gradients have been smoothed."""
    for group in optimizer.param_groups:
        if group["smoothed_decay"]:
            gradients = [parameter.grad for parameter in group["params"]]
            share = 1 - group["gradient_momentum"]
            torch._foreach_add_(gradients, group["params"], alpha=share * group["smoothed_decay"])
    if not torch.compiler.is_compiling():
        optimizer.step()
        return
    # Written out, because torch.compile breaks its graph at optimizer.step(): so it is one pass with the smoothing.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.sub_(group["lr"] * (parameter.grad + group["weight_decay"] * parameter))
