"""The general values of a configuration, their types and their ranges; configs/config.yaml gives each value's source.

What a layer or a method has of its own is declared beside it, by the same means. This module imports nothing of the
project, so that everything may import it.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import getmembers, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import MISSING

DEVICE_NAMES = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
DEVICE_RULE = "must be auto, cpu, cuda, cuda:1 or mps"
NAMES = re.compile(r"(?!.*\$\{)[^./\\\0-\x1f][^/\\\0-\x1f]*")  # ${ begins another value in a configuration
NAME_RULE = "names a folder: it must not be empty, begin with a dot or hold a slash or ${"


class ConfigError(ValueError):
    """A value that cannot be used. The message names the key, the value and what is allowed."""


def choices(module: ModuleType) -> dict[str, Callable]:
    """The public functions that `module` defines, by name."""
    own = getmembers(module, lambda member: isfunction(member) and member.__module__ == module.__name__)
    return {name: function for name, function in own if not name.startswith("_")}


def expanded(path: str | Path) -> Path:
    """`path` with ~ and ~name as the folders of users. Raises ConfigError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home folder of that name; write the path out") from error


def _ruled(fits: Callable[[Any], Any], rule: str) -> Any:
    """A field without a default, whose values must fit; `rule` says so in words."""
    return field(default=MISSING, metadata={"fits": fits, "rule": rule})


def number(*, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Any:
    """A field for a finite number within these bounds."""
    bounds = {"at least": at_least, "above": above, "below": below}
    words = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound > -math.inf)
    return _ruled(lambda value: value >= at_least and above < value < below, f"must be {words}")


def one_of(names: Collection[str]) -> Any:
    """A field for one of these strings; of a dictionary's keys, also for those that are added later."""
    return _ruled(lambda value: value in names, f"must be one of {', '.join(names)}")


def widths(*, at_least: int, reason: str) -> Any:
    """A field for the widths d_1..d_L of at least so many hidden layers; `reason` begins with "because"."""
    rule = f"must be {at_least} or more widths of at least 1, {reason}"
    return _ruled(lambda dims: len(dims) >= at_least and min(dims) >= 1, rule)


def check(values: Any, prefix: str = "") -> None:
    """Raises ConfigError if a field of `values`, or of a dataclass in it, breaks its rule."""
    for its_field in fields(values):
        key, value = prefix + its_field.name, getattr(values, its_field.name)
        if is_dataclass(value):
            check(value, f"{key}.")
        elif "rule" in its_field.metadata and not its_field.metadata["fits"](value):
            raise ConfigError(f"{key}={value}: {its_field.metadata['rule']}")


@dataclass
class Data:
    root: str = MISSING
    validation_images: int = number(at_least=0)
    jitter: int = number(at_least=0)


@dataclass
class Model:
    """What every net has; a method's values are a subclass."""

    hidden_dims: list[int] = widths(at_least=1, reason="because a read-out reads it")

    def check_images(self, shape: tuple[int, int, int], classes: int) -> None:
        """Raises ConfigError if no such net can be made for images of this height, width and channels."""


@dataclass
class Training:
    """What every training has; a method's values are a subclass."""

    smallest_batch = 1  # how many images an update needs: no value, but of the method

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
    name: str = _ruled(NAMES.fullmatch, NAME_RULE)
    method: str = MISSING
    dataset: str = MISSING
    seed: int = number(at_least=0, below=2**63)
    device: str = _ruled(DEVICE_NAMES.fullmatch, DEVICE_RULE)
    precision: str = one_of(["auto", "fp32", "bf16"])
    resume: str | None = None
    data: Data = MISSING
    model: Model = MISSING
    training: Training = MISSING
    evaluation: Evaluation = MISSING
    logging: Logging = MISSING
