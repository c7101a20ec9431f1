"""One Forward-Forward layer: its activity, and how it learns from its own goodness alone (sections 2 and 3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from src.config.values import Model, choices, number, one_of
from src.layers import goodness, losses
from src.layers.connections import Connections, rows_that_matter, select

GOODNESSES, LOSSES = choices(goodness), choices(losses)


@dataclass
class LayerModel(Model):
    """The values of a layer: see configs/layers.yaml and `FFLayer`."""

    goodness: str = one_of(GOODNESSES)
    loss: str = one_of(LOSSES)
    threshold: float = number(at_least=0)
    temperature: float = number(above=0)
    peer_normalisation: float = number(at_least=0)
    peer_momentum: float = number(at_least=0, below=1)
    initial_mean_activity: float = number(at_least=0)

    def of_layer(self) -> dict[str, str | float]:
        """The keyword arguments of `FFLayer`."""
        return {each.name: getattr(self, each.name) for each in fields(LayerModel) if each not in fields(Model)}


def root_mean_square(v: Tensor, tiny: float = 1e-8) -> Tensor:
    """sqrt(mean(v^2)) + tiny of each row ([B, d] -> [B, 1])."""
    return torch.linalg.vector_norm(v, dim=1, keepdim=True) / v.shape[1] ** 0.5 + tiny


def length_normalise(v: Tensor) -> Tensor:
    """n(v) = v / rms(v) for each row of v ([B, d]), so that mean(n(v)^2) = 1 (section 2.1).

    It removes the goodness of the layer below: only the direction of its activity vector is passed on.
    """
    return v / root_mean_square(v)


def by_autograd(function: Callable, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of `function`, whose entries each depend on their own sample alone, by its inputs."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*inputs).sum(), inputs)


class ReLULayer(nn.Module):
    """h = relu(W n + b), biases from zero."""

    def __init__(self, below: Connections):
        super().__init__()
        self.below = below
        self.bias = nn.Parameter(torch.zeros(below.own.size))

    def forward(self, n: Tensor) -> Tensor:
        """h ([B, d_{l-1}] -> [B, d_l])."""
        return self.below(n).float().add_(self.bias).relu_()


class FFLayer(ReLULayer):
    """A layer on normalised inputs n that learns by a local loss on its goodness.

    Args:
        below: connections from the layer below or the image; above: from the layer above or the label (section 3.4).
        goodness, loss: names of functions of src/layers/goodness.py and src/layers/losses.py.
        threshold: theta, as a multiple of the goodness of a layer whose units are all 1; temperature: T.
        peer_normalisation: lambda; peer_momentum: of the running means m; initial_mean_activity: where they start.
    """

    def __init__(
        self,
        below: Connections,
        above: Connections | None = None,
        *,
        goodness: str,
        loss: str,
        threshold: float,
        temperature: float,
        peer_normalisation: float,
        peer_momentum: float,
        initial_mean_activity: float,
    ):
        super().__init__(below)
        self.above = above
        self.register_buffer("mean_activity", torch.full_like(self.bias.data, initial_mean_activity))
        self.goodness = GOODNESSES[goodness]
        self.loss = LOSSES[loss]
        self.theta = threshold * round(self.goodness(torch.ones(1, below.own.size).double()).item(), 6)
        self.temperature = temperature
        self.peer_normalisation = peer_normalisation
        self.peer_momentum = peer_momentum

    def learn(
        self,
        h: Sequence[Tensor],
        momentum: float,
        *,
        below: Sequence[Tensor] | Tensor,
        above: Sequence[Tensor] | Tensor | None = None,
        gates: Sequence[Tensor] | None = None,
        dh_dz: float = 1.0,
        of: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the layer's own loss to its momentum buffers, g <- mu g + (1 - mu) dloss/dW.

        This is all of Forward-Forward learning: nothing of it comes from another layer, so nothing is propagated back.

        Args:
            h: activities of B positives and, below them, B negatives, at each iteration ([2B, d_l]); of a net that is
                not recurrent, there is one. The loss is the mean over the iterations.
            below, above: n of the layer below and, if there are connections from it, of the layer above, at each
                iteration ([2B, d_{l-1}], [2B, d_{l+1}]); or one for all, if it is held. Of images, B rows are enough.
            gates: 1[z > 0] ([2B, d_l]), where that is not 1[h > 0]; dh_dz: the slope of h where it is 1.
            of: whether it learns of the positives and of the negatives (each 1 or 0, [2]), if not of both (section 5).

        Returns:
            the loss of each pair ([B]) and the goodness of each sample ([2B]), means over the iterations.
        """
        B = len(h[0]) // 2
        loss, G, dz, which = [], [], [], []
        for h_now, gate in zip(h, gates or [None] * len(h), strict=True):
            G.append(self.goodness(h_now))
            positive, negative = G[-1].chunk(2)
            loss.append(self.loss(positive, negative, theta=self.theta, temperature=self.temperature))
            dloss_dG = torch.stack(self.loss_slope(positive, negative)) * (dh_dz / (len(h) * B))  # [2, B]
            dloss_dG = (dloss_dG if of is None else dloss_dG * of[:, None]).flatten()

            rows = rows_that_matter(dloss_dG)
            h_of_rows = select(h_now, rows)
            gate = h_of_rows > 0 if gate is None else select(gate, rows)
            # dloss/dz = dloss/dG dG/dh dh/dz
            dz.append((select(dloss_dG, rows)[:, None] * self.slope(h_of_rows)).mul_(gate))
            which.append(rows)
        # Peer normalisation is one row more, the mean of the positives: its derivative is the same for all of them, and
        # the ReLU does not gate it, so that it revives units that never fire.
        pull = -self.peer_pull(mean_of_positives(h, B), 1 if of is None else of[0])
        self.bias.grad.lerp_(sum(each.sum(dim=0) for each in dz).add_(pull), 1 - momentum)
        for connections, n in ((self.below, below), (self.above, above)):
            if connections is None:
                continue
            if isinstance(n, Tensor):  # which is held
                mean_n, d, n = mean_of_positives([n], B), [added_up(dz, which, len(n))], [n]
            else:
                mean_n, d = mean_of_positives(n, B), dz
                n = [select(each, rows) for each, rows in zip(n, which, strict=True)]
            connections.smooth([*d, pull[None]], [*n, mean_n[None].to(n[0].dtype)], momentum)
        return torch.stack(loss).mean(dim=0), torch.stack(G).mean(dim=0)

    def loss_slope(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """dloss/dG of the positives and of the negatives (each [..., B])."""
        options = {"theta": self.theta, "temperature": self.temperature}
        if self.loss in losses.DERIVATIVES:
            return losses.DERIVATIVES[self.loss](positive, negative, **options)
        return by_autograd(lambda *G: self.loss(*G, **options), positive, negative)

    def slope(self, h: Tensor) -> Tensor:
        """dG/dh ([B, d_l] -> [B, d_l]): of a sample by its own activities, without any matrix or other layer."""
        if self.goodness in goodness.SLOPES:
            return goodness.SLOPES[self.goodness](h)
        return by_autograd(self.goodness, h)[0]

    def peer_pull(self, mean_h: Tensor, of_positives: Tensor | int) -> Tensor:
        """Peer normalisation (section 3.2, and the Matlab code): what it adds to the mean over the positives of
        -dloss/dz, lambda * (mean over units of m - m) ([d_l]), after an update of the running means m with the mean
        activities of the positives ([d_l]); both only if the layer learns `of_positives` (1, else 0).
        """
        self.mean_activity.lerp_(mean_h, of_positives * (1 - self.peer_momentum))  # m <- 0.9 m + 0.1 mean(h)
        return of_positives * self.peer_normalisation * (self.mean_activity.mean() - self.mean_activity)


def mean_of_positives(x: Sequence[Tensor], B: int) -> Tensor:
    """Of x at each iteration, which begins with B positives (each [., d] -> [d], fp32)."""
    return torch.stack([now[:B].mean(dim=0, dtype=torch.float32) for now in x]).mean(dim=0)


def added_up(dz: Sequence[Tensor], which: Sequence[Tensor | None], held: int) -> Tensor:
    """dz of `which` rows at each iteration (all for None), added up over those that see the same of the `held` rows.

    One product with what is held, instead of one for each iteration ([., d_l] -> [held, d_l]).
    """
    total = dz[0].new_zeros(held, dz[0].shape[1])
    for d, rows in zip(dz, which, strict=True):
        if rows is None:  # index_add_ would add them up in another order each time on a GPU
            total += d.unflatten(0, (-1, held)).sum(dim=0)
        else:
            total.index_add_(0, rows % held, d)
    return total


def activities(layers: Sequence[FFLayer], x: Tensor) -> list[Tensor]:
    """h of every layer, for inputs x that are not normalised yet ([B, d] -> tensors [B, d_l])."""
    all_h = []
    for layer in layers:
        x = layer(length_normalise(x))
        all_h.append(x)
    return all_h
