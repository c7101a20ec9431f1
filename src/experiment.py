"""One run from start to finish: the whole story in order."""

import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from src import backprop, fast, recurrent, unsupervised
from src.backprop import BackpropNet
from src.checkpoint import (
    LATEST,
    CheckpointError,
    load_checkpoint,
    load_model,
    restore_training_state,
    save_checkpoint,
    save_model,
    training_state,
    write_atomically,
)
from src.config import Config, ConfigError
from src.data import SIDE, Examples, load_mnist, to_unit
from src.device import PRECISIONS, describe, resolve_device, resolve_precision, synchronise
from src.evaluate import count_errors, scores_for
from src.interrupt import Stopped, StopSignals
from src.local import local_layers
from src.model import FFNet, dense_layers
from src.recurrent import RecurrentFFNet
from src.runlog import RunLog, provenance, read_result, write_json
from src.samples import NUM_CLASSES, blurring, hard_negative_labels, hybrids, random_masks, uniform_negative_labels
from src.train import READOUT, Diverged, Phase, Step, gain_of, make_optimizer, train_epochs, train_step
from src.unsupervised import UnsupervisedFFNet

log = logging.getLogger(__name__)
NEGATIVE_LABELS = {"hard": hard_negative_labels, "uniform": uniform_negative_labels}


