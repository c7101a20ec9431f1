"""The command line as the tests use it: real processes."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"  # of all processes of the tests: the same bits each time
ONE_THREAD = dict(os.environ)
ONE_THREAD.pop("HYDRA_FULL_ERROR", None)
# Two seconds of a process are the import of these. One process imports them, and those that need no more of an
# environment of their own than PATH are forked from it.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["hydra", "numpy", "torch"])


def command(*arguments: str, module: str = "main", code: str = "", **variables: str) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENT...` or `python -c CODE ARGUMENT...`, waited for, with variables of its environment."""
    if not code and variables.keys() <= {"PATH"}:
        return forked(module, arguments, ONE_THREAD | variables)
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", module]), *arguments],
        cwd=REPOSITORY, env=ONE_THREAD | variables, capture_output=True, text=True, timeout=170,
    )  # fmt: skip


def forked(module: str, arguments: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder, name) for name in ("stdout", "stderr")]
        process = FORKED.Process(target=run_as_main, args=(module, arguments, environment, written))
        process.start()
        process.join(170)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(module, 170)
        out, errors = (path.read_text() for path in written)
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, out, errors)


def run_as_main(module: str, arguments: tuple[str, ...], environment: dict[str, str], written: list[Path]) -> None:
    """What `python -m` does, with its output in the files `written`."""
    for number, path in enumerate(written, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
