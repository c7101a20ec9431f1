"""Files that are whole or not there: the trained model, and any text a run leaves behind."""

import io
import os
from pathlib import Path

import torch
from torch import nn


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames, so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_model(model: nn.Module, path: Path) -> None:
    """Parameters and buffers, on the CPU; read again with `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, buffer)
    write_atomically(path, buffer.getvalue())
