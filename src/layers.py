"""One Forward-Forward layer: its activity, its goodness and its own loss (sections 2 and 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.linear import linear


def root_mean_square(v: Tensor, tiny: float = 1e-8) -> Tensor:
    """sqrt(mean(v^2)) + tiny of each row ([B, d] -> [B, 1])."""
    return torch.linalg.vector_norm(v, dim=1, keepdim=True) / v.shape[1] ** 0.5 + tiny


def length_normalise(v: Tensor) -> Tensor:
    """n(v) = v / rms(v) for each row of v ([B, d]), so that mean(n(v)^2) = 1 (section 2.1).

    It removes the goodness of the layer below: only the direction of its activity vector is passed on.
    """
    return v / root_mean_square(v)


def goodness(h: Tensor) -> Tensor:
    """G = sum over units of h^2 ([B, d] -> [B]), of the activity before it is normalised (section 2)."""
    return h.square().sum(dim=1)


def logistic_loss(logits_positive: Tensor, logits_negative: Tensor) -> Tensor:
    """-1/2 mean[log p(positive) + log(1 - p(negative))], p = sigmoid(logit) (each [..., B] -> [...]; section 2)."""
    return (F.softplus(-logits_positive) + F.softplus(logits_negative)).mean(dim=-1) / 2


class FFLayer(nn.Module):
    """h = relu(W n(x) + b), trained by a local loss on its goodness.

    Args:
        in_features, out_features: widths d_{l-1} and d_l.
        threshold: theta per unit; the layer's threshold is `threshold * out_features`.
        temperature: of the logistic that turns goodness into a probability.
        peer_normalisation: lambda, the pull of every unit's mean activity towards the layer's mean.
        peer_momentum: weight of the past in the running mean activity of a unit.
        initial_mean_activity: where that running mean starts.
        matmul_dtype: of the matrix products; weights, normalisation, goodness and loss stay in fp32.
        weight_std: standard deviation of the initial weights; biases start at zero.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        threshold: float,
        temperature: float,
        peer_normalisation: float,
        peer_momentum: float,
        initial_mean_activity: float,
        matmul_dtype: torch.dtype,
        weight_std: float,
        generator: torch.Generator,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight_std * torch.randn(out_features, in_features, generator=generator))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.register_buffer("mean_activity", torch.full((out_features,), initial_mean_activity))
        self.theta = threshold * out_features
        self.temperature = temperature
        self.peer_normalisation = peer_normalisation
        self.peer_momentum = peer_momentum
        self.matmul_dtype = matmul_dtype

    def total_input(self, n: Tensor) -> Tensor:
        """z = W n + b, for normalised inputs n ([B, d_{l-1}] -> [B, d_l])."""
        return linear(n, self.weight, self.matmul_dtype) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """h = relu(W n(x) + b) ([B, d_{l-1}] -> [B, d_l])."""
        return F.relu(self.total_input(length_normalise(x)))

    def logit(self, h: Tensor) -> Tensor:
        """(G - theta) / temperature ([B, d_l] -> [B]); its sigmoid is the probability of being positive (eq. 1)."""
        return (goodness(h) - self.theta) / self.temperature

    def local_loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's own loss for B positive inputs and, below them, B negative ones (x: [2B, d_{l-1}]).

        The logistic loss of its goodness, minus the peer normalisation of the positives. The half in the former
        absorbs the 2 of d(h^2)/dh, as the Matlab code does: at temperature 1, -dloss/dz is (1 - p) h / B on
        positives and -p h / B on negatives, and that is the convention of the learning rate.

        Returns:
            the loss (scalar), the logits of all cases ([2B]) and their activities ([2B, d_l]).
        """
        n = length_normalise(x)
        mean_n = n.chunk(2)[0].mean(dim=0, keepdim=True)  # of the positives, for the peer normalisation
        z, mean_z = self.total_input(torch.cat([n, mean_n])).split([len(n), 1])
        h = F.relu(z)
        logits = self.logit(h)
        # Peer normalisation is linear in z, and not in h, so that the ReLU does not gate it: units that never fire are
        # revived. Being linear, it needs the mean total input alone.
        peer_term = (mean_z * self.peer_pull(h.detach().chunk(2)[0])).sum()
        return logistic_loss(*logits.chunk(2)) - peer_term, logits, h

    def peer_pull(self, h: Tensor) -> Tensor:
        """Peer normalisation (section 3.2, and the Matlab code): what it adds to the mean over the positive cases of
        -dloss/dz, lambda * (mean over units of m - m) ([d_l]), after an update of the running means m with their
        activities h ([B, d_l]).
        """
        self.mean_activity.lerp_(h.mean(dim=0), 1 - self.peer_momentum)  # m <- 0.9 m + 0.1 mean(h)
        return self.peer_normalisation * (self.mean_activity.mean() - self.mean_activity)
