"""Several runs at once, by Hydra's launchers: real processes, real images, and submitit's stand-in for a cluster."""

import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import joblib
import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, read_write

from src.config.launch import BeforeRuns, job
from src.config.loading import CONFIGS, register_schemas
from src.config.values import ConfigError
from src.training.log import read_json

LONG = [  # nothing is saved unless somebody asks for it
    "model.hidden_dims=[32,32]", "training.checkpoint_every=0", "evaluation.every=0", "device=cpu", "precision=fp32",
    "logging.pictures=false",
]  # fmt: skip


def check_before(*task: str, launcher: str = "basic") -> None:
    """What Hydra has done before a sweep's first job."""
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True)
        with read_write(config):
            config.hydra.overrides.task = list(task)
        BeforeRuns().on_multirun_start(config)


def epochs_of(folder: Path) -> list[int]:
    return [record["epoch"] for record in read_json(folder / "metrics.jsonl")]


def when_training(folders: list[Path], process: subprocess.Popen) -> Iterator[Path]:
    """Each folder, as soon as its run has done a second epoch."""
    waiting, deadline = list(folders), time.monotonic() + 120
    while waiting:
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.terminate()
            pytest.fail(f"{waiting} did not begin")
        for folder in waiting:
            if (folder / "main.log").exists() and "epoch 2/" in (folder / "main.log").read_text():
                waiting.remove(folder)
                yield folder
                break
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (["seed=0,1", "model.goodness=sum_of_squares,typo"], "model.goodness=typo: must be one of "),
        (["seed=0,1", "training.epochz=1,2"], "Key 'epochz' not in 'Training'"),
        (["seed=range(2)", "experiment=paper,typo"], "In 'config': Could not find 'experiment/typo'"),
        (["experiment=glob(paper*)", "training.batch_size=60000,60001"], "training.batch_size=60001: must be at most"),
        (["seed=interval(0,1)"], "Can only enumerate CHOICE and RANGE sweeps"),
        (["resume=typo"], "typo: there is no run (no config.yaml)"),
        (["device=cpu,cuda"], "device=cuda: this torch finds no CUDA device"),
    ],
)
def test_a_typo_in_a_sweep_is_found_before_its_first_job(monkeypatch, task, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(expected)}"):
        check_before(*task)


def test_a_sweep_for_slurm_needs_no_gpu_where_it_is_given(monkeypatch):
    """That is a login node."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_before("device=cuda,cuda:1", "seed=range(2)", launcher="slurm")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["training.batch_size=100,50001"],
            "training.batch_size=50001: must be at most 50000",
        ),
        (["hydra/launcher=slurm"], 'Could not detect "srun"'),
        (["hydra/launcher=slurm", "hydra.launcher.partitions=gpu"], "Key 'partitions' not in 'SlurmQueueConf'"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs == 0 in Parallel has no meaning"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_line(tmp_path, arguments, expected):
    done = command("-m", "seed=0,1", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}", PATH="")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and done.stderr.startswith(f"error: {expected}")
    assert not list(tmp_path.glob("sweep/*/"))


def test_what_ends_a_job_keeps_nothing_of_it(monkeypatch):
    """Hydra keeps the error until the sweep ends."""
    hydra = OmegaConf.create({"runtime": {"choices": {"hydra/launcher": "basic"}}})
    monkeypatch.setattr("src.config.launch.HydraConfig.get", lambda: hydra)
    nets = []

    def train():
        net = torch.nn.Linear(1, 1)
        nets.append(weakref.ref(net))
        raise RuntimeError("out of memory")

    with pytest.raises(ConfigError) as kept, job():
        try:
            train()
        except RuntimeError as error:
            raise ConfigError("too large") from error
    assert kept.value.__traceback__ and nets.pop()() is None


def processes_of(group: int, command: str = "") -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z" and command in (path / "cmdline").read_text():
                found.append(int(path.name))
    return found


@pytest.mark.parametrize(("sent", "status"), [("Ctrl-C", 130), ("SIGTERM to the command alone", -signal.SIGTERM)])
def test_an_interrupted_joblib_sweep_saves_every_job(start, sent, status, tmp_path, few_images):
    """With a net that takes longer to save than joblib would leave its workers alive."""
    arguments = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    process = start(
        [sys.executable, "-m", "main", "-m", "seed=range(3)", *arguments, *LONG, "training.epochs=5000",
         "model.hidden_dims=[1000,1000]", *few_images, "data.validation_images=800"],
        cwd=REPOSITORY, env={key: value for key, value in ONE_THREAD.items() if key != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    folders = [tmp_path / f"{job}_matlab_seed{job}" for job in (0, 1)]
    assert len(list(when_training(folders, process))) == 2
    if sent == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()
    output, _ = process.communicate(timeout=60)  # of all processes
    assert process.returncode == status
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while processes_of(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(tmp_path.glob("2_*/metrics.jsonl"))

    threads = max(joblib.cpu_count() // 2, 1)
    for number, folder in enumerate(folders):
        assert re.search(
            rf"^#{number} matlab: training on 200 images of idx, .*\b{threads} thread", output, re.MULTILINE
        )
        epoch = torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"]
        assert f"#{number} stopped after epoch {epoch} of 5000; go on with: python -m main resume={folder}\n" in output
        assert epochs_of(folder) == list(range(1, epoch + 1))


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGUSR2, 0), (signal.SIGTERM, 143)])
def test_a_job_of_a_cluster_is_saved_and_goes_on_where_it_is_requeued(start, sent, status, tmp_path, few_images):
    """SIGUSR2 comes before the time limit, SIGTERM with pre-emption. The cluster is submitit's own stand-in."""
    process = start(
        [sys.executable, "-m", "main", "-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}", *LONG,
         "training.epochs=100", *few_images],
        cwd=REPOSITORY, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    (folder,) = when_training([tmp_path / "0_matlab_seed0"], process)
    (job_itself,) = processes_of(process.pid, "submitit.core._submit")
    os.kill(job_itself, sent)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == status and "Traceback" not in output, output
    log = (folder / "main.log").read_text()
    saved = int(re.search(r"stopped after epoch (\d+) of 100", log)[1])
    assert (f"resumed after epoch {saved} of 100" in log) == (status == 0)
    last = saved if status else 100
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == last
    assert epochs_of(folder) == list(range(1, last + 1))


def test_what_slurm_refuses_is_one_line(tmp_path):
    """And what it was asked for."""
    for tool in ("sbatch", "srun"):
        (tmp_path / tool).write_text(
            f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho "{tool}: invalid partition" >&2; exit 1\n'
        )
        (tmp_path / tool).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    slurm = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.cpus_per_task=1"]
    done = command("-m", "seed=range(2)", *slurm, f"hydra.sweep.dir={tmp_path / 'sweep'}", PATH=path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "sbatch: invalid partition" in done.stderr
    script = (tmp_path / "script").read_text()
    for line in ("--partition=gpu", "--array=0-1%2", "--cpus-per-task=1", "--gpus-per-node=1", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK " in script
