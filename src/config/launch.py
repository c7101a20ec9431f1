"""Runs as Hydra starts them, one or several (`python -m main -m`): checked, each in its folder, ended one by one."""

import glob
import hashlib
import itertools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.config import errors
from src.config.errors import explain, one_line_errors
from src.config.loading import begun, composed, load, load_saved
from src.config.values import Config, ConfigError, expanded
from src.training.signals import SIGNALS

log = logging.getLogger(__name__)
DIGESTS = "FORWARD_FORWARD_JOBS"  # variable of the environment: each job's `digest` when the sweep was started
stopped = False  # this process was told to stop: jobs that wait for it do not start then


def new_folder(path: str) -> str:
    """Makes the folder `path`, or PATH_2, PATH_3 ... if there is one: no two runs get the same, however they start."""
    for number in itertools.count(1):
        folder = Path(f"{path}_{number}" if number > 1 else path).absolute()
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return str(folder)


def run_folder(new: str, *, _root_: DictConfig) -> str:
    """The folder of the run that Hydra's whole configuration, `_root_`, describes.

    It is that of the run that it resumes; in a sweep, that of the run next to `new` with the same configuration; else
    the `new_folder`.
    """
    if _root_.resume:
        return str(expanded(_root_.resume).absolute())
    if _root_.hydra.mode == RunMode.MULTIRUN:
        config = load(_root_)
        for folder in sorted(Path(new).parent.glob(f"*_{glob.escape(config.name)}_seed{config.seed}*")):
            if begun(folder, config):
                return str(folder.absolute())
    return new_folder(new)


# For configs/config.yaml. Cached, as Hydra asks for a sweep's folder again for every job, also in other processes.
OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("line_start", lambda job: "" if job is None else f"#{job} ", replace=True)


def load_job(values: DictConfig, overrides: Sequence[str], folder: Path | None = None) -> tuple[Config, bool]:
    """The checked configuration of a run, and whether it goes on with one that has begun.

    It goes on with the run that is resumed, and with the one in `folder`, where it is to be, if that has the same
    configuration: a job that is back in Slurm's queue, or the same command again. Raises as `load` and `load_saved` do.
    """
    if values.resume is not None:
        return load_saved(expanded(values.resume), overrides), True
    config = load(values)
    saved = begun(folder, config) if folder else None
    return saved or config, saved is not None


def check_search(config: Config, sweeper: str) -> None:
    """Raises ConfigError if a sweeper that searches has no validation images to choose by."""
    if sweeper != "basic" and not (config.data.validation_images and config.evaluation.every):
        rule = "chooses by validation images; give data.validation_images and evaluation.every"
        raise ConfigError(f"hydra/sweeper={sweeper}: {rule}")


def digest(values: DictConfig) -> str:
    """Of what a job of a sweep is composed of."""
    return hashlib.sha1(OmegaConf.to_yaml(values).encode()).hexdigest()[:8]


class BeforeRuns(Callback):
    """Hydra calls this once: before it makes the folder of a run, and before it launches the jobs of a sweep.

    Hydra would make a warning of an error, so that they end the process here.
    """

    def on_run_start(self, config: DictConfig, **_) -> None:
        with one_line_errors():
            load_job(config, config.hydra.overrides.task)

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        errors.sweep_folder = config.hydra.sweep.dir
        hydra, typed = config.hydra, OmegaConf.to_container(config.hydra.overrides)  # as they stand: each job's ${...}
        task = [*(f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()), *typed["task"]]
        digests = set()
        with one_line_errors():
            for overrides in jobs(task) if hydra.runtime.choices["hydra/sweeper"] == "basic" else ():
                values = composed(*typed["hydra"], *overrides)
                load_job(values, overrides)
                digests.add(digest(values))
        os.environ[DIGESTS] = " ".join(digests)
        if hydra.runtime.choices["hydra/launcher"] == "joblib":
            # Ctrl-C reaches every process. This one would kill its workers while they save their runs, and so would
            # the loss of a worker that has nothing to do. Workers, too, ignore SIGINT, but while `job` has them listen.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, stop_workers)


def stop_workers(*_) -> None:
    """They save their runs, and the sweep ends when they have: `docker stop`, for example, tells this process alone."""
    for worker in active_children():
        os.kill(worker.pid, signal.SIGINT)  # SIGTERM would end one that has nothing to do


def jobs(typed: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep: all combinations of the values that were `typed`, as Hydra makes them."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(typed)
    choices = [
        each.sweep_string_iterator() if each.is_sweep_override() else [each.get_value_element_as_str()]
        for each in parsed
    ]
    for values in itertools.product(*choices):
        yield [f"{each.get_key_element()}={value}" for each, value in zip(parsed, values, strict=True)]


@contextmanager
def job(values: DictConfig) -> Iterator[None]:
    """Around one run of a sweep: what ends it is left to Hydra, which goes on with the others and then fails.

    Ctrl-C and SIGTERM end a sweep. Where its jobs run in processes of their own, each then fails like any other, as the
    end of its process would have the launcher kill the jobs that are still saving.
    """
    global stopped
    if stopped:
        raise ConfigError("the sweep was stopped")
    own_process = HydraConfig.get().runtime.choices["hydra/launcher"] != "basic"
    if own_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if (digests := os.environ.get(DIGESTS)) and digest(values) not in digests:
            raise ConfigError("a file of configs/ was changed since the sweep was started; start it again")
        yield
    except BrokenPipeError:  # as of `| head -1`: the run itself is finished
        pass
    except Exception as error:
        log.error(f"error: {explain(error) or error}", exc_info=explain(error) is None)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        by_signal = getattr(stop, "code", 130) in {128 + number for number in SIGNALS}
        if not own_process or not by_signal:  # by another status, submitit ends it to put the job back into the queue
            raise
        stopped = True
        raise ConfigError("the sweep was stopped") from stop
    finally:
        if own_process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