def run(config: Config, out_dir: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains and tests the net that `config` describes.

    Leaves config.yaml, metrics.jsonl, checkpoint.pt, model.pt, result.json and pictures in `out_dir`.

    Args:
        resume: go on after the checkpoint in `out_dir`, or from the beginning where there is none yet.

    Returns:
        the content of result.json: error counts and percentages on the 10,000 test images by every rule of
        `class_scores`, the protocol, the time, the hardware and the versions.

    Raises:
        ConfigError: `out_dir` already holds a run, or a finished one that was to be resumed; its checkpoint is of no
            use; the loss diverged; or the fast step no longer computes what the plain one does.
        DataError: MNIST is not there and cannot be fetched, or a file is not MNIST's.
        SystemExit: a signal stopped the run, after its last epoch was saved.
    """
    if resume and (out_dir / "result.json").exists():
        raise ConfigError(f"resume={out_dir}: that run is finished; its result is in result.json")
    taken = f"{out_dir} already holds a run; choose another hydra.run.dir, or {resuming(out_dir)}"
    if not resume and (out_dir / "config.yaml").exists():
        raise ConfigError(taken)
    origin = provenance()  # of the code that is about to run, not of what the checkout becomes meanwhile
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    train, validation, test = load_mnist(
        root=Path(config.data.root), device=device, validation_images=config.data.validation_images
    )
    if not resume:
        config.precision = precision  # so that it is the same when the run is resumed, on whatever machine
        out_dir.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(out_dir / "config.yaml", OmegaConf.to_yaml(config).encode(), replace=False)
        except FileExistsError as error:  # another run began there at the same time
            raise ConfigError(taken) from error
    log.info(f"{config.name}: training on {len(train)} images, {describe(device)}, {precision}; run in {out_dir}")

    model = build_model(config, PRECISIONS[precision]).to(device)
    readout_epochs = config.unsupervised.readout_epochs if config.method == "unsupervised" else 0
    train_seconds = train_model(config, model, train, validation, out_dir, resume=resume)
    save_model(model, out_dir / "model.pt")
    # The test images are used here for the first and the only time.
    scores = scores_for(model, test.images, config.evaluation.batch_size)
    errors = {rule: int(count) for rule, count in count_errors(scores, test.labels).items()}
    results = {
        **{f"test_error_{rule}": 100 * count / len(test) for rule, count in errors.items()},
        **{f"test_errors_{rule}": count for rule, count in errors.items()},
        "test_images": len(test),
        "train_images": len(train),
        "name": config.name,
        "method": config.method,
        "hidden_dims": list(config.model.hidden_dims),
        "epochs": config.training.epochs,
        "readout_epochs": readout_epochs,  # after those, of the read-outs alone
        "seed": config.seed,
        "device": device.type,
        "hardware": describe(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "train_seconds": train_seconds,
        "seconds_per_epoch": train_seconds / (config.training.epochs + readout_epochs),
        **origin,
    }
    write_json(out_dir / "result.json", results)  # it says that the run is finished
    if config.logging.pictures:
        # Imported here, because matplotlib takes a second that the start need not pay.
        from src.plots import plot_run

        plot_run(out_dir, model, test, scores)
    return results


def resuming(folder: Path) -> str:
    """The override that goes on with the run in `folder`, as it is typed: quoted for Hydra and the shell if need be."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder))
    return f"resume={folder}" if plain else shlex.quote(f'resume="{folder}"')


def load_trained(config: Config, folder: Path) -> nn.Module:
    """The net of the finished run in `folder`, whose configuration is `config`, on its device.

    Raises:
        ConfigError: there is no model.pt (the run is not finished, or its net was not kept), or it is damaged or of
            another architecture.
    """
    device = resolve_device(config.device)
    model = build_model(config, PRECISIONS[resolve_precision(config.precision, device)]).to(device)
    if not (folder / "model.pt").is_file():
        if (folder / "result.json").is_file():
            raise ConfigError(f"{folder}: this run's net was not kept (no model.pt)")
        raise ConfigError(f"{folder}: this run is not finished (no model.pt); go on with {resuming(folder)}")
    try:
        load_model(model, folder / "model.pt")
    except CheckpointError as error:
        raise ConfigError(f"{folder}: {error}") from error
    return model


def tested(config: Config, folder: Path) -> tuple[nn.Module, Examples, dict[str, Tensor]]:
    """The net of the finished run in `folder`, the test images, and its scores for them.

    Raises:
        ConfigError, DataError: as `load_trained` and `load_mnist`.
    """
    model = load_trained(config, folder)
    _, _, test = load_mnist(root=Path(config.data.root), device=resolve_device(config.device), validation_images=0)
    return model, test, scores_for(model, test.images, config.evaluation.batch_size)


def evaluate(config: Config, folder: Path) -> dict[str, Any]:
    """Tests the net of the finished run in `folder` again; nothing is written.

    Returns:
        "test_errors", counts by every rule of `class_scores` on the "test_images" (10,000); "test_errors_before", those
        in result.json (empty where there is none).

    Raises:
        ConfigError, DataError: as `tested`; or result.json is damaged.
    """
    try:
        before = read_result(folder) if (folder / "result.json").is_file() else {}
    except ValueError as error:
        raise ConfigError(
            f"{folder / 'result.json'} is damaged ({error}); without it, the net can be tested"
        ) from error
    _, test, scores = tested(config, folder)
    errors = count_errors(scores, test.labels)
    prefix = "test_errors_"
    return {
        "test_images": len(test),
        "test_errors": {rule: int(count) for rule, count in errors.items()},
        "test_errors_before": {
            key.removeprefix(prefix): count for key, count in before.items() if key.startswith(prefix)
        },
    }


def train_model(
    config: Config, model: nn.Module, train: Examples, validation: Examples, out_dir: Path, *, resume: bool
) -> float:
    """Trains `model` in place, with validations, metrics.jsonl and checkpoints.

    Returns:
        the seconds of training alone.
    """
    device = train.labels.device
    generator = torch.Generator(device).manual_seed(config.seed)
    phases = build_phases(config, model, train, generator)
    epochs = sum(phase.epochs for phase in phases)

    done: dict[str, Any] = {"epoch": 0, "metrics": [], "train_seconds": 0.0}  # what the last whole epoch left
    if resume:
        done = restore(out_dir, model, generator) or done
        log.info(f"resumed after epoch {done['epoch']} of {epochs}")
    training = train_epochs(
        phases,
        train,
        first_epoch=done["epoch"] + 1,
        batch_size=config.training.batch_size,
        max_shift=config.data.jitter,
        generator=generator,
        cuda_graph=config.training.cuda_graph and device.type == "cuda",
    )
    validate_every, save_every = config.evaluation.every, config.training.checkpoint_every
    tensorboard = config.logging.tensorboard
    with (
        RunLog(out_dir, epochs, done["metrics"], tensorboard) as run_log,
        divergence_told(config, out_dir, run_log),
        StopSignals() as stop,
    ):
        train_seconds = done["train_seconds"]
        try:
            for epoch in range(done["epoch"] + 1, epochs + 1):
                started = time.perf_counter()
                with stop.allowed():
                    figures = next(training)
                last, errors = epoch == epochs, None
                if len(validation) and validate_every and (epoch % validate_every == 0 or last):
                    synchronise(device)  # so that train_seconds holds training alone
                    train_seconds += time.perf_counter() - started
                    scores = scores_for(model, validation.images, config.evaluation.batch_size)
                    errors = count_errors(scores, validation.labels)
                    synchronise(device)
                    started = time.perf_counter()
                saved = last or (save_every and epoch % save_every == 0)
                if saved:
                    synchronise(device)
                run_log.epoch(epoch, gain_of(phases, epoch)[1], figures, errors, len(validation))
                train_seconds += time.perf_counter() - started
                done = {"epoch": epoch, "state": training_state(model, generator), "train_seconds": train_seconds}
                if saved:
                    save(out_dir, done, run_log)
            with stop.allowed():  # for a signal that came after the last step
                pass
        except Stopped as stopped:
            run_log.record_pending()
            if done["epoch"]:
                save(out_dir, done, run_log)
            log.info(f"stopped after epoch {done['epoch']} of {epochs}; go on with: python -m main {resuming(out_dir)}")
            raise SystemExit(stopped.exit_status) from stopped
    return train_seconds


@contextmanager
def divergence_told(config: Config, out_dir: Path, run_log: RunLog) -> Iterator[None]:
    """Makes a ConfigError of a loss that is infinite or not a number."""
    try:
        yield
    except Diverged as diverged:
        epoch = len(run_log.records) + 1  # on a GPU it is found out while the next one is under way
        kept = f"{out_dir / LATEST} is of an epoch before" if (out_dir / LATEST).exists() else "no checkpoint yet"
        key = "readout_learning_rate" if diverged.of == READOUT and config.method != "backprop" else "learning_rate"
        advice = f"a lower training.{key} (now {getattr(config.training, key):g}) may help"
        raise ConfigError(f"{diverged} in epoch {epoch}; {advice}; {kept}") from diverged


def save(out_dir: Path, done: dict[str, Any], run_log: RunLog) -> None:
    """A checkpoint of the last whole epoch."""
    run_log.record_pending()
    save_checkpoint(out_dir, done | {"metrics": run_log.records})


def restore(out_dir: Path, model: nn.Module, generator: torch.Generator) -> dict[str, Any] | None:
    """Puts model and generator into the state of the checkpoint in `out_dir`, and returns its content."""
    try:
        done = load_checkpoint(out_dir, generator.device)
        if done:
            restore_training_state(model, generator, done["state"])
    except CheckpointError as error:
        raise ConfigError(f"resume={out_dir}: {error}") from error
    return done


def build_phases(config: Config, model: nn.Module, train: Examples, generator: torch.Generator) -> list[Phase]:
    """What `config` trains, in order: with which update and which optimiser.

    Args:
        model: on its device already; generator: there, too, for what the updates draw.
    """
    optimizer = build_optimizer(config, model.named_parameters())
    draw = partial(NEGATIVE_LABELS[config.training.negatives], generator=generator)
    epochs = config.training.epochs
    if config.method == "supervised":
        step = choose_step(
            config, train_step, fast.train_step, model, optimizer, train, lambda _, labels: (labels + 1) % NUM_CLASSES
        )
        return [Phase(epochs, optimizer, partial(step, model, optimizer, draw_negative_labels=draw))]
    if config.method == "backprop":
        return [Phase(epochs, optimizer, partial(backprop.train_step, model, optimizer))]
    if config.method == "recurrent":
        step = compiled(recurrent.train_step) if config.training.compile else recurrent.train_step
        return [Phase(epochs, optimizer, partial(step, model, optimizer, draw_negative_labels=draw))]

    blur = blurring(SIDE, config.unsupervised.blurs).to(generator.device)

    def make_negatives(images: Tensor) -> Tensor:
        return hybrids(images, random_masks(len(images), blur, generator))

    step = choose_step(
        config, unsupervised.train_step, fast.unsupervised_step, model, optimizer, train, lambda images: images.flip(1)
    )
    readouts = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("readout")]
    readout_optimizer = build_optimizer(config, readouts)
    return [
        Phase(epochs, optimizer, partial(step, model, optimizer, make_negatives=make_negatives)),
        Phase(
            config.unsupervised.readout_epochs,
            readout_optimizer,
            partial(unsupervised.readout_step, model, readout_optimizer),
        ),
    ]


