"""Examples as tensors on the device: batches, jitter, pixels in [0, 1]. No label is written into pixels here."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from src.layers.fields import Map


@dataclass(frozen=True)
class Examples:
    """Images and their classes."""

    images: Tensor  # uint8 [N, shape.size], row by row, channels last
    labels: Tensor  # int64 [N], 0..classes-1
    shape: Map
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice | list[int]) -> "Examples":
        return replace(self, images=self.images[part], labels=self.labels[part])

    def to(self, device: torch.device | str) -> "Examples":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first_of_each_class(self) -> "Examples":
        return self[[int((self.labels == label).nonzero()[0]) for label in self.labels.unique()]]


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Index tensors (int64, on the generator's device) that together are one permutation of 0..n-1.

    Every batch has `batch_size` indices except the last, which may have fewer: no example is dropped.
    """
    order = torch.randperm(n, generator=generator, device=generator.device)
    return order.split(batch_size)


def jitter(images: Tensor, shape: Map, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image [B, shape.size] shifted by its own (dy, dx), uniform over the integers of [-max_shift, max_shift]^2.

    Two pixels make the 25 shifts of section 3.3. Vacated pixels are zero. The generator is on the images' device.
    """
    if max_shift == 0:
        return images
    count, k = len(images), max_shift
    shifts = torch.randint(-k, k + 1, (2, count, 1), generator=generator, device=generator.device)
    padded = F.pad(images.view(count, *shape), (0, 0, k, k, k, k))  # [B, height + 2k, width + 2k, channels]
    # The pixel that lands at row i comes from row i - dy, which is k further down in the padded image.
    rows, columns = (torch.arange(n, device=images.device) + k - shift for n, shift in zip(shape, shifts, strict=False))
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].flatten(1)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels 0..255 as float32 in [0, 1], any shape. Raises ValueError if they are something else."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, but should be torch.uint8, 0 to 255; net.scores takes floats")
    return images.to(torch.float32) / 255
