"""The IDX format of MNIST's files."""

import torch
from torch import Tensor

from src.config.values import SIDE

# Of a data set of MNIST's format: training images, training labels, test images, test labels.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class DataError(RuntimeError):
    """The data cannot be used. The message says what is wrong, where, and how to mend it."""


def parse_idx(raw: bytes, name: str) -> Tensor:
    """The uint8 content of an IDX file: images as [N, 784], labels as [N].

    An IDX file starts with 0, 0, the type code (8 is uint8) and the number of dimensions, then each dimension
    as a big-endian 32-bit integer.

    Raises:
        DataError: another type or shape, or a length that is not the header's; cites `name`.
    """
    dimensions = {b"\0\0\x08\x01": 1, b"\0\0\x08\x03": 3}.get(raw[:4])
    if dimensions is None:
        raise DataError(f"{name} is no IDX file of uint8 images or labels: it starts with 0x{raw[:4].hex()}")
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    if dimensions == 3 and shape[1:] != [SIDE, SIDE]:
        raise DataError(f"{name} should hold images of {SIDE} x {SIDE} pixels, its header says {shape[1:]}")
    expected = header + shape[0] * (SIDE * SIDE if dimensions == 3 else 1)
    if len(raw) != expected:
        raise DataError(f"{name} is {len(raw)} bytes long, its header says {expected}: it was cut or damaged")
    # A bytearray, because tensors are writable and bytes are not.
    content = torch.frombuffer(bytearray(raw), dtype=torch.uint8)[header:]
    return content.view(shape[0], SIDE * SIDE) if dimensions == 3 else content


def parse_examples(images: bytes, labels: bytes, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Images (uint8 [N, 784]) and their classes (int64 [N], 0..9) of a pair of IDX files with these names.

    Raises:
        DataError: one of them is no such file, or they do not belong together.
    """
    images, labels = parse_idx(images, names[0]), parse_idx(labels, names[1]).long()
    if images.dim() != 2 or labels.dim() != 1 or len(images) != len(labels) or not len(labels):
        raise DataError(f"{names[0]} and {names[1]} should hold as many images as labels, and at least one")
    if labels.max() > 9:
        raise DataError(f"{names[1]} should hold labels from 0 to 9; there is a {labels.max()}")
    return images, labels