def choose_step(
    config: Config,
    plain_step: Step,
    fast_step: Step,
    model: FFNet,
    optimizer: torch.optim.SGD,
    train: Examples,
    negatives: Callable[..., Tensor],
) -> Step:
    """The update that `training.step` names; the fast one only if it does what the plain one does on a batch.

    Args:
        negatives: the last argument of both steps for that batch; draws nothing.
    """
    if config.training.step == "plain":
        return plain_step
    sample = slice(config.training.batch_size)
    images, labels = to_unit(train.images[sample]), train.labels[sample]
    differing = fast.differs(fast_step, plain_step, model, optimizer, images, labels, negatives)
    if differing:
        plain = plain_step.__module__.replace(".", "/")
        layers = "src/local.py" if config.model.grids else "src/layers.py"
        raise ConfigError(
            f"training.step=fast: src/fast.py does not do what {plain}.py and {layers} say ({differing} differs); "
            "use training.step=plain, or change src/fast.py too"
        )
    return compiled(fast_step) if config.training.compile else fast_step


def compiled(step: Step) -> Step:
    """As `fast.compiled`, of which it asks whether it can be had here.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # what torch looks for
    if not shutil.which(compiler):
        raise ConfigError(f"training.compile=true: there is no {compiler}; install a C++ compiler, or name one in CXX")
    return fast.compiled(step)


def build_model(config: Config, matmul_dtype: torch.dtype) -> nn.Module:
    """The net of `config`, with initial weights from `config.seed`, on the CPU."""
    model, generator = config.model, torch.Generator().manual_seed(config.seed)
    if config.method == "backprop":
        return BackpropNet(SIDE * SIDE, model.hidden_dims, generator=generator, matmul_dtype=matmul_dtype)
    options = {
        "generator": generator,
        "matmul_dtype": matmul_dtype,
        "threshold": model.threshold,
        "temperature": model.temperature,
        "peer_normalisation": model.peer_normalisation,
        "peer_momentum": model.peer_momentum,
        "initial_mean_activity": model.initial_mean_activity,
    }
    if config.method == "recurrent":
        return RecurrentFFNet(
            SIDE * SIDE,
            model.hidden_dims,
            weight_gain=config.recurrent.weight_gain,
            damping=config.recurrent.damping,
            iterations=config.recurrent.iterations,
            first_learning_iteration=config.recurrent.first_learning_iteration,
            **options,
        )
    if model.grids:
        layers = local_layers(
            model.hidden_dims, model.grids, field=model.field, weight_scale=model.weight_scale, **options
        )
    else:
        layers = dense_layers(SIDE * SIDE, model.hidden_dims, weight_scale=model.weight_scale, **options)
    return (FFNet if config.method == "supervised" else UnsupervisedFFNet)(layers, matmul_dtype=matmul_dtype)


def build_optimizer(config: Config, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.SGD:
    """The optimiser of `config.training` for named `parameters`, which are on their device already."""
    return make_optimizer(
        parameters,
        learning_rate=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
        readout_learning_rate=config.training.readout_learning_rate,
        readout_weight_decay=config.training.readout_weight_decay,
        momentum=config.training.momentum,
        decay_in_momentum=config.training.decay_in_momentum,
    )
