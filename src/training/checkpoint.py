"""Files that are whole or not there: checkpoints, the trained net, and any text that a run leaves behind."""

import io
import os
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.config.values import ConfigError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `locked(folder)`, where the system has locks; they end with the process.

    Raises ConfigError if another process is in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another process is training this run") from error
        except (ImportError, OSError):  # Windows has no fcntl, and some network file systems have no locks
            pass
        yield


def write_atomically(path: Path, content: bytes) -> None:
    """Writes next to `path` and renames, so that a reader finds the old file or the new one, never a part.

    What a killed process left there is written over by the next one: there is one name for it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """A checkpoint, or the weights of a net; read again by `loaded`, or by `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


@contextmanager
def loaded(path: Path, advice: str) -> Iterator[dict[str, Any]]:
    """What `save` wrote, on the CPU.

    Raises ConfigError, with `advice`, if the file was cut or changed, or if it does not fit what `with` puts it into.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not compare checksums
                raise ValueError(f"{damaged} has another checksum")
        yield torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise in zipfile and torch.load is not documented
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 250)
        raise ConfigError(f"{path} is damaged or not of this net ({reason}); {advice}") from error


def training_state(net: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """A copy of all that the next epoch depends on: weights, biases, running means, read-out, g, generator."""
    return {
        "net": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "smoothed_gradients": {name: parameter.grad.clone() for name, parameter in net.named_parameters()},
        "generator": generator.get_state(),
    }


def restore(path: Path, net: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """Puts the `training_state` in a checkpoint back, in place; returns all that it holds.

    Raises ConfigError if it is damaged, or of another net or kind of device, whose generator has another state.
    """
    rule = "it goes on only on the kind of device that it was saved on"
    with loaded(path, f"{rule}; without it, resume={path.parent} begins again") as done:
        net.load_state_dict(done["net"])
        for name, parameter in net.named_parameters():
            parameter.grad.copy_(done["smoothed_gradients"][name])
        generator.set_state(done["generator"])
    return done
