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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKPOINT = "checkpoint.pt"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `locked(folder)`, where the system has locks; they end with the process.

    Raises ConfigError if another process is in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another process is training this run") from error
        except (AttributeError, OSError):  # Windows has no fcntl, and some network file systems have no locks
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


def _save(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


@contextmanager
def loaded(path: Path, advice: str) -> Iterator[dict[str, Any]]:
    """The content of a checkpoint or of model.pt, on the CPU.

    Raises ConfigError, with `advice`, if the file was cut or changed, or if it does not fit what `with` puts it into.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not compare checksums
                raise ValueError(f"{damaged} has another checksum")
        yield torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # what damaged bytes raise in zipfile and torch.load is not documented
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 250)
        raise ConfigError(f"{path} is damaged or not of this net ({reason}); {advice}") from error


def save_model(net: nn.Module, path: Path) -> None:
    """Parameters and buffers, on the CPU, for `loaded` or for `torch.load(path, weights_only=True)`."""
    _save(path, {name: tensor.cpu() for name, tensor in net.state_dict().items()})


def training_state(net: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """A copy of all that the next epoch depends on: weights, biases, running means, read-out, g, generator."""
    return {
        "device": generator.device.type,
        "net": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "smoothed_gradients": {name: parameter.grad.clone() for name, parameter in net.named_parameters()},
        "generator": generator.get_state(),
    }


def save_checkpoint(folder: Path, done: dict[str, Any]) -> None:
    """`done`: a `training_state`, and whatever else is to be known of the epochs before."""
    _save(folder / CHECKPOINT, done)


def restore(folder: Path, net: nn.Module, generator: torch.Generator) -> dict[str, Any] | None:
    """Puts the `training_state` of `folder`/checkpoint.pt back, in place, and returns what `save_checkpoint` took.

    None where there is no checkpoint. Raises ConfigError if it is damaged, or of another net or kind of device.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    with loaded(path, f"without it, resume={folder} begins again") as done:
        if done["device"] != generator.device.type:
            raise ConfigError(
                f"{path} is of a run on {done['device']}, where alone it goes on: device={done['device']}"
            )
        net.load_state_dict(done["net"])
        for name, parameter in net.named_parameters():
            parameter.grad.copy_(done["smoothed_gradients"][name])
        generator.set_state(done["generator"])
    return done
