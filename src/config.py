"""The configuration: its types and its range checks. Values and their sources stand in configs/config.yaml."""

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.data import SIDE, TRAINING_FILE_IMAGES, DataError
from src.device import PRECISIONS, resolve_device
from src.interrupt import StoppedJob
from src.recurrent import LAST_AVERAGED

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# What may differ from a run's own configuration when it is used again, by the key that names its folder.
MAY_DIFFER = {
    "resume": ("data.root", "training.checkpoint_every", "logging.tensorboard", "logging.pictures"),
    "evaluate": ("data.root", "device", "precision", "evaluation.batch_size"),
}

# Hydra prints its errors at length, unless this variable makes it hand them on to `one_line_errors`.
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
os.environ["HYDRA_FULL_ERROR"] = "1"


class ConfigError(ValueError):
    """A value that cannot be used. The message names the key, the value and what is allowed."""


def _check(allowed: bool, key: str, value: object, rule: str) -> None:
    if not allowed:
        raise ConfigError(f"{key}={value}: {rule}")


def _check_number(key: str, value: float, at_least: float, below: float = math.inf) -> None:
    limit = f"at least {at_least:g}" + (f" and below {below:g}" if below < math.inf else "")
    _check(math.isfinite(value) and at_least <= value < below, key, value, f"must be {limit}")


def _check_choice(key: str, value: str, *choices: str) -> None:
    _check(value in choices, key, value, f"must be one of {', '.join(choices)}")


@dataclass
class DataConfig:
    root: str = MISSING
    validation_images: int = MISSING
    jitter: int = MISSING

    def __post_init__(self):
        _check_number("data.validation_images", self.validation_images, 0, TRAINING_FILE_IMAGES)
        _check_number("data.jitter", self.jitter, 0, SIDE)


@dataclass
class ModelConfig:
    hidden_dims: list[int] = MISSING
    grids: list[int] | None = MISSING
    field: int = MISSING
    threshold: float = MISSING
    temperature: float = MISSING
    peer_normalisation: float = MISSING
    peer_momentum: float = MISSING
    initial_mean_activity: float = MISSING
    weight_scale: str = MISSING

    def __post_init__(self):
        _check(
            len(self.hidden_dims) >= 2,
            "model.hidden_dims",
            self.hidden_dims,
            "must name at least two hidden layers, because goodness and read-out leave the first one out",
        )
        for dim in self.hidden_dims:
            _check(dim >= 1, "model.hidden_dims", self.hidden_dims, "every width must be at least 1")
        _check_number("model.field", self.field, 1, SIDE + 1)
        if self.grids is not None:
            self._check_grids(self.grids)
        _check_number("model.threshold", self.threshold, 0)
        _check(
            math.isfinite(self.temperature) and self.temperature > 0,
            "model.temperature",
            self.temperature,
            "must be above 0",
        )
        _check_number("model.peer_normalisation", self.peer_normalisation, 0)
        _check_number("model.peer_momentum", self.peer_momentum, 0, 1)
        _check_number("model.initial_mean_activity", self.initial_mean_activity, 0)
        _check_choice("model.weight_scale", self.weight_scale, "fan_in", "fan_out")

    def _check_grids(self, grids: list[int]) -> None:
        _check(
            len(grids) == len(self.hidden_dims), "model.grids", grids, "must name as many layers as model.hidden_dims"
        )
        first = grids[0]
        _check(
            first >= len(grids) and grids == list(range(first, first - len(grids), -1)),
            "model.grids",
            grids,
            "each grid must have one location less per side than the one below, as [4, 3, 2] has",
        )
        _check(
            self.field < SIDE and (SIDE - self.field) % (first - 1) == 0,
            "model.field",
            self.field,
            f"squares of so many pixels cannot be spread evenly over {SIDE} pixels at {first} locations per side",
        )
        for dim, grid in zip(self.hidden_dims, grids, strict=True):
            _check(
                dim % grid**2 == 0,
                "model.hidden_dims",
                self.hidden_dims,
                f"{dim} units cannot be shared out evenly to {grid} x {grid} locations (model.grids={grids})",
            )


