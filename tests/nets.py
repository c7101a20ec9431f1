"""Small nets, their optimiser and their batches, for the tests."""

from typing import TypeVar

import numpy as np
import reference
import torch
from torch import nn

from src.model import FFNet, dense_layers
from src.train import make_optimizer

Net = TypeVar("Net", bound=FFNet)

INPUT_DIM, HIDDEN_DIMS, BATCH = 30, [17, 9, 13], 6
TINY = 1e-8  # of the length normalisation
LAYER_DEFAULTS = dict(  # of configs/config.yaml
    threshold=1.0, temperature=1.0, peer_normalisation=0.03, peer_momentum=0.9, initial_mean_activity=0.5
)


def small_net(
    input_dim: int = INPUT_DIM,
    hidden_dims: list[int] = HIDDEN_DIMS,
    seed: int = 0,
    kind: type[Net] = FFNet,
    matmul_dtype: torch.dtype = torch.float32,
    **options,
) -> Net:
    """A net of dense layers, with the defaults of configs/config.yaml where `options` does not say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    options = {"weight_scale": "fan_in", **LAYER_DEFAULTS, **options, "matmul_dtype": matmul_dtype}
    return kind(dense_layers(input_dim, hidden_dims, generator=generator, **options), matmul_dtype=matmul_dtype)


def optimizer_for(model: nn.Module, **options) -> torch.optim.SGD:
    """With rates and decays that show after a few steps, where `options` does not say otherwise."""
    defaults = dict(
        learning_rate=0.05,
        weight_decay=0.02,
        readout_learning_rate=0.1,
        readout_weight_decay=0.03,
        momentum=0.9,
        decay_in_momentum=False,
    )
    return make_optimizer(model.named_parameters(), **(defaults | options))


def batch(seed: int, size: int = BATCH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ([B, 30], in [0, 1]), labels and wrong labels (each [B])."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size)
    return rng.random((size, INPUT_DIM)), labels, (labels + rng.integers(1, 10, size)) % 10


def as_state(model: FFNet) -> reference.State:
    """The weights of a net whose training has not begun, for the NumPy reference."""
    state = reference.new_state(
        [layer.weight.detach().double().numpy() for layer in model.layers],
        [layer.bias.detach().double().numpy() for layer in model.layers],
    )
    state.softmax[:] = model.readout_weight.detach().double().numpy()
    return state


def assert_close(ours: torch.Tensor, theirs: np.ndarray, relative: float = 1e-5) -> None:
    """Within `relative` of the largest entry, so that entries that cancel to nearly zero are not asked for more."""
    theirs = np.asarray(theirs)
    assert np.abs(ours.detach().double().numpy() - theirs).max() <= relative * np.abs(theirs).max()


def assert_layers_are(model: FFNet, state: reference.State) -> None:
    """Weights, biases, running means and smoothed gradients of all layers are those of the NumPy reference."""
    for index, layer in enumerate(model.layers):
        assert_close(layer.weight, state.weights[index])
        assert_close(layer.bias, state.biases[index])
        assert_close(layer.mean_activity, state.means[index])
        assert_close(-layer.weight.grad, state.smooth_weights[index])
        assert_close(-layer.bias.grad, state.smooth_biases[index])
