"""The command line as the tests use it: real processes."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the environment of the runs: the same bits each time
ONE_THREAD.pop("HYDRA_FULL_ERROR", None)


def command(*arguments: str, module: str = "main", code: str = "", **variables: str) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENT...` or `python -c CODE ARGUMENT...`, waited for, with variables of its environment."""
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", module]), *arguments],
        cwd=REPOSITORY, env=ONE_THREAD | variables, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
