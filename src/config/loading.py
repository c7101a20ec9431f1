"""The configuration of a run: composed by Hydra, checked, or read from the folder of a saved run.

The methods are the files of configs/method. Each one's types and ranges come from the module of its name, which is
imported when the first configuration is composed, not before.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src import methods
from src.config.values import Config, ConfigError, check, wrong_name
from src.datasets.batches import check_jitter
from src.datasets.table import DATASETS
from src.training.device import resolve_device

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))

# What may differ from a run's own configuration when it is resumed: it does not change what is measured.
MAY_DIFFER = (
    "data.root", "device", "training.checkpoint_every", "training.compile", "training.cuda_graph",
    "evaluation.batch_size", "logging.tensorboard", "logging.pictures",
)  # fmt: skip


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


def load(values: DictConfig, *, here: bool = True) -> Config:
    """The checked configuration of Hydra's `values`.

    Args:
        here: it is this machine that will train.

    Raises:
        ConfigError: a value is missing or out of range, a key that is not in the schema was added with "+", the name
            cannot name a folder, or there is no such device here.
    """
    config = checked(values)
    if wrong := wrong_name(config.name):
        raise ConfigError(f"name={config.name}: {wrong}")
    if here:
        resolve_device(config.device)
    return config


def checked(values: DictConfig) -> Config:
    """As `load`, whatever devices there are and whatever it is called: for a run of another machine, or an old one."""
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
    if not (row := DATASETS[config.dataset]).own:
        check_sizes(config, row.train_images)
        check_jitter(config.data.jitter, row.shape)
        config.model.check_images(row.shape, row.classes)
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
        overrides: of the command line that resumes it; taken if they are among MAY_DIFFER.

    Raises:
        ConfigError: there is no run, it is of another version or not whole, or an override is of another key.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no run (no config.yaml)")
    saved = OmegaConf.load(path)
    if missing := [key for key in ("name", "method", "seed") if key not in saved]:
        raise ConfigError(f"{path} is not whole: it has no {', '.join(missing)}")
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
    return checked(values)


def same_run(saved: Config, config: Config) -> bool:
    """Whether a run that began with `saved` is what `config` asks for, whatever it logs and wherever its data are.

    Data of one's own are known by their folder alone.
    """
    saved_values, values = (flat(dataclasses.asdict(either)) for either in (saved, config))
    ignored = {"resume", *MAY_DIFFER} - {"device", "training.compile"}
    if config.precision == "auto":
        ignored.add("precision")
    if DATASETS[config.dataset].own:
        ignored.remove("data.root")
    return all(saved_values.get(key) == values.get(key) for key in (saved_values | values).keys() - ignored)


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """{"training": {"epochs": 100}, "seed": 0} -> {"training.epochs": 100, "seed": 0}."""
    values = {}
    for key, content in config.items():
        section = isinstance(content, dict)
        values |= {f"{key}.{name}": value for name, value in content.items()} if section else {key: content}
    return values


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ConfigError if a value of the command line is given as --KEY VALUE."""
    _, unknown = get_args_parser().parse_known_args(arguments)
    if not unknown:
        return
    flag, _, value = unknown[0].partition("=")
    if not flag.startswith("-"):
        raise ConfigError(f"{unknown[0]}: -m and other flags come before all values: python -m main -m KEY=VALUE ...")
    after = [*(arguments[arguments.index(unknown[0]) + 1 :] if unknown[0] in arguments else ()), "VALUE"][0]
    name = flag.lstrip("-").replace("-", "_")
    for key in flat(OmegaConf.to_container(composed())):
        if name in (key, key.rpartition(".")[2]):
            how = f"python -m main {key}={value or after}"
            break
    else:
        how = "python -m main KEY=VALUE; `python -m main --cfg job` lists all keys"
    raise ConfigError(f"{flag}: values are given without dashes: {how}")


def unknown_key(key: str) -> str:
    return f"there is no key {key} with this method; `python -m main method=METHOD --cfg job` lists its keys"
