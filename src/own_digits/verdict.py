"""What the net of a finished run says of digits, and in which order people read it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from src import methods
from src.config.loading import load_saved
from src.config.values import Config, ConfigError
from src.evaluate import load_trained
from src.own_digits.finding import SIDE, Digit
from src.pictures.figures import label_heights
from src.training.log import HEADLINES
from src.training.validation import scores_for

Scores = dict[str, Tensor]  # of one digit: [10] by each layer's goodness and by the headline rules
Ask = Callable[[Sequence[Digit]], list[Scores]]


def asked(folder: Path) -> tuple[Config, Ask]:
    """The configuration of the run in `folder`, and its net, which is asked for the scores of digits.

    Raises:
        ConfigError: as `load_trained`, or the net is for other images than grey digits of 28 x 28.
    """
    config, net = load_saved(folder), load_trained(folder, device="cpu")  # a few images need no GPU
    if (shape := getattr(net, "shape", (SIDE, SIDE, 1))) != (SIDE, SIDE, 1) or getattr(net, "classes", 10) != 10:
        made_for = f"{' x '.join(map(str, shape))} in {net.classes} classes"
        raise ConfigError(f"{folder}: this net is for images of {made_for}; digits are {SIDE} x {SIDE} x 1 in 10")
    return config, lambda found: scores_of(config, net, found)


def scores_of(config: Config, net: torch.nn.Module, found: Sequence[Digit]) -> list[Scores]:
    images = torch.stack([digit.pixels for digit in found]).flatten(1)
    scores = scores_for(methods.named(config.method).scores, net, images, config.evaluation.batch_size)
    return [{rule: of_all[number] for rule, of_all in scores.items()} for number in range(len(found))]


def headlines(scores: Scores) -> dict[str, int]:
    """The label by each headline rule that there are scores for."""
    return {rule: int(scores[rule].argmax()) for rule in HEADLINES if rule in scores}


def columns(scores: Scores) -> dict[str, Tensor]:
    """Of each label ([10] each): the layers' goodness ("G_1"..), the sum that decides, the read-out's percentages."""
    layers = [of_layer for rule, of_layer in scores.items() if rule.startswith("goodness_layer_")]
    named = {f"G_{layer}": of_layer for layer, of_layer in enumerate(layers, start=1)}
    if "goodness" in scores:
        named[source("goodness", scores)] = scores["goodness"]
    return named | {source("one_pass", scores): label_heights(scores["one_pass"], "one_pass")}


def source(rule: str, scores: Scores) -> str:
    """The column that a headline rule goes by."""
    if rule == "one_pass":
        return "read-out"
    return "sum from G_2" if "goodness_all_layers" in scores else "sum"
