"""The back-propagation baseline: the same stack of ReLU layers, trained end to end on the classes (section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import SIDE, number
from src.datasets.batches import Examples
from src.layers.dropout import dropped, survivors
from src.layers.products import linear, rows, significant, smooth_outer
from src.layers.readout import Readout
from src.methods import Published
from src.negatives.codes import one_hot
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer, momentum_of

SECTION = "3.1"
SMALLEST_BATCH = 1
PUBLISHED = [Published("backprop", "Hinton's paper", "a few layers", "about 20", "one_pass", "about 1.4")]
Model = values.Model


@dataclass
class Training(values.Training):
    dropout: float = number(at_least=0, below=1)
    input_dropout: float = number(at_least=0, below=1)
    adversarial: float = number(at_least=0)


class BackpropNet(nn.Module):
    """Hidden layers h_l = relu(W_l h_{l-1} + b_l) over the pixels, and a read-out of the last one.

    Args:
        input_dim, hidden_dims: d_0 and d_1..d_L.
        generator: source of the initial weights, W_l ~ N(0, 2 / d_{l-1}), which keeps the mean square of the activities
            (He et al. 2015); biases and read-out start at zero.
        matmul_dtype: of the matrix products between hidden layers.
    """

    def __init__(
        self, input_dim: int, hidden_dims: Sequence[int], *, generator: torch.Generator, matmul_dtype: torch.dtype
    ):
        super().__init__()
        dims = list(pairwise([input_dim, *hidden_dims]))
        self.weights = nn.ParameterList(
            (2 / fan_in) ** 0.5 * torch.randn(fan_out, fan_in, generator=generator) for fan_in, fan_out in dims
        )
        self.biases = nn.ParameterList(torch.zeros(fan_out) for _, fan_out in dims)
        self.readout = Readout(dims[-1][1])
        self.matmul_dtype = matmul_dtype

    def activities(self, images: Tensor, masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """h_0..h_L ([B, 784], pixels in [0, 1] -> L + 1 tensors [B, d_l]); `masks`: of dropout (each [B, d_l])."""
        all_h = [images]
        for weight, bias, mask in zip(self.weights, self.biases, masks or [None] * len(self.weights), strict=True):
            all_h.append(dropped(linear(all_h[-1], weight, self.matmul_dtype).add_(bias).relu_(), mask))
        return all_h


def adversarial_images(net: BackpropNet, images: Tensor, labels: Tensor, length: float) -> Tensor:
    """Each image moved by `length` (L2) to where the cross-entropy of its class is higher ([B, 784] -> [B, 784]).

    As in src/methods/supervised.py, but the slope is carried down through all layers.
    """
    all_h = net.activities(images)
    wrong = net.readout(all_h[-1]).scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    # softmax - one-hot, divided by 1 - p(true), of which fp32 keeps nothing where the net is sure
    dh = (wrong - one_hot(labels)) @ net.readout.weight
    for weight, h in zip(reversed(net.weights), reversed(all_h), strict=False):
        dh = linear(dh * (h > 0), weight.T, net.matmul_dtype)
    return images + length * F.normalize(dh)


def new_net(*, hidden_dims: Sequence[int], generator: torch.Generator, matmul_dtype: torch.dtype) -> BackpropNet:
    """A new net with initial weights from `generator`."""
    return BackpropNet(SIDE * SIDE, hidden_dims, generator=generator, matmul_dtype=matmul_dtype)


@torch.no_grad()
def step(
    net: BackpropNet,
    optimizer: SGD,
    images: Tensor,
    labels: Tensor,
    masks: Sequence[Tensor] | None = None,
    scale: float = 1.0,
    adversarial: float = 0.0,
) -> dict[str, Tensor]:
    """One update of all weights by the gradient of the mean cross-entropy; returns `step_figures`.

    It is written out as the other methods' are, to be compared with them: what Forward-Forward does without is the one
    line that carries dz down through the weights.

    Args:
        images: pixels in [0, 1] ([B, 784]); labels: true classes ([B], int64).
        masks: of dropout, for each layer's activities ([B, d_l]); its entries are 0 or `scale`.
        adversarial: how far every second image is moved (`adversarial_images`).
    """
    dtype = net.matmul_dtype
    if adversarial:
        images = images.clone()
        images[::2] = adversarial_images(net, images[::2], labels[::2], adversarial)
    all_h = net.activities(images, masks)
    logits = net.readout(all_h[-1])
    momentum = momentum_of(optimizer)
    readout_loss = net.readout.learn(all_h[-1], logits, labels, momentum)

    d_logits = net.readout.error(logits, labels)
    cases = significant(d_logits.abs().amax(dim=1))
    all_h = [rows(h, cases) for h in all_h]
    dz = (rows(d_logits, cases) @ net.readout.weight) * (all_h[-1] > 0) * scale
    for layer in reversed(range(len(net.weights))):
        net.biases[layer].grad.lerp_(dz.sum(dim=0), 1 - momentum)
        smooth_outer(net.weights[layer].grad, dz, all_h[layer], momentum, dtype)
        if layer > 0:
            dz = linear(dz, net.weights[layer].T, dtype) * (all_h[layer] > 0) * scale
    descend(optimizer)
    return step_figures([], readout_loss)


def phases(
    net: BackpropNet,
    *,
    epochs: int,
    dropout: float,
    input_dropout: float,
    adversarial: float,
    compile: bool,
    **rates,
) -> list[Phase]:
    """One. `rates` are those of `make_optimizer`."""
    optimizer = make_optimizer(net.named_parameters(), **rates)
    update = compiled(step) if compile else step
    scale = 1 / (1 - dropout)  # keeps the mean, as is usual

    def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        images = dropped(images, survivors(images.shape, input_dropout, 1 / (1 - input_dropout), generator))
        shapes = [(len(images), len(bias)) for bias in net.biases]
        masks = [survivors(shape, dropout, scale, generator) for shape in shapes] if dropout else None
        return update(net, optimizer, images, labels, masks, scale, adversarial)

    return [Phase(epochs, optimizer, update_from, readout_rate="learning_rate")]


@torch.no_grad()
def scores(net: BackpropNet, images: Tensor) -> dict[str, Tensor]:
    """By the read-out ([B, 784] -> [B, 10])."""
    return {"one_pass": net.readout(net.activities(images)[-1])}


def pictures(net: BackpropNet, test: Examples, scores: dict[str, Tensor], **_) -> dict:
    """First-layer weights."""
    from src.pictures.figures import draw_receptive_fields

    return {"receptive_fields": draw_receptive_fields(net.weights[0].detach().cpu())}
