"""The methods: one section of the paper each, one module each, with its values in configs/method/NAME.yaml.

A method's module has
- `Model` and `Training`: the types and ranges of the values in `model` and `training`;
- `Net`: the net (`src.methods.net`), with its update and its rules to classify.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

# Experiments of our own that are judged by another rule than their method's first, chosen on the validation images.
OWN_RULE = {
    "record": "goodness_all_layers",
    "record_jitter": "goodness_and_one_pass",
    "record_fashion": "goodness_and_one_pass",
}


class Published(NamedTuple):
    """Published test errors, and the experiment that repeats them."""

    experiment: str
    section: str  # of the paper
    method: str
    source: str
    net: str
    epochs: str
    errors: dict[str, str]  # by rule of classification, in percent; a table takes the first
    dataset: str = "mnist"


PAPER = "Hinton's paper"
PUBLISHED = [  # the only place where these figures stand
    Published("backprop", "3.1", "backprop", PAPER, "a few layers", "about 20", {"one_pass": "about 1.4"}),
    Published("unsupervised", "3.2", "unsupervised", PAPER, "4 x 2000", "100", {"one_pass": "1.37"}),
    Published(
        "local_receptive_fields", "3.2", "unsupervised", f"{PAPER}, local fields", "2048-1980-2048", "60",
        {"one_pass": "1.16"},
    ),
    Published("paper", "3.3", "supervised", PAPER, "4 x 2000", "60", {"goodness": "1.36"}),
    Published(
        "paper_fast", "3.3", "supervised", f"{PAPER}, learning rate doubled", "4 x 2000", "40", {"goodness": "1.46"}
    ),
    Published("paper_jitter", "3.3", "supervised", f"{PAPER}, jittered", "4 x 2000", "500", {"goodness": "0.64"}),
    Published("matlab", "3.3", "supervised", "Hinton's Matlab code", "3 x 1000", "100", {"goodness": "1.47"}),
    Published("loewex", "3.3", "supervised", "loeweX's reimplementation", "3 x 1000", "100", {"one_pass": "1.45"}),
    Published("recurrent", "3.4", "recurrent", PAPER, "2 or 3 x 2000", "60", {"goodness": "1.31"}),
    *(
        Published(f"cifar10_{what}_{layers}", "4", method, source, f"{layers} x 3072, fields", "-", errors, "cifar10")
        for what, method, source, layers, errors in [
            ("backprop", "backprop", PAPER, 2, {"one_pass": "37"}),
            ("backprop", "backprop", PAPER, 3, {"one_pass": "39"}),
            ("max_ssq", "recurrent", f"{PAPER}, max ssq", 2, {"goodness": "44", "one_pass": "46"}),
            ("max_ssq", "recurrent", f"{PAPER}, max ssq", 3, {"goodness": "44", "one_pass": "46"}),
            ("min_ssq", "recurrent", f"{PAPER}, min ssq", 2, {"goodness": "41", "one_pass": "45"}),
            ("min_ssq", "recurrent", f"{PAPER}, min ssq", 3, {"goodness": "41", "one_pass": "44"}),
        ]
    ),
]  # fmt: skip


def named(method: str) -> ModuleType:
    """The module of a method."""
    return import_module(f"{__name__}.{method}")
