"""Connections from one map of numbers to another."""

from typing import NamedTuple


class Map(NamedTuple):
    """An image or a layer: so many numbers (channels) at each of height x width locations."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        return self.height * self.width * self.channels