@dataclass
class TrainingConfig:
    epochs: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    readout_learning_rate: float = MISSING
    readout_weight_decay: float = MISSING
    momentum: float = MISSING
    decay_in_momentum: bool = MISSING
    negatives: str = MISSING
    step: str = MISSING
    compile: bool = MISSING
    cuda_graph: bool = MISSING
    checkpoint_every: int = MISSING

    def __post_init__(self):
        _check_number("training.epochs", self.epochs, 1)
        _check_number("training.batch_size", self.batch_size, 1)
        for key in ("learning_rate", "weight_decay", "readout_learning_rate", "readout_weight_decay"):
            _check_number(f"training.{key}", getattr(self, key), 0)
        _check_number("training.momentum", self.momentum, 0, 1)
        _check_choice("training.negatives", self.negatives, "hard", "uniform")
        _check_number("training.checkpoint_every", self.checkpoint_every, 0)
        _check_choice("training.step", self.step, "fast", "plain")


@dataclass
class UnsupervisedConfig:
    blurs: int = MISSING
    readout_epochs: int = MISSING

    def __post_init__(self):
        _check_number("unsupervised.blurs", self.blurs, 0)
        _check_number("unsupervised.readout_epochs", self.readout_epochs, 0)


@dataclass
class RecurrentConfig:
    weight_gain: float = MISSING
    damping: float = MISSING
    iterations: int = MISSING
    first_learning_iteration: int = MISSING

    def __post_init__(self):
        _check_number("recurrent.weight_gain", self.weight_gain, 0)
        _check_number("recurrent.damping", self.damping, 0, 1)
        _check_number("recurrent.iterations", self.iterations, LAST_AVERAGED)
        _check_number("recurrent.first_learning_iteration", self.first_learning_iteration, 1, self.iterations + 1)


@dataclass
class EvaluationConfig:
    every: int = MISSING
    batch_size: int = MISSING

    def __post_init__(self):
        _check_number("evaluation.every", self.every, 0)
        _check_number("evaluation.batch_size", self.batch_size, 1)


@dataclass
class LoggingConfig:
    tensorboard: bool = MISSING
    pictures: bool = MISSING


@dataclass
class Config:
    name: str = MISSING
    method: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    training: TrainingConfig = MISSING
    unsupervised: UnsupervisedConfig = MISSING
    recurrent: RecurrentConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    logging: LoggingConfig = MISSING
    resume: str | None = None
    evaluate: str | None = None

    def __post_init__(self):
        _check_number("seed", self.seed, 0, 2**63)
        _check_choice("method", self.method, "supervised", "backprop", "unsupervised", "recurrent")
        images, size = TRAINING_FILE_IMAGES - self.data.validation_images, self.training.batch_size
        _check(
            self.method != "unsupervised" or (size > 1 and images % size != 1),
            "training.batch_size",
            size,
            f"leaves a batch of one of {images} training images, and a hybrid needs two",
        )
        compile = self.training.compile
        _check(not compile or self.training.step == "fast", "training.compile", compile, "needs training.step=fast")
        _check(not compile or not self.model.grids, "training.compile", compile, "of no use to local receptive fields")
        _check_choice("device", self.device, "auto", "cpu", "cuda", "mps")
        _check_choice("precision", self.precision, "auto", *PRECISIONS)
        try:
            resolve_device(self.device)
        except ValueError as error:
            raise ConfigError(f"device={self.device}: {error}") from error


ConfigStore.instance().store(name="schema", node=Config)


UNUSED = {  # by method: sections and values that it makes no use of
    "supervised": {"model.grids", "unsupervised", "recurrent"},
    "backprop": {
        *(f"model.{field.name}" for field in fields(ModelConfig) if field.name != "hidden_dims"),
        *("training.negatives", "training.step", "training.compile", "unsupervised", "recurrent"),
    },
    "unsupervised": {"training.negatives", "recurrent"},
    "recurrent": {"model.grids", "model.weight_scale", "training.step", "unsupervised"},
}


def unused_keys(method: str, grids: Sequence[int] | None) -> set[str]:
    """The sections and keys that a run with `method` and `model.grids` makes no use of."""
    return UNUSED[method] | ({"model.field"} if grids is None else set())


def _saved_run(*folders: str | None) -> str | None:
    """The first of `folders` that holds a run."""
    return next((folder for folder in folders if folder and (Path(folder) / "config.yaml").is_file()), None)


# For hydra's folders in configs/config.yaml; a mistyped folder is not made.
OmegaConf.register_new_resolver("saved_run_or", lambda *folders: _saved_run(*folders[:-1]) or folders[-1], replace=True)
OmegaConf.register_new_resolver(
    "unless_saved_run", lambda *folders: None if _saved_run(*folders[:-1]) else folders[-1], replace=True
)
# And for its log: "#2 " before the lines of a sweep's job 2, as Hydra numbers them.
OmegaConf.register_new_resolver("line_start", lambda job: "" if job is None else f"#{job} ", replace=True)


