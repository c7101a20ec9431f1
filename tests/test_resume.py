"""Runs that survive: killed, stopped or resumed, on real MNIST and in real processes, they end with the same bits."""

import io
import json
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import optimizer_for, small_net
from omegaconf import OmegaConf
from test_config import composed

from src import experiment
from src.checkpoint import (
    LATEST,
    PREVIOUS,
    CheckpointError,
    load_checkpoint,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from src.config import ConfigError, load_saved
from src.config import composed as values_of
from src.experiment import resuming, run
from src.interrupt import Stopped
from src.runlog import RunLog

EPOCHS = 7
OVERRIDES = [
    "model.hidden_dims=[24,24]", f"training.epochs={EPOCHS}", "training.checkpoint_every=2", "evaluation.every=0",
    "data.validation_images=58000", "data.jitter=1", "device=cpu", "precision=fp32", "name=short",
    "logging.pictures=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def overrides(mnist_root) -> list[str]:
    return [*OVERRIDES, f"data.root={mnist_root}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, overrides) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(composed(*overrides), folder)
    return folder


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (torch.load(path / "model.pt", weights_only=True) for path in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (folder, whole))
    for result in (ours, theirs):
        assert result.pop("train_seconds") > 0 and result.pop("seconds_per_epoch") > 0
    assert ours == theirs


def test_ctrl_c_says_how_to_go_on_and_so_it_does(tmp_path, overrides, whole):
    """On the real command line; what other signals do is tested below."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "main", *overrides, f"hydra.run.dir={folder}"],
        cwd=REPOSITORY, env=ONE_THREAD, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(f"epoch 1/{EPOCHS}"):
            process.send_signal(signal.SIGINT)
            break
    last_line = process.stdout.read().splitlines()[-1]
    assert process.wait() == 130
    hint = re.fullmatch(rf"stopped after epoch \d of {EPOCHS}; go on with: python -m main (resume=.*)", last_line)
    done = command(hint[1])
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch" in done.stdout
    assert_same_run(folder, whole)


TRIALS = """
import os, random, signal, sys, time
from pathlib import Path
import torch, torch._dynamo  # before the processes part, as importing takes longest
from src import experiment
from src.config import composed, load

folder, overrides, seconds = Path(sys.argv[1]), sys.argv[2].split(" "), float(sys.argv[3])
config = load(composed(*overrides))
data = experiment.load_mnist(Path(config.data.root), torch.device("cpu"), config.data.validation_images)
experiment.load_mnist = lambda **_: data

def attempt(out_dir, after=None, number=None):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            experiment.run(config, out_dir, resume=(out_dir / "config.yaml").exists())
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

first, end = int(sys.argv[4]), int(sys.argv[5])
random.seed(first)
for trial in range(first, end):
    out_dir = folder / str(trial)
    number = signal.SIGKILL if trial < 20 else signal.SIGTERM
    status = attempt(out_dir, random.uniform(0, seconds), number)
    print(trial, status, flush=True)
    if not (out_dir / "result.json").exists():
        assert attempt(out_dir) == 0
"""


def test_killed_at_random_moments(tmp_path, overrides, whole):
    """20 times by SIGKILL and 4 times by SIGTERM, anywhere between start and end."""
    seconds = json.loads((whole / "result.json").read_text())["train_seconds"] + 0.3  # and testing
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRIALS, str(tmp_path), " ".join(overrides), str(seconds), *arguments],
            cwd=REPOSITORY, env=ONE_THREAD, stdout=subprocess.PIPE, text=True,
        )
        for arguments in (("0", "12"), ("12", "24"))
    ]  # fmt: skip
    output = "".join(process.communicate(timeout=170)[0] for process in processes)
    assert all(process.returncode == 0 for process in processes)
    ended = {int(trial): int(status) for trial, status in re.findall(r"^(\d+) (-?\d+)$", output, re.MULTILINE)}
    assert len(ended) == 24
    killed, terminated = ([ended[trial] for trial in trials] for trials in (range(20), range(20, 24)))
    assert set(killed) <= {-9, 0} and killed.count(-9) >= 10
    assert set(terminated) <= {143, -15, 0}  # before training starts, SIGTERM ends a process as ever
    for trial in ended:
        assert_same_run(tmp_path / str(trial), whole)


def test_a_signal_after_the_last_step_stops_the_run_too(monkeypatch, tmp_path, overrides, whole):
    save = experiment.save

    def save_and_be_stopped(out_dir, done, run_log):
        save(out_dir, done, run_log)
        if done["epoch"] == EPOCHS:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "save", save_and_be_stopped)
    config = composed(*overrides)
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path)
    assert stopped.value.code == 143 and not (tmp_path / "result.json").exists()
    run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_run_keeps_the_precision_it_began_with(monkeypatch, tmp_path, overrides):
    config = composed(*overrides, "precision=auto", "training.epochs=2", "training.checkpoint_every=1")
    monkeypatch.setattr("src.experiment.resolve_precision", lambda name, device: "bf16" if name == "auto" else name)
    run(config, tmp_path)
    monkeypatch.undo()
    assert load_saved(tmp_path, values_of()).precision == "bf16"


def test_of_two_runs_that_begin_in_a_folder_one_is_refused(monkeypatch, tmp_path, overrides):
    load_mnist = experiment.load_mnist

    def while_another_begins(**arguments):
        (tmp_path / "config.yaml").write_text("the other's")
        return load_mnist(**arguments)

    monkeypatch.setattr(experiment, "load_mnist", while_another_begins)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(composed(*overrides), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "the other's"


@pytest.mark.parametrize("folder", ["runs/a+b-1.5", "runs/a b", "runs/x=1,y=2", "runs/(1)", "it's"])
def test_the_advice_to_resume_can_be_typed_as_it_stands(folder):
    (override,) = shlex.split(resuming(Path(folder)))
    assert values_of(override).resume == folder


def test_a_run_without_a_checkpoint_starts_again(tmp_path, overrides, whole):
    (tmp_path / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "half a rec')
    run(composed(*overrides), tmp_path, resume=True)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == EPOCHS


@pytest.mark.parametrize(
    ("method", "epochs", "readout_epochs"),
    [
        ("backprop", 3, 0),
        ("recurrent", 3, 0),
        ("unsupervised", 3, 1),  # in the first phase, at its end, and in the second
        ("unsupervised", 2, 1),
        ("unsupervised", 1, 2),
    ],
)
def test_every_method_goes_on_as_if_nothing_had_been(tmp_path, overrides, method, epochs, readout_epochs):
    """From its checkpoint after epoch 2, the last but one."""
    config = composed(
        *overrides,
        f"method={method}",
        f"training.epochs={epochs}",
        f"unsupervised.readout_epochs={readout_epochs}",
        "data.validation_images=59000",
        "evaluation.every=3",
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(config, whole)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, epochs + readout_epochs + 1))
    assert "validation_errors" in records[-1]
    resumed.mkdir()
    copied(whole, resumed, PREVIOUS)
    (resumed / PREVIOUS).rename(resumed / LATEST)
    assert load_checkpoint(resumed, torch.device("cpu"))["epoch"] == 2
    run(config, resumed, resume=True)
    assert_same_run(resumed, whole)


def test_what_may_differ_when_a_run_is_resumed(whole, tmp_path):
    arguments = [f"resume={whole}", "data.root=elsewhere"]
    config = load_saved(whole, values_of(*arguments), "resume", arguments)
    assert config.data.root == "elsewhere" and config.model.hidden_dims == [24, 24] and config.name == "short"
    for override in ("training.epochs=9", "seed=1", "experiment=paper", "precision=bf16", "+training.batch_size=7"):
        with pytest.raises(ConfigError, match="could change the result"):
            load_saved(whole, values_of(*arguments), "resume", [*arguments, override])
    with pytest.raises(ConfigError, match="there is no run"):
        load_saved(tmp_path, values_of(), "resume")


def test_a_mistyped_folder_is_not_made(whole, tmp_path):
    hydra = {
        "folder": "${saved_run_or:${resume},${evaluate},new}",
        "subdir": "${unless_saved_run:${resume},${evaluate},.hydra}",
    }
    for resume, evaluate in ((str(whole), None), (None, str(whole))):
        values = OmegaConf.create({"resume": resume, "evaluate": evaluate} | hydra)
        assert (values.folder, values.subdir) == (str(whole), None)
    for resume, evaluate in ((None, None), (str(tmp_path / "typo"), None)):
        values = OmegaConf.create({"resume": resume, "evaluate": evaluate} | hydra)
        assert (values.folder, values.subdir) == ("new", ".hydra")


def copied(whole: Path, folder: Path, *names: str) -> Path:
    for name in ("config.yaml", "metrics.jsonl", *names):
        (folder / name).write_bytes((whole / name).read_bytes())
    return folder


def test_a_finished_run_is_left_alone(whole, overrides):
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="that run is finished"):
        run(composed(*overrides), whole, resume=True)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(tmp_path, overrides, whole):
    latest, previous = tmp_path / LATEST, tmp_path / PREVIOUS
    copied(whole, tmp_path, LATEST, PREVIOUS)
    latest.write_bytes(latest.read_bytes()[:-1000])
    with pytest.raises(
        ConfigError, match=f"{latest} is damaged .*; the one before may be whole: mv {previous} {latest}"
    ):
        run(composed(*overrides), tmp_path, resume=True)
    latest.unlink()
    with pytest.raises(ConfigError, match=f"{latest} is gone; the one before is there: mv {previous} {latest}"):
        run(composed(*overrides), tmp_path, resume=True)
    previous.replace(latest)
    run(composed(*overrides), tmp_path, resume=True)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == EPOCHS


@pytest.fixture(scope="module")
def checkpoint() -> tuple[bytes, dict]:
    model = small_net()
    optimizer_for(model)
    content = {"epoch": 3, "state": training_state(model, torch.Generator()), "metrics": [], "train_seconds": 1.0}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue(), content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_checkpoint_goes_unnoticed(data, checkpoint, tmp_path):
    raw, content = checkpoint
    if data.draw(st.booleans(), "cut"):
        damaged = raw[: data.draw(st.integers(0, len(raw) - 1), "length")]
    else:
        bit = data.draw(st.integers(0, 8 * len(raw) - 1), "bit")
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
    (tmp_path / LATEST).write_bytes(damaged)
    try:
        loaded = load_checkpoint(tmp_path, torch.device("cpu"))
    except CheckpointError as error:
        assert str(tmp_path / LATEST) in str(error) and "\n" not in str(error)
    else:  # padding, a date: what means nothing
        assert loaded["epoch"] == 3
        for name, tensor in content["state"]["model"].items():
            assert torch.equal(loaded["state"]["model"][name], tensor)


def test_a_checkpoint_of_another_net_is_refused():
    model, other = small_net(), small_net(hidden_dims=[17, 9, 12])
    optimizer_for(model), optimizer_for(other)
    with pytest.raises(CheckpointError, match=r"another architecture: its readout_weight is \[10, 22\]"):
        restore_training_state(other, torch.Generator(), training_state(model, torch.Generator()))


def test_a_checkpoint_of_another_kind_of_device_is_refused_and_changes_nothing():
    model, other = small_net(), small_net(seed=1)
    optimizer_for(model), optimizer_for(other)
    of_a_gpu = training_state(model, torch.Generator()) | {"generator": torch.zeros(16, dtype=torch.uint8)}
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another kind of device than cpu"):
        restore_training_state(other, torch.Generator(), of_a_gpu)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_the_checkpoint_before_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, {"epoch": epoch, "state": {}, "metrics": [], "train_seconds": 0.0})
    assert load_checkpoint(tmp_path, torch.device("cpu"))["epoch"] == 3
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, PREVIOUS]


@pytest.mark.parametrize("step", ["fast", "plain"])
def test_a_loss_that_diverges_ends_the_run_with_its_layer(tmp_path, overrides, step):
    config = composed(*overrides, "training.learning_rate=1e20", f"training.step={step}")
    with pytest.raises(
        ConfigError, match=r"the loss of layer \d became (inf|nan) in epoch 1; a lower training.learning_r"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_loss_that_is_looked_at_late_as_on_a_gpu_is_told_of_its_own_epoch(monkeypatch, tmp_path, overrides, stopped):
    take, epochs_of = RunLog.epoch, experiment.train_epochs

    def take_and_look_later(log: RunLog, *arguments) -> None:
        log.record_pending()
        log.record_pending = lambda: None
        take(log, *arguments)
        del log.record_pending

    def stopped_in_the_second(*arguments, **options):
        yield next(epochs_of(*arguments, **options))
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(RunLog, "epoch", take_and_look_later)
    monkeypatch.setattr("src.train.check_finite", lambda *losses: None)
    if stopped:
        monkeypatch.setattr(experiment, "train_epochs", stopped_in_the_second)
    config = composed(*overrides, "training.learning_rate=1e20")
    with pytest.raises(ConfigError, match=r"the loss of layer \d became (inf|nan) in epoch 1;.* no checkpoint yet"):
        run(config, tmp_path)


def test_a_read_out_that_diverges_is_told_of_its_own_rate(tmp_path, overrides):
    config = composed(*overrides, "training.readout_learning_rate=1e30", "training.step=plain")
    with pytest.raises(
        ConfigError, match=r"the read-out became .* a lower training.readout_learning_rate \(now 1e\+30\)"
    ):
        run(config, tmp_path)


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, whole):
    """With a limit on the size of files in place of a full disk."""
    copied(whole, tmp_path, PREVIOUS)
    before = (tmp_path / PREVIOUS).read_bytes()
    (tmp_path / LATEST).write_bytes(before)
    done = subprocess.run(
        [sys.executable, "-m", "main", f"resume={tmp_path}"],
        cwd=REPOSITORY, env=ONE_THREAD, capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: [Errno 27] File too large")
    assert (tmp_path / LATEST).read_bytes() == before
