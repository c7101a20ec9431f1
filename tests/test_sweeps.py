"""Several runs at once, by Hydra's launchers: real processes, real images, and submitit's stand-in for a cluster."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.config.launch import DIGESTS, BeforeRuns, digest
from src.config.loading import CONFIGS, composed, register_schemas
from src.training.log import read_json

LONG = [  # nothing is saved unless somebody asks for it
    "model.hidden_dims=[32,32]", "training.checkpoint_every=0", "evaluation.every=0", "device=cpu", "precision=fp32",
    "logging.pictures=false",
]  # fmt: skip


@pytest.fixture
def hydra() -> Iterator[Callable[..., DictConfig]]:
    """What Hydra composes of overrides, with its own values."""
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides), return_hydra_config=True)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def training(folder: Path) -> bool:
    """Whether the run there has done a second epoch."""
    return (folder / "main.log").exists() and "epoch 2/" in (folder / "main.log").read_text()


def epochs_of(folder: Path) -> list[int]:
    return [record["epoch"] for record in read_json(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=../x", "name=../x: names a folder"),
        ("resume=typo", "typo: there is no run (no config.yaml)"),
        ("resume=", ".: there is no run"),
    ],
)
def test_what_is_no_good_makes_no_folder(monkeypatch, tmp_path, hydra, override, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(expected)}"):
        BeforeRuns().on_run_start(hydra(override))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (["seed=0,1", "model.goodness=sum_of_squares,typo"], "model.goodness=typo: must be one of "),
        (["seed=0,1", "training.epochz=1,2"], "Key 'epochz' not in 'Training'"),
        (["seed=range(2)", "experiment=paper,typo"], "In 'config': Could not find 'experiment/typo'"),
        (["experiment=glob(paper*)", "training.batch_size=60000,60001"], "training.batch_size=60001: must be at most"),
        (["resume=typo"], "typo: there is no run (no config.yaml)"),
    ],
)
def test_a_typo_in_a_sweep_is_found_before_its_first_job(hydra, task, expected):
    config = hydra()
    OmegaConf.update(config, "hydra.overrides.task", task)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(expected)}"):
        BeforeRuns().on_multirun_start(config)


def test_what_an_experiment_has_a_sweep_try_is_checked_too(hydra, monkeypatch):
    monkeypatch.setenv(DIGESTS, "")
    config = hydra()
    config.hydra.sweeper.params = {"seed": "0,1", "model.goodness": "sum_of_squares,typo"}
    with pytest.raises(SystemExit, match=r"^error: model\.goodness=typo: must be one of "):
        BeforeRuns().on_multirun_start(config)
    config.hydra.sweeper.params = {"seed": "0,1"}
    BeforeRuns().on_multirun_start(config)
    assert {digest(composed("seed=0")), digest(composed("seed=1"))} == set(os.environ[DIGESTS].split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hydra/launcher=slurm"], 'Could not detect "srun"'),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs == 0 in Parallel has no meaning"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_line(tmp_path, arguments, expected):
    done = command("-m", "seed=0,1", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}", PATH="")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and done.stderr.startswith(f"error: {expected}")
    assert not list(tmp_path.glob("sweep/*/"))


def test_a_run_gets_a_folder_of_its_own_or_that_of_the_run_it_goes_on_with(monkeypatch, tmp_path, hydra):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for resume in ("a/run", f"{tmp_path}/a/run", '"~/a/run"'):
        assert hydra(f"resume={resume}").hydra.run.dir == f"{tmp_path}/a/run"
    for expected in ("new/run", "new/run_2", "new/run_3"):
        assert hydra('hydra.run.dir="${run_folder:new/run}"').hydra.run.dir == str(tmp_path / expected)
        assert (tmp_path / expected).is_dir()


def test_a_job_of_a_sweep_gets_the_folder_of_its_run_or_a_new_one(tmp_path, hydra):
    def in_sweep(*values: str) -> str:
        job = hydra(f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN", "+hydra.job.num=3", *values)
        return os.path.relpath(job.hydra.sweep.subdir, tmp_path)

    assert in_sweep("resume=elsewhere") == os.path.relpath("elsewhere", tmp_path)  # -m resume=FOLDER,FOLDER
    assert [in_sweep() for _ in range(2)] == ["3_matlab_seed0", "3_matlab_seed0_2"]
    for name, content in {
        "3_matlab_seed0": OmegaConf.to_yaml(composed("precision=fp32", "training.epochs=9")),
        "5_matlab_seed0": "damaged: [",
        "7_matlab_seed0": OmegaConf.to_yaml(composed("precision=fp32")),
    }.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.yaml").write_text(content)
    assert in_sweep() == in_sweep("precision=fp32") == "7_matlab_seed0"
    assert in_sweep("training.epochs=9") == "3_matlab_seed0"
    assert in_sweep("precision=bf16") == "3_matlab_seed0_3"
    assert in_sweep("seed=1") == "3_matlab_seed1"


def processes_of(group: int, command: str = "") -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z" and command in (path / "cmdline").read_text():
                found.append(int(path.name))
    return found


def sweep(start: Callable[..., subprocess.Popen], *arguments: str, **options) -> subprocess.Popen:
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return start("-m", *LONG, *arguments, **output, **options, start_new_session=True)


@pytest.mark.parametrize("sent", ["Ctrl-C", "SIGTERM to the command alone"])
def test_an_interrupted_joblib_sweep_saves_every_job(start, sent, tmp_path, few_images):
    """With a net that takes longer to save than joblib would leave its workers alive."""
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}", *few_images]
    slow = ["training.epochs=5000", "model.hidden_dims=[1000,1000]", "data.validation_images=800"]
    process = sweep(start, "seed=range(3)", *joblib, *slow)
    folders = [tmp_path / f"{job}_matlab_seed{job}" for job in (0, 1)]
    until(lambda: all(map(training, folders)))
    os.killpg(process.pid, signal.SIGINT) if sent == "Ctrl-C" else process.terminate()  # a terminal tells all of them
    output, _ = process.communicate(timeout=60)  # of all processes
    assert process.returncode == 1 and "Traceback" not in output, output
    until(lambda: not processes_of(process.pid))
    assert not list(tmp_path.glob("2_*/metrics.jsonl"))

    for number, folder in enumerate(folders):
        epoch = torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"]
        assert f"#{number} stopped after epoch {epoch} of 5000; go on with: python -m main resume={folder}\n" in output
        assert epochs_of(folder) == list(range(1, epoch + 1))


def test_a_stopped_joblib_sweep_saves_its_last_job_while_a_worker_has_nothing_to_do(start, tmp_path, few_images):
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}", *few_images]
    process = sweep(start, "training.epochs=1,5000", *joblib, "model.hidden_dims=[1000,1000]")
    last = tmp_path / "1_matlab_seed0"
    until(lambda: (tmp_path / "0_matlab_seed0" / "result.json").exists() and training(last))
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output, output
    epoch = torch.load(last / "checkpoint.pt", weights_only=True)["epoch"]
    assert f"#1 stopped after epoch {epoch} of 5000; go on with: python -m main resume={last}\n" in output
    assert "the sweep was stopped" in output and "killed" not in output


def test_a_killed_job_is_one_line_with_the_command_that_goes_on(start, tmp_path, few_images):
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}", *few_images]
    process = sweep(start, "seed=0,1", *joblib, "training.epochs=5000")
    until(lambda: all(training(tmp_path / f"{job}_matlab_seed{job}") for job in (0, 1)))
    os.kill(processes_of(process.pid, "popen_loky")[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output, output
    expected = "error: the process of a job was killed, perhaps for lack of memory; go on with: python "
    # The last line, but for those of joblib's resource tracker, a process of its own that may end later.
    *_, error = (line for line in output.splitlines() if "resource_tracker" not in line)
    assert error.startswith(expected) and error.endswith(f" hydra.sweep.dir={tmp_path}")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGUSR2, 0), (signal.SIGTERM, 1)])
def test_a_job_of_a_cluster_is_saved_and_goes_on_where_it_is_requeued(start, sent, status, tmp_path, few_images):
    """SIGTERM comes with pre-emption; SIGUSR2, which is submitit's, before the time limit, and nothing more is saved.

    The cluster is submitit's own stand-in. The command is given in a folder that has a `src` of its own.
    """
    folder, cluster = tmp_path / "0_matlab_seed0", ["hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("raise ImportError('this is another checkout')")
    process = sweep(start, *cluster, "training.epochs=100", "training.checkpoint_every=1e-9", *few_images, cwd=tmp_path)
    until(lambda: training(folder))
    (job_itself,) = processes_of(process.pid, "submitit.core._submit")
    os.kill(job_itself, sent)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == status and "Traceback" not in output, output
    log = (folder / "main.log").read_text()
    told = re.search(r"(stopped|resumed) after epoch (\d+) of 100", log)
    assert told[1] == ("stopped" if status else "resumed") and int(told[2]) >= 1
    last = int(told[2]) if status else 100
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == last
    assert epochs_of(folder) == list(range(1, last + 1))


def test_what_slurm_refuses_is_one_line(tmp_path):
    """And what it was asked for."""
    for tool in ("sbatch", "srun"):
        (tmp_path / tool).write_text(
            f'#!/bin/sh\ncp "$1" {tmp_path}/script; echo "{tool}: no such partition" >&2; exit 1'
        )
        (tmp_path / tool).chmod(0o755)
    slurm = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = command("-m", "seed=range(2)", *slurm, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search("error: .*sbatch: no such partition.*$", done.stderr)
    script = (tmp_path / "script").read_text()
    for line in ("--partition=gpu", "--array=0-1%2", "--cpus-per-task=4", "--gpus-per-node=1", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK " in script


def test_a_sweep_says_that_its_defaults_were_changed_meanwhile(tmp_path, few_images):
    for part in ("src", "configs"):
        shutil.copytree(REPOSITORY / part, tmp_path / part)
    main = shutil.copy(REPOSITORY / "main.py", tmp_path)
    values = ["-m", "seed=0,1", *LONG, *few_images, "training.epochs=30", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen([sys.executable, main, *values], env=ONE_THREAD, **output) as process:
        until(lambda: training(tmp_path / "sweep" / "0_matlab_seed0"))
        defaults = tmp_path / "configs" / "config.yaml"
        defaults.write_text(defaults.read_text().replace("momentum: 0.9", "momentum: 0.8"))
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "error: a file of configs/ was changed since the sweep was started; start it again\n" in output
    assert [path.parent.name for path in tmp_path.glob("sweep/*/result.json")] == ["0_matlab_seed0"]