def composed(*overrides: str) -> DictConfig:
    """What `python -m main OVERRIDE...` gets from Hydra, for `load` to check."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def load(values: DictConfig) -> Config:
    """The checked configuration of Hydra's `values`.

    Raises:
        ConfigError: a value is missing, out of range or of no use to the method, or a key that is not in the schema was
            added with "+".
    """
    config = _converted(values)
    defaults = OmegaConf.load(CONFIGS / "config.yaml")
    for key in sorted(unused_keys(config.method, config.model.grids)):
        if "." not in key:
            continue  # a section, whose name says that it is for another method
        value = OmegaConf.select(values, key)
        rule = f"of no use to method={config.method}" if key != "model.field" else "of no use without model.grids"
        _check(value == OmegaConf.select(defaults, key), key, value, rule)
    return config


def _converted(values: DictConfig) -> Config:
    """As `load`, but what is of no use may be anything: a saved run has the defaults of its day."""
    missing = OmegaConf.missing_keys(values)
    sections = (values.get(field.name) for field in fields(Config) if is_dataclass(field.type))
    for section in (values, *filter(None, sections)):
        keys = {field.name for field in fields(OmegaConf.get_type(section))}
        for key in sorted(set(section) - keys):
            raise ConfigError(_unknown_key(section._get_full_key(key)))
        missing |= {section._get_full_key(key) for key in keys - set(section)}
    if missing:
        raise ConfigError(f"{', '.join(sorted(missing))}: has no value")
    return OmegaConf.to_object(values)


def load_saved(folder: Path, values: DictConfig, key: str = "evaluate", overrides: Sequence[str] = ()) -> Config:
    """The configuration that the run in `folder` was started with.

    Args:
        values: Hydra's; keys that are newer than the run are taken from it.
        key: "resume" or "evaluate", for which it is needed.
        overrides: of the command line; taken where they cannot change the result (MAY_DIFFER).

    Raises:
        ConfigError: there is no run, or an override could change its result.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no run (no config.yaml)")
    saved = OmegaConf.merge(values, OmegaConf.load(path), {"resume": None, "evaluate": None})
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name in MAY_DIFFER[key]:
            OmegaConf.update(saved, name, OmegaConf.select(values, name))
        elif name != key:
            raise ConfigError(
                f"{override}: could change the result of the run in {folder}; "
                f"with {key}=, only {', '.join(MAY_DIFFER[key])} may be given"
            )
    return _converted(saved)


def _unknown_key(key: str) -> str:
    return f"there is no key {key}; `python -m main --cfg job` lists all keys"


# What a user can bring about and mend.
USER_ERRORS = (ConfigError, DataError, HydraException, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError)


def explain(error: Exception) -> str:
    """One line for an error of `USER_ERRORS`: what is wrong and where."""
    cause = str(error.__cause__ or "")
    text = str(error) if cause in str(error) else f"{error}\n{cause}"
    file = re.match(r"In '([^']+)': ", text)
    where = f"in {file[1]}.yaml, " if file else ""
    at_key = re.search(r"^(.*)\n\s*full_key: (\S+)", text, re.MULTILINE)  # what is wrong, and below it the key
    if isinstance(error, MissingConfigException) and error.options:
        return f"there is no {error.missing_cfg_file}.yaml; there are {', '.join(error.options)}"
    if at_key:
        wrong, key = at_key.groups()
        return where + (_unknown_key(key) if re.match("Key '.*' not in", wrong) else f"{key}: {wrong}")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line on stderr and exit status 1 where the user can mend what went wrong.

    Anything else keeps its traceback, and so do these errors if HYDRA_FULL_ERROR=1 is set from outside.
    """
    try:
        yield
    except USER_ERRORS as error:
        if SHOW_TRACEBACK:
            raise
        sys.exit(f"error: {explain(error)}")
    except RuntimeError as error:
        if SHOW_TRACEBACK:
            raise
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            sizes = "model.hidden_dims, training.batch_size or evaluation.batch_size"
            sys.exit(f"error: out of memory; smaller {sizes} may help")
        if not type(error).__module__.startswith("submitit"):
            raise
        sys.exit(f"error: {explain(error)}")  # Slurm took no job, or gave none back
    except StoppedJob as stopped:
        sys.exit(stopped.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
