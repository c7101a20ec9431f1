"""Small nets, their optimiser and their batches, for the tests."""

import sys
from dataclasses import asdict
from functools import cache
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from torch import nn

from src import experiment
from src.config.loading import composed, load
from src.config.values import Config
from src.datasets.batches import Examples
from src.layers.connections import Connections
from src.layers.fields import Map
from src.methods import supervised
from src.methods.net import Net
from src.training.optimiser import SGD, make_optimizer

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
MNIST_MAP = Map(28, 28, 1)
INPUT_DIM, HIDDEN_DIMS, BATCH = 30, [17, 9, 13], 6
TINY = 1e-8  # of the length normalisation
RECURRENT = load(composed("method=recurrent")).model
LAYER = RECURRENT.of_layer()  # configs/layers.yaml
MODEL = {"weight_scale": "fan_in", "grids": None} | asdict(RECURRENT)
RATES = dict(
    learning_rate=0.05, weight_decay=0.02, readout_learning_rate=0.1, readout_weight_decay=0.03, momentum=0.9,
    decay_in_momentum=False,
)  # fmt: skip
SHEET_RATES = dict(eps=0.05, eps_sup=0.1, wc=0.02, wc_sup=0.03)  # the same, as the references call them


def small_net(
    input_dim: int = INPUT_DIM,
    hidden_dims: list[int] = HIDDEN_DIMS,
    method: ModuleType = supervised,
    dtype: torch.dtype = torch.float32,
    shape: Map | None = None,
    **values,
) -> Net:
    """With the defaults of configs/ where `values` of its model do not say otherwise; dense, but for a `field`."""
    values = MODEL | {"hidden_dims": hidden_dims} | values
    names = method.Model.__dataclass_fields__
    model = method.Model(**{name: values[name] for name in names if name in values})
    generator = torch.Generator().manual_seed(0)
    return method.Net(model, shape or Map(1, 1, input_dim), 10, generator=generator, dtype=dtype)


def optimizer_for(net: nn.Module, **options) -> SGD:
    """With rates and decays that show after a few steps, where `options` does not say otherwise."""
    return make_optimizer(net, SimpleNamespace(**RATES | options))


def tensors(seed: int, size: int = BATCH, dim: int = INPUT_DIM) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: images ([B, dim], in [0, 1]), labels and wrong labels (each [B])."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size)
    images, wrong = rng.random((size, dim)), (labels + rng.integers(1, 10, size)) % 10
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(wrong)


def examples(count: int = 25) -> Examples:
    """Random images of 28 x 28 pixels, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 784), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.randint(0, 10, (count,), generator=generator), MNIST_MAP, 10)


WAYS = {  # to train: every step of src/
    "supervised": "",
    "uniform, adversarial": "training.negatives=uniform training.adversarial=0.5",
    "unsupervised": "method=unsupervised",
    "local receptive fields": "method=unsupervised model.grids=[3,2] model.hidden_dims=[36,20]",
    "recurrent": "method=recurrent model.iterations=5 training.dropout=0.3",
    "backprop": "method=backprop training.adversarial=0.5",
}


def configured(way: str, *overrides: str) -> Config:
    """The configuration of a small net of 28 x 28 pixels."""
    return load(composed("model.hidden_dims=[20,12]", "precision=fp32", *WAYS[way].split(), *overrides))


def new_net(way: str, *overrides: str) -> Net:
    return experiment.new_net(configured(way, *overrides), MNIST_MAP, 10)


@cache
def adversarial(way: str) -> dict[str, float]:
    """What a step is told besides, if images are moved."""
    distance = getattr(configured(way).training, "adversarial", 0.0)
    return {"adversarial": distance} if distance else {}


def update(way: str, net: Net, optimizer: SGD, seed: int, size: int = 20) -> dict[str, torch.Tensor]:
    """A step of the net's method with a batch of 28 x 28 pixels and negatives that no generator draws."""
    images, labels, wrong = (part.to(net.sizes.device) for part in tensors(seed, size, dim=784))
    step = sys.modules[type(net).__module__].step
    if "unsupervised" in step.__module__:
        return step(net, optimizer, images, images.roll(1, dims=0).flip(1), labels)
    if "backprop" in step.__module__:
        return step(net, optimizer, images, labels, **adversarial(way))
    return step(net, optimizer, images, labels, None, choose=lambda *_: wrong, **adversarial(way))


def updated(way: str, *overrides: str, device: str = "cpu") -> Net:
    """A net after ten of those, on the CPU."""
    net = new_net(way, *overrides).to(device)
    optimizer = optimizer_for(net)
    for seed in range(10):
        update(way, net, optimizer, seed)
    return net.cpu()


def seen_by(location: int, grid: int, side: int, below: int, field: int, stride: int) -> list[int]:
    """Indices of the inputs of a location of `grid` x `grid`, in the order of its weights."""
    top, left = (stride * place for place in divmod(location, grid))
    return [
        (row * side + column) * below + channel
        for row in range(top, top + field)
        for column in range(left, left + field)
        for channel in range(below)
    ]


def full_matrix(connections: Connections, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Weights as those of dense connections ([own.size, seen.size])."""
    return connections.full_matrix((connections.weight if weight is None else weight).detach())


def as_state(net: nn.Module) -> reference.State:
    """The layers of a net whose training has not begun, for the NumPy reference."""
    state = reference.new_state(
        [full_matrix(layer.below).double().numpy() for layer in net.layers],
        [layer.bias.detach().double().numpy() for layer in net.layers],
    )
    if hasattr(net.layers[0], "mean_activity"):
        state.means = [layer.mean_activity.double().numpy() for layer in net.layers]
    return state


def assert_close(ours: torch.Tensor, theirs: np.ndarray, relative: float = 1e-5) -> None:
    """Within `relative` of the largest entry, so that entries that cancel to nearly zero are not asked for more."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    assert np.abs(ours.detach().double().numpy() - theirs).max() <= relative * np.abs(theirs).max()


def assert_layers_are(net: nn.Module, state: reference.State) -> None:
    """Weights, biases, running means and smoothed gradients of all layers are those of the NumPy reference."""
    for index, layer in enumerate(net.layers):
        assert_close(full_matrix(layer.below), state.weights[index])
        assert_close(layer.bias, state.biases[index])
        assert_close(-full_matrix(layer.below, layer.below.weight.grad), state.smooth_weights[index])
        assert_close(-layer.bias.grad, state.smooth_biases[index])
        if hasattr(layer, "mean_activity"):
            assert_close(layer.mean_activity, state.means[index])
