"""One run from start to finish: the whole story in order."""

import dataclasses
import logging
import re
import shlex
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from src import methods
from src.config.loading import check_images
from src.config.values import Config, ConfigError
from src.datasets.batches import Examples
from src.datasets.table import load
from src.layers.fields import Map
from src.methods.net import Net
from src.training.checkpoint import locked, restore, save, training_state, write_atomically
from src.training.device import PRECISIONS, describe, resolve_precision, use
from src.training.epochs import train_epochs
from src.training.log import REPOSITORY, RunLog, headline, provenance, read_json, write_json
from src.training.signals import Stopped, StopSignals
from src.training.validation import count_errors, scores_for

log = logging.getLogger(__name__)


def run(config: Config, out_dir: Path | str, *, resume: bool = False) -> dict[str, Any]:
    """Trains and tests the net that `config` describes.

    Leaves config.yaml, metrics.jsonl, checkpoint.pt, model.pt, result.json and pictures in `out_dir`, and returns the
    content of result.json: errors on the test images by every way to classify, the protocol, the time, the hardware and
    the versions.

    Args:
        resume: go on after the checkpoint in `out_dir`, or from the beginning where there is none yet; a finished run
            is left as it is.

    Raises:
        ConfigError: `out_dir` holds another run or is trained by another process; its checkpoint is of no use; or a
            loss diverged.
        DataError: the data are not there and cannot be fetched, or a file is not what it should be.
        SystemExit: a signal stopped the run, after its last epoch was saved.
    """
    out_dir = Path(out_dir)
    if resume and (out_dir / "result.json").exists():
        log.info(f"{out_dir}: this run is finished; python -m src.plots draws its pictures again")
        return read_json(out_dir / "result.json")
    with locked(out_dir):
        if not resume and (out_dir / "config.yaml").exists():
            other = f"choose another hydra.run.dir, or go on with: {resuming(out_dir)}"
            raise ConfigError(f"{out_dir} already holds a run; {other}")
        device, compiled = use(config.device), config.training.compile
        machine = {"hardware": describe(device), "threads": torch.get_num_threads(), "compiled": compiled}
        origin = provenance() | machine
        # What it stands for is saved, so that it is the same when the run is resumed, on whatever machine.
        config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
        examples, validation, test = load(config.dataset, config.data.root, device, config.data.validation_images)
        check_images(config, len(examples) + len(validation), examples.shape, examples.classes)
        if not resume:
            write_atomically(out_dir / "config.yaml", OmegaConf.to_yaml(config).encode())
        images, how = f"{len(examples)} images of {config.dataset}", config.precision + ", compiled" * compiled
        log.info(f"{config.name}: training on {images}, {describe(device)}, {how}; run in {out_dir}")

        net = new_net(config, examples.shape, examples.classes).to(device)
        net.prepare(examples.images)
        trained = train(config, net, examples, validation, out_dir, origin, resume)
        save(out_dir / "model.pt", {name: tensor.cpu() for name, tensor in net.state_dict().items()})

        # The test images are used here for the first and the only time.
        scores = scores_for(net, test.images, config.evaluation.batch_size)
        errors = count_errors(scores, test)
        result = {
            **{f"test_error_{rule}": 100 * count / len(test) for rule, count in errors.items()},
            **{f"test_errors_{rule}": count for rule, count in errors.items()},
            "test_images": len(test),
            "train_images": len(examples),
            **{key: getattr(config, key) for key in ("name", "method", "dataset", "seed", "precision")},
            "hidden_dims": list(config.model.hidden_dims),
            "device": device.type,
            **trained,
            **origin,
        }
        if config.evaluation.training_errors:
            wrong = count_errors(scores_for(net, examples.images, config.evaluation.batch_size), examples)
            result |= {f"training_error_{rule}": 100 * count / len(examples) for rule, count in wrong.items()}
        write_json(out_dir / "result.json", result)  # it says that the run is finished
        if config.logging.pictures:
            try:
                # Imported here, because matplotlib takes a second that the start need not pay.
                from src.plots import draw_run

                draw_run(config, out_dir, net, test, scores)
            except Exception as error:  # of whatever kind: the run is finished all the same
                why = textwrap.shorten(f"{type(error).__name__}: {error}", 500)
                log.warning(f"not all pictures were drawn ({why}); python -m src.plots RUN_FOLDER draws them again")
    return result


