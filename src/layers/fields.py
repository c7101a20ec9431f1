"""Maps, and the fields through which each location of one sees another, without weight sharing (sections 3.2 and 4).

Fields that overlap much are multiplied faster tile by tile: all locations of a tile see one window, with a mask inside.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

CACHED = 256  # maps whose windows are gathered at a time
SEEN, OWN = 0, 1  # the maps at both sides


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
    """`count` windows along one side of a map, of `size` locations each: from `start`, `start + step` .."""

    start: int
    size: int
    step: int
    count: int

    @property
    def all(self) -> slice:
        return slice(self.start, self.start + (self.count - 1) * self.step + self.size)


def along(own: int, seen: int, field: int, stride: int, padding: int, tile: int) -> list[tuple[Windows, Windows]]:
    """Along one side: what tiles of `own` locations see of so many `seen`, and the tiles, a pair for each size.

    A field of 10 with a stride of 6 over 28 pixels: [(Windows(0, 10, 6, 4), Windows(0, 1, 1, 4))]. With padding, tiles
    at a border see less.
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


class Fields:
    """Who sees what. Tiles that see equally much share a matrix product: those in a corner, at an edge, and inside.

    Args:
        seen, own: the maps.
        size: side of the square of `seen` that a location of `own` sees.
        stride: from one square to the next; padding: by which the first one reaches beyond the border, where it is cut.
        tile: so many locations per side of `own`.
    """

    def __init__(self, seen: Map, own: Map, *, size: int, stride: int, padding: int, tile: int):
        self.maps, self.size, self.stride, self.padding = (seen, own), size, stride, padding
        down, across = (
            along(own[side], seen[side], field=size, stride=stride, padding=padding, tile=tile) for side in (0, 1)
        )
        together = defaultdict(list)
        for (sees_down, own_down), (sees_across, own_across) in product(down, across):
            block = (sees_down, sees_across), (own_down, own_across)
            together[sees_down.size * sees_across.size * seen.channels].append(block)
        self.blocks = list(together.values())
        self.shapes = [
            (sum(rows.count * columns.count for _, (rows, columns) in blocks), tile**2 * own.channels, inputs)
            for inputs, blocks in together.items()
        ]

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """Views of all weights in one tensor, or of what is like it, for each product ([tiles, units, inputs] each)."""
        parts = weight.flatten().split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def places(self) -> list[tuple[Tensor, Tensor]]:
        """Which numbers of `own` are the units of each tile ([tiles, units]), and of `seen` its inputs ([tiles,
        inputs]), for each matrix.
        """
        inputs, units = (self.gather([torch.arange(shape.size)[None]], side) for side, shape in enumerate(self.maps))
        return [(of_own.squeeze(1), of_seen.squeeze(1)) for of_own, of_seen in zip(units, inputs, strict=True)]

    def mask(self) -> Tensor:
        """Which inputs of its tile each unit sees, in the order of the weights (fp32, 0 or 1)."""
        masks = []
        for units, inputs in self.places():
            own, seen = torch.unravel_index(units, self.maps[OWN])[:2], torch.unravel_index(inputs, self.maps[SEEN])[:2]
            first = [place[:, :, None] * self.stride - self.padding for place in own]  # of each unit's field
            down, across = (place[:, None] - at for place, at in zip(seen, first, strict=True))
            inside = (down >= 0) & (down < self.size) & (across >= 0) & (across < self.size)
            masks.append(inside.float().flatten())
        return torch.cat(masks)

    def full_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or what is like it, as that of dense connections ([own.size, seen.size])."""
        whole = weight.new_zeros(self.maps[OWN].size, self.maps[SEEN].size)
        for (units, inputs), of_tiles in zip(self.places(), self.matrices(weight), strict=True):
            whole[units[:, :, None], inputs[:, None]] = of_tiles
        return whole

    def gather(self, parts: Sequence[Tensor], side: int) -> list[Tensor]:
        """The windows of each tile in maps that are SEEN or OWN, for each matrix ([., size of the map] each -> [tiles,
        samples, inputs or units]).

        In few samples at a time, so that they stay in a cache, as each is read for many tiles.
        """
        parts = [part for x in parts for part in x.split(CACHED)]
        gathered = [parts[0].new_empty(shape[0], sum(map(len, parts)), shape[2 - side]) for shape in self.shapes]
        for part, *into in zip(parts, *(each.split([len(x) for x in parts], dim=1) for each in gathered), strict=True):
            for area, of_tiles in self.windows(part, into, side):
                of_tiles.copy_(area)
        return gathered

    def windows(self, x: Tensor, gathered: Sequence[Tensor], side: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows of maps and, for each, its place in what is `gathered` of them: views of the same shape."""
        x = x.unflatten(1, self.maps[side])
        for blocks, its_gathered in zip(self.blocks, gathered, strict=True):
            counts = [rows.count * columns.count for rows, columns in (block[side] for block in blocks)]
            for block, of_tiles in zip(blocks, its_gathered.split(counts), strict=True):
                rows, columns = block[side]
                area = x[:, rows.all, columns.all].unfold(1, rows.size, rows.step).unfold(2, columns.size, columns.step)
                size = rows.size, columns.size, self.maps[side].channels
                of_tiles = of_tiles.unflatten(0, (rows.count, columns.count)).unflatten(-1, size)
                yield area.permute(1, 2, 0, 4, 5, 3), of_tiles
