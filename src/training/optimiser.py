"""The update of all weights from their smoothed gradients (the Matlab code; see docs/faithfulness.md)."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.sgd import sgd

from src.config.values import Training
from src.layers.connections import Connections
from src.layers.readout import Readout


class SGD(NamedTuple):
    """What `descend` needs to know.

    `param_groups` are as torch's; -g is in each parameter's `.grad`, smoothed with `momentum` by what learns. The
    weights of `connections` are rounded after each step.
    """

    param_groups: list[dict[str, Any]]
    momentum: float
    decay_in_momentum: bool
    connections: list[Connections]


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
        # The rate as a tensor, so that a captured CUDA graph sees it change.
        dict(params=group, initial_lr=rate, lr=torch.tensor(rate, device=group[0].device), weight_decay=decay)
        for (rate, decay), group in groups.items()
    ]
    connections = [module for module in net.modules() if isinstance(module, Connections)]
    return SGD(param_groups, training.momentum, training.decay_in_momentum, connections)


def set_gain(optimizer: SGD, value: float) -> None:
    """Every learning rate = `value` times the one it started with."""
    for group in optimizer.param_groups:
        group["lr"].fill_(value * group["initial_lr"])


@torch.no_grad()
def descend(optimizer: SGD) -> None:
    """The step of all weights, when all gradients have been smoothed."""
    for group in optimizer.param_groups:
        parameters, lr, decay = group["params"], group["lr"], group["weight_decay"]
        gradients = [parameter.grad for parameter in parameters]
        if optimizer.decay_in_momentum:
            torch._foreach_add_(gradients, parameters, alpha=(1 - optimizer.momentum) * decay)
            decay = 0.0
        if torch.compiler.is_compiling():  # written out: it becomes one pass with the smoothing
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(lr * (gradient + decay * parameter))
        else:  # torch.optim.SGD's own, as making one would import torch's compiler, for two seconds
            options = dict(momentum=0.0, dampening=0.0, nesterov=False, maximize=False)
            sgd(parameters, gradients, [None] * len(parameters), fused=True, lr=lr, weight_decay=decay, **options)
    for connections in optimizer.connections:
        connections.round()
