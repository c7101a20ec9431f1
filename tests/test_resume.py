"""Runs that survive: killed, stopped or resumed, on real images and in real processes, they end with the same bits."""

import copy
import fcntl
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from commands import REPOSITORY, command
from test_config import composed

from src import experiment
from src.config import loading
from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import Config, ConfigError
from src.experiment import resuming, run
from src.training.checkpoint import save
from src.training.log import read_json
from src.training.signals import SIGNALS

CHECKPOINT, EPOCHS = "checkpoint.pt", 7
one_thread = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that can be forked
OVERRIDES = [
    "model.hidden_dims=[24,24]", f"training.epochs={EPOCHS}", "training.checkpoint_every=1e-9", "evaluation.every=0",
    "training.batch_size=50", "data.jitter=1", "device=cpu", "precision=fp32", "name=short", "logging.pictures=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def overrides(few_images) -> list[str]:
    return [*OVERRIDES, *few_images]


def run_keeping_checkpoints(config: Config, folder: Path) -> None:
    """A run that nothing interrupts; beside its folder, each checkpoint as it was written: FOLDER_EPOCH.pt."""

    def save_and_keep(path, done):
        save(path, done)
        if path.name == CHECKPOINT:
            shutil.copy(path, f"{folder}_{done['epoch']}.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "save", save_and_keep)
        run(config, folder)


def as_after(epoch: int, whole: Path, folder: Path) -> Path:
    """Makes `folder` that of the run `whole` as it was after this epoch, and returns its checkpoint."""
    folder.mkdir(exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(whole / name, folder)
    return Path(shutil.copy(f"{whole}_{epoch}.pt", folder / CHECKPOINT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, overrides) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_keeping_checkpoints(composed(*overrides), folder)
    return folder


def epochs_take(seconds: int, monkeypatch) -> list[int]:
    """By a clock that goes on each time it is looked at; [the time], to be moved on."""
    now = [0]

    def tick() -> int:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(experiment, "time", SimpleNamespace(perf_counter=tick))
    return now


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (torch.load(path / "model.pt", weights_only=True) for path in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (read_json(path / "result.json") for path in (folder, whole))
    for result in (ours, theirs):
        assert result.pop("train_seconds") > 0 and result.pop("seconds_per_epoch") > 0
        assert result.pop("resumed", True) is True
    assert ours == theirs


# --- Killed and stopped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "status"), [("Ctrl-C", 130), ("closed", 129)])
def test_what_a_terminal_stops_says_how_to_go_on_and_so_it_does(start, tmp_path, overrides, stop, status):
    """On a real one: the kernel sends SIGINT or, when nothing can be written there any more, SIGHUP."""
    folder = tmp_path / "run"
    terminal, end = os.openpty()

    def on_the_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest itself may have been started by nohup

    values = ["training.epochs=100", "training.batch_size=500", "training.checkpoint_every=0"]
    process = start(
        *overrides, *values, f"hydra.run.dir={folder}", stdin=end, stdout=end, stderr=end, start_new_session=True,
        preexec_fn=on_the_terminal,
    )  # fmt: skip
    os.close(end)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and read_json(metrics)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if stop == "Ctrl-C":
        os.write(terminal, b"\x03")
    else:
        os.close(terminal)
    assert process.wait(timeout=60) == status
    epoch = torch.load(folder / CHECKPOINT, weights_only=True)["epoch"]
    hint = f"stopped after epoch {epoch} of 100; go on with: python -m main "
    line = (folder / "main.log").read_text().splitlines()[-1]
    assert line.startswith(hint)
    (override,) = shlex.split(line.removeprefix(hint))
    assert override == f"resume={folder}"
    assert run(load_saved(folder, [override]), folder, resume=True)["resumed"]
    assert [record["epoch"] for record in read_json(metrics)] == list(range(1, 101))


def killed(config: Config, folder: Path, after: float = 60) -> int:
    """The exit status of a run in a process of its own, which is killed if it has not ended after so many seconds."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(config, folder))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode


@one_thread
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_killed_at_any_moment(tmp_path, overrides, whole, share):
    config, seconds = composed(*overrides), read_json(whole / "result.json")["train_seconds"]
    status = killed(config, tmp_path, after=share * seconds)
    assert status == -signal.SIGKILL or (status == 0 and share > 0.5)
    if status:
        run(config, tmp_path, resume=(tmp_path / "config.yaml").exists())
    assert_same_run(tmp_path, whole)


@one_thread
@pytest.mark.parametrize(("write", "left"), [(1, "config.yaml"), (4, CHECKPOINT)])
def test_killed_while_it_writes(monkeypatch, tmp_path, overrides, whole, write, left):
    done, fsync, config = [], os.fsync, composed(*overrides)

    def fsync_or_die(file):
        done.append(file)
        os.kill(os.getpid(), signal.SIGKILL) if len(done) == write else fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync_or_die)
        assert killed(config, tmp_path) == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("*.tmp")] == [f".{left}.tmp"]
    run(config, tmp_path, resume=left == CHECKPOINT)
    assert not list(tmp_path.glob("*.tmp"))
    assert_same_run(tmp_path, whole)


def test_a_signal_after_the_last_step_stops_the_run_too(monkeypatch, tmp_path, overrides, whole):
    def save_and_be_stopped(path, done):
        save(path, done)
        if done.get("epoch") == EPOCHS:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "save", save_and_be_stopped)
    config, before = composed(*overrides), [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert stopped.value.code == 143 and not (tmp_path / "result.json").exists()
    run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_an_ignored_signal_stops_nothing_and_in_a_thread_none_is_waited_for(monkeypatch, tmp_path, overrides, whole):
    """SIGHUP is ignored under nohup, SIGINT in the background of a shell script."""
    ignored = (signal.SIGHUP, signal.SIGINT)

    def save_when_they_come(*arguments):
        for number in ignored:
            signal.raise_signal(number)
        save(*arguments)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "save", save_when_they_come)
            run(composed(*overrides), tmp_path / "nohup")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert_same_run(tmp_path / "nohup", whole)
    with ThreadPoolExecutor(1) as pool:  # a study of Optuna, a web page
        pool.submit(run, composed(*overrides), tmp_path / "thread").result()


# --- Trained, saved and resumed -------------------------------------------------------------------------------------


def test_only_training_counts_as_seconds_of_training(monkeypatch, tmp_path, overrides):
    now, scores_for = epochs_take(1, monkeypatch), experiment.scores_for
    monkeypatch.setattr(experiment, "scores_for", lambda *given: (now.append(now.pop() + 1000), scores_for(*given))[1])
    result = run(composed(*overrides, "data.validation_images=100", "evaluation.every=2"), tmp_path)
    assert (result["train_seconds"], result["seconds_per_epoch"]) == (EPOCHS, 1)


def test_the_seed_decides_what_is_random_in_training_too(monkeypatch, tmp_path, overrides):
    new_net = experiment.new_net
    monkeypatch.setattr(experiment, "new_net", lambda config, *images: new_net(replace(config, seed=0), *images))
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        run(composed(*overrides, "training.epochs=1", f"seed={seed}"), tmp_path / folder)
    one, again, other = (read_json(tmp_path / folder / "metrics.jsonl") for folder in ("one", "again", "other"))
    assert one == again != other


@pytest.mark.parametrize(("seconds", "expected"), [(60, [3, 6, 7]), (0, [7]), (0.1, [1, 2, 3, 4, 5, 6, 7])])
def test_checkpoints_are_seconds_of_training_apart(monkeypatch, tmp_path, overrides, seconds, expected):
    saved = []
    epochs_take(25, monkeypatch)
    monkeypatch.setattr(experiment, "save", lambda _, done: saved.append(done.get("epoch", "model.pt")))
    run(composed(*overrides, f"training.checkpoint_every={seconds}"), tmp_path)
    assert saved == [*expected, "model.pt"]


def test_a_run_keeps_the_precision_it_began_with_and_leaves_its_argument_alone(monkeypatch, tmp_path, overrides):
    config = composed(*overrides, "precision=auto", "training.epochs=1")
    before = copy.deepcopy(config)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "resolve_precision", lambda *_: "bf16")
        run(config, tmp_path)
    assert config == before
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr(experiment, "resolve_precision", lambda name, _: "fp32" if name == "auto" else name)
    assert run(load_saved(tmp_path), tmp_path, resume=True)["precision"] == "bf16"


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
def test_every_method_goes_on_as_if_nothing_had_been(monkeypatch, tmp_path, overrides, method, epochs, readout_epochs):
    """From its checkpoint after epoch 2, the last but one."""
    epochs_take(1, monkeypatch)
    phases = [f"training.epochs={epochs}"]
    phases += [f"training.readout_epochs={readout_epochs}"] if readout_epochs else []
    validation = ("data.validation_images=200", "evaluation.every=3")
    config = composed(*overrides, f"method={method}", *phases, *validation, "training.checkpoint_every=2")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_keeping_checkpoints(config, whole)
    records = read_json(whole / "metrics.jsonl")
    assert [record["epoch"] for record in records] == list(range(1, epochs + readout_epochs + 1))
    assert "validation_errors" in records[-1]
    as_after(2, whole, resumed)
    run(config, resumed, resume=True)
    assert_same_run(resumed, whole)


def test_a_run_that_goes_on_elsewhere_says_what_was_otherwise(monkeypatch, tmp_path, overrides, whole, caplog):
    as_after(EPOCHS - 1, whole, tmp_path)
    first = read_json(whole / "result.json")
    monkeypatch.setattr(experiment, "provenance", lambda: {"versions": first["versions"], "commit": "another"})
    result = run(composed(*overrides), tmp_path, resume=True)
    assert (result["commit"], result["resumed"]) == ("another", True)
    assert f"the epochs before were trained otherwise: commit {first['commit']}" in caplog.messages


def test_a_finished_run_is_left_alone_and_says_its_result(whole, overrides):
    before = content(whole)
    assert run(composed(*overrides, "seed=1"), whole, resume=True) == read_json(whole / "result.json")
    assert content(whole) == before


def test_what_may_differ_when_a_run_is_resumed(whole, tmp_path):
    arguments = [f"resume={whole}", "data.root=elsewhere", "training.checkpoint_every=9", "device=cuda:1"]
    config = load_saved(whole, [*arguments, "evaluation.batch_size=7", "training.cuda_graph=false"])
    assert not config.training.cuda_graph
    assert (config.data.root, config.training.checkpoint_every) == ("elsewhere", 9)
    assert (config.device, config.evaluation.batch_size) == ("cuda:1", 7)
    assert config.model.hidden_dims == [24, 24] and config.name == "short"
    for override in ("training.epochs=9", "seed=1", "experiment=paper", "precision=bf16", "+training.batch_size=7"):
        with pytest.raises(ConfigError, match="could change the result"):
            load_saved(whole, [*arguments, override])
    with pytest.raises(ConfigError, match="there is no run"):
        load_saved(tmp_path)


@pytest.mark.parametrize("folder", ["/home/josé/größe", "/it's/1,2", "/a b/seed=1 (2)/[x]"])
def test_the_advice_to_resume_can_be_typed_as_it_stands_and_where_the_command_was_given(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    python, main, override = shlex.split(resuming(Path(folder)))
    assert (python, Path(main)) == ("python", REPOSITORY / "main.py")
    assert loading.composed(override).resume == folder


# --- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_is_trained_by_one_process_at_a_time(monkeypatch, tmp_path, overrides, whole, resume):
    """From its start until it is finished."""
    if resume:
        as_after(EPOCHS - 1, whole, tmp_path)

    def refused(*_):
        with pytest.raises(ConfigError, match=rf"^{tmp_path}: another process is training this run$"):
            run(composed(*overrides), tmp_path, resume=True)

    for name in ("load", "save", "write_json"):
        wrapped = getattr(experiment, name)
        monkeypatch.setattr(experiment, name, lambda *arguments, wrapped=wrapped: (refused(), wrapped(*arguments))[1])
    run(composed(*overrides), tmp_path, resume=resume)
    assert_same_run(tmp_path, whole)


def test_a_folder_that_holds_a_run_is_left_to_it(tmp_path, overrides, whole):
    as_after(EPOCHS - 1, whole, tmp_path)
    (tmp_path / ".lock").touch()
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=f"^{tmp_path} already holds a run; .* go on with: python -m main resume="):
        run(composed(*overrides, "seed=1"), tmp_path)
    assert content(tmp_path) == before


def test_the_same_command_in_the_same_folder_goes_on(tmp_path, overrides, whole):
    """As that of a job which is back in Slurm's queue."""
    as_after(EPOCHS - 1, whole, tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    done = command(f"hydra.run.dir={tmp_path}", *overrides, "precision=auto")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"resumed after epoch {EPOCHS - 1} of {EPOCHS}\n" in done.stdout
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert_same_run(tmp_path, whole)


# --- Files and losses that are no good ------------------------------------------------------------------------------


def cut(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])


def changed(checkpoint: Path) -> None:
    """By one bit of the weights."""
    bias = torch.load(checkpoint, weights_only=True)["net"]["layers.0.bias"]
    raw = bytearray(checkpoint.read_bytes())
    raw[raw.index(bias.numpy().tobytes())] ^= 1
    checkpoint.write_bytes(raw)


def of_a_gpu(checkpoint: Path) -> None:
    """Where a generator's state is a seed and an offset."""
    save(checkpoint, torch.load(checkpoint, weights_only=True) | {"generator": torch.zeros(16, dtype=torch.uint8)})


DAMAGED = r"is damaged or not of this net \({}\); it goes on only on the [^\n]*; without it, resume={} begins again"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (cut, DAMAGED.format("BadZipFile: [^\n]*", "{}")),
        (changed, DAMAGED.format("ValueError: [^\n]* has another checksum", "{}")),
        (lambda checkpoint: save(checkpoint, {"epoch": 3}), DAMAGED.format("KeyError: 'net'", "{}")),
        (of_a_gpu, DAMAGED.format(r"(RuntimeError|TypeError): [^\n]*", "{}")),
    ],
    ids=["cut", "changed", "another dictionary", "another device"],
)
def test_a_checkpoint_of_no_use_is_named_with_what_can_be_done(tmp_path, overrides, whole, change, expected):
    checkpoint = as_after(EPOCHS - 1, whole, tmp_path)
    change(checkpoint)
    with pytest.raises(ConfigError, match=f"^{checkpoint} {expected.format(tmp_path)}$"):
        run(composed(*overrides), tmp_path, resume=True)


def test_without_its_checkpoint_a_run_begins_again(tmp_path, overrides, whole):
    as_after(EPOCHS - 1, whole, tmp_path).unlink()
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "half a rec')
    assert "resumed" not in run(composed(*overrides), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rate=1e20", r"layer \d became (inf|nan) in epoch 1; a lower training.learning_rate may"),
        ("training.readout_learning_rate=1e30", "the read-out became .* a lower training.readout_learning_rate may"),
    ],
)
def test_a_loss_that_diverges_ends_the_run_with_its_rate(tmp_path, overrides, override, expected):
    with pytest.raises(ConfigError, match=f"^the loss of {expected} help$"):
        run(composed(*overrides, override), tmp_path)
    assert not (tmp_path / "model.pt").exists()


def no_compiler(monkeypatch) -> None:
    from torch._inductor.exc import CppCompileError, InductorError  # here, because this takes seconds

    said = "main.cpp:2:10: fatal error: Python.h: No such file or directory\n   2 | #include <Python.h>\n"
    failed = InductorError(CppCompileError(["g++", "main.cpp"], said + "compilation terminated."), None)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: Mock(side_effect=failed))


def no_tensorboard(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.mark.xdist_group("compiled")
@pytest.mark.parametrize(
    ("lack", "key", "expected"),
    [
        (no_compiler, "training.compile", r".*: fatal error: Python.h: No such file [^\n]* training.compile=false$"),
        (no_tensorboard, "logging.tensorboard", "there is no TensorBoard; pip install tensorb"),
    ],
)
def test_what_is_not_installed_is_one_line_and_the_run_goes_on_without(
    monkeypatch, tmp_path, overrides, whole, lack, key, expected
):
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=f"^{key}=true: {expected}"):
        lack(patch)
        run(composed(*overrides, f"{key}=true"), tmp_path)
    run(load_saved(tmp_path, [f"{key}=false"]), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, whole):
    """With a limit on the size of files in place of a full disk."""
    before, limits = as_after(EPOCHS - 1, whole, tmp_path).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(SystemExit, match=r"^error: \[Errno 27\] File too large$"), one_line_errors():
            run(load_saved(tmp_path), tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
