"""The configuration of a run: composed by Hydra, checked, or read from the folder of a saved run.

The methods are the files of configs/method. Each one's types and ranges come from the module of its name, which is
imported when the first configuration is composed, not before.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src import methods
from src.config.values import Config, ConfigError, check
from src.datasets.fetching import OFFICIAL_IMAGES
from src.datasets.table import DATASETS
from src.training.device import resolve_device

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))

# What may differ from a run's own configuration when it is resumed.
MAY_DIFFER = ("data.root", "training.checkpoint_every", "logging.tensorboard", "logging.pictures")


@cache
def register_schemas() -> None:
    """Tells Hydra the types of every method's configuration; to be called before it composes one."""
    for name in METHODS:
        method = methods.named(name)
        sections = [("model", method.Model, MISSING), ("training", method.Training, MISSING)]
        schema = make_dataclass("Config", sections, bases=(Config,))
        ConfigStore.instance().store(group="schema", name=name, node=schema, package="_global_")


@cache  # because composing takes a third of a second
def _composed(*overrides: str) -> DictConfig:
    register_schemas()
    within_main = GlobalHydra.instance().is_initialized()
    with nullcontext() if within_main else initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def composed(*overrides: str) -> DictConfig:
    """What `python -m main OVERRIDE...` gets from Hydra, for `load` to check."""
    return _composed(*overrides).copy()


def load(values: DictConfig) -> Config:
    """The checked configuration of Hydra's `values`.

    Raises:
        ConfigError: a value is missing or out of range, a key that is not in the schema was added with "+", or there is
            no such device here.
    """
    config = _checked(values)
    resolve_device(config.device)
    return config


def _checked(values: DictConfig) -> Config:
    """As `load`, whatever devices there are: a run may be read on another machine."""
    missing = OmegaConf.missing_keys(values)
    sections = (values.get(field.name) for field in fields(Config) if is_dataclass(field.type))
    for section in (values, *filter(None, sections)):
        keys = {field.name for field in fields(OmegaConf.get_type(section))}
        for key in sorted(set(section) - keys):
            raise ConfigError(unknown_key(section._get_full_key(key)))
        missing |= {section._get_full_key(key) for key in keys - set(section)}
    if missing:
        raise ConfigError(f"{', '.join(sorted(missing))}: has no value")
    config = OmegaConf.to_object(values)
    check(config)
    if DATASETS[config.dataset].fetched_as:
        check_sizes(config, OFFICIAL_IMAGES["train"])
    return config


def check_sizes(config: Config, images: int) -> None:
    """Raises ConfigError if so many images cannot be shared out to validation and batches as `config` says."""
    held_out, size = config.data.validation_images, config.training.batch_size
    smallest = methods.named(config.method).SMALLEST_BATCH
    training = images - held_out
    if training < 1:
        raise ConfigError(f"data.validation_images={held_out}: must be below the number of training images, {images}")
    if size > training:
        raise ConfigError(f"training.batch_size={size}: must be at most the number of training images, {training}")
    if size < smallest or 0 < training % size < smallest:
        rule = f"leaves a batch of one of {training} training images, and method={config.method} needs {smallest}"
        raise ConfigError(f"training.batch_size={size}: {rule}")


def load_saved(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that the run in `folder` was started with. Keys that are newer than it have their defaults.

    Args:
        overrides: of the command line that resumes it; taken where they cannot change the result (MAY_DIFFER).

    Raises:
        ConfigError: there is no run, it is of another version, or an override could change its result.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no run (no config.yaml)")
    saved = OmegaConf.load(path)
    for key, known in (("method", METHODS), ("dataset", DATASETS)):
        if saved.get(key, next(iter(known))) not in known:
            raise ConfigError(f"{path}: there is no {key} {saved[key]} here")
    groups = [f"{key}={saved[key]}" for key in ("method", "dataset") if key in saved]
    try:
        values = OmegaConf.merge(composed(*groups), saved, {"resume": None})
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "content"
        raise ConfigError(
            f"{path}: this version does not take its {key} ({str(error).splitlines()[0]}); "
            "it was written by another one, whose commit is in result.json"
        ) from error
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name in MAY_DIFFER:
            OmegaConf.update(values, name, OmegaConf.select(composed(*groups, override), name))
        elif name != "resume":
            rule = f"with resume=, only {', '.join(MAY_DIFFER)} may be given"
            raise ConfigError(f"{override}: could change the result of the run in {folder}; {rule}")
    return _checked(values)


def saved_run(folder: str | None) -> bool:
    """Whether `folder` holds a run."""
    return bool(folder) and (Path(folder) / "config.yaml").is_file()


# For hydra's folders in configs/config.yaml; a mistyped folder is not made.
OmegaConf.register_new_resolver("saved_run_or", lambda folder, new: folder if saved_run(folder) else new, replace=True)
OmegaConf.register_new_resolver(
    "unless_saved_run", lambda folder, new: None if saved_run(folder) else new, replace=True
)
# And for its log: "#2 " before the lines of a sweep's job 2, as Hydra numbers them.
OmegaConf.register_new_resolver("line_start", lambda job: "" if job is None else f"#{job} ", replace=True)


def unknown_key(key: str) -> str:
    return f"there is no key {key} with this method; `python -m main --cfg job` lists all keys"
