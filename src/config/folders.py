"""Which folder a run gets: one of its own, or that of the run that it goes on with. For configs/config.yaml."""

import itertools
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from src.config.errors import USER_ERRORS
from src.config.loading import checked, load_saved, same_run


def run_folder(text: str | Path) -> Path:
    """A run's folder as it was typed, from the shell's "~" too where that was quoted."""
    return Path(text).expanduser()


def saved_run(folder: str | Path | None) -> bool:
    """Whether `folder` holds a run."""
    return bool(folder) and (run_folder(folder) / "config.yaml").is_file()


def new_folder(path: str) -> str:
    """Makes the folder `path`, or PATH_2, PATH_3 ... if there is one: no two runs get the same, however they start."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = Path(f"{path}_{number}" if number > 1 else path)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder)


def without_hydra(config: DictConfig) -> DictConfig:
    """The values of a run, of Hydra's whole configuration."""
    values = config.copy()
    with open_dict(values):
        del values["hydra"]
    return values


def folder_in_sweep(new: str, *, _root_: DictConfig) -> str:
    """Where a job of the sweep is to be that Hydra's whole configuration, `_root_`, describes.

    It is the folder of the run that it resumes; or that of the run in hydra.sweep.dir that has its configuration; else
    `new`, or NEW_2, NEW_3 ... where that holds another run.
    """
    if saved_run(_root_.resume):
        return str(run_folder(_root_.resume).absolute())
    sweep, values = Path(_root_.hydra.sweep.dir), without_hydra(_root_)
    of_its_name = re.compile(rf"\d+_{re.escape(f'{values.name}_seed{values.seed}')}(_\d+)?")
    for path in sorted(sweep.iterdir()) if sweep.is_dir() else []:
        if of_its_name.fullmatch(path.name) and saved_run(path):
            try:
                if same_run(load_saved(path), checked(values)):
                    return path.name
            except USER_ERRORS:  # it is damaged; or main tells what is wrong with the values
                continue
    names = itertools.chain([new], (f"{new}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not saved_run(sweep / name))


def saved_run_or_new_folder(folder: str | None, new: str) -> str:
    return str(run_folder(folder)) if saved_run(folder) else new_folder(new)


# Cached: a folder is made once, however often Hydra asks, also where it goes on in another process.
OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("saved_run_or_new_folder", saved_run_or_new_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("folder_in_sweep", folder_in_sweep, replace=True)
OmegaConf.register_new_resolver(
    "unless_saved_run", lambda folder, new: None if saved_run(folder) else new, replace=True
)
# And for its log: "#2 " before the lines of a sweep's job 2, as Hydra numbers them.
OmegaConf.register_new_resolver("line_start", lambda job: "" if job is None else f"#{job} ", replace=True)
