"""One run from start to finish: the whole story in order."""

import dataclasses
import logging
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from src import methods
from src.config.loading import check_sizes
from src.config.overrides import as_typed
from src.config.values import Config, ConfigError
from src.datasets.batches import Examples, check_jitter
from src.datasets.table import load
from src.layers.connections import Map
from src.methods.net import Net
from src.training.checkpoint import (
    LATEST,
    CheckpointError,
    delete_half_written,
    load_checkpoint,
    locked,
    restore_training_state,
    save_checkpoint,
    save_model,
    training_state,
    write_once,
)
from src.training.compiling import compiler_failure
from src.training.cuda_graph import capture_failure
from src.training.device import PRECISIONS, describe, resolve_precision, use
from src.training.epochs import Diverged, train_epochs
from src.training.log import REPOSITORY, RunLog, provenance, read_result, write_json
from src.training.signals import Stopped, StopSignals
from src.training.validation import count_errors, scores_for

log = logging.getLogger(__name__)


def run(config: Config, out_dir: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains and tests the net that `config` describes.

    Leaves config.yaml, metrics.jsonl, checkpoint.pt, model.pt, result.json and pictures in `out_dir`.

    Args:
        resume: go on after the checkpoint in `out_dir`, or from the beginning where there is none yet; a finished run
            is left as it is.

    Returns:
        the content of result.json: error counts and percentages on the test images by every way to classify, the
        protocol, the time, the hardware and the versions.

    Raises:
        ConfigError: `out_dir` already holds a run; its checkpoint is of no use; or a loss diverged.
        DataError: the data are not there and cannot be fetched, or a file is not what it should be.
        SystemExit: a signal stopped the run, after its last epoch was saved.
    """
    if resume and (out_dir / "result.json").exists():
        log.info(f"{out_dir}: this run is finished; python -m src.plots draws its pictures again")
        return read_result(out_dir)
    taken = f"{out_dir} already holds a run; choose another hydra.run.dir, or go on with: {resuming(out_dir)}"
    if not resume and (out_dir / "config.yaml").exists():
        raise ConfigError(taken)
    origin = provenance()  # of the code that is about to run, not of what the checkout becomes meanwhile

    device = use(config.device)
    origin |= {
        "hardware": describe(device), "threads": torch.get_num_threads(), "compiled": config.training.compile
    }  # fmt: skip
    # What it stands for is saved, so that it is the same when the run is resumed, on whatever machine.
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    examples, validation, test = load(config.dataset, config.data.root, device, config.data.validation_images)
    check_sizes(config, len(examples) + len(validation))
    check_jitter(config.data.jitter, examples.shape)
    config.model.check_images(examples.shape, examples.classes)
    if not resume:
        out_dir.mkdir(parents=True, exist_ok=True)
        try:
            write_once(out_dir / "config.yaml", OmegaConf.to_yaml(config).encode())
        except FileExistsError as error:  # another run began there at the same time
            begun = (out_dir / "config.yaml").exists()
            starting = f"{out_dir}: another run is starting there; if none is, delete {error.filename}"
            raise ConfigError(taken if begun else starting) from error
    how = f"{config.precision}, compiled" if config.training.compile else config.precision
    log.info(
        f"{config.name}: training on {len(examples)} images of {config.dataset}, {describe(device)}, {how}; "
        f"run in {out_dir}"
    )

    net = new_net(config, examples.shape, examples.classes).to(device)
    net.prepare(examples.images)
    try:
        with locked(out_dir / "config.yaml"):
            delete_half_written(out_dir)
            seconds, epochs, earlier = train(config, net, examples, validation, out_dir, origin, resume=resume)
            save_model(net, out_dir / "model.pt")
    except BlockingIOError as error:
        raise ConfigError(f"{out_dir}: another process is training this run") from error

    # The test images are used here for the first and the only time.
    scores = scores_for(net, test.images, config.evaluation.batch_size)
    errors = count_errors(scores, test)
    results = {
        **{f"test_error_{rule}": 100 * count / len(test) for rule, count in errors.items()},
        **{f"test_errors_{rule}": count for rule, count in errors.items()},
        "test_images": len(test),
        "train_images": len(examples),
        **{key: getattr(config, key) for key in ("name", "method", "dataset", "seed", "precision")},
        "hidden_dims": list(config.model.hidden_dims),
        "epochs": epochs[0],
        "readout_epochs": sum(epochs[1:]),  # of the phases after the first, which are of read-outs alone
        "device": device.type,
        "train_seconds": seconds,
        "seconds_per_epoch": seconds / sum(epochs),
        **origin,
        **({"resumed_from": earlier} if earlier else {}),
    }
    write_json(out_dir / "result.json", results)  # it says that the run is finished
    if config.logging.pictures:
        # Imported here, because matplotlib takes a second that the start need not pay.
        from src.results.pictures import draw_run

        draw_run(config, out_dir, net, test, scores)
    return results


def new_net(config: Config, shape: Map, classes: int) -> Net:
    """The net of `config`, whose precision is resolved, with initial weights from `config.seed`, on the CPU."""
    options = {"generator": torch.Generator().manual_seed(config.seed), "matmul_dtype": PRECISIONS[config.precision]}
    return methods.named(config.method).Net(config.model, shape, classes, **options)


def resuming(folder: Path) -> str:
    """The command that goes on with the run in `folder`, as it is typed in a shell."""
    main = "-m main" if Path.cwd() == REPOSITORY else shlex.quote(str(REPOSITORY / "main.py"))
    return f"python {main} {as_typed('resume', str(folder.absolute()))}"


def train(
    config: Config,
    net: nn.Module,
    examples: Examples,
    validation: Examples,
    out_dir: Path,
    origin: dict[str, Any],
    *,
    resume: bool,
) -> tuple[float, list[int], list[dict[str, Any]]]:
    """Trains `net` in place, with validations, metrics.jsonl and checkpoints; leaves in it the weights to be tested.

    Args:
        origin: the code, the hardware, the threads and whether it was compiled, of this process.

    Returns:
        the seconds of training alone, the epochs of each phase, and the other origins of epochs before a resumption.
    """
    generator = torch.Generator(examples.labels.device).manual_seed(config.seed)
    phases = net.phases(config.training)
    epochs = sum(phase.epochs for phase in phases)
    # What the last whole epoch left.
    done: dict[str, Any] = {"epoch": 0, "metrics": [], "train_seconds": 0.0, "origins": []}
    if resume:
        done = restore(out_dir, net, generator) or done
        log.info(f"resumed after epoch {done['epoch']} of {epochs}")
    earlier = [other for other in done["origins"] if other != origin]
    if differs := [key for key in origin if any(other.get(key) != origin[key] for other in earlier)]:
        log.warning(f"the epochs before differ in {', '.join(differs)}; result.json will name both")
    training = train_epochs(
        phases,
        examples,
        first_epoch=done["epoch"] + 1,
        batch_size=config.training.batch_size,
        max_shift=config.data.jitter,
        generator=generator,
        cuda_graph=config.training.cuda_graph and examples.labels.is_cuda,
    )
    save_every, validate_every = config.training.checkpoint_every, config.evaluation.every if len(validation) else 0
    seconds = saved = done["train_seconds"]
    run_log = RunLog(out_dir, epochs, done["metrics"], config.logging.tensorboard)
    with run_log, StopSignals() as stop:
        try:
            for epoch in range(done["epoch"] + 1, epochs + 1):
                started = time.perf_counter()
                with stop.allowed():
                    figures = next(training)
                seconds += time.perf_counter() - started
                record, last = {"epoch": epoch, **figures}, epoch == epochs
                if validate_every and (epoch % validate_every == 0 or last):
                    scores = scores_for(net, validation.images, config.evaluation.batch_size)
                    errors = count_errors(scores, validation)
                    record |= {"validation_images": len(validation), "validation_errors": errors}
                run_log.epoch(record)
                done = {
                    "epoch": epoch,
                    "state": training_state(net, generator),
                    "train_seconds": seconds,
                    "origins": [*earlier, origin],
                }
                if last or 0 < save_every <= seconds - saved:
                    save(out_dir, done, run_log)
                    saved = seconds
            with stop.allowed():  # for a signal that came after the last step
                pass
        except Stopped as stopped:
            if done["epoch"]:
                save(out_dir, done, run_log)
            log.info(f"stopped after epoch {done['epoch']} of {epochs}; go on with: {resuming(out_dir)}")
            raise SystemExit(stopped.exit_status) from stopped
        except Diverged as diverged:
            kept = f"{out_dir / LATEST} is of an epoch before" if (out_dir / LATEST).exists() else "no checkpoint yet"
            advice = f"a lower training.{diverged.rate} (now {getattr(config.training, diverged.rate):g}) may help"
            epoch = len(run_log.records) + 1
            raise ConfigError(f"{diverged} in epoch {epoch}; {advice}; {kept}") from diverged
        except RuntimeError as error:
            for key, failure in (("compile", compiler_failure(error)), ("cuda_graph", capture_failure(error))):
                if failure:
                    without = f"go on without: {resuming(out_dir)} training.{key}=false"
                    raise ConfigError(f"training.{key}=true: {failure}; {without}") from error
            raise
    return seconds, [phase.epochs for phase in phases], earlier


def save(out_dir: Path, done: dict[str, Any], run_log: RunLog) -> None:
    """A checkpoint of the last whole epoch."""
    save_checkpoint(out_dir, done | {"metrics": run_log.records})


def restore(out_dir: Path, net: nn.Module, generator: torch.Generator) -> dict[str, Any] | None:
    """Puts net and generator into the state of the checkpoint in `out_dir`, and returns its content."""
    try:
        done = load_checkpoint(out_dir, generator.device)
        if done:
            restore_training_state(net, generator, done["state"])
    except CheckpointError as error:
        raise ConfigError(f"resume={out_dir}: {error}") from error
    return done
