"""What a run says and leaves behind: progress, metrics.jsonl, result.json."""

import json
import logging
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from src.checkpoint import write_atomically

log = logging.getLogger(__name__)
REPOSITORY = Path(__file__).parent.parent


class HostCopy:
    """A tensor on its way to the host: the copy starts now, and only `read` waits for it."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.to("cpu", non_blocking=tensor.is_cuda)  # into pinned memory
        self.arrived = torch.cuda.Event() if tensor.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> list:
        if self.arrived:
            self.arrived.synchronize()
        return self.tensor.tolist()


class RunLog:
    """Progress over the epochs on the terminal, and each epoch's figures in `folder`/metrics.jsonl.

    A terminal gets a progress bar, anything else a plain line an epoch. On a GPU an epoch's figures are read when the
    next one has been queued, so that it never waits for the host.
    """

    def __init__(self, folder: Path, epochs: int):
        self.file = (folder / "metrics.jsonl").open("x", encoding="utf-8")
        self.epochs = epochs
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(total=epochs, unit="epoch", disable=not self.interactive, dynamic_ncols=True)
        self.started = time.perf_counter()
        self.pending: tuple[int, float, HostCopy, dict[str, HostCopy], int] | None = None
        self.validation = ""

    def epoch(
        self,
        epoch: int,
        gain: float,
        figures: Tensor,
        validation_errors: dict[str, Tensor] | None,
        validation_images: int,
    ) -> None:
        """Takes the figures of `train_epochs` ([L, 3]) and, after a validation, its error counts by rule."""
        self.record_pending()
        errors = {rule: HostCopy(count) for rule, count in (validation_errors or {}).items()}
        self.pending = (epoch, gain, HostCopy(figures), errors, validation_images)
        if not figures.is_cuda:
            self.record_pending()

    def record_pending(self) -> None:
        """Waits for the figures of the epoch that was given last, and records them."""
        if self.pending:
            self._record(*self.pending)
            self.pending = None

    def _record(self, epoch: int, gain: float, figures: HostCopy, errors: dict[str, HostCopy], images: int) -> None:
        rows = figures.read()
        record: dict[str, Any] = {
            "epoch": epoch,
            "gain": gain,
            "loss": [row[0] for row in rows],
            "pairs_ordered_wrongly": [row[1] for row in rows],
            "readout_loss": rows[0][2],
            "seconds": time.perf_counter() - self.started,
        }
        if errors:
            record["validation_images"] = images
            record["validation_errors"] = {rule: count.read() for rule, count in errors.items()}
            self.validation = "  validation error {:.2f} % by goodness, {:.2f} % in one pass".format(
                *(100 * record["validation_errors"][rule] / images for rule in ("goodness", "one_pass"))
            )
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        pairs = " ".join(f"{100 * share:.1f}" for share in record["pairs_ordered_wrongly"])
        line = f"loss {sum(record['loss']):.3f}  pairs wrong per layer {pairs} %{self.validation}"
        self.bar.set_postfix_str(line, refresh=False)
        self.bar.update(1)
        if not self.interactive:
            left = record["seconds"] / epoch * (self.epochs - epoch)
            log.info(f"epoch {epoch}/{self.epochs}  {line}  {clock(left)} left")

    def close(self) -> None:
        """Records what is pending and closes the file and the bar."""
        self.record_pending()
        self.bar.close()
        self.file.close()


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, one an epoch."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One indented JSON object, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def provenance() -> dict[str, Any]:
    """Versions and commit that a result was made with; the commit is marked where files differ from it."""
    names = ("torch", "numpy", "hydra-core", "omegaconf")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {"versions": versions | {"cuda": torch.version.cuda}, "commit": _commit()}


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-modified" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None
