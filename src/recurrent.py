"""The recurrent net (section 3.4): the image below, the label above, and hidden layers that settle between them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.fast import add_readout_gradient
from src.layers import FFLayer, goodness, length_normalise, logistic_loss
from src.linear import add_weight_gradient, linear, significant
from src.samples import NUM_CLASSES
from src.train import age_gradients, step_figures

FIRST_AVERAGED, LAST_AVERAGED = 3, 5  # the iterations over which the goodness of a label is averaged (section 3.4)


class RecurrentFFLayer(FFLayer):
    """h(t) = damping h(t-1) + (1 - damping) relu(W n(below) + V n(above) + b), of its neighbours' states at t-1.

    Args:
        in_features, above_features, out_features: widths of the layer below, of the one above, and its own.
        weight_gain: W ~ N(0, weight_gain^2 / in_features), V ~ N(0, weight_gain^2 / above_features).
        options: as `FFLayer`.
    """

    def __init__(
        self,
        in_features: int,
        above_features: int,
        out_features: int,
        *,
        weight_gain: float,
        generator: torch.Generator,
        **options,
    ):
        super().__init__(
            in_features, out_features, weight_std=weight_gain * in_features**-0.5, generator=generator, **options
        )
        self.top_down_weight = nn.Parameter(
            weight_gain * above_features**-0.5 * torch.randn(out_features, above_features, generator=generator)
        )


class RecurrentFFNet(nn.Module):
    """Hidden layers 1..L between image and label, and a read-out of their states after a single bottom-up pass.

    Args:
        input_dim, hidden_dims: d_0 and d_1..d_L.
        weight_gain: of the initial weights; about 0.7, as a layer adds up two inputs.
        damping: share of its previous state that a layer keeps.
        iterations: T, after the bottom-up pass.
        first_learning_iteration: of 1..T; the layers learn from it on.
        generator: source of the initial weights.
        matmul_dtype: of the matrix products.
        layer_options: passed on to every layer.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        *,
        weight_gain: float,
        damping: float,
        iterations: int,
        first_learning_iteration: int,
        generator: torch.Generator,
        matmul_dtype: torch.dtype = torch.float32,
        **layer_options,
    ):
        super().__init__()
        dims = [input_dim, *hidden_dims, NUM_CLASSES]
        self.layers = nn.ModuleList(
            RecurrentFFLayer(
                below,
                above,
                dim,
                weight_gain=weight_gain,
                generator=generator,
                matmul_dtype=matmul_dtype,
                **layer_options,
            )
            for below, dim, above in zip(dims, dims[1:], dims[2:], strict=False)
        )
        self.readout_weight = nn.Parameter(torch.zeros(NUM_CLASSES, sum(hidden_dims)))  # no bias
        self.damping = damping
        self.iterations = iterations
        self.first_learning_iteration = first_learning_iteration
        self.matmul_dtype = matmul_dtype

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        """The states that the iterations start from: one pass without the label ([B, d_0] -> L tensors [B, d_l])."""
        states, x = [], images
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return states

    def logits(self, images: Tensor) -> Tensor:
        """The read-out's logits after the bottom-up pass ([B, d_0] -> [B, 10])."""
        return linear(features(self.bottom_up(images)), self.readout_weight, self.matmul_dtype)

    def settle(self, images: Tensor, labels: Tensor, states: list[Tensor]) -> Iterator[list["LayerState"]]:
        """T iterations; in each, all layers follow what their neighbours were in the one before.

        Args:
            images: pixels in [0, 1] ([B, d_0]); labels: one for each, perhaps followed by another for each.. ([K B]).
            states: of layers 1..L to start from (each [K B, d_l]).

        Yields:
            after each iteration, the layers.
        """
        dtype, last = self.matmul_dtype, len(self.layers) - 1
        image = length_normalise(images).to(dtype)
        label = length_normalise(F.one_hot(labels, NUM_CLASSES).to(images.dtype)).to(dtype)
        W = [layer.weight.to(dtype) for layer in self.layers]
        V = [layer.top_down_weight.to(dtype) for layer in self.layers]
        held = [layer.bias for layer in self.layers]  # the part of z that all iterations share is computed once
        held[0] = held[0] + F.linear(image, W[0]).repeat(len(labels) // len(images), 1)
        held[last] = held[last] + F.linear(label, V[last])
        for _ in range(self.iterations):
            n = [image, *(length_normalise(h).to(dtype) for h in states), label]
            layers = []
            for layer, h in enumerate(states):
                below, above = n[layer], n[layer + 2]
                z = held[layer]
                if layer > 0:
                    z = z + F.linear(below, W[layer])
                if layer < last:
                    z = z + F.linear(above, V[layer])
                drive = F.relu(z)
                layers.append(LayerState(below, above, drive, torch.lerp(drive, h, self.damping)))
            yield layers
            states = [layer.h for layer in layers]

    @torch.no_grad()
    def goodness_over_time(self, images: Tensor) -> Tensor:
        """Goodness of every layer under every label after every iteration ([B, d_0] -> [T, L, B, 10])."""
        start = self.bottom_up(images)
        per_label = []
        for label in range(NUM_CLASSES):
            labels = torch.full((len(images),), label, device=images.device)
            iterations = self.settle(images, labels, start)
            per_label.append(
                torch.stack([torch.stack([goodness(layer.h) for layer in layers]) for layers in iterations])
            )
        return torch.stack(per_label, dim=3)


class LayerState(NamedTuple):
    """A layer after an iteration, for K labels of each of B images."""

    below: Tensor  # n of the layer below, one iteration before, in the dtype of the products: [K B, d_{l-1}]; or image
    above: Tensor  # the same of the layer above, or of the label ([K B, d_{l+1}])
    drive: Tensor  # relu(z) ([K B, d_l])
    h: Tensor  # the state ([K B, d_l])


def features(states: Sequence[Tensor]) -> Tensor:
    """What the read-out sees: the normalised states of all layers (each [B, d_l] -> [B, sum of d_l])."""
    return torch.cat([length_normalise(h) for h in states], dim=1)


@torch.no_grad()
def train_step(
    net: RecurrentFFNet,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    draw_negative_labels: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """One update from a mini-batch: arguments and result are those of `src.train.train_step`.

    The bottom-up pass trains the read-out and says which wrong labels are hard; positives and negatives start from it.
    """
    size = len(labels)
    states = net.bottom_up(images)
    x = features(states).to(net.matmul_dtype)
    logits = linear(x, net.readout_weight, net.matmul_dtype)
    negative_labels = draw_negative_labels(logits, labels)
    iterations = net.settle(images, torch.cat([labels, negative_labels]), [h.repeat(2, 1) for h in states])
    learning = list(iterations)[net.first_learning_iteration - 1 :]

    share = age_gradients(optimizer)  # g <- 0.9 g + 0.1 gradient
    add_readout_gradient(net.readout_weight, logits, labels, x, share)
    goodness_logits = [
        add_local_gradient(layer, over_time, size=size, damping=net.damping, share=share)
        for layer, over_time in zip(net.layers, zip(*learning, strict=True), strict=True)
    ]
    optimizer.step()

    positive, negative = torch.stack(goodness_logits, dim=1).chunk(2, dim=2)  # each [iterations, L, B]
    figures = step_figures(positive.mean(dim=0), negative.mean(dim=0), F.cross_entropy(logits, labels))
    return figures | {"loss": logistic_loss(positive, negative).mean(dim=0) * size}


def add_local_gradient(
    layer: RecurrentFFLayer, over_time: Sequence[LayerState], *, size: int, damping: float, share: float
) -> Tensor:
    """Adds `share` of the gradient of a layer's loss to what is in its `.grad`.

    The loss is the logistic loss of the goodness of the state, as in `FFLayer.local_loss`, averaged over the iterations
    given. At each of them, what was one iteration before is taken as given: nothing is propagated back through time. So
    dloss/dz = +-q (1 - damping) h 1[z > 0] / B, - for positives and + for negatives, where q is the probability that
    the layer gives to the wrong answer (at temperature 1). The peer normalisation is, as there, that of the mean over
    the positives (and the iterations).

    Args:
        over_time: the layer at the learning iterations, for `size` positives and, below them, as many negatives.

    Returns:
        the goodness logits ([iterations, 2B]).
    """
    logits = torch.stack([layer.logit(state.h) for state in over_time])
    q = torch.cat([-torch.sigmoid(-logits[:, :size]), torch.sigmoid(logits[:, size:])], dim=1)
    factors = q * share * (1 - damping) / (len(over_time) * size * layer.temperature)
    below, above, drive, h = zip(*over_time, strict=True)  # each a tuple over the iterations
    kept = [significant(f.abs() * torch.linalg.vector_norm(x, dim=1)) for f, x in zip(factors, h, strict=True)]

    def rows(over_time: Sequence[Tensor]) -> Tensor:
        """Of the cases that count at each iteration, all below one another."""
        return torch.cat([x.index_select(0, cases) for x, cases in zip(over_time, kept, strict=True)])

    def mean_of_positives(over_time: Sequence[Tensor]) -> Tensor:
        return torch.stack([x[:size].mean(dim=0, dtype=torch.float32) for x in over_time]).mean(dim=0, keepdim=True)

    dz = rows(factors)[:, None] * rows(h) * (rows(drive) > 0)
    if len(below[0]) == size:  # the image, the same for a positive and its negative and at all iterations
        x_below = below[0]
        if dz.device.type == "cpu":
            dz_below = torch.zeros_like(h[0][:size]).index_add_(0, torch.cat(kept) % size, dz)
        else:  # all cases are kept, and index_add_ would add them up in another order each time
            dz_below = dz.unflatten(0, (-1, size)).sum(dim=0)
    else:
        x_below, dz_below = rows(below), dz
    # The peer normalisation is one case more: the mean of the positives.
    pull = -share * layer.peer_pull(mean_of_positives(h))[None]
    for weight, d, x, inputs in (
        (layer.weight, dz_below, x_below, below),
        (layer.top_down_weight, dz, rows(above), above),
    ):
        x = torch.cat([x, mean_of_positives(inputs).to(x.dtype)])
        add_weight_gradient(weight.grad, torch.cat([d, pull]), x, layer.matmul_dtype)
    layer.bias.grad.add_(dz.sum(dim=0) + pull[0])
    return logits
