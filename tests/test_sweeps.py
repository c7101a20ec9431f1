"""Several runs at once, by Hydra's launchers: real processes, real images, and a stand-in for Slurm's four commands."""

import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import joblib
import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hydra import compose, initialize_config_dir
from omegaconf import read_write

from src.config.launch import BeforeRuns, job
from src.config.loading import CONFIGS, register_schemas
from src.config.values import ConfigError
from src.training.checkpoint import load_checkpoint
from src.training.log import read_metrics, read_result

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


class Net:
    """Something that can be referred to weakly."""


def test_what_ends_a_job_keeps_nothing_of_it(monkeypatch):
    """Hydra keeps the error until the sweep ends."""
    choices = {"hydra/launcher": "basic"}
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices=choices))
    monkeypatch.setattr("src.config.launch.HydraConfig", SimpleNamespace(get=lambda: hydra))
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
        epoch = load_checkpoint(folder, torch.device("cpu"))["epoch"]
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
