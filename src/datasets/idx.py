"""The IDX format of MNIST's files."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

# Of a data set of MNIST's format: training images, training labels, test images, test labels.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class DataError(RuntimeError):
    """The data cannot be used. The message says what is wrong, where, and how to mend it."""


def find(folder: Path, name: str) -> Path | None:
    """Where the file `name` is: under this name, with a dot as in "train-images.idx3-ubyte", or as .gz of either."""
    paths = [folder / (spelling + end) for end in ("", ".gz") for spelling in (name, name.replace("-idx", ".idx"))]
    return max(filter(Path.exists, paths), key=Path.is_file, default=None)  # some archives have folders of these names


def parse(path: Path, sha256: str | None = None) -> np.ndarray:
    """The uint8 content of an IDX file, which may be a .gz: images are [N, H, W], labels [N].

    An IDX file starts with 0, 0, the type code (8 is uint8) and the number of dimensions, then each dimension
    as a big-endian 32-bit integer. Raises DataError if there is anything else, or the checksum is another one.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if sha256 and (found := hashlib.sha256(raw).hexdigest()) != sha256:
            raise ValueError(f"it is not the official file, its SHA-256 is {found}, not {sha256}")
        if raw[:3] != b"\0\0\x08":
            raise ValueError(f"it is no IDX file of uint8 images or labels, as it starts with 0x{raw[:4].hex()}")
        shape = np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4)
        # A bytearray, because tensors are writable and bytes are not.
        return np.frombuffer(bytearray(raw), dtype=np.uint8)[4 + shape.nbytes :].reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be used: {error}. Move it away, and get it anew") from error
