"""The general values of a configuration, their types and their ranges; configs/config.yaml gives each value's source.

What a layer or a method has of its own is declared beside it, by the same means. This module imports nothing of the
project, so that everything may import it.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import getmembers, isfunction
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

if TYPE_CHECKING:
    from src.layers.connections import Map

SIDE = 28  # pixels: height and width of an image of MNIST's format
DEVICE_NAMES = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
DEVICE_RULE = "must be auto, cpu, cuda, cuda:1 or mps"


class ConfigError(ValueError):
    """A value that cannot be used. The message names the key, the value and what is allowed."""


def choices(module: ModuleType) -> dict[str, Callable]:
    """The public functions that `module` defines, by name."""
    own = getmembers(module, lambda member: isfunction(member) and member.__module__ == module.__name__)
    return {name: function for name, function in own if not name.startswith("_")}


def _ruled(rule: Callable[[Any], str | None]) -> Any:
    """A field without a default; `rule` says what is wrong with a value, or None."""
    return field(default=MISSING, metadata={"rule": rule})


def number(*, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Any:
    """A field for a finite number within these bounds."""
    bounds = {"at least": at_least, "above": above, "below": below}
    words = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if math.isfinite(bound))

    def rule(value: float) -> str | None:
        if not math.isfinite(value):
            return "must be a finite number"
        return None if value >= at_least and above < value < below else f"must be {words}"

    return _ruled(rule)


def one_of(*names: str) -> Any:
    """A field for one of these strings."""
    return _ruled(lambda value: None if value in names else f"must be one of {', '.join(names)}")


def widths(*, at_least: int, reason: str) -> Any:
    """A field for the widths d_1..d_L of at least so many hidden layers; `reason` begins with "because"."""

    def rule(dims: list[int]) -> str | None:
        if len(dims) < at_least:
            return f"must name at least {at_least} hidden layer{'s' if at_least > 1 else ''}, {reason}"
        return None if all(dim >= 1 for dim in dims) else "every width must be at least 1"

    return _ruled(rule)


def check(values: Any, prefix: str = "") -> None:
    """Raises ConfigError if a field of `values`, or of a dataclass in it, breaks its rule, or fields do not fit."""
    for its_field in fields(values):
        key, value = prefix + its_field.name, getattr(values, its_field.name)
        if is_dataclass(value):
            check(value, f"{key}.")
        elif "rule" in its_field.metadata and (wrong := its_field.metadata["rule"](value)):
            raise ConfigError(f"{key}={value}: {wrong}")
    if hasattr(values, "check_together"):
        values.check_together()


def wrong_name(name: str) -> str | None:
    """What is wrong with the name of a new run, which names its folder; None if nothing is."""
    try:
        float(name)
        rewritten = True
    except ValueError:
        rewritten = name in ("True", "False")
    if rewritten:
        return "must not be a number or a truth value, as Hydra writes those in its own way"
    if "${" in name:
        return "must not hold ${, which means another value in a configuration"
    if not re.fullmatch(r"[^./\\\0-\x1f][^/\\\0-\x1f]*", name):
        return "names a folder: it must not be empty, begin with a dot or hold a slash"
    return None


@dataclass
class Data:
    root: str = MISSING
    validation_images: int = number(at_least=0)
    jitter: int = number(at_least=0)


@dataclass
class Model:
    """What every net has; a method's values are a subclass."""

    hidden_dims: list[int] = widths(at_least=1, reason="because a read-out reads it")

    def check_images(self, shape: "Map", classes: int) -> None:
        """Raises ConfigError if no such net can be made for these images."""


@dataclass
class Training:
    """What every training has; a method's values are a subclass."""

    epochs: int = number(at_least=1)
    batch_size: int = number(at_least=1)
    learning_rate: float = number(at_least=0)
    weight_decay: float = number(at_least=0)
    readout_learning_rate: float = number(at_least=0)
    readout_weight_decay: float = number(at_least=0)
    momentum: float = number(at_least=0, below=1)
    decay_in_momentum: bool = MISSING
    compile: bool = MISSING
    cuda_graph: bool = MISSING
    checkpoint_every: float = number(at_least=0)


@dataclass
class Evaluation:
    every: int = number(at_least=0)
    batch_size: int = number(at_least=1)
    training_errors: bool = MISSING


@dataclass
class Logging:
    pictures: bool = MISSING
    tensorboard: bool = MISSING


@dataclass
class Config:
    name: str = MISSING
    method: str = MISSING
    dataset: str = MISSING
    seed: int = number(at_least=0, below=2**63)
    device: str = _ruled(lambda name: None if DEVICE_NAMES.fullmatch(name) else DEVICE_RULE)
    precision: str = one_of("auto", "fp32", "bf16")
    resume: str | None = None
    data: Data = MISSING
    model: Model = MISSING
    training: Training = MISSING
    evaluation: Evaluation = MISSING
    logging: Logging = MISSING
