"""torch.compile for an update: its elementwise work is fused."""

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from src.config.values import ConfigError


def compiled(step: Callable, backend: str = "inductor") -> Callable:
    """`step`, compiled at its first call, which takes 20 to 40 s on a CPU, and raises ConfigError if that fails.

    It needs a C++ compiler on a CPU, and Triton and a C compiler on a GPU.
    """
    # `significant` does not break the graph then, and one graph serves any number of cases: a resumed run has the same.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    # Inductor advises TF32 for fp32 products, which then would not be fp32.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    torch._dynamo.reset()  # or the earlier runs of a sweep use up its limit of graphs, and later ones are not compiled
    by_compiler = torch.compile(step, backend=backend)

    def update(*arguments: Any, **options: Any) -> Any:
        try:
            return by_compiler(*arguments, **options)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
                raise
            raise ConfigError(
                f"training.compile=true: {_last_words(error)}; it needs a C++ compiler and Python's headers, on a GPU "
                "Triton too; or resume the run with training.compile=false"
            ) from error

    return update


def _last_words(error: RuntimeError) -> str:
    text, *_ = str(error).partition("Set TORCHDYNAMO_VERBOSE")  # how to report a bug in PyTorch
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if "error:" in line]
    return textwrap.shorten((complaints or lines or [type(error).__name__])[-1], 300)


class RoundedWeights:
    """Copies of `weights` in the dtype of their products, which an update writes in the pass that steps the weights:
    nothing is cast at the next step.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype):
        self.weights = weights
        self.copies = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in weights]
        self.versions: list[int] | None = None  # of the weights that the copies are of

    @contextmanager
    @torch.no_grad()
    def written(self) -> Iterator[list[Tensor]]:
        """The copies, for an update that writes them; made anew if something else has changed a weight before."""
        if self.versions != [weight._version for weight in self.weights]:
            torch._foreach_copy_(self.copies, self.weights)
        yield self.copies
        self.versions = [weight._version for weight in self.weights]
