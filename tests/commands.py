"""The command line as the tests use it: real processes."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the environment of the runs: the same bits each time
ONE_THREAD.pop("HYDRA_FULL_ERROR", None)


def command(*arguments: str, module: str = "main", **environment: str) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENT...`, waited for, with variables added to its environment."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=ONE_THREAD | environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
