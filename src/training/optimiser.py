"""The update of all weights from their smoothed gradients (the Matlab code; see docs/faithfulness.md)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

from src.config.values import Training
from src.layers.connections import Connections
from src.layers.readout import Readout


class SGD:
    """The step of torch.optim.SGD, without its start: making one of those imports torch's compiler, for two seconds.

    Args:
        param_groups: as torch's; -g is in each parameter's `.grad`.
        momentum: with which what learns smooths its gradients; connections: whose weights are rounded after the step.
    """

    def __init__(self, param_groups: list[dict[str, Any]], momentum: float, connections: Sequence[Connections]):
        self.param_groups, self.momentum, self.connections = param_groups, momentum, connections

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


def make_optimizer(net: nn.Module, training: Training) -> SGD:
    """W <- W + eps (g - wc W) for weights, b <- b + eps g for biases, and read-outs with rates of their own.

    `net` is on its device. -g is kept in `parameter.grad`, from zero, unless there is a g already, which then goes on.
    SGD's own momentum would not do: it does not damp the first gradient, and it smooths the decay along with the
    gradient. `training.decay_in_momentum` asks for the latter, on biases too.
    """
    groups = defaultdict(list)  # by rate and decay
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if isinstance(module, Readout):
                groups[training.readout_learning_rate, training.readout_weight_decay].append(parameter)
            else:
                decays = name != "bias" or training.decay_in_momentum
                groups[training.learning_rate, training.weight_decay if decays else 0.0].append(parameter)
    param_groups = [
        {
            "params": group,
            "initial_lr": rate,
            # A tensor, so that a captured CUDA graph sees it change.
            "lr": torch.tensor(rate, device=group[0].device),
            "weight_decay": 0.0 if training.decay_in_momentum else decay,
            "smoothed_decay": decay if training.decay_in_momentum else 0.0,
        }
        for (rate, decay), group in groups.items()
    ]
    return SGD(param_groups, training.momentum, [each for each in net.modules() if isinstance(each, Connections)])


def set_gain(optimizer: SGD, value: float) -> None:
    """Every learning rate = `value` times the one it started with."""
    for group in optimizer.param_groups:
        group["lr"].fill_(value * group["initial_lr"])


@torch.no_grad()
def descend(optimizer: SGD) -> None:
    """The step of all weights, when all gradients have been smoothed."""
    for group in optimizer.param_groups:
        if group["smoothed_decay"]:
            gradients = [parameter.grad for parameter in group["params"]]
            share = 1 - optimizer.momentum
            torch._foreach_add_(gradients, group["params"], alpha=share * group["smoothed_decay"])
    if not torch.compiler.is_compiling():
        optimizer.step()
    else:  # written out, because torch.compile breaks its graph at step(): so it is one pass with the smoothing
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * (parameter.grad + group["weight_decay"] * parameter))
    for connections in optimizer.connections:
        connections.round()
