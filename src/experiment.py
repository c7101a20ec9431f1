"""One run from start to finish: the whole story in order."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from src import fast
from src.checkpoint import save_model, write_atomically
from src.config import Config, ConfigError
from src.data import SIDE, load_mnist, to_unit
from src.device import PRECISIONS, describe, resolve_device, resolve_precision, synchronise
from src.evaluate import count_errors
from src.model import FFNet
from src.runlog import RunLog, provenance, write_json
from src.train import gain, make_optimizer, train_epochs, train_step

log = logging.getLogger(__name__)


def run(config: Config, out_dir: Path) -> dict[str, Any]:
    """Trains and tests the net that `config` describes.

    Leaves config.yaml, metrics.jsonl, model.pt, learning_curve.png and result.json in `out_dir`.

    Returns:
        the content of result.json: error counts and percentages on the 10,000 test images by every rule of
        `count_errors`, the protocol, the time, the hardware and the versions.

    Raises:
        ConfigError: `out_dir` already holds a run, or the fast step no longer computes what the plain one does.
        DataError: MNIST is not there and cannot be fetched, or a file is not MNIST's.
    """
    if (out_dir / "metrics.jsonl").exists():
        raise ConfigError(f"{out_dir} already holds a run; choose another hydra.run.dir")
    origin = provenance()  # of the code that is about to run, not of what the checkout becomes meanwhile
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    train, validation, test = load_mnist(
        root=Path(config.data.root), device=device, validation_images=config.data.validation_images
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(out_dir / "config.yaml", OmegaConf.to_yaml(config).encode())
    log.info(f"{config.name}: training on {len(train)} images, {describe(device)}, {precision}; run in {out_dir}")

    model = build_model(config, PRECISIONS[precision]).to(device)
    optimizer = build_optimizer(config, model)
    step = train_step
    if config.training.step == "fast":
        sample = slice(config.training.batch_size)
        differing = fast.differs_from_plain(model, optimizer, to_unit(train.images[sample]), train.labels[sample])
        if differing:
            raise ConfigError(
                f"training.step=fast: src/fast.py does not do what src/train.py and src/layers.py say ({differing} "
                "differs); use training.step=plain, or change src/fast.py too"
            )
        step = fast.train_step
    epochs = config.training.epochs
    training = train_epochs(
        model,
        optimizer,
        train,
        epochs=epochs,
        batch_size=config.training.batch_size,
        negatives=config.training.negatives,
        max_shift=config.data.jitter,
        generator=torch.Generator(device).manual_seed(config.seed),
        step=step,
        cuda_graph=config.training.cuda_graph and device.type == "cuda",
    )

    run_log = RunLog(out_dir, epochs)
    train_seconds, started = 0.0, time.perf_counter()
    for epoch, figures in enumerate(training, start=1):
        errors = None
        every = config.evaluation.every
        if len(validation) and every and (epoch % every == 0 or epoch == epochs):
            synchronise(device)  # so that train_seconds holds training alone
            train_seconds += time.perf_counter() - started
            errors = count_errors(model, validation, config.evaluation.batch_size)
            synchronise(device)
            started = time.perf_counter()
        run_log.epoch(epoch, gain(epoch, epochs), figures, errors, len(validation))
    synchronise(device)
    train_seconds += time.perf_counter() - started
    run_log.close()

    save_model(model, out_dir / "model.pt")
    # The test images are used here for the first and the only time.
    test_errors = count_errors(model, test, config.evaluation.batch_size)
    errors = {rule: int(count) for rule, count in test_errors.items()}
    results = {
        **{f"test_error_{rule}": 100 * count / len(test) for rule, count in errors.items()},
        **{f"test_errors_{rule}": count for rule, count in errors.items()},
        "test_images": len(test),
        "train_images": len(train),
        "name": config.name,
        "hidden_dims": list(config.model.hidden_dims),
        "epochs": epochs,
        "seed": config.seed,
        "device": device.type,
        "hardware": describe(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "train_seconds": train_seconds,
        "seconds_per_epoch": train_seconds / epochs,
        **origin,
    }
    write_json(out_dir / "result.json", results)

    # Imported here, because matplotlib takes a second that the start need not pay.
    from src.plots import plot_learning_curve

    plot_learning_curve(out_dir)
    return results


def build_model(config: Config, matmul_dtype: torch.dtype) -> FFNet:
    """The net of `config.model`, with initial weights from `config.seed`, on the CPU."""
    return FFNet(
        SIDE * SIDE,
        config.model.hidden_dims,
        weight_scale=config.model.weight_scale,
        generator=torch.Generator().manual_seed(config.seed),
        matmul_dtype=matmul_dtype,
        threshold=config.model.threshold,
        temperature=config.model.temperature,
        peer_normalisation=config.model.peer_normalisation,
        peer_momentum=config.model.peer_momentum,
        initial_mean_activity=config.model.initial_mean_activity,
    )


def build_optimizer(config: Config, model: FFNet) -> torch.optim.SGD:
    """The optimiser of `config.training`, for a model that is on its device already."""
    return make_optimizer(
        model,
        learning_rate=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
        readout_learning_rate=config.training.readout_learning_rate,
        readout_weight_decay=config.training.readout_weight_decay,
        momentum=config.training.momentum,
        decay_in_momentum=config.training.decay_in_momentum,
    )
