"""The methods: one section of the paper each, one module each, with its values in configs/method/NAME.yaml.

A method's module has
- `SECTION`, and `PUBLISHED`: what was published of it, the only place where these figures stand;
- `Model` and `Training`: the types and ranges of the values in `model` and `training`;
- `Net`: the net (`src.methods.net`), with its update and its rules to classify;
- `SMALLEST_BATCH`: how many images an update needs.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

# Experiments of our own that are judged by another rule than their method's first, chosen on the validation images.
OWN_RULE = {"record_jitter": "goodness_and_one_pass"}


class Published(NamedTuple):
    """A published test error, and the experiment that repeats it."""

    experiment: str
    source: str
    net: str
    epochs: str
    rule: str  # of classification
    error: str  # in percent


def named(method: str) -> ModuleType:
    """The module of a method."""
    return import_module(f"{__name__}.{method}")
