"""Runs as Hydra starts them, one or several (`python -m main -m`): checked before the first one, ended one by one."""

import dataclasses
import logging
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from src.config.errors import USER_ERRORS, explain, one_line_errors
from src.config.folders import run_folder, saved_run, without_hydra
from src.config.loading import load, load_saved, same_run
from src.config.values import Config, ConfigError
from src.training.signals import EXIT_STATUSES, StoppedJob

log = logging.getLogger(__name__)
stopped: int | None = None  # this process was told to stop: the exit status; jobs that wait for it do not start then


class BeforeRuns(Callback):
    """Hydra calls this once: before it makes the folder of a run, and before it launches the jobs of a sweep.

    Hydra would make a warning of an error, so that they end the process here.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with one_line_errors():
            load_job(without_hydra(config), config.hydra.overrides.task)
            check_folder("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        choices = config.hydra.runtime.choices
        with one_line_errors():
            if choices["hydra/sweeper"] == "basic":
                check_jobs(config)
            check_launcher(choices["hydra/launcher"], config.hydra.launcher)
            check_folder("hydra.sweep.dir", config.hydra.sweep.dir)
        if choices["hydra/launcher"] == "joblib":
            # Ctrl-C reaches every process. This one would kill its workers while they save their runs, and so would
            # the loss of a worker that has nothing to do. Workers inherit this; `job` has them listen while they work.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def check_folder(key: str, folder: str) -> None:
    """Raises ConfigError if Hydra would make a folder that is called "~", or scatter a run's files about here."""
    if not folder:
        raise ConfigError(f"{key}=: is empty; give a folder, or leave it out")
    if folder.startswith("~"):
        raise ConfigError(f"{key}={folder}: Hydra does not know what ~ is; give the path in full, or with $HOME")


def on_slurm(launcher: DictConfig) -> bool:
    return launcher._target_.endswith("SlurmLauncher")


def check_launcher(name: str, launcher: DictConfig) -> None:
    """Raises ConfigError where the launcher would end in a traceback."""
    if name == "joblib" and launcher.n_jobs == 0:
        raise ConfigError("hydra.launcher.n_jobs=0: must be the number of runs at a time, or -1 for one a core")
    if on_slurm(launcher) and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ConfigError(
            f"hydra/launcher={name}: there is no Slurm here (sbatch and srun are not on the PATH); "
            "start it on a cluster's login node, or use hydra/launcher=joblib"
        )


def check_jobs(config: DictConfig) -> None:
    """Raises one of USER_ERRORS if a job of the sweep that `config` (Hydra's own included) describes is no good."""
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(config.hydra.overrides.task))
    here = not on_slurm(config.hydra.launcher)  # a login node need not have the devices
    for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None):
        for job_overrides in batch:
            load_job(without_hydra(loader.load_sweep_config(config, job_overrides)), job_overrides, here=here)


def load_job(
    values: DictConfig, overrides: Sequence[str], folder: Path | None = None, *, here: bool = True
) -> tuple[Config, bool]:
    """The checked configuration of a run, and whether it goes on with one that has begun.

    It goes on with the run that is resumed; and with the one in `folder`, where this run is to be, if that has the same
    configuration, or if Slurm has put its job back into the queue. A run keeps its own configuration.
    """
    if values.resume == "":
        raise ConfigError("resume=: names no run's folder")
    if values.resume:
        return load_saved(run_folder(values.resume), overrides), True
    if folder and saved_run(folder):
        saved = load_saved(folder)
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0:
            return saved, True
        config = load(values)
        if same_run(saved, config):
            return dataclasses.replace(config, precision=saved.precision), True
    return load(values, here=here), False


@cache  # once in a process
def end_with_parent() -> None:
    """Has this worker save its run and end when whoever waits for it has gone: killed, for example."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        while True:  # the first signal ends the run, a later one the process
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def job() -> Iterator[None]:
    """Around one run of a sweep: what ends it is left to Hydra, which goes on with the others and then fails.

    Ctrl-C and SIGTERM end a sweep. Where its jobs run in processes of their own, each says so by `StoppedJob`, as other
    ways would have the launcher kill the jobs that are still saving.
    """
    global stopped
    own_process = HydraConfig.get().runtime.choices["hydra/launcher"] != "basic"
    if stopped is not None:
        raise StoppedJob(stopped)
    if parent_process():
        end_with_parent()
    inherited = signal.getsignal(signal.SIGINT)
    if own_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except Exception as error:
        if isinstance(error, USER_ERRORS):
            log.error(f"error: {explain(error)}")
        # Hydra keeps the error until the sweep ends, and the error its net, data and optimiser.
        for each in filter(None, (error, error.__cause__)):
            traceback.clear_frames(each.__traceback__)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 130
        if not own_process or status not in EXIT_STATUSES:
            raise
        stopped = status
        raise StoppedJob(status) from stop
    finally:
        signal.signal(signal.SIGINT, inherited)
