"""torch.compile for an update: its elementwise work is fused."""

import os
import shutil
import sys
from collections.abc import Callable

import torch

from src.config.values import ConfigError


def compiled(step: Callable, backend: str = "inductor") -> Callable:
    """`step`, compiled at its first call, which takes 20 to 40 s on a CPU.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # what torch looks for
    if not shutil.which(compiler):
        raise ConfigError(f"training.compile=true: there is no {compiler}; install a C++ compiler, or name one in CXX")
    # `significant` does not break the graph then, and one graph serves any number of cases: a resumed run has the same.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    return torch.compile(step, backend=backend)
