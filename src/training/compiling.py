"""torch.compile for an update: its elementwise work is fused."""

import textwrap
from collections.abc import Callable

import torch
from torch import nn

from src.config.values import ConfigError
from src.layers.connections import Connections


def compiled(step: Callable, net: nn.Module, backend: str = "inductor") -> Callable:
    """`step`, an update of `net`, compiled at its first call, which takes 15 to 55 s on a CPU,
    with topographic fields minutes.

    That call raises ConfigError if it cannot be compiled.
    """
    # `rows_that_matter` does not break the graph then, and one graph serves any number of samples, in resumed runs too.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    torch._dynamo.reset()  # or the earlier runs of a sweep use up its limit of graphs, and later ones are not compiled
    graph = torch.compile(step, backend=backend)
    connections = [each for each in net.modules() if isinstance(each, Connections)]

    def update(*arguments, **options):
        for each in connections:
            each.matrix()  # the graph cannot see whether something else has changed the weights
        try:
            figures = graph(*arguments, **options)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
                raise
            said = next((line for line in str(error).splitlines() if "error:" in line), str(error))
            needed = "a C++ compiler and Python's headers, on a GPU Triton too"
            advice = f"it needs {needed}; or resume the run with training.compile=false"
            raise ConfigError(f"training.compile=true: {textwrap.shorten(said, 300)}; {advice}") from error
        for each in connections:
            each.rounded_at = each.weight._version
        return figures

    return update
