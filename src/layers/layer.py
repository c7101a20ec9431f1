"""One Forward-Forward layer: its activity, and how it learns from its own goodness alone (sections 2 and 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.config.values import Model, choices, number, one_of
from src.layers import goodness, losses
from src.layers.products import linear, rows, significant, smooth_outer

GOODNESSES, LOSSES, SLOPES = choices(goodness), choices(losses), goodness.SLOPES


@dataclass
class LayerModel(Model):
    """The values of a layer, which are keyword arguments of `FFLayer`."""

    goodness: str = one_of(*GOODNESSES)
    loss: str = one_of(*LOSSES)
    threshold: float = number(at_least=0)
    temperature: float = number(above=0)
    peer_normalisation: float = number(at_least=0)
    peer_momentum: float = number(at_least=0, below=1)
    initial_mean_activity: float = number(at_least=0)


def root_mean_square(v: Tensor, tiny: float = 1e-8) -> Tensor:
    """sqrt(mean(v^2)) + tiny of each row ([B, d] -> [B, 1])."""
    return torch.linalg.vector_norm(v, dim=1, keepdim=True) / v.shape[1] ** 0.5 + tiny


def length_normalise(v: Tensor) -> Tensor:
    """n(v) = v / rms(v) for each row of v ([B, d]), so that mean(n(v)^2) = 1 (section 2.1).

    It removes the goodness of the layer below: only the direction of its activity vector is passed on.
    """
    return v / root_mean_square(v)


class FFLayer(nn.Module):
    """h = relu(W n + b), for normalised inputs n; trained by a local loss on its goodness.

    Args:
        in_features, out_features: widths d_{l-1} and d_l.
        goodness, .. initial_mean_activity: the values of configs/layers.yaml; the layer's threshold theta is
            `threshold * out_features`.
        matmul_dtype: of the matrix products; weights, normalisation, goodness and loss stay in fp32.
        weight_std: standard deviation of the initial weights; biases start at zero.
        generator: source of the initial weights (on the CPU, so that every device starts from the same net).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        goodness: str,
        loss: str,
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
        self.goodness = GOODNESSES[goodness]
        self.loss = LOSSES[loss]
        self.theta = threshold * out_features
        self.temperature = temperature
        self.peer_normalisation = peer_normalisation
        self.peer_momentum = peer_momentum
        self.matmul_dtype = matmul_dtype

    def total_input(self, n: Tensor, weight: Tensor | None = None) -> Tensor:
        """z = W n + b ([B, d_{l-1}] -> [B, d_l]); `weight`: W in the dtype of the products, if it is at hand."""
        return linear(n, self.weight if weight is None else weight, self.matmul_dtype).add_(self.bias)

    def forward(self, n: Tensor, weight: Tensor | None = None) -> Tensor:
        """h = relu(z) ([B, d_{l-1}] -> [B, d_l])."""
        return self.total_input(n, weight).relu_()

    def learn(self, n: Tensor, h: Tensor, momentum: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Smooths the gradient of the layer's own loss into its parameters' `.grad` (`smooth_outer`).

        This is all of Forward-Forward learning: nothing of it comes from another layer, so nothing is propagated back.

        Args:
            n: normalised inputs of B positive and, below them, the B negative cases ([2B, d_{l-1}]); h: activities
                ([2B, d_l]).
            scale: what dropout has multiplied the surviving activities by.

        Returns:
            the loss of each pair ([B]) and the goodness of each case ([2B]).
        """
        size = len(h) // 2
        G = self.goodness(h)
        loss, *dloss_dG = self.loss(*G.chunk(2), theta=self.theta, temperature=self.temperature)
        dloss_dG = torch.cat(dloss_dG) / (size / scale)  # of the mean loss over the pairs: [2B]
        cases = significant(dloss_dG.abs())
        h_of_cases = rows(h, cases)
        dz = self.derivative(h_of_cases, rows(dloss_dG, cases), gate=h_of_cases > 0)
        # Peer normalisation is one case more, the mean of the positives: its derivative is the same for all of them,
        # and the ReLU does not gate it, so that it revives units that never fire.
        dz = torch.cat([dz, -self.peer_pull(h[:size].mean(dim=0))[None]])
        self.smooth_gradient(dz, torch.cat([rows(n, cases), n[:size].mean(dim=0, keepdim=True)]), momentum)
        return loss, G

    def derivative(self, h: Tensor, dloss_dG: Tensor, gate: Tensor) -> Tensor:
        """dloss/dz = dloss/dG dG/dh 1[z > 0] ([B, d_l]), of activities h ([B, d_l]), dloss/dG ([B]) and the ReLU's gate
        1[z > 0] ([B, d_l]).
        """
        return dloss_dG[:, None] * self.slope(h) * gate

    def slope(self, h: Tensor) -> Tensor:
        """dG/dh ([B, d_l] -> [B, d_l]): of a case by its own activities, without any matrix or other layer."""
        if self.goodness in SLOPES:
            return SLOPES[self.goodness](h)
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            return torch.autograd.grad(self.goodness(h).sum(), h)[0]

    def peer_pull(self, mean_h: Tensor) -> Tensor:
        """Peer normalisation (section 3.2, and the Matlab code): what it adds to the mean over the positive cases of
        -dloss/dz, lambda * (mean over units of m - m) ([d_l]), after an update of the running means m with the mean
        activities of the positives ([d_l]).
        """
        self.mean_activity.lerp_(mean_h, 1 - self.peer_momentum)  # m <- 0.9 m + 0.1 mean(h)
        return self.peer_normalisation * (self.mean_activity.mean() - self.mean_activity)

    def smooth_gradient(self, dz: Tensor, n: Tensor, momentum: float) -> None:
        """Of dz ([B, d_l]) and n ([B, d_{l-1}]): dz^T n is the gradient of the weights, the sum of dz of the biases."""
        self.bias.grad.lerp_(dz.sum(dim=0), 1 - momentum)
        smooth_outer(self.weight.grad, dz, n, momentum, self.matmul_dtype)
