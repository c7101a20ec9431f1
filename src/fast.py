"""The updates of `src/train.py` and `src/unsupervised.py` with their gradients written out: the same numbers up to
rounding, in less time.

What they spare:
- in the first layer, the three supervised passes of a batch differ in ten pixels and a scale: the image's part is
  multiplied once;
- on the CPU, cases whose derivative vanishes are left out before anything is computed from them;
- autograd's temporaries, and all but one cast of the weights to bf16.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from src import train
from src.layers import FFLayer, goodness, length_normalise, root_mean_square
from src.linear import add_weight_gradient, linear, significant
from src.local import LocalFFLayer, by_location
from src.model import FFNet
from src.samples import NUM_CLASSES, embed, embed_label, embed_neutral
from src.unsupervised import UnsupervisedFFNet


@torch.no_grad()
def train_step(
    model: FFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    draw_negative_labels: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """One update from a mini-batch: arguments and result are those of `src.train.train_step`."""
    dtype = model.matmul_dtype
    first_layer, *upper_layers = model.layers
    first_weight, *upper_weights = (layer.weight.to(dtype) for layer in model.layers)
    # W_1 n(x) = (W_image x_image + W_code x_code) / rms(x): the first product serves all three passes.
    x_image = embed(images, images.new_zeros(NUM_CLASSES))
    image_product = F.linear(x_image.to(dtype), first_weight).float()  # [B, d_1]

    # Neutral pass.
    h = first_activity(first_layer, embed_neutral(images), image_product)
    features = []
    for layer, weight in zip(upper_layers, upper_weights, strict=True):
        h = activity(layer, length_normalise(h), weight)
        features.append(length_normalise(h))
    features = torch.cat(features, dim=1).to(dtype)
    logits = linear(features, model.readout_weight, dtype)
    readout_loss = F.cross_entropy(logits, labels)
    negative_labels = draw_negative_labels(logits, labels)

    # Positive and negative pass, and every gradient as soon as it is known.
    share = train.age_gradients(optimizer)
    add_readout_gradient(model.readout_weight, logits, labels, features, share)
    x = torch.cat([embed_label(images, labels), embed_label(images, negative_labels)])  # [2B, d_0]
    h = first_activity(first_layer, x, image_product.repeat(2, 1))
    goodness_logits = [add_local_gradient(first_layer, length_normalise(x), h, share)]
    for layer, weight in zip(upper_layers, upper_weights, strict=True):
        n = length_normalise(h)
        h = activity(layer, n, weight)
        goodness_logits.append(add_local_gradient(layer, n, h, share))
    optimizer.step()

    positive, negative = torch.stack(goodness_logits).chunk(2, dim=1)  # each [L, B]
    return train.step_figures(positive, negative, readout_loss)


@torch.no_grad()
def unsupervised_step(
    model: UnsupervisedFFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    make_negatives: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """One update from a mini-batch: arguments and result are those of `src.unsupervised.train_step`."""
    h = torch.cat([images, make_negatives(images)])  # [2B, d_0]
    share = train.age_gradients(optimizer)
    goodness_logits, activities = [], []
    for layer in model.layers:
        n = length_normalise(h)
        h = layer.total_input(n).relu_()
        goodness_logits.append(add_local_gradient(layer, n, h, share))
        activities.append(h[: len(images)])
    logits = {}
    for rule, (features, weight) in model.readout_inputs(activities).items():
        logits[rule] = linear(features, weight, model.matmul_dtype)
        add_readout_gradient(weight, logits[rule], labels, features, share)
    optimizer.step()

    positive, negative = torch.stack(goodness_logits).chunk(2, dim=1)  # each [L, B]
    return train.step_figures(positive, negative, F.cross_entropy(logits["one_pass"], labels))


def compiled(step: train.Step, backend: str = "inductor") -> train.Step:
    """A step that writes its gradients out, with its elementwise work fused by torch.compile.

    It takes 20 to 40 s to start on a CPU. Not for local layers: a batched product over a number of cases that is not
    known beforehand is not compiled.
    """
    # `significant` does not break the graph then, and one graph serves any number of cases: a resumed run has the same.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    return torch.compile(step, backend=backend)


def activity(layer: FFLayer, n: Tensor, weight: Tensor) -> Tensor:
    """h = relu(W n + b) of a layer with the weights `weight`, in the dtype to multiply in."""
    return F.linear(n.to(weight.dtype), weight).float().add_(layer.bias).relu_()


def first_activity(layer: FFLayer, x: Tensor, image_product: Tensor) -> Tensor:
    """h of the first layer for inputs x ([B, d_0]), given what all but their first ten pixels contribute to W x."""
    product = torch.addmm(image_product, x[:, :NUM_CLASSES], layer.weight[:, :NUM_CLASSES].T)
    return torch.addcmul(layer.bias, product, 1 / root_mean_square(x)).relu_()


def add_local_gradient(layer: FFLayer, n: Tensor, h: Tensor, share: float) -> Tensor:
    """Adds `share` of the gradient of `FFLayer.local_loss` to what is in the layer's `.grad`.

    Args:
        n: normalised inputs of B positive and, below them, B negative cases ([2B, d_{l-1}]); h: activities ([2B, d_l]).

    Returns:
        the goodness logits of all cases ([2B]).
    """
    size = len(h) // 2
    length = torch.linalg.vector_norm(h, dim=1)
    logits = (length.square() - layer.theta) / layer.temperature
    # dloss/dz is (p - 1) h / B on positives and p h / B on negatives, at temperature 1 (section 2).
    factor = torch.cat([-torch.sigmoid(-logits[:size]), torch.sigmoid(logits[size:])]) / (size * layer.temperature)
    cases = significant(factor.abs() * length)
    dz = factor[cases, None] * h.index_select(0, cases)
    # The peer normalisation is one case more: the mean of the positives.
    dz = torch.cat([dz, -layer.peer_pull(h[:size])[None]]) * share
    x = torch.cat([n.index_select(0, cases), n[:size].mean(dim=0, keepdim=True)])
    layer.bias.grad.add_(dz.sum(dim=0))
    if isinstance(layer, LocalFFLayer):
        add_local_weight_gradient(layer, dz, x)
    else:
        add_weight_gradient(layer.weight.grad, dz, x, layer.matmul_dtype)
    return logits


def add_local_weight_gradient(layer: LocalFFLayer, dz: Tensor, n: Tensor) -> None:
    """As `add_weight_gradient`, at every location (dz: [B, d_l], n: [B, d_{l-1}])."""
    # Contiguous, because a batched product of a strided operand is slow.
    dz = by_location(dz, len(layer.weight)).contiguous()
    add_weight_gradient(layer.weight.grad, dz, layer.patches(n.to(layer.matmul_dtype)), layer.matmul_dtype)


def add_readout_gradient(weight: Tensor, logits: Tensor, labels: Tensor, features: Tensor, share: float) -> None:
    """Adds `share` of the gradient of a read-out's mean cross-entropy to what is in `weight.grad` ([10, d]).

    Args:
        logits: [B, 10], from `features` ([B, d], in the dtype to multiply in).
    """
    d_logits = (logits.softmax(dim=1) - F.one_hot(labels, NUM_CLASSES)) * (share / len(labels))
    add_weight_gradient(weight.grad, d_logits, features, features.dtype)


def differs(
    fast_step: train.Step,
    plain_step: train.Step,
    model: FFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    negatives: Callable[..., Tensor],
) -> str | None:
    """What `fast_step` computes otherwise than `plain_step`, by name, or None.

    A run asks before it trains, so that whoever changes the algorithm in src/layers.py, src/local.py, src/train.py or
    src/unsupervised.py does not go on measuring the old one. Both steps are tried on copies, in fp32.

    Args:
        images: pixels in [0, 1] ([B, D]); labels: true classes ([B]).
        negatives: the last argument of both steps; draws nothing.
    """
    outcomes = []
    for step in (plain_step, fast_step):
        copied_model, copied_optimizer = copy.deepcopy((model, optimizer))
        make_everything_matter(copied_model, images)
        outcomes.append(outcome(step, copied_model, copied_optimizer, images, labels, negatives))
    plain, fast = outcomes
    for name in plain:
        if not (fast[name] - plain[name]).norm() <= 1e-3 * plain[name].norm():
            return name
    return None


def outcome(
    step: train.Step,
    model: FFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    negatives: Callable[..., Tensor],
) -> dict[str, Tensor]:
    """All that `differs` compares, of an update by `step`, by name."""
    seen = {}

    def observed(*arguments: Tensor) -> Tensor:
        seen["what negatives are drawn from"] = arguments[0].float()
        return negatives(*arguments)

    figures = step(model, optimizer, images, labels, observed)
    del figures["pairs_ordered_wrongly"]  # rounding may settle a near tie otherwise
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    updated = {f"{name} after the update": tensor for name, tensor in model.state_dict().items()}
    return seen | figures | gradients | updated


@torch.no_grad()
def make_everything_matter(model: FFNet, images: Tensor) -> None:
    """Puts a new net where every part of the algorithm shows in one step: goodness near the threshold, so that neither
    positives nor negatives have a probability of 0 or 1, and running means and read-outs that are not uniform.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like.device)

    model.matmul_dtype = torch.float32
    x = images
    for layer in model.layers:
        layer.matmul_dtype = torch.float32
        h = layer(x)
        layer.weight.mul_((max(layer.theta, 1.0) / goodness(h).mean().clamp_min(1e-12)).sqrt())
        layer.mean_activity.copy_(noise(layer.mean_activity))
        x = h
    for name, parameter in model.named_parameters():
        if name.startswith("readout"):
            parameter.copy_(noise(parameter) / parameter.shape[1] ** 0.5)
        parameter.grad = torch.zeros_like(parameter)
