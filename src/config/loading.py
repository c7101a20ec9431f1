"""The configuration of a run: composed by Hydra, checked, or read from the folder of a saved run.

The methods are the files of configs/method. Each one's types and ranges come from the module of its name, which is
imported when the first configuration is composed, not before.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, make_dataclass
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf

from src import methods
from src.config.errors import USER_ERRORS, explain
from src.config.values import Config, ConfigError, check, expanded
from src.datasets.table import DATASETS
from src.layers.fields import Map

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
def composed(*overrides: str) -> DictConfig:
    """What `python -m main OVERRIDE...` gets from Hydra, for `load` to check; to be copied before it is changed."""
    register_schemas()
    within_main = GlobalHydra.instance().is_initialized()
    with nullcontext() if within_main else initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def load(values: DictConfig) -> Config:
    """The checked configuration of Hydra's `values`, for whatever machine.

    Raises:
        ConfigError: a value is out of range, or data.root is of an unknown user.
        OmegaConfBaseException: one is missing, or a key was added with "+" that the schema has not.
    """
    content = OmegaConf.to_container(values)
    content.pop("hydra", None)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OmegaConf.get_type(values)), content))
    check(config)
    expanded(config.data.root)
    if not (row := DATASETS[config.dataset]).own:
        check_images(config, row.train_images, row.shape, row.classes)
    return config


def check_images(config: Config, images: int, shape: Map, classes: int) -> None:
    """Raises ConfigError if `config` cannot train on so many images of this shape and so many classes."""
    training, size = images - config.data.validation_images, config.training.batch_size
    if training < 1:
        rule = f"must be below the number of training images, {images}"
        raise ConfigError(f"data.validation_images={config.data.validation_images}: {rule}")
    smallest = config.training.smallest_batch
    if not smallest <= size <= training or 0 < training % size < smallest:
        rule = f"must be at most {training}, the number of training images, and leave no batch of less than {smallest}"
        raise ConfigError(f"training.batch_size={size}: {rule}")
    if config.data.jitter >= (side := min(shape.height, shape.width)):  # an image could be shifted out of sight
        raise ConfigError(f"data.jitter={config.data.jitter}: must be below the images' smaller side, {side}")
    config.model.check_images(shape, classes)


def load_saved(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that the run in `folder` was started with. Keys that are newer than it have their defaults.

    Args:
        overrides: of the command line that resumes it; taken if they are among MAY_DIFFER.

    Raises ConfigError if there is no run, it is of another version or not whole, or an override is of another key.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no run (no config.yaml)")
    given = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(list(overrides))}
    given.pop("resume", None)
    if others := given.keys() - set(MAY_DIFFER):
        rule = f"with resume=, only {', '.join(MAY_DIFFER)} may be given"
        raise ConfigError(f"{', '.join(sorted(others))}: could change the result of the run in {folder}; {rule}")
    try:
        saved = OmegaConf.load(path)
        groups = composed(f"method={saved.method}", f"dataset={saved.dataset}")
        values = OmegaConf.merge(groups, saved, {"resume": None})
        root, starts = expanded(load(values).data.root), sorted(folder.glob(".hydra/*/hydra.yaml"))
        if starts and not root.exists():  # a relative one is seen from where the run was started
            values.data.root = str(OmegaConf.load(starts[0]).hydra.runtime.cwd / root)
    except USER_ERRORS as error:
        another = "it is damaged, or of another version, whose commit is in result.json"
        raise ConfigError(f"{path}: {explain(error)}; {another}") from error
    for key, value in given.items():
        OmegaConf.update(values, key, value)
    return load(values)


def begun(folder: Path, config: Config) -> Config | None:
    """What the run in `folder` was started with, if that is `config`, whatever precision=auto stands for here."""
    try:
        saved = load_saved(folder)
    except USER_ERRORS:
        return None
    roots = {expanded(each.data.root).absolute() for each in (saved, config)}
    if not DATASETS[config.dataset].own or len(roots) == 1:  # only data of one's own are told apart by their folder
        saved.data.root = config.data.root
    asked = asdict(config) | ({"precision": saved.precision} if config.precision == "auto" else {})
    return saved if asdict(saved) == asked else None
