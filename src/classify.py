"""The ways to classify: what each kind of net says of images in [0, 1] ([B, D]), by rule.

A rule gives every class a score ([B, 10]); the class with the highest score is chosen.
"""

from functools import singledispatch

import torch
from torch import Tensor, nn

from src.backprop import BackpropNet
from src.layers import goodness
from src.model import FFNet
from src.recurrent import FIRST_AVERAGED, LAST_AVERAGED, RecurrentFFNet
from src.samples import NUM_CLASSES, embed_label, embed_neutral
from src.unsupervised import UnsupervisedFFNet


@singledispatch
def class_scores(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The score of every class by every rule of the model's kind (B images -> each [B, 10])."""
    raise TypeError(f"no way to classify with a {type(model).__name__}")


@class_scores.register
@torch.no_grad()
def _supervised(model: FFNet, images: Tensor) -> dict[str, Tensor]:
    """The two ways of section 3.3, for images whose first pixels are free.

    Rules: "goodness" (hidden layers 2..L, the paper's), "one_pass" (the read-out's logits after a single pass with the
    neutral code), "goodness_all_layers" (the first included), "goodness_layer_1".. (one layer alone).
    """
    goodnesses = goodness_per_label(model, images)
    return {
        "goodness": goodnesses[1:].sum(dim=0),
        "one_pass": model.logits(embed_neutral(images)),
        "goodness_all_layers": goodnesses.sum(dim=0),
        **by_layer(goodnesses),
    }


@class_scores.register
@torch.no_grad()
def _unsupervised(model: UnsupervisedFFNet, images: Tensor) -> dict[str, Tensor]:
    """By the read-outs; no label is written anywhere (section 3.2)."""
    return model.readouts(model.activities(images))


@class_scores.register
@torch.no_grad()
def _backprop(model: BackpropNet, images: Tensor) -> dict[str, Tensor]:
    return {"one_pass": model.logits(images)}


@class_scores.register
@torch.no_grad()
def _recurrent(model: RecurrentFFNet, images: Tensor) -> dict[str, Tensor]:
    """The ways of section 3.4.

    Rules: "goodness" (of all hidden layers, averaged over iterations 3 to 5, the paper's), "one_pass" (the read-out's
    logits after the bottom-up pass), "goodness_all_iterations", "goodness_layer_1".. (one layer alone, iterations 3-5).
    """
    over_time = model.goodness_over_time(images)  # [T, L, B, 10]
    goodnesses = over_time[FIRST_AVERAGED - 1 : LAST_AVERAGED].mean(dim=0)
    return {
        "goodness": goodnesses.sum(dim=0),
        "one_pass": model.logits(images),
        "goodness_all_iterations": over_time.mean(dim=0).sum(dim=0),
        **by_layer(goodnesses),
    }


def goodness_per_label(model: FFNet, images: Tensor) -> Tensor:
    """G_l of every hidden layer under every label: ten forward passes ([B, D] -> [L, B, 10])."""
    per_label = []
    for label in range(NUM_CLASSES):
        labels = torch.full((len(images),), label, device=images.device)
        per_label.append(torch.stack([goodness(h) for h in model.activities(embed_label(images, labels))]))
    return torch.stack(per_label, dim=2)


def by_layer(goodnesses: Tensor) -> dict[str, Tensor]:
    """[L, B, 10] by the rules "goodness_layer_1".."goodness_layer_L"."""
    return {f"goodness_layer_{layer}": of_layer for layer, of_layer in enumerate(goodnesses, start=1)}
