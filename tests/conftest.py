"""What the tests share: the real data and a trained net."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command

from src.datasets.idx import FILES
from src.datasets.table import load

# The tests' tensors are small; and the processes of tests/commands.py have one thread, too: the same bits.
torch.set_num_threads(1)
# Ctrl-C is tested, and ignored in the background of a shell script, from which pytest may have been started.
signal.signal(signal.SIGINT, signal.default_int_handler)
LONGEST = ("test_gpu_script", "test_sweeps", "test_extending", "test_notebook")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first; and all tests of the trained net in one process, so that it is trained once."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if "learned" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("learned"))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A data.root with the real, verified MNIST: $FF_DATA_ROOT, else datasets/; fetched there if missing."""
    root = Path(os.environ.get("FF_DATA_ROOT") or REPOSITORY / "datasets")
    load("mnist", root, "cpu", 0)
    return root


@pytest.fixture(scope="session")
def learned(tmp_path_factory, mnist_root) -> tuple[Path, str]:
    """The folder and the output of a run that is long enough to learn something."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    done = command(
        f"data.root={mnist_root}", f"hydra.run.dir={folder}", "model.hidden_dims=[100,100,100]", "training.epochs=4",
        "evaluation.every=2", "data.validation_images=50000", "training.batch_size=20", "device=cpu", "precision=fp32",
        "seed=3", "logging.tensorboard=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="session")
def few_images(tmp_path_factory, mnist_root) -> list[str]:
    """The overrides for 1,000 training and 1,000 test images of MNIST, as a data set of one's own."""
    folder = tmp_path_factory.mktemp("few_images")
    for name in FILES:
        raw = (mnist_root / "MNIST" / "raw" / name).read_bytes()
        end = 16 + 784 * 1000 if "images" in name else 8 + 1000
        (folder / name).write_bytes(raw[:4] + (1000).to_bytes(4, "big") + raw[8:end])
    return ["dataset=idx", f"data.root={folder}", "data.validation_images=0"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts main.py with ARGUMENT..., with options of `subprocess.Popen`; it does not outlive the test."""
    with ExitStack() as stack:

        def popen(*arguments: str, **options) -> subprocess.Popen:
            python = [sys.executable, str(REPOSITORY / "main.py"), *arguments]
            process = subprocess.Popen(python, **{"cwd": REPOSITORY, "env": ONE_THREAD, "text": True} | options)
            stack.callback(process.kill)
            return process

        yield popen