def train(
    config: Config, net: Net, examples: Examples, validation: Examples, out_dir: Path, origin: dict, resume: bool
) -> dict[str, Any]:
    """Trains `net` in place, with validations, metrics.jsonl and checkpoints; `origin` is of this process.

    Returns what result.json is to say of it: epochs, seconds of training alone, whether it was resumed, and the last
    validation error.
    """
    generator = torch.Generator(examples.labels.device).manual_seed(config.seed)
    phases = net.phases(config.training)
    epochs = sum(phase.epochs for phase in phases)
    checkpoint = out_dir / "checkpoint.pt"
    resumed = restore(checkpoint, net, generator) if resume and checkpoint.exists() else None
    done = resumed or {"epoch": 0, "metrics": [], "train_seconds": 0.0, "origin": origin}  # what the last epoch left
    if resume:
        log.info(f"resumed after epoch {done['epoch']} of {epochs}")
    if other := [f"{key} {value}" for key, value in done["origin"].items() if value != origin.get(key)]:
        log.warning(f"the epochs before were trained otherwise: {', '.join(other)}")
    training = train_epochs(
        phases,
        examples,
        first_epoch=done["epoch"] + 1,
        batch_size=config.training.batch_size,
        max_shift=config.data.jitter,
        generator=generator,
        cuda_graph=config.training.cuda_graph and examples.labels.is_cuda,
    )
    seconds = saved = done["train_seconds"]
    save_every, validate_every = config.training.checkpoint_every, config.evaluation.every if len(validation) else 0
    run_log = RunLog(out_dir, epochs, examples.classes, done["metrics"], config.logging.tensorboard)
    with run_log, StopSignals() as stop:
        try:
            started = time.perf_counter()
            for epoch, figures in enumerate(stop.stoppable(training), start=done["epoch"] + 1):
                seconds += time.perf_counter() - started
                record, last = {"epoch": epoch, **figures}, epoch == epochs
                if validate_every and (epoch % validate_every == 0 or last):
                    scores = scores_for(net, validation.images, config.evaluation.batch_size)
                    errors = count_errors(scores, validation)
                    record |= {"validation_images": len(validation), "validation_errors": errors}
                run_log.epoch(record)
                done = {"epoch": epoch, "metrics": run_log.records, "train_seconds": seconds, "origin": origin}
                done |= training_state(net, generator)
                if last or 0 < save_every <= seconds - saved:
                    save(checkpoint, done)
                    saved = seconds
                started = time.perf_counter()
        except Stopped as stopped:
            if done["epoch"]:
                save(checkpoint, done)
            log.info(f"stopped after epoch {done['epoch']} of {epochs}; go on with: {resuming(out_dir)}")
            raise SystemExit(stopped.exit_status) from stopped
    first, *of_readouts = (phase.epochs for phase in phases)
    left = {"train_seconds": seconds, "seconds_per_epoch": seconds / epochs}
    if resumed:
        left["resumed"] = True
    if errors := run_log.records[-1].get("validation_errors"):
        left["validation_error"] = 100 * errors[headline(errors)] / len(validation)
    return {"epochs": first, "readout_epochs": sum(of_readouts), **left}


def new_net(config: Config, shape: Map, classes: int) -> Net:
    """The net of `config`, whose precision is resolved, with initial weights from `config.seed`, on the CPU."""
    options = {"generator": torch.Generator().manual_seed(config.seed), "dtype": PRECISIONS[config.precision]}
    return methods.named(config.method).Net(config.model, shape, classes, **options)


def resuming(folder: Path) -> str:
    """The command that goes on with the run in `folder`, as it is typed in a shell."""
    main = "-m main" if Path.cwd() == REPOSITORY else shlex.quote(str(REPOSITORY / "main.py"))
    path = str(folder.absolute())
    for_hydra = path if re.fullmatch(r"[\w./+-]+", path, re.ASCII) else f'"{path}"'
    return f"python {main} {shlex.quote(f'resume={for_hydra}')}"
