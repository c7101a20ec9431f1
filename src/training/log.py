"""What a run says and leaves behind: progress, metrics.jsonl, result.json."""

import json
import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Container, Sequence
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from src.config.values import ConfigError
from src.training.checkpoint import write_atomically

log = logging.getLogger(__name__)
HEADLINES = {"goodness": "by goodness", "one_pass": "in one pass"}  # of which the first counts that a net has
REPOSITORY = Path(__file__).parents[2]


def headline(rules: Container[str]) -> str:
    """The rule of classification that counts most, of those that a net has: the paper's for its method."""
    return next(rule for rule in HEADLINES if rule in rules)


class RunLog:
    """A line for each epoch, and its figures in `folder`/metrics.jsonl.

    Args:
        classes: of the images, so that a read-out at chance is known.
        records: of epochs done before; whatever else metrics.jsonl holds is dropped.
        tensorboard: write the figures into event files in `folder`/tensorboard, too.

    Raises ConfigError if TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, epochs: int, classes: int, records: Sequence[dict] = (), tensorboard: bool = False
    ):
        self.epochs, self.classes, self.records, self.before = epochs, classes, list(records), len(records)
        self.events = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter  # here, because this takes seconds
            except ImportError as error:
                missing = "there is no TensorBoard; pip install tensorboard"
                raise ConfigError(f"logging.tensorboard=true: {missing}") from error
            # TensorBoard forgets what an interrupted run wrote of the epochs that are now done once more.
            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=self.before + 1)
        path = folder / "metrics.jsonl"
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())
        self.file = path.open("a", encoding="utf-8")
        self.started, self.validation, self.warned = time.perf_counter(), "", set()

    def epoch(self, record: dict[str, Any]) -> None:
        """Takes what is to stand in metrics.jsonl: the "epoch", what `train_epochs` yields of it and, after a
        validation, "validation_errors", counts by rule, of so many "validation_images".
        """
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.events:
            for name, value in scalars(record).items():
                self.events.add_scalar(name, value, record["epoch"])
            self.events.flush()
        trouble = trouble_of(record, self.classes) if record["epoch"] >= 3 else None
        if trouble and trouble not in self.warned:
            self.warned.add(trouble)
            log.warning(f"epoch {record['epoch']}: {trouble}")
        if errors := record.get("validation_errors"):
            shares = [f"{100 * errors[rule] / record['validation_images']:.2f}" for rule in HEADLINES if rule in errors]
            self.validation = f", val. error {'/'.join(shares)} %"
        line = f"cross-entropy {record['readout_loss']:.3g}"
        if record["loss"]:  # of layers, each its own
            pairs = "/".join(f"{100 * share:.1f}" for share in record["pairs_ordered_wrongly"])
            line = f"loss {sum(record['loss']):.3g}, wrong pairs {pairs} %"
        an_epoch = (time.perf_counter() - self.started) / (len(self.records) - self.before)
        left = timedelta(seconds=round(an_epoch * (self.epochs - record["epoch"])))
        log.info(f"epoch {record['epoch']}/{self.epochs}  {line}{self.validation}, {left} left")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        for each in filter(None, (self.file, self.events)):
            each.close()


def trouble_of(record: dict[str, Any], classes: int) -> str | None:
    """What has gone wrong, first of all, without a loss that diverged; None if nothing has.

    By chance, half of the pairs are ordered wrongly; where no unit fires, all are, as all goodness is 0.
    """
    for layer, share in enumerate(record["pairs_ordered_wrongly"], start=1):
        if share > 0.999:
            return f"layer {layer} has fallen silent; a lower training.learning_rate may help"
        if share >= 0.5:  # a rate that is too high leaves a layer there, and one that is far too low
            chance = "tells positives from negatives no better than chance"
            return f"layer {layer} {chance}; another training.learning_rate may help"
    if record["readout_loss"] >= math.log(classes):
        advice = "a lower training.readout_learning_rate" if record["loss"] else "lower learning rates"
        return f"the read-out is no better than chance; {advice} may help"
    return None


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record of metrics.jsonl as single figures by name; shares and errors in percent."""
    figures = {"gain": record["gain"], "loss/read-out": record["readout_loss"]}
    for layer, (loss, share) in enumerate(zip(record["loss"], record["pairs_ordered_wrongly"], strict=True), start=1):
        figures |= {f"loss/layer {layer}": loss, f"pairs ordered wrongly (%)/layer {layer}": 100 * share}
    for rule, count in record.get("validation_errors", {}).items():
        figures[f"validation error (%)/{rule}"] = 100 * count / record["validation_images"]
    return figures


def read_json(path: Path) -> Any:
    """The content of a JSON file; of .jsonl, its lines, but for a last one that was not written to its end.

    Raises ConfigError if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged or cannot be read: {error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One indented JSON object, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


@cache  # what this process runs, whatever becomes of the checkout meanwhile
def provenance() -> dict[str, Any]:
    """Versions and commit that a result was made with; the commit is marked where the code differs from it."""
    names = ("torch", "numpy", "hydra-core", "omegaconf")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {"versions": versions | {"cuda": torch.version.cuda}, "commit": _commit()}


def _commit() -> str | None:
    """None, and a line that says why, where there is none."""

    def git(*arguments: str) -> str:
        # Of this folder alone: a copy that lies within another repository has none; nor is it that of a git hook.
        command = ["git", "-C", str(REPOSITORY), f"--git-dir={REPOSITORY / '.git'}", "-c", "core.fileMode=false"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        options = {"check": True, "capture_output": True, "text": True, "env": environment}
        return subprocess.run([*command, *arguments], **options).stdout.strip()

    try:
        code = ("main.py", ":(glob)src/**/*.py", ":(glob)configs/**/*.yaml")  # new files, too
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *code)
        return git("rev-parse", "HEAD") + ("-modified" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).partition("\n")[0]
        log.warning(f"the commit is not recorded: {reason}")
        return None
