"""Small nets, their optimiser and their batches, for the tests."""

import numpy as np
import torch

from src.model import FFNet
from src.train import make_optimizer

INPUT_DIM, HIDDEN_DIMS, BATCH = 30, [17, 9, 13], 6


def small_net(input_dim: int = INPUT_DIM, hidden_dims: list[int] = HIDDEN_DIMS, seed: int = 0, **options) -> FFNet:
    """With the defaults of configs/config.yaml where `options` does not say otherwise."""
    defaults = dict(
        weight_scale="fan_in",
        threshold=1.0,
        temperature=1.0,
        peer_normalisation=0.03,
        peer_momentum=0.9,
        initial_mean_activity=0.5,
    )
    generator = torch.Generator().manual_seed(seed)
    return FFNet(input_dim, hidden_dims, generator=generator, **(defaults | options))


def optimizer_for(model: FFNet, **options) -> torch.optim.SGD:
    """With rates and decays that show after a few steps, where `options` does not say otherwise."""
    defaults = dict(
        learning_rate=0.05,
        weight_decay=0.02,
        readout_learning_rate=0.1,
        readout_weight_decay=0.03,
        momentum=0.9,
        decay_in_momentum=False,
    )
    return make_optimizer(model, **(defaults | options))


def batch(seed: int, size: int = BATCH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ([B, 30], in [0, 1]), labels and wrong labels (each [B])."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size)
    return rng.random((size, INPUT_DIM)), labels, (labels + rng.integers(1, 10, size)) % 10
