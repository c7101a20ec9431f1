"""Files that are whole or not there: checkpoints, the trained model, and any text a run leaves behind."""

import errno
import io
import os
import shlex
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.layers.connections import Map

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LATEST, PREVIOUS = "checkpoint.pt", "checkpoint_previous.pt"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message says which, why, and what can be done."""


@contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """A whole file beside `path`, to be renamed within; gone afterwards if it was not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames, so that a reader finds the old file or the new one, never a part."""
    with _written_beside(path, content) as temporary:
        temporary.replace(path)


def write_once(path: Path, content: bytes) -> None:
    """As `write_atomically`, but of several processes one writes; without hard links, which some file systems lack.

    Raises:
        FileExistsError: the file is there, or (as its `filename` then says) another process is just putting it there.
    """
    claim = path.with_name(f".{path.name}.tmp")  # a name that all processes share: one of them makes the file
    with _written_beside(path, content) as temporary:
        claim.open("xb").close()
        try:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            temporary.replace(path)
        finally:
            claim.unlink()


def delete_half_written(folder: Path) -> None:
    """What killed processes left in `folder` of checkpoints, nets and config.yaml."""
    for pattern in (".*.pt.*.tmp", ".config.yaml.*.tmp"):
        for left in folder.glob(pattern):
            left.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes out of `locked(path)`, a file, where the system has locks; they end with the process.

    Raises:
        BlockingIOError: another process is in.
    """
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except (AttributeError, OSError):  # Windows has no fcntl, and some network file systems have no locks
            pass
        yield


def save_model(model: nn.Module, path: Path) -> None:
    """Parameters and buffers, on the CPU; read again with `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, buffer)
    write_atomically(path, buffer.getvalue())


def load_model(new_net: Callable[[Map, int], nn.Module], path: Path, device: torch.device) -> nn.Module:
    """The net that `save_model` wrote, on `device`, made by `new_net` for its images' shape and its number of classes.

    Raises:
        CheckpointError: the file was cut short or changed, or is of another architecture.
    """
    state = _load_whole(path, device)
    if len(state.get("sizes", ())) != 4:
        raise CheckpointError(f"{path} is not a net of this version: it does not say for what images it was made")
    *shape, classes = state["sizes"].tolist()
    model = new_net(Map(*shape), classes).to(device)
    _check_architecture(model, state)
    model.load_state_dict(state)
    return model


def _check_architecture(model: nn.Module, state: dict[str, Tensor]) -> None:
    saved, ours = (
        {name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, model.state_dict())
    )
    for name in ours | saved:
        if saved.get(name) != ours.get(name):
            what = f"its {name} is {saved.get(name)}, not {ours.get(name)}"
            raise CheckpointError(f"the checkpoint is of another architecture: {what}")


def training_state(model: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """A copy of all that the next epoch depends on: weights, biases, running means, read-out, g, average, generator."""
    return {
        "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "smoothed_gradients": {name: parameter.grad.clone() for name, parameter in model.named_parameters()},
        "generator": generator.get_state(),
    }


def restore_training_state(model: nn.Module, generator: torch.Generator, state: dict[str, Any]) -> None:
    """Puts a `training_state` back, in place.

    Raises:
        CheckpointError: it is of another architecture, or of a run on another kind of device.
    """
    _check_architecture(model, state["model"])
    try:
        generator.set_state(state["generator"].cpu())
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint is of another kind of device than {generator.device}; its run goes on only there"
        ) from error
    model.load_state_dict(state["model"])
    for name, parameter in model.named_parameters():
        parameter.grad.copy_(state["smoothed_gradients"][name])


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Writes `folder`/checkpoint.pt and keeps the one before as checkpoint_previous.pt, each whole at any moment."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    latest = folder / LATEST
    if latest.exists():
        write_atomically(folder / PREVIOUS, latest.read_bytes())
    write_atomically(latest, buffer.getvalue())


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The content of `folder`/checkpoint.pt with its tensors on `device`; None where there is none.

    Raises:
        CheckpointError: the file was cut short or changed, is no checkpoint of a run, or is gone while the one before
            is there.
    """
    path, previous = folder / LATEST, folder / PREVIOUS
    if not path.exists():
        if previous.exists():
            raise CheckpointError(f"{path} is gone; the one before is there: {_move(previous, path)}")
        return None
    try:
        content = _load_whole(path, device)
        if content.keys() != {"epoch", "state", "metrics", "train_seconds", "origins"}:
            raise CheckpointError(f"{path} is no checkpoint of a run")
        return content
    except CheckpointError as error:
        offer = f"; the one before may be whole: {_move(previous, path)}" if previous.exists() else ""
        raise CheckpointError(f"{error}{offer}") from error


def _move(source: Path, target: Path) -> str:
    return shlex.join(["mv", str(source), str(target)])


def _load_whole(path: Path, device: torch.device) -> dict[str, Any]:
    """The dictionary that torch.save wrote to `path`, its tensors on `device`.

    Raises:
        CheckpointError: the file was cut short or changed, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare checksums
        if damaged:
            raise ValueError(f"{damaged} has another checksum")
        content = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except Exception as error:  # what damaged bytes raise in zipfile and torch.load is not documented
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or not ours ({reason})") from error
    return content
