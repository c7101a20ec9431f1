"""Several runs at once, by Hydra's launchers: real processes, real images, and a stand-in for Slurm's four commands."""

import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import joblib
import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, read_write

from src.config.loading import CONFIGS, register_schemas
from src.config.sweep import check_jobs, check_launcher, job
from src.config.values import ConfigError
from src.training.log import read_metrics, read_result

LONG = [  # nothing is saved unless somebody asks for it
    "model.hidden_dims=[32,32]", "training.checkpoint_every=0", "evaluation.every=0", "device=cpu", "precision=fp32",
    "logging.pictures=false",
]  # fmt: skip


def launcher(*overrides: str) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True).hydra.launcher


def epochs_of(folder: Path) -> list[int]:
    return [record["epoch"] for record in read_metrics(folder)]


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


def test_our_launcher_stands_beside_those_of_hydra():
    slurm = launcher("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    assert slurm._target_.endswith("SlurmLauncher")
    assert (slurm.partition, slurm.tasks_per_node, slurm.nodes) == ("gpu", 1, 1)
    with pytest.raises(Exception, match="partitions"):
        launcher("hydra/launcher=slurm", "hydra.launcher.partitions=gpu")
    for name, target in (("basic", "BasicLauncher"), ("joblib", "JoblibLauncher"), ("submitit_local", "LocalLauncher")):
        assert launcher(f"hydra/launcher={name}")._target_.endswith(target)


def test_what_a_launcher_cannot_do_is_said_in_words(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="there is no Slurm here"):
        check_launcher("slurm", launcher("hydra/launcher=slurm"))
    with pytest.raises(ConfigError, match="n_jobs=0"):
        check_launcher("joblib", launcher("hydra/launcher=joblib", "hydra.launcher.n_jobs=0"))


def test_a_bad_value_ends_a_sweep_before_its_first_job(tmp_path):
    done = command(
        "-m", "training.batch_size=100,50001", f"hydra.sweep.dir={tmp_path / 'sweep'}", f"data.root={tmp_path}"
    )
    assert done.returncode == 1
    assert done.stderr == ("error: training.batch_size=50001: must be at most the number of training images, 50000\n")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_for_slurm_needs_no_gpu_where_it_is_given(monkeypatch):
    """That is a login node; a sweep for this machine does."""
    register_schemas()
    monkeypatch.setattr("src.config.loading.resolve_device", Mock(side_effect=ConfigError("no such device here")))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in ("basic", "joblib", "slurm"):
            config = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
            with read_write(config):
                config.hydra.overrides.task = ["seed=0,1", "device=cuda"]
            with nullcontext() if name == "slurm" else pytest.raises(ConfigError, match="no such device here"):
                check_jobs(config)


class Net:
    """Something that can be referred to weakly."""


def test_what_ends_a_job_keeps_nothing_of_it(monkeypatch):
    """Hydra keeps the error until the sweep ends."""
    choices = {"hydra/launcher": "basic"}
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices=choices))
    monkeypatch.setattr("src.config.sweep.HydraConfig", SimpleNamespace(get=lambda: hydra))
    nets = []

    def train():
        net = Net()
        nets.append(weakref.ref(net))
        raise RuntimeError("out of memory")

    def run():
        try:
            train()
        except RuntimeError as error:
            raise ConfigError("too large") from error

    for failing in (train, run):
        with pytest.raises((RuntimeError, ConfigError)) as kept, job():
            failing()
        assert kept.value.__traceback__ and nets.pop()() is None


def processes_of_group(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
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
    while processes_of_group(process.pid):
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


SLURM = """
import os, re, subprocess, sys, time
from pathlib import Path

tool, *arguments = sys.argv[1:]
state = Path(os.environ["STAND_IN_STATE"])
script = state / "script"
if tool == "sbatch":
    script.write_text(Path(arguments[0]).read_text())
    for task in range(int(re.search(r"--array=0-(.*)%", script.read_text())[1]) + 1):
        subprocess.Popen([sys.executable, __file__, "task", str(task)], start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 7")
elif tool == "task":  # one of the array, as often as it is put back into the queue
    restarts, requeued = 0, state / f"requeued_7_{arguments[0]}"
    cpus = re.search(r"--cpus-per-task=(.*)", script.read_text())[1]
    variables = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": arguments[0],
                 "SLURM_CPUS_PER_TASK": cpus}
    while True:
        subprocess.run(["bash", script], env=os.environ | variables)
        if not requeued.exists():
            break
        requeued.unlink()
        restarts += 1
        variables["SLURM_RESTART_COUNT"] = str(restarts)
elif tool == "srun":
    _, _, output, _, error, *command = arguments  # --unbuffered --output FILE --error FILE
    task = os.environ["SLURM_ARRAY_TASK_ID"]
    output, error = (name.replace("%A", "7").replace("%a", task).replace("%t", "0") for name in (output, error))
    job = Path(output).parent / f"7_{task}_submitted.pkl"  # which the launcher writes after sbatch has ended
    deadline = time.monotonic() + 60
    while not job.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for number, name in ((1, output), (2, error)):
        file = open(name, "a")
        os.dup2(file.fileno(), number)
    (state / f"pid_{task}").write_text(str(os.getpid()))
    os.execvp(command[0], command)
elif tool == "scontrol":
    assert arguments[0] == "requeue"
    (state / f"requeued_{arguments[1]}").touch()
elif tool == "sacct":
    print("JobID|State|NodeList")
"""


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A folder with the stand-in's commands in `bin`; it keeps its state there, and runs tasks on this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm.py").write_text(SLURM)
    for tool in ("sbatch", "srun", "scontrol", "sacct"):
        path = tmp_path / "bin" / tool
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{tmp_path / "slurm.py"}" {tool} "$@"\n')
        path.chmod(0o755)
    return tmp_path


def test_what_slurm_refuses_is_one_line(slurm):
    (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpu' >&2\nexit 1\n")
    done = command(
        "-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", f"hydra.sweep.dir={slurm / 'sweep'}",
        PATH=f"{slurm / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "invalid partition: gpu" in done.stderr


def test_slurm_jobs_are_saved_when_pre_empted_and_go_on_when_requeued(start, slurm, few_images):
    sweep = slurm / "sweep"
    arguments = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.cpus_per_task=1"]
    environment = {
        **{key: value for key, value in ONE_THREAD.items() if key != "OMP_NUM_THREADS"},
        "PATH": f"{slurm / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "STAND_IN_STATE": str(slurm),
    }
    process = start(
        [sys.executable, "-m", "main", "-m", "seed=range(2)", *arguments, f"hydra.sweep.dir={sweep}", *LONG,
         "training.epochs=100", *few_images],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    requeued, terminated = (sweep / f"{job}_matlab_seed{job}" for job in (0, 1))
    for folder in when_training([requeued, terminated], process):
        number = signal.SIGUSR2 if folder == requeued else signal.SIGTERM
        os.kill(int((slurm / f"pid_{folder.name[0]}").read_text()), number)
    output, _ = process.communicate(timeout=100)

    script = (slurm / "script").read_text()
    for line in ("--partition=gpu", "--array=0-1%2", "--cpus-per-task=1", "--gpus-per-node=1", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in script
    log = (requeued / "main.log").read_text()
    saved = re.search(r"stopped after epoch (\d+) of 100", log)[1]
    assert f"resumed after epoch {saved} of 100" in log
    assert epochs_of(requeued) == list(range(1, 101))
    assert read_result(requeued)["threads"] == 1

    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert epochs_of(terminated)[-1] < 100
    assert (terminated / "checkpoint.pt").exists()
