"""Errors by every rule of classification, over every example."""

from torch import Tensor

from src.classify import by_goodness, goodness_per_label, one_pass
from src.data import Examples, to_unit
from src.model import FFNet


def count_errors(model: FFNet, examples: Examples, batch_size: int) -> dict[str, Tensor]:
    """Wrongly classified examples by rule, as scalar tensors on the device (reading one makes the host wait).

    Rules: "goodness" (hidden layers 2..L, the paper's), "one_pass" (the read-out), "goodness_all_layers" (the
    first included) and "goodness_layer_1".."goodness_layer_L" (one layer alone).
    """
    depth = len(model.layers)
    layers_of = {"goodness": range(2, depth + 1), "goodness_all_layers": range(1, depth + 1)}
    layers_of |= {f"goodness_layer_{layer}": [layer] for layer in range(1, depth + 1)}
    errors = {rule: examples.labels.new_zeros(()) for rule in ["goodness", "one_pass", *layers_of]}
    for images, labels in zip(examples.images.split(batch_size), examples.labels.split(batch_size), strict=True):
        images = to_unit(images)
        goodnesses = goodness_per_label(model, images)
        for rule, layers in layers_of.items():
            errors[rule] += (by_goodness(goodnesses, layers) != labels).sum()
        errors["one_pass"] += (one_pass(model, images) != labels).sum()
    return errors
