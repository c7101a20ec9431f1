"""torch.compile for an update: its elementwise work is fused."""

import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from src.config.values import ConfigError
from src.layers.connections import Connections


def compiled(step: Callable, net: nn.Module, backend: str = "inductor") -> Callable:
    """`step`, an update of `net`, compiled at its first call, which takes 20 to 40 s on a CPU.

    Raises:
        ConfigError: there is no compiler: for C++ on a CPU, for C beside Triton on a GPU.
    """
    on_cuda = next(net.parameters()).is_cuda
    if on_cuda and not find_spec("triton"):
        raise ConfigError("training.compile=true: there is no Triton; pip install triton, or leave it out")
    # What Triton looks for, and what Inductor does.
    variable, kind = ("CC", "C") if on_cuda else ("CXX", "C++")
    names = ["gcc", "clang", "cc"] if on_cuda else ["clang++" if sys.platform == "darwin" else "g++"]
    names = [os.environ[variable]] if variable in os.environ else names
    if not any(map(shutil.which, names)):
        raise ConfigError(
            f"training.compile=true: there is no {names[0]}; install a {kind} compiler, or name one in {variable}"
        )
    # `rows_that_matter` does not break the graph then, and one graph serves any number of samples: a resumed run has
    # the same.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    # Inductor advises TF32 for fp32 products, which then would not be fp32.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    torch._dynamo.reset()  # or the earlier runs of a sweep use up its limit of graphs, and later ones are not compiled
    graph = torch.compile(step, backend=backend)
    connections = [each for each in net.modules() if isinstance(each, Connections)]

    def update(*arguments, **options):
        for each in connections:
            each.matrix()  # the graph cannot see whether something else has changed the weights
        figures = graph(*arguments, **options)
        for each in connections:
            each.rounded_at = each.weight._version
        return figures

    return update


def compiler_failure(error: RuntimeError) -> str | None:
    """What stands in the way if `error` is of torch.compile, with the compiler's last words; else None."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
        return None
    text, *_ = str(error).partition("Set TORCHDYNAMO_VERBOSE")  # how to report a bug in PyTorch
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line]
    said = textwrap.shorten((complaints or lines or [type(error).__name__])[-1], 300)
    headers = "; Python's headers are missing: apt install python3-dev, for example" if "Python.h" in str(error) else ""
    return f"it cannot be compiled here: {said}{headers}"
