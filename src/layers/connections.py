"""Connections from the map that a layer sees to its own: dense, or each location from a square of what it sees.

They are bottom-up or top-down by what they are given to see, and they know the precision of their products.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config.values import ConfigError
from src.layers.fields import OWN, SEEN, Fields, Map

# "fp32" is fp32, even where the environment asks for TF32, as NVIDIA's containers do.
torch.set_float32_matmul_precision("highest")

NEGLIGIBLE = 1e-10  # of the largest in the batch: beyond what fp32 resolves, even from hundreds of samples together
# Of few samples the product is cheap, and in fp32 it is added within it; in bf16 it is written, widened and then added.
FEW_SAMPLES = 96


class Connections(nn.Module):
    """W n. Dense, or without weight sharing from fields: each location of `own` sees a square of `seen` (section 3.2).

    `weight` is [own.size, seen.size]; with `fields`, it holds a matrix for each tile (`Fields.matrices`).

    Args:
        seen, own: the maps.
        field: side of the square that a location sees; None for all of `seen`. stride, padding, tile: see `Fields`.
        std: of the initial weights, from `generator` (on the CPU, so that every device starts from the same net).
        dtype: of the products, which are rounded to it; weights and their smoothed gradients g stay in fp32.
    """

    def __init__(
        self,
        seen: Map,
        own: Map,
        *,
        field: int | None = None,
        stride: int = 1,
        padding: int = 0,
        tile: int = 1,
        std: float,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.seen, self.own, self.dtype, self.fields = seen, own, dtype, None
        shape, mask = [own.size, seen.size], None
        if field is not None:
            self.fields = Fields(seen, own, size=field, stride=stride, padding=padding, tile=tile)
            shapes = self.fields.shapes
            shape = shapes[0] if len(shapes) == 1 else [sum(map(math.prod, shapes))]
            mask = self.fields.mask().view(shape) if tile > 1 else None
        self.weight = nn.Parameter(std * torch.randn(shape, generator=generator))
        self.register_buffer("mask", mask, persistent=False)
        if self.mask is not None:
            self.weight.data *= self.mask
        self.register_buffer("rounded", None if dtype == torch.float32 else self.weight.to(dtype), persistent=False)
        self.rounded_at: int | None = None  # which version of the weight `rounded` is of

    def full_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or what is like it, as that of dense connections ([own.size, seen.size])."""
        return weight if self.fields is None else self.fields.full_matrix(weight)

    def matrix(self) -> Tensor:
        """W in the dtype of the products, rounded anew only where W has changed since."""
        if self.rounded is None:
            return self.weight
        if not torch.compiler.is_compiling() and self.rounded_at != self.weight._version:
            self.round()
        return self.rounded

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.round()  # as a graph that is compiled or exported next would not

    def round(self) -> None:
        """To be called by whatever changes W within a compiled graph, which cannot see that it has changed."""
        if self.rounded is not None:
            self.rounded.copy_(self.weight)
            if not torch.compiler.is_compiling():
                self.rounded_at = self.weight._version

    def forward(self, n: Tensor) -> Tensor:
        """W n ([B, seen.size] -> [B, own.size])."""
        n, W, fields = n.to(self.dtype), self.matrix(), self.fields
        if fields is None:
            return F.linear(n, W)
        pairs = zip(fields.gather([n], SEEN), fields.matrices(W), strict=True)
        z = n.new_empty(len(n), self.own.size)
        for window, of_tiles in fields.windows(z, [torch.bmm(its_n, its_W.mT) for its_n, its_W in pairs], OWN):
            window.copy_(of_tiles)
        return z

    def back(self, dz: Tensor) -> Tensor:
        """W^T dz ([B, own.size] -> [B, seen.size], fp32): for back-propagation and adversarial images alone."""
        dz, W, fields = dz.to(self.dtype), self.matrix(), self.fields
        if fields is None:
            return F.linear(dz, W.T).float()
        pairs = zip(fields.gather([dz], OWN), fields.matrices(W), strict=True)
        dn = dz.new_zeros(len(dz), self.seen.size, dtype=torch.float32)
        for window, of_tiles in fields.windows(dn, [torch.bmm(its_dz, its_W).float() for its_dz, its_W in pairs], SEEN):
            for tile in product(*map(range, window.shape[:2])):  # one by one, as windows overlap
                window[tile].add_(of_tiles[tile])
        return dn

    def smooth(self, dz: Sequence[Tensor], n: Sequence[Tensor], momentum: float) -> None:
        """Adds a gradient to the momentum buffer: g <- momentum g + (1 - momentum) dz^T n, g = `weight.grad`.

        dz, n: of N samples, in parts (each [., own.size], [., seen.size]).
        """
        g, fields = self.weight.grad, self.fields
        if fields is None:
            smooth_outer(g, joined(dz), joined(n), momentum, self.dtype)
            return
        dz, n = ([part.to(self.dtype) for part in parts] for parts in (dz, n))
        for of_tiles in zip(fields.matrices(g), fields.gather(dz, OWN), fields.gather(n, SEEN), strict=True):
            smooth_outer(*of_tiles, momentum, self.dtype)
        if self.mask is not None:
            g.mul_(self.mask)


def joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def around(
    seen: Map, own: Map, field: int | None, *, gain: float, generator: torch.Generator, dtype: torch.dtype
) -> Connections:
    """W ~ N(0, gain^2 / inputs of a unit), dense or topographic: each location sees the square of `field` x `field`
    around it, cut at the border (section 4). What has no locations, as a label, is seen whole.
    """
    options = {"generator": generator, "dtype": dtype}
    if field is None or seen.height * seen.width == 1:
        return Connections(seen, own, std=gain * seen.size**-0.5, **options)
    tile = max(side for side in range(1, 9) if own.height % side == own.width % side == 0)
    std = gain * (field**2 * seen.channels) ** -0.5
    return Connections(seen, own, field=field, padding=field // 2, tile=tile, std=std, **options)


def maps_of(shape: Map, hidden_dims: Sequence[int], field: int | None) -> list[Map]:
    """The image and the hidden layers: mere vectors or, with a `field`, as many locations as the image has."""
    height, width = (1, 1) if field is None else shape[:2]
    return [shape, *(Map(height, width, dim // (height * width)) for dim in hidden_dims)]


def check_field(shape: Map, hidden_dims: Sequence[int], field: int | None) -> None:
    """Raises ConfigError if there are no such `maps_of` these images."""
    if field is None:
        return
    locations, widest = shape.height * shape.width, 2 * min(shape.height, shape.width)
    if field % 2 == 0 or not 1 <= field <= widest:
        rule = f"must be odd, as it is the square around a location, and from 1 to {widest}"
        raise ConfigError(f"model.field={field}: {rule}")
    for dim in hidden_dims:
        if dim % locations:
            rule = f"with model.field, every width must be a multiple of the {locations} locations of an image"
            raise ConfigError(f"model.hidden_dims={list(hidden_dims)}: {rule}")


def rows_that_matter(derivatives: Tensor) -> Tensor | None:
    """Indices of the samples whose derivative ([N]) is not negligible; None for all.

    Most samples are soon far on their side of the threshold, where p is 1 or 0 and the derivative vanishes: after five
    epochs of the Matlab recipe, nine in ten. Leaving them out pays on the CPU; a GPU would wait for their number.
    """
    if derivatives.device.type != "cpu":
        return None
    sizes = derivatives.abs()
    rows = (sizes > NEGLIGIBLE * sizes.max()).nonzero().squeeze(1)
    # A compiled graph has no branch that depends on their number.
    return rows if torch.compiler.is_compiling() or len(rows) < 0.9 * len(sizes) else None


def select(x: Tensor, rows: Tensor | None) -> Tensor:
    """These rows of x ([N, ...]), or all of them. (index_select is several times as fast as [].)"""
    return x if rows is None else x.index_select(0, rows)


def smooth_outer(g: Tensor, dz: Tensor, n: Tensor, momentum: float, dtype: torch.dtype) -> None:
    """g <- momentum g + (1 - momentum) dz^T n, in one pass over g ([d_out, d_in], [N, d_out], [N, d_in]).

    Multiplied in `dtype`, or in fp32 where that is faster. With a dimension before those, one product for each of its
    indices.
    """
    unknown_to_inductor = g.dim() == 3 or (g.is_cuda and dtype != g.dtype)
    apart = torch.compiler.is_compiling() and unknown_to_inductor
    (_smooth_outer_op if apart else _smooth_outer)(g, dz, n, momentum, dtype)


def _smooth_outer(g: Tensor, dz: Tensor, n: Tensor, momentum: float, dtype: torch.dtype) -> None:
    compiling = torch.compiler.is_compiling()
    # A compiled graph has no branch that depends on the number of samples.
    if not compiling and dz.shape[-2] <= FEW_SAMPLES and not g.is_cuda:
        dtype = g.dtype
    dz, n = dz.to(dtype), n.to(dtype)
    product, shares = torch.addmm if g.dim() == 2 else torch.baddbmm, {"beta": momentum, "alpha": 1 - momentum}
    if dtype != g.dtype and g.is_cuda:  # the sum is not rounded to bf16 on its way
        product(g, dz.mT, n, **shares, out_dtype=g.dtype, out=g)
    elif dtype != g.dtype or compiling:  # compiled, this is one pass with the step of the weights
        g.lerp_((dz.mT @ n).float(), 1 - momentum)
    else:
        product(g, dz.mT, n, **shares, out=g)


# What Inductor does not compile stays outside of the graph: a batched product of a number of samples that is not known
# beforehand, and one of bf16 matrices into an fp32 one (torch 2.13: "tuned_addmm() takes 3 positional arguments").
_smooth_outer_op = torch.library.custom_op("forward_forward::smooth_outer", _smooth_outer, mutates_args=("g",))
