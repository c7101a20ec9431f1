"""Connections from the map that a layer sees to its own: dense, or each location from a square of what it sees.

They are bottom-up or top-down by what they are given to see, and they know the precision of their products.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config.values import ConfigError

# "fp32" is fp32, even where the environment asks for TF32, as NVIDIA's containers do.
torch.set_float32_matmul_precision("highest")

NEGLIGIBLE = 1e-10  # of the largest in the batch: beyond what fp32 resolves, even from hundreds of samples together
# Of few samples the product is cheap, and in fp32 it is added within it; in bf16 it is written, widened and then added.
FEW_SAMPLES = 96
CACHED = 256  # maps whose squares are gathered at a time, as each is read by many tiles: so many fit into a cache


class Map(NamedTuple):
    """An image, a layer or a label: so many numbers (channels) at each of height x width locations.

    As a vector it is ordered location by location, row by row, channels last.
    """

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        return self.height * self.width * self.channels


class Connections(nn.Module):
    """W n. Dense, or without weight sharing from fields: each location of `own` sees a square of `seen` (section 3.2).

    Args:
        seen, own: the maps.
        field: side of the square that a location sees; None for all of `seen`.
        stride: from one square to the next; padding: by which the first one reaches beyond the border, where it is cut.
        tile: so many locations per side are multiplied at once, with a mask inside for what each does not see. Fields
            that overlap much are faster so.
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
        self.seen, self.own, self.field, self.padding, self.tile = seen, own, field, padding, tile
        if field is None:
            shape = [own.size, seen.size]
        else:
            self.step, self.window = tile * stride, field + (tile - 1) * stride  # of a tile, in locations of `seen`
            tiles = own.height // tile * (own.width // tile)
            shape = [tiles, tile**2 * own.channels, self.window**2 * seen.channels]
        self.weight = nn.Parameter(std * torch.randn(shape, generator=generator))
        self.register_buffer("mask", self._inside_fields(stride) if tile > 1 else None, persistent=False)
        if self.mask is not None:
            self.weight.data *= self.mask
        if padding:
            self.weight.data *= self._gathered(torch.ones(1, seen.size)) != 0  # no weight beyond the border
        self.dtype = dtype
        self.register_buffer("rounded", None if dtype == torch.float32 else self.weight.to(dtype), persistent=False)
        self.rounded_at: int | None = None  # which version of the weight `rounded` is of

    def _inside_fields(self, stride: int) -> Tensor:
        """Which inputs of a tile each of its units sees (fp32, 0 or 1, [units, inputs])."""
        first, point = torch.arange(self.tile)[:, None] * stride, torch.arange(self.window)
        sees = ((first <= point) & (point < first + self.field)).float()  # along one axis: [tile, window]
        mask = torch.einsum("ri,cj->rcij", sees, sees)[:, :, None, :, :, None]
        shape = (-1, -1, self.own.channels, -1, -1, self.seen.channels)
        return mask.expand(shape).flatten(3).flatten(0, 2)

    def matrix(self) -> Tensor:
        """W in the dtype of the products, rounded anew only where W has changed since."""
        if self.rounded is None:
            return self.weight
        if not torch.compiler.is_compiling() and self.rounded_at != self.weight._version:
            self.round()
        return self.rounded

    def round(self) -> None:
        """To be called by whatever changes W within a compiled graph, which cannot see that it has changed."""
        if self.rounded is not None:
            self.rounded.copy_(self.weight)
            if not torch.compiler.is_compiling():
                self.rounded_at = self.weight._version

    def gather(self, n: Tensor) -> Tensor:
        """What is multiplied ([B, seen.size] -> itself or, of fields, [tiles, B, inputs]), in the dtype of products."""
        n = n.to(self.dtype)
        return n if self.field is None else self._gathered(n)

    def _gathered(self, n: Tensor) -> Tensor:
        n = n.unflatten(1, self.seen)
        if self.padding:
            n = F.pad(n, (0, 0, *[self.padding] * 4))
        squares = n.unfold(1, self.window, self.step).unfold(2, self.window, self.step)
        squares = squares.permute(1, 2, 0, 4, 5, 3)  # [tiles down, tiles across, B, window, window, channels]
        gathered = squares.new_empty(squares.shape)
        for part, its_squares in zip(gathered.split(CACHED, dim=2), squares.split(CACHED, dim=2), strict=True):
            part.copy_(its_squares)
        return gathered.flatten(3).flatten(0, 1)

    def forward(self, n: Tensor) -> Tensor:
        """W n ([B, seen.size] -> [B, own.size])."""
        return self.product(self.gather(n))

    def product(self, gathered: Tensor) -> Tensor:
        """W n, of what `gather` returned."""
        if self.field is None:
            return F.linear(gathered, self.matrix())
        return self._as_map(torch.bmm(gathered, self.matrix().mT))

    def back(self, dz: Tensor) -> Tensor:
        """W^T dz ([B, own.size] -> [B, seen.size], fp32): for back-propagation and adversarial images alone."""
        if self.field is None:
            return F.linear(dz.to(self.dtype), self.matrix().T).float()
        dn = torch.bmm(self._by_tile(dz.to(self.dtype)), self.matrix()).float()  # [tiles, B, inputs]
        squares = dn.unflatten(2, (-1, self.seen.channels)).permute(1, 3, 2, 0).flatten(1, 2)
        padded = (self.seen.height + 2 * self.padding, self.seen.width + 2 * self.padding)
        dn = F.fold(squares, padded, self.window, stride=self.step).permute(0, 2, 3, 1)
        inside = slice(self.padding, -self.padding or None)
        return dn[:, inside, inside].flatten(1)

    def smooth(self, dz: Tensor, n: Tensor, momentum: float) -> None:
        """Adds a gradient to the momentum buffer: g <- momentum g + (1 - momentum) dz^T n, g = `weight.grad`.

        dz, n: of N samples ([N, own.size], [N, seen.size]).
        """
        if self.field is not None:
            dz = self._by_tile(dz.to(self.dtype)).contiguous()  # as a batched product of a strided operand is slow
        smooth_outer(self.weight.grad, dz, self.gather(n), momentum, self.dtype)
        if self.mask is not None:
            self.weight.grad.mul_(self.mask)

    def _by_tile(self, z: Tensor) -> Tensor:
        """[B, own.size] -> [tiles, B, units]."""
        down, across = self.own.height // self.tile, self.own.width // self.tile
        z = z.unflatten(1, (down, self.tile, across, self.tile, self.own.channels))
        return z.permute(1, 3, 0, 2, 4, 5).flatten(3).flatten(0, 1)

    def _as_map(self, z: Tensor) -> Tensor:
        """[tiles, B, units] -> [B, own.size]."""
        z = z.unflatten(2, (self.tile, self.tile, -1)).unflatten(0, (-1, self.own.width // self.tile))
        return z.permute(2, 0, 3, 1, 4, 5).flatten(1)


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
    if field is None:
        return [shape, *(Map(1, 1, dim) for dim in hidden_dims)]
    return [shape, *(Map(shape.height, shape.width, dim // (shape.height * shape.width)) for dim in hidden_dims)]


def check_field(shape: Map, hidden_dims: Sequence[int], field: int | None) -> None:
    """Raises ConfigError if there are no such `maps_of` these images."""
    locations = shape.height * shape.width
    if field is not None and (field % 2 == 0 or field > 2 * min(shape.height, shape.width)):
        raise ConfigError(f"model.field={field}: must be odd, as it is the square around a location")
    for dim in hidden_dims:
        if field is not None and dim % locations:
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
