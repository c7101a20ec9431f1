"""What a user can bring about and mend is told in one line."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config.loading import unknown_key
from src.config.overrides import quoted
from src.config.values import ConfigError
from src.datasets.idx import DataError
from src.training.signals import StoppedJob

USER_ERRORS = (ConfigError, DataError, HydraException, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError)
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


def explain(error: Exception) -> str:
    """One line for an error of `USER_ERRORS`: what is wrong and where."""
    # Our own errors say it all; of Hydra's, the cause names the key.
    cause = "" if isinstance(error, ConfigError | DataError) else str(error.__cause__ or "")
    text = str(error) if cause in str(error) else f"{error}\n{cause}"
    file = re.match(r"In '([^']+)': ", text)
    where = f"in {file[1]}.yaml, " if file else ""
    at_key = re.search(r"^(.*)\n\s*full_key: (\S+)", text, re.MULTILINE)  # what is wrong, and below it the key
    if isinstance(error, OverrideParseException) and (typed := quoted(error.override)):
        return f"Hydra cannot read {error.override} as it stands; type it in both kinds of quotes: {typed}"
    if isinstance(error, MissingConfigException) and error.options:
        return f"there is no {error.missing_cfg_file}.yaml; there are {', '.join(error.options)}"
    if at_key:
        wrong, key = at_key.groups()
        return where + (unknown_key(key) if re.match("Key '.*' not in", wrong) else f"{key}: {wrong}")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line on stderr and exit status 1 where the user can mend what went wrong.

    Anything else keeps its traceback, and so do these errors if HYDRA_FULL_ERROR=1 is set from outside.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print its errors at length and not hand them on
    try:
        yield
    except USER_ERRORS as error:
        if SHOW_TRACEBACK:
            raise
        sys.exit(f"error: {explain(error)}")
    except RuntimeError as error:
        if SHOW_TRACEBACK:
            raise
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            sizes = "model.hidden_dims, training.batch_size or evaluation.batch_size"
            sys.exit(f"error: out of memory; smaller {sizes} may help")
        if "device(s) is/are busy or unavailable" in str(error):
            sys.exit("error: another process has the GPU to itself; wait for it, or train with device=cpu")
        if not type(error).__module__.startswith("submitit"):
            raise
        sys.exit(f"error: {explain(error)}")  # Slurm took no job, or gave none back
    except StoppedJob as stopped:
        sys.exit(stopped.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
