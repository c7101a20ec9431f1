"""The recurrent net: the image below, the label above, and hidden layers that settle between them (section 3.4)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import values
from src.config.values import SIDE, ConfigError, choices, number, one_of
from src.datasets.batches import Examples, to_unit
from src.layers.layer import FFLayer, LayerModel, length_normalise
from src.layers.products import rows, significant, smooth_outer
from src.layers.readout import Readout
from src.layers.stack import activities, thresholds
from src.methods import Published
from src.negatives import wrong_labels
from src.negatives.codes import NUM_CLASSES, one_hot
from src.training.compiling import compiled
from src.training.epochs import Phase, step_figures
from src.training.optimiser import SGD, descend, make_optimizer, momentum_of

SECTION = "3.4"
SMALLEST_BATCH = 1
FIRST_AVERAGED, LAST_AVERAGED = 3, 5  # the iterations over which the goodness of a label is averaged
LABELLED_AT_ONCE = 500  # images, each under all ten labels; a matter of memory
WRONG_LABELS = choices(wrong_labels)
PUBLISHED = [Published("recurrent", "Hinton's paper", "2 or 3 x 2000", "60", "goodness", "1.31")]


@dataclass
class Model(LayerModel):
    weight_gain: float = number(at_least=0)
    damping: float = number(at_least=0, below=1)
    iterations: int = number(at_least=LAST_AVERAGED)
    first_learning_iteration: int = number(at_least=1)

    def check_together(self) -> None:
        first, last = self.first_learning_iteration, self.iterations
        if first > last:
            raise ConfigError(f"model.first_learning_iteration={first}: must be at most model.iterations, {last}")


@dataclass
class Training(values.Training):
    negatives: str = one_of(*WRONG_LABELS)


class LayerState(NamedTuple):
    """A layer after an iteration, for K labels of each of B images."""

    below: Tensor  # n of the layer below, one iteration before, in the dtype of the products: [K B, d_{l-1}]; or image
    above: Tensor  # the same of the layer above, or of the label ([K B, d_{l+1}])
    drive: Tensor  # relu(z) ([K B, d_l])
    h: Tensor  # the state ([K B, d_l])


class RecurrentFFLayer(FFLayer):
    """h(t) = damping h(t-1) + (1 - damping) relu(W n(below) + V n(above) + b), of its neighbours' states at t-1.

    Args:
        in_features, above_features, out_features: widths of the layer below, of the one above, and its own.
        weight_gain: W ~ N(0, weight_gain^2 / in_features), V ~ N(0, weight_gain^2 / above_features).
        damping: share of its previous state that it keeps.
        options: as `FFLayer`.
    """

    def __init__(self, in_features, above_features, out_features, *, weight_gain, damping, generator, **options):
        std, std_above = (weight_gain * fan_in**-0.5 for fan_in in (in_features, above_features))
        super().__init__(in_features, out_features, weight_std=std, generator=generator, **options)
        top_down = std_above * torch.randn(out_features, above_features, generator=generator)
        self.top_down_weight = nn.Parameter(top_down)
        self.damping = damping

    def learn(self, over_time: Sequence[LayerState], momentum: float) -> tuple[Tensor, Tensor]:
        """As `FFLayer.learn`, by the loss averaged over iterations.

        At each of them, what was one iteration before is taken as given: nothing is propagated back through time, and
        dh/dz is (1 - damping) 1[z > 0].

        Args:
            over_time: the layer at the learning iterations, for B positives and, below them, as many negatives.

        Returns:
            the loss of each pair ([B]) and the goodness of each case ([2B]), means over the iterations.
        """
        below, above, drive, h = zip(*over_time, strict=True)  # each a tuple over the iterations
        size = len(h[0]) // 2
        G = torch.stack([self.goodness(x) for x in h])  # [T, 2B]
        loss, *dloss_dG = self.loss(*G.chunk(2, dim=1), theta=self.theta, temperature=self.temperature)
        dloss_dG = torch.cat(dloss_dG, dim=1) * ((1 - self.damping) / (len(over_time) * size))
        kept = [significant(of_cases.abs()) for of_cases in dloss_dG]

        def counting(over_time: Sequence[Tensor]) -> Tensor:
            """Of the cases that count at each iteration, all below one another."""
            return torch.cat([rows(x, cases) for x, cases in zip(over_time, kept, strict=True)])

        def mean_of_positives(over_time: Sequence[Tensor]) -> Tensor:
            return torch.stack([x[:size].mean(dim=0, dtype=torch.float32) for x in over_time]).mean(dim=0)

        dz = self.derivative(counting(h), counting(dloss_dG), gate=counting(drive) > 0)
        if len(below[0]) == size:  # the image, the same for a positive and its negative and at all iterations
            x_below = below[0]
            if kept[0] is None:  # all cases: index_add_ would add them up in another order each time on a GPU
                dz_below = dz.unflatten(0, (-1, size)).sum(dim=0)
            else:
                dz_below = torch.zeros_like(h[0][:size]).index_add_(0, torch.cat(kept) % size, dz)
        else:
            x_below, dz_below = counting(below), dz
        # Peer normalisation is one case more, as in `FFLayer.learn`.
        pull = -self.peer_pull(mean_of_positives(h))[None]
        for weight, d, x, inputs in (
            (self.weight, dz_below, x_below, below),
            (self.top_down_weight, dz, counting(above), above),
        ):
            x = torch.cat([x, mean_of_positives(inputs)[None].to(x.dtype)])
            smooth_outer(weight.grad, torch.cat([d, pull]), x, momentum, self.matmul_dtype)
        self.bias.grad.lerp_(dz.sum(dim=0) + pull[0], 1 - momentum)
        return loss.mean(dim=0), G.mean(dim=0)


class RecurrentFFNet(nn.Module):
    """Hidden layers 1..L between image and label, and a read-out of their states after a single bottom-up pass.

    Args:
        layers: each with the widths of its neighbours.
        iterations: T, after the bottom-up pass.
        first_learning_iteration: of 1..T; the layers learn from it on.
    """

    def __init__(self, layers: Sequence[RecurrentFFLayer], *, iterations: int, first_learning_iteration: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.readout = Readout(sum(len(layer.bias) for layer in layers))
        self.iterations = iterations
        self.first_learning_iteration = first_learning_iteration

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        """The states that the iterations start from: one pass without the label ([B, d_0] -> L tensors [B, d_l])."""
        return activities(self.layers, images)

    def settle(self, images: Tensor, labels: Tensor, states: list[Tensor]) -> Iterator[list[LayerState]]:
        """T iterations; in each, all layers follow what their neighbours were in the one before.

        Args:
            images: pixels in [0, 1] ([B, d_0]); labels: one for each, perhaps followed by another for each.. ([K B]).
            states: of layers 1..L to start from (each [K B, d_l]).

        Yields:
            after each iteration, the layers.
        """
        dtype, last = self.layers[0].matmul_dtype, len(self.layers) - 1
        image = length_normalise(images).to(dtype)
        label = length_normalise(one_hot(labels)).to(dtype)
        W = [layer.weight.to(dtype) for layer in self.layers]
        V = [layer.top_down_weight.to(dtype) for layer in self.layers]
        held = [layer.bias for layer in self.layers]  # the part of z that all iterations share is computed once
        held[0] = held[0] + F.linear(image, W[0]).repeat(len(labels) // len(images), 1)
        held[last] = held[last] + F.linear(label, V[last])
        for _ in range(self.iterations):
            n = [image, *(length_normalise(h).to(dtype) for h in states), label]
            layers = []
            for index, (layer, h) in enumerate(zip(self.layers, states, strict=True)):
                below, above = n[index], n[index + 2]
                z = held[index]
                if index > 0:
                    z = z + F.linear(below, W[index])
                if index < last:
                    z = z + F.linear(above, V[index])
                drive = F.relu(z)
                layers.append(LayerState(below, above, drive, torch.lerp(drive, h, layer.damping)))
            yield layers
            states = [layer.h for layer in layers]

    @torch.no_grad()
    def goodness_over_time(self, images: Tensor) -> Tensor:
        """Goodness of every layer under every label after every iteration ([B, d_0] -> [T, L, B, 10])."""
        parts = []
        for some in images.split(LABELLED_AT_ONCE):
            labels = torch.arange(NUM_CLASSES, device=images.device).repeat_interleave(len(some))
            start = [h.repeat(NUM_CLASSES, 1) for h in self.bottom_up(some)]
            over_time = [
                torch.stack([layer.goodness(state.h) for layer, state in zip(self.layers, states, strict=True)])
                for states in self.settle(some, labels, start)
            ]
            parts.append(torch.stack(over_time).unflatten(2, (NUM_CLASSES, -1)))  # [T, L, 10, B]
        return torch.cat(parts, dim=3).transpose(2, 3)


def features(states: Sequence[Tensor]) -> Tensor:
    """What the read-out sees: the normalised states of all layers (each [B, d_l] -> [B, sum of d_l])."""
    return torch.cat([length_normalise(h) for h in states], dim=1)


def new_net(
    *, hidden_dims: Sequence[int], iterations: int, first_learning_iteration: int, pixels: int = SIDE * SIDE, **options
) -> RecurrentFFNet:
    """A new net; `options` are those of `RecurrentFFLayer`."""
    dims = [pixels, *hidden_dims, NUM_CLASSES]
    neighbours = zip(dims, dims[2:], dims[1:-1], strict=False)  # below, above, its own
    layers = [RecurrentFFLayer(*widths, **options) for widths in neighbours]
    return RecurrentFFNet(layers, iterations=iterations, first_learning_iteration=first_learning_iteration)


@torch.no_grad()
def step(
    net: RecurrentFFNet,
    optimizer: SGD,
    choose_wrong_labels: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """One update from a mini-batch.

    The bottom-up pass trains the read-out and says which wrong labels are hard; positives and negatives start from it.
    Arguments and result are those of `src.methods.supervised.step`.
    """
    states = net.bottom_up(images)
    x = features(states)
    logits = net.readout(x)
    wrong_labels = choose_wrong_labels(logits, labels, noise)
    over_time = list(net.settle(images, torch.cat([labels, wrong_labels]), [h.repeat(2, 1) for h in states]))

    momentum = momentum_of(optimizer)
    readout_loss = net.readout.learn(x, logits, labels, momentum)
    learning = zip(*over_time[net.first_learning_iteration - 1 :], strict=True)  # layer by layer
    figures = [layer.learn(states, momentum) for layer, states in zip(net.layers, learning, strict=True)]
    descend(optimizer)
    return step_figures(figures, readout_loss)


def phases(net: RecurrentFFNet, *, epochs: int, negatives: str, compile: bool, **rates) -> list[Phase]:
    """One. `rates` are those of `make_optimizer`."""
    optimizer = make_optimizer(net.named_parameters(), **rates)
    update = compiled(step) if compile else step

    def update_from(images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = images.new_empty(len(images), NUM_CLASSES).exponential_(generator=generator)
        return update(net, optimizer, WRONG_LABELS[negatives], images, labels, noise)

    return [Phase(epochs, optimizer, update_from)]


def averaged(over_time: Tensor) -> Tensor:
    """The mean over the iterations that decide ([T, ...] -> [...])."""
    return over_time[FIRST_AVERAGED - 1 : LAST_AVERAGED].mean(dim=0)


@torch.no_grad()
def scores(net: RecurrentFFNet, images: Tensor) -> dict[str, Tensor]:
    """By goodness and in one pass ([B, 784] -> each [B, 10]).

    Rules: "goodness" (of all hidden layers, averaged over iterations 3 to 5, the paper's), "one_pass" (the read-out's
    logits after the bottom-up pass), "goodness_all_iterations", "goodness_layer_1".. (one layer alone, iterations 3-5).
    """
    over_time = net.goodness_over_time(images)  # [T, L, B, 10]
    goodnesses = averaged(over_time)
    return {
        "goodness": goodnesses.sum(dim=0),
        "one_pass": net.readout(features(net.bottom_up(images))),
        "goodness_all_iterations": over_time.mean(dim=0).sum(dim=0),
        **{f"goodness_layer_{layer}": of_layer for layer, of_layer in enumerate(goodnesses, start=1)},
    }


def pictures(net: RecurrentFFNet, test: Examples, scores: dict[str, Tensor], **_) -> dict:
    """First-layer weights, the goodness of test images under their true and under wrong labels, and over the iterations
    of three that are right and the three that are most wrong.
    """
    from src.pictures.figures import draw_goodness_of_labels, draw_receptive_fields, most_wrong

    right = (scores["goodness"].argmax(dim=1) == test.labels).nonzero().flatten()[:3].tolist()
    shown = right + most_wrong(scores["goodness"], test.labels, "goodness", count=3)
    images = to_unit(test.images[shown]).to(net.layers[0].weight.device)
    over_time = net.goodness_over_time(images).sum(dim=1).cpu()  # [T, L, N, 10] -> [T, N, 10]
    return {
        "receptive_fields": draw_receptive_fields(net.layers[0].weight.detach().cpu()),
        "goodness": draw_goodness_of_labels(scores, test.labels, thresholds(net.layers)),
        "goodness_over_time": draw_goodness_over_time(shown, test.images[shown], test.labels[shown], over_time),
    }


def draw_goodness_over_time(numbers: Sequence[int], images: Tensor, labels: Tensor, goodness: Tensor):
    """The goodness of each label ([T, N, 10]) at iterations 1..T, for test images (uint8 [N, 784]) of such `numbers`
    (a Figure).
    """
    from src.pictures.figures import NEGATIVE, POSITIVE, new_figure, show_digit

    chosen = averaged(goodness).argmax(dim=1)
    lines = -(-len(images) // 3)
    figure = new_figure(13, 0.8 + 2.9 * lines)
    axes = figure.subplots(lines, 6, width_ratios=[1, 2.2] * 3, squeeze=False).reshape(-1, 2)
    for picture, curves in axes[len(images) :]:
        picture.set_axis_off()
        curves.set_axis_off()
    for row, (picture, curves) in enumerate(axes[: len(images)]):
        true, choice = labels[row].item(), chosen[row].item()
        show_digit(picture, images[row], "gray_r", f"test image {numbers[row]}")
        picture.set_axis_off()
        draw_curves(curves, goodness[:, row], {choice: NEGATIVE, true: POSITIVE})
        curves.set_title(f"true {true}, chosen {choice}")
    for curves in axes[-3:, 1]:
        curves.set_xlabel("iteration")
    for curves in axes[::3, 1]:
        curves.set_ylabel("goodness above the labels' mean", size=9)
    figure.suptitle(
        "Goodness of each label, all layers together (blue: the true label, orange: a wrong one that is chosen)\n"
        f"The label with the most of it in iterations {FIRST_AVERAGED} to {LAST_AVERAGED} (shaded) is chosen",
        size=11,
    )
    return figure


def draw_curves(axis, goodness: Tensor, colours: dict[int, str]) -> None:
    """The goodness of an image under each label ([T, 10]) over the iterations; labels without a colour are grey.

    Shown is its distance from the mean of the ten labels', which rises and falls far more than they differ.
    """
    from src.pictures.figures import GREY

    iterations = range(1, len(goodness) + 1)
    differences = goodness - goodness.mean(dim=1, keepdim=True)
    axis.axvspan(FIRST_AVERAGED - 0.5, LAST_AVERAGED + 0.5, color=GREY, alpha=0.2, linewidth=0)
    for label, of_label in enumerate(differences.T.tolist()):
        width = 2.2 if label in colours else 1
        colour = colours.get(label, GREY)
        axis.plot(iterations, of_label, color=colour, linewidth=width, zorder=1 + width)
    axis.set_xticks(iterations)
    axis.tick_params(labelsize=8)


def draw_settling(net: RecurrentFFNet, image: Tensor):
    """The goodness of one image (uint8 [784]) under each label over the iterations, all layers together (a Figure)."""
    from src.pictures.figures import NEGATIVE, POSITIVE, new_figure

    goodness = net.goodness_over_time(to_unit(image[None])).sum(dim=1)[:, 0]  # [T, L, 1, 10] -> [T, 10]
    chosen, second = averaged(goodness).topk(2).indices.tolist()
    colours = {chosen: POSITIVE, second: NEGATIVE}
    figure = new_figure(6.4, 2.8)
    axis = figure.subplots()
    draw_curves(axis, goodness, colours)
    for label, colour in colours.items():
        end = axis.lines[label].get_xydata()[-1]
        axis.annotate(str(label), end, (5, 0), textcoords="offset points", color=colour, va="center")
    deciding = f"the label with the most in iterations {FIRST_AVERAGED} to {LAST_AVERAGED} (shaded) is chosen"
    axis.set_title(f"Goodness of each label, all layers together: {deciding}", size=9)
    axis.set_xlabel("iteration")
    axis.set_ylabel("above the labels' mean", size=9)
    return figure
