"""Connections from the map that a layer sees to its own: dense, or each location from a square of what it sees.

They are bottom-up or top-down by what they are given to see, and they know the precision of their products.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
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
CACHED = 256  # maps whose windows are gathered at a time
SEEN, OWN = 0, 1  # the maps at both sides of connections


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


class Windows(NamedTuple):
    """`count` windows along one side of a map, of `size` locations each, the first from `start`, one each `step`."""

    start: int
    size: int
    step: int
    count: int

    @property
    def all(self) -> slice:
        return slice(self.start, self.start + (self.count - 1) * self.step + self.size)


def along(own: int, seen: int, field: int, stride: int, padding: int, tile: int) -> list[tuple[Windows, Windows]]:
    """Along one side: what tiles of `own` locations see of so many `seen`, and the tiles. Those at a border see less.

    A list, as windows of one size are taken together.
    """
    found, whole = [], field + (tile - 1) * stride
    for at in range(0, own, tile):
        start = at * stride - padding
        sees = Windows(max(start, 0), min(start + whole, seen) - max(start, 0), tile * stride, 1)
        if found and found[-1][0].size == sees.size == whole:
            found[-1] = tuple(each._replace(count=each.count + 1) for each in found[-1])
        else:
            found.append((sees, Windows(at, tile, tile, 1)))
    return found


class Connections(nn.Module):
    """W n. Dense, or without weight sharing from fields: each location of `own` sees a square of `seen` (section 3.2).

    `weight` is [own.size, seen.size]; of fields, it holds a matrix for each tile (`of_tiles`).

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
        self.seen, self.own, self.field, self.padding, self.dtype = seen, own, field, padding, dtype
        shape, mask = [own.size, seen.size], None
        if field is not None:
            down, across = (
                along(own[side], seen[side], field=field, stride=stride, padding=padding, tile=tile) for side in (0, 1)
            )
            # Tiles that see equally much are multiplied together: those in a corner, at an edge, and inside.
            together = defaultdict(list)
            for (sees_down, own_down), (sees_across, own_across) in product(down, across):
                block = (sees_down, sees_across), (own_down, own_across)
                together[sees_down.size * sees_across.size * seen.channels].append(block)
            self.blocks = list(together.values())
            self.shapes = [
                (sum(rows.count * columns.count for _, (rows, columns) in blocks), tile**2 * own.channels, inputs)
                for inputs, blocks in together.items()
            ]
            shape = self.shapes[0] if len(self.shapes) == 1 else [sum(map(math.prod, self.shapes))]
            mask = self._inside_fields(stride).view(shape) if tile > 1 else None
        self.weight = nn.Parameter(std * torch.randn(shape, generator=generator))
        self.register_buffer("mask", mask, persistent=False)
        if self.mask is not None:
            self.weight.data *= self.mask
        self.register_buffer("rounded", None if dtype == torch.float32 else self.weight.to(dtype), persistent=False)
        self.rounded_at: int | None = None  # which version of the weight `rounded` is of

    def _inside_fields(self, stride: int) -> Tensor:
        """Which inputs of its tile each unit sees, in the order of the weights (fp32, 0 or 1)."""
        masks = []
        for units, inputs in self.places():
            own, seen = torch.unravel_index(units, self.own)[:2], torch.unravel_index(inputs, self.seen)[:2]
            first = [place[:, :, None] * stride - self.padding for place in own]  # of each unit's field
            down, across = (place[:, None] - at for place, at in zip(seen, first, strict=True))
            inside = (down >= 0) & (down < self.field) & (across >= 0) & (across < self.field)
            masks.append(inside.float().flatten())
        return torch.cat(masks)

    def places(self) -> list[tuple[Tensor, Tensor]]:
        """Which numbers of `own` are the units of each tile ([tiles, units]), and of `seen` its inputs ([tiles,
        inputs]), for each matrix.
        """
        inputs, units = (
            self._gather([torch.arange(shape.size)[None]], side) for side, shape in enumerate((self.seen, self.own))
        )
        return [(of_own.squeeze(1), of_seen.squeeze(1)) for of_own, of_seen in zip(units, inputs, strict=True)]

    def of_tiles(self, weight: Tensor) -> list[Tensor]:
        """The matrices of tiles that are multiplied together, as views of the weight ([tiles, units, inputs] each)."""
        parts = weight.flatten().split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def full_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or what is like it, as that of dense connections ([own.size, seen.size])."""
        if self.field is None:
            return weight
        whole = weight.new_zeros(self.own.size, self.seen.size)
        for (units, inputs), of_tiles in zip(self.places(), self.of_tiles(weight), strict=True):
            whole[units[:, :, None], inputs[:, None]] = of_tiles
        return whole

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
        n, W = n.to(self.dtype), self.matrix()
        if self.field is None:
            return F.linear(n, W)
        products = [
            torch.bmm(its_n, its_W.mT) for its_n, its_W in zip(self._gather([n], SEEN), self.of_tiles(W), strict=True)
        ]
        z = n.new_empty(len(n), self.own.size)
        for area, of_tiles in self._views(z, products, OWN):
            area.copy_(of_tiles)
        return z

    def back(self, dz: Tensor) -> Tensor:
        """W^T dz ([B, own.size] -> [B, seen.size], fp32): for back-propagation and adversarial images alone."""
        dz, W = dz.to(self.dtype), self.matrix()
        if self.field is None:
            return F.linear(dz, W.T).float()
        products = [
            torch.bmm(its_dz, its_W).float()
            for its_dz, its_W in zip(self._gather([dz], OWN), self.of_tiles(W), strict=True)
        ]
        dn = dz.new_zeros(len(dz), self.seen.size, dtype=torch.float32)
        for area, of_tiles in self._views(dn, products, SEEN):
            for tile in product(*map(range, area.shape[:2])):  # one by one, as windows overlap
                area[tile].add_(of_tiles[tile])
        return dn

    def smooth(self, dz: Sequence[Tensor], n: Sequence[Tensor], momentum: float) -> None:
        """Adds a gradient to the momentum buffer: g <- momentum g + (1 - momentum) dz^T n, g = `weight.grad`.

        dz, n: of N samples, in parts (each [., own.size], [., seen.size]).
        """
        g = self.weight.grad
        if self.field is None:
            smooth_outer(g, joined(dz), joined(n), momentum, self.dtype)
            return
        dz, n = ([part.to(self.dtype) for part in parts] for parts in (dz, n))
        for of_tiles in zip(self.of_tiles(g), self._gather(dz, OWN), self._gather(n, SEEN), strict=True):
            smooth_outer(*of_tiles, momentum, self.dtype)
        if self.mask is not None:
            g.mul_(self.mask)

    def _gather(self, parts: Sequence[Tensor], side: int) -> list[Tensor]:
        """The windows of each tile in maps that are SEEN or OWN, for each matrix ([., size of the map] each -> [tiles,
        samples, inputs or units]).

        In few samples at a time, so that they stay in a cache, as each is read for many tiles.
        """
        parts = [part for x in parts for part in x.split(CACHED)]
        gathered = [parts[0].new_empty(shape[0], sum(map(len, parts)), shape[2 - side]) for shape in self.shapes]
        for part, *into in zip(parts, *(each.split([len(x) for x in parts], dim=1) for each in gathered), strict=True):
            for area, of_tiles in self._views(part, into, side):
                of_tiles.copy_(area)
        return gathered

    def _views(self, x: Tensor, gathered: Sequence[Tensor], side: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows of maps and, for each, its place in what is `gathered` of them: views of the same shape."""
        shape = (self.seen, self.own)[side]
        x = x.unflatten(1, shape)
        for blocks, its_gathered in zip(self.blocks, gathered, strict=True):
            counts = [rows.count * columns.count for rows, columns in (block[side] for block in blocks)]
            for block, of_tiles in zip(blocks, its_gathered.split(counts), strict=True):
                rows, columns = block[side]
                area = x[:, rows.all, columns.all].unfold(1, rows.size, rows.step).unfold(2, columns.size, columns.step)
                size = rows.size, columns.size, shape.channels
                of_tiles = of_tiles.unflatten(0, (rows.count, columns.count)).unflatten(-1, size)
                yield area.permute(1, 2, 0, 4, 5, 3), of_tiles


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
