"""What a user can bring about and mend is told in one line."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config.values import ConfigError
from src.datasets.idx import DataError

USER_ERRORS = (ConfigError, DataError, HydraException, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError)
LIBRARIES = ("hydra", "joblib", "submitit")  # they raise other errors of values, too, and of what Slurm told them
sweep_folder: str | None = None  # of the sweep that this process has started
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


def explain(error: Exception) -> str | None:
    """One line: what is wrong, where, how to mend it. None if no user can."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "out of memory; smaller model.hidden_dims, training.batch_size or evaluation.batch_size may help"
    if "device(s) is/are busy or unavailable" in text:
        return "another process has the GPU to itself; wait for it, or train with device=cpu"
    if "no kernel image is available" in text:
        return "this build of torch has no code for this GPU; install one for an older CUDA, or train with device=cpu"
    if type(error).__name__ == "TerminatedWorkerError":  # of joblib
        again = shlex.join(["python", *sys.argv, f"hydra.sweep.dir={sweep_folder}"])
        return f"the process of a job was killed, perhaps for lack of memory; go on with: {again}"
    raised_in = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    unusable = isinstance(error, ValueError | RuntimeError) and raised_in and raised_in[-1].startswith(LIBRARIES)
    if not (unusable or isinstance(error, USER_ERRORS)):
        return None
    if isinstance(error, HydraException):
        text = str(error.__cause__ or error).partition("Config search path")[0]  # the cause names the key
    if isinstance(error, OverrideParseException):
        text = f"{error.override}: {text}\nodd characters need both kinds of quotes: 'KEY=\"VALUE\"'"
    if "hydra/launcher" in text:
        text += "\n`pip install hydra-joblib-launcher hydra-submitit-launcher` brings joblib and slurm"
    lines = (line.strip() for line in text.splitlines())
    of_no_use = ("^", "See https", "object_type=", "reference_type=")
    return "; ".join(line for line in lines if line and not line.startswith(of_no_use)).replace(":; ", ": ")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line on stderr and exit status 1 where the user can mend what went wrong.

    Anything else keeps its traceback, and so do these errors if HYDRA_FULL_ERROR=1 is set from outside. A stdout whose
    reader has gone (`| head -1`) is no error before the end, and one without some characters gets "?".
    """
    logging.raiseExceptions = False
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again, and complain
        sys.exit(141)  # 128 + SIGPIPE
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None or SHOW_TRACEBACK:
            raise
        sys.exit(f"error: {line}")
