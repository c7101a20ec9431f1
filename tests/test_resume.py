"""Runs that survive: killed, stopped or resumed, on real images and in real processes, they end with the same bits."""

import copy
import dataclasses
import errno
import fcntl
import io
import itertools
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY, command
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import optimizer_for, small_net
from omegaconf import OmegaConf
from test_config import composed

from src import experiment
from src.config import loading
from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.overrides import as_typed
from src.config.values import ConfigError
from src.experiment import resuming, run
from src.training.checkpoint import (
    LATEST,
    PREVIOUS,
    CheckpointError,
    load_checkpoint,
    locked,
    restore_training_state,
    save_checkpoint,
    training_state,
    write_once,
)
from src.training.epochs import check_finite
from src.training.log import read_metrics, read_result
from src.training.signals import SIGNALS

EPOCHS = 7
OVERRIDES = [
    "model.hidden_dims=[24,24]", f"training.epochs={EPOCHS}", "training.checkpoint_every=1e-9", "evaluation.every=0",
    "training.batch_size=50", "data.jitter=1", "device=cpu", "precision=fp32", "name=short", "logging.pictures=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def overrides(few_images) -> list[str]:
    return [*OVERRIDES, *few_images]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, overrides) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(composed(*overrides), folder)
    return folder


def epochs_take(seconds: int, monkeypatch) -> None:
    monkeypatch.setattr(experiment, "time", SimpleNamespace(perf_counter=itertools.count(0, seconds).__next__))


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (torch.load(path / "model.pt", weights_only=True) for path in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = read_result(folder), read_result(whole)
    for result in (ours, theirs):
        assert result.pop("train_seconds") > 0 and result.pop("seconds_per_epoch") > 0
    assert ours == theirs


def test_ctrl_c_says_how_to_go_on_and_so_it_does(start, tmp_path, overrides, whole):
    """On the real command line; what other signals do is tested below."""
    folder = tmp_path / "run"
    process = start(
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
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from src import experiment
from src.config.loading import composed, load

folder, overrides, seconds = Path(sys.argv[1]), sys.argv[2].split(" "), float(sys.argv[3])
config = load(composed(*overrides))
data = experiment.load(config.dataset, config.data.root, torch.device("cpu"), config.data.validation_images)
experiment.load = lambda *_: data

def attempt(out_dir, after=None, number=None):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            experiment.run(config, out_dir, resume=(out_dir / "config.yaml").exists())
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

random.seed(0)
for trial in range(8):
    out_dir = folder / str(trial)
    number = signal.SIGKILL if trial < 6 else signal.SIGTERM
    status = attempt(out_dir, random.uniform(0, seconds), number)
    print(trial, status, flush=True)
    if not (out_dir / "result.json").exists():
        assert attempt(out_dir) == 0
"""


def test_only_training_counts_as_seconds_of_training(monkeypatch, tmp_path, overrides):
    now, scores_for = [0], experiment.scores_for

    def one_second_later():
        now[0] += 1
        return now[0]

    def slow_scores(*arguments):
        now[0] += 1000
        return scores_for(*arguments)

    monkeypatch.setattr(experiment, "time", SimpleNamespace(perf_counter=one_second_later))
    monkeypatch.setattr(experiment, "scores_for", slow_scores)
    result = run(composed(*overrides, "data.validation_images=100", "evaluation.every=2"), tmp_path)
    assert (result["train_seconds"], result["seconds_per_epoch"]) == (EPOCHS, 1)


def test_the_seed_decides_what_is_random_in_training_too(monkeypatch, tmp_path, overrides):
    new_net = experiment.new_net
    monkeypatch.setattr(experiment, "new_net", lambda config: new_net(dataclasses.replace(config, seed=0)))
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        run(composed(*overrides, "training.epochs=1", f"seed={seed}"), tmp_path / folder)
    one, again, other = (read_metrics(tmp_path / folder) for folder in ("one", "again", "other"))
    assert one == again != other


def test_killed_at_random_moments(tmp_path, overrides, whole):
    """Six times by SIGKILL and twice by SIGTERM, anywhere between start and end."""
    seconds = read_result(whole)["train_seconds"] + 0.1  # and testing
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, str(tmp_path), " ".join(overrides), str(seconds)],
        cwd=REPOSITORY, env=ONE_THREAD, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = [int(status) for status in re.findall(r"^\d+ (-?\d+)$", done.stdout, re.MULTILINE)]
    assert len(ended) == 8
    assert set(ended[:6]) <= {-9, 0} and ended.count(-9) >= 3
    assert set(ended[6:]) <= {143, -15, 0}  # before training starts, SIGTERM ends a process as ever
    for trial in range(8):
        assert_same_run(tmp_path / str(trial), whole)


def test_a_signal_after_the_last_step_stops_the_run_too(monkeypatch, tmp_path, overrides, whole):
    save = experiment.save

    def save_and_be_stopped(out_dir, done, run_log):
        save(out_dir, done, run_log)
        if done["epoch"] == EPOCHS:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "save", save_and_be_stopped)
    config, before = composed(*overrides), [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert stopped.value.code == 143 and not (tmp_path / "result.json").exists()
    run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_terminal_that_closes_leaves_a_checkpoint_and_the_command_to_go_on(start, tmp_path, overrides):
    """On a real terminal: the kernel sends SIGHUP, and nothing can be written there any more."""
    folder = tmp_path / "run"
    terminal, end = os.openpty()

    def on_the_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest itself may have been started by nohup

    process = start(
        [sys.executable, "-m", "main", *overrides, "training.epochs=5000", "training.checkpoint_every=0",
         f"hydra.run.dir={folder}"],
        cwd=REPOSITORY, env=ONE_THREAD, stdin=end, stdout=end, stderr=end, start_new_session=True,
        preexec_fn=on_the_terminal,
    )  # fmt: skip
    os.close(end)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and read_metrics(folder)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.close(terminal)
    assert process.wait(timeout=60) == 129
    epoch = load_checkpoint(folder, torch.device("cpu"))["epoch"]
    last_line = (folder / "main.log").read_text().splitlines()[-1]
    assert last_line == f"stopped after epoch {epoch} of 5000; go on with: python -m main resume={folder}"


def test_an_ignored_signal_stops_nothing_and_in_a_thread_none_is_waited_for(monkeypatch, tmp_path, overrides, whole):
    """SIGHUP is ignored under nohup, SIGINT in the background of a shell script."""
    save, ignored = experiment.save, (signal.SIGHUP, signal.SIGINT)

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
    with ThreadPoolExecutor(1) as pool:  # a study of Optuna, a web page
        pool.submit(run, composed(*overrides), tmp_path / "thread").result()
    for folder in ("nohup", "thread"):
        assert_same_run(tmp_path / folder, whole)


@pytest.mark.xdist_group("compiled")
def test_a_compiler_that_fails_is_one_line_and_the_run_goes_on_without(monkeypatch, tmp_path, overrides, whole):
    from torch._inductor.exc import CppCompileError, InductorError  # here, because this takes seconds

    def step(*_):
        said = "main.cpp:2:10: fatal error: Python.h: No such file or directory\n   2 | #include <Python.h>\n"
        raise InductorError(CppCompileError(["g++", "main.cpp"], said + "compilation terminated."), None)

    with monkeypatch.context() as patch:
        patch.setattr("src.methods.supervised.compiled", lambda *_: step)
        with pytest.raises(ConfigError) as caught:
            run(composed(*overrides, "training.compile=true"), tmp_path)
    line = str(caught.value)
    for words in ("training.compile=true: ", ": fatal error: Python.h: No such file", "python3-dev"):
        assert words in line and "\n" not in line
    (typed,) = re.findall(r"go on without: python -m main (.*)", line)
    run(load_saved(tmp_path, shlex.split(typed)), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(("seconds", "expected"), [(60, [3, 6, 7]), (0, [7]), (0.1, [1, 2, 3, 4, 5, 6, 7])])
def test_checkpoints_are_seconds_of_training_apart(monkeypatch, tmp_path, overrides, seconds, expected):
    saved = []
    epochs_take(25, monkeypatch)
    monkeypatch.setattr(experiment, "save", lambda _, done, __: saved.append(done["epoch"]))
    run(composed(*overrides, f"training.checkpoint_every={seconds}"), tmp_path)
    assert saved == expected


def test_a_run_keeps_the_precision_it_began_with_and_leaves_its_argument_alone(monkeypatch, tmp_path, overrides):
    config = composed(*overrides, "precision=auto", "training.epochs=1")
    before = copy.deepcopy(config)
    for precision in ("bf16", "fp32"):
        with monkeypatch.context() as patch:
            patch.setattr(
                experiment, "resolve_precision", lambda name, _, now=precision: now if name == "auto" else name
            )
            assert run(config, tmp_path / precision)["precision"] == precision
        assert config == before
        saved = load_saved(tmp_path / precision)
        assert saved.precision == precision
        (tmp_path / precision / "result.json").unlink()
        assert run(saved, tmp_path / precision, resume=True)["precision"] == precision


def test_of_two_runs_that_begin_in_a_folder_one_is_refused(monkeypatch, tmp_path, overrides):
    load = experiment.load

    def while_another_begins(*arguments):
        (tmp_path / "config.yaml").write_text("the other's")
        return load(*arguments)

    monkeypatch.setattr(experiment, "load", while_another_begins)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(composed(*overrides), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "the other's"


ODD = st.text(st.sampled_from("aé \\${}\"'~:,=![]()#/.-0"), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(ODD, st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)))
def test_the_advice_to_resume_can_be_typed_as_it_stands(text):
    """In bash and zsh, as `shlex` reads them; in Hydra, as its own parser does, and then OmegaConf."""
    folder = Path("/runs") / text.lstrip("/")
    *python, typed = shlex.split(resuming(folder))
    assert python == ["python", "-m", "main"]
    for argument in (typed, *shlex.split(as_typed("resume", text))):
        override = OverridesParser.create().parse_override(argument)
        assert override.key_or_group == "resume"
        value = override.value()
        assert not override.is_sweep_override() and isinstance(value, str | QuotedString)
        plain = value.text if isinstance(value, QuotedString) else value
        assert OmegaConf.create({"resume": plain}).resume == (str(folder) if argument == typed else text)


@pytest.mark.parametrize("folder", ["/home/josé/größe", "/it's/1,2"])
def test_the_advice_is_for_the_folder_in_which_the_command_was_given(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    python, main, override = shlex.split(resuming(Path(folder)))
    assert (python, Path(main)) == ("python", REPOSITORY / "main.py")
    assert loading.composed(override).resume == folder


def test_a_run_without_a_checkpoint_starts_again(tmp_path, overrides, whole):
    (tmp_path / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "half a rec')
    run(composed(*overrides), tmp_path, resume=True)
    assert len(read_metrics(tmp_path)) == EPOCHS


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
    phases = [
        f"training.epochs={epochs}",
        *([f"training.readout_epochs={readout_epochs}"] if readout_epochs else []),
    ]
    validation = ("data.validation_images=200", "evaluation.every=3")
    config = composed(*overrides, f"method={method}", *phases, *validation, "training.checkpoint_every=2")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(config, whole)
    records = read_metrics(whole)
    assert [record["epoch"] for record in records] == list(range(1, epochs + readout_epochs + 1))
    assert "validation_errors" in records[-1]
    resumed.mkdir()
    last_but_one(whole, resumed)
    assert load_checkpoint(resumed, torch.device("cpu"))["epoch"] == 2
    run(config, resumed, resume=True)
    assert_same_run(resumed, whole)


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


def folder_of(key: str, *overrides: str) -> str:
    loading.register_schemas()
    with initialize_config_dir(str(loading.CONFIGS), version_base="1.3"):
        config = compose("config", overrides=["+hydra.job.num=3", *overrides], return_hydra_config=True)
    return OmegaConf.select(config, key)


def test_a_resumed_run_stays_in_its_folder_and_no_two_get_the_same(monkeypatch, whole, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(whole.parent))
    for resume in (str(whole), '"~/run"'):
        assert folder_of("hydra.run.dir", f"resume={resume}") == str(whole)
    for expected in ("new/run", "new/run_2", "new/run_3"):
        assert folder_of("hydra.run.dir", 'hydra.run.dir="${run_folder:new/run}"') == str(tmp_path / expected)
        assert (tmp_path / expected).is_dir()


def copied(whole: Path, folder: Path, *names: str) -> Path:
    for name in ("config.yaml", "metrics.jsonl", *names):
        (folder / name).write_bytes((whole / name).read_bytes())
    return folder


def last_but_one(whole: Path, folder: Path) -> Path:
    """The run as it was after its last checkpoint but one."""
    copied(whole, folder, PREVIOUS)
    return (folder / PREVIOUS).rename(folder / LATEST)


def test_the_same_command_again_goes_on_in_its_folder(tmp_path, overrides, whole):
    """As a job does that is put back into a queue, on whatever processor."""
    last_but_one(whole, tmp_path)
    record = tmp_path / ".hydra" / "2026-01-01_00-00-00" / "overrides.yaml"
    record.parent.mkdir(parents=True)
    record.write_text("the first")
    done = command(f"hydra.run.dir={tmp_path}", *overrides, "precision=auto")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"resumed after epoch {EPOCHS - 1} of {EPOCHS}\n" in done.stdout
    assert record.read_text() == "the first" and len(list(tmp_path.glob(".hydra/*/overrides.yaml"))) == 2
    assert_same_run(tmp_path, whole)


def test_the_same_sweep_again_keeps_what_is_finished_and_does_the_rest(tmp_path, overrides, whole):
    """With another seed, so that its jobs have other numbers."""
    finished, begun, new = (tmp_path / name for name in ("4_short_seed0", "1_short_seed1", "0_short_seed2"))
    shutil.copytree(whole, finished)
    begun.mkdir()
    last_but_one(whole, begun)
    config = (begun / "config.yaml").read_text()
    (begun / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    shutil.copytree(begun, tmp_path / "9_short_seed2")  # of this name, but another configuration
    before = {path: path.read_bytes() for path in finished.iterdir()}
    done = command("-m", "seed=2,1,0", *overrides, "precision=auto", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"#1 resumed after epoch {EPOCHS - 1} of {EPOCHS}\n" in done.stdout
    assert f"#2 {finished}: this run is finished; python -m src.plots draws its pictures again\n" in done.stdout, (
        done.stdout
    )
    assert before == {path: path.read_bytes() for path in before}
    assert [read_result(folder)["seed"] for folder in (begun, new)] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "0_short_seed2", "1_short_seed1", "4_short_seed0", "9_short_seed2"
    ]  # fmt: skip


def test_a_job_of_a_sweep_gets_the_folder_of_its_run_or_a_new_one(tmp_path, overrides, whole):
    def in_sweep(*values: str) -> str:
        sweep = [f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN"]
        return os.path.relpath(folder_of("hydra.sweep.subdir", *overrides, *sweep, *values), tmp_path)

    assert folder_of("hydra.sweep.subdir", f"resume={whole}") == str(whole)  # -m resume=FOLDER,FOLDER
    assert [in_sweep() for _ in range(2)] == ["3_short_seed0", "3_short_seed0_2"]
    shutil.copytree(whole, tmp_path / "7_short_seed0")
    assert in_sweep() == in_sweep("precision=auto") == "7_short_seed0"
    assert in_sweep("training.epochs=9") == "3_short_seed0_3"


def test_what_a_killed_process_was_saving_is_cleared_away(tmp_path, overrides, whole):
    last_but_one(whole, tmp_path)
    (tmp_path / f".{LATEST}.123.tmp").write_bytes(b"half")
    run(composed(*overrides), tmp_path, resume=True)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_finished_run_is_left_alone_and_says_its_result(whole, overrides):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    assert run(composed(*overrides, "seed=1"), whole, resume=True) == read_result(whole)
    assert before == {path: path.read_bytes() for path in whole.iterdir()}


def test_a_damaged_result_is_named(tmp_path, overrides):
    (tmp_path / "result.json").write_text('{"seed": 0')
    with pytest.raises(ConfigError, match=f"{tmp_path / 'result.json'} is damaged"):
        run(composed(*overrides), tmp_path, resume=True)


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
    assert len(read_metrics(tmp_path)) == EPOCHS


@pytest.fixture(scope="module")
def checkpoint() -> tuple[bytes, dict]:
    model = small_net()
    optimizer_for(model)
    content = {"epoch": 3, "state": training_state(model, None, torch.Generator()), "metrics": [], "train_seconds": 1.0}
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
    with pytest.raises(CheckpointError, match=r"another architecture: its layers.2.weight is \[13, 9\], not \[12, 9\]"):
        restore_training_state(other, None, torch.Generator(), training_state(model, None, torch.Generator()))


def test_a_checkpoint_of_another_kind_of_device_is_refused_and_changes_nothing():
    model, other = small_net(), small_net(seed=1)
    optimizer_for(model), optimizer_for(other)
    of_a_gpu = training_state(model, None, torch.Generator()) | {"generator": torch.zeros(16, dtype=torch.uint8)}
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another kind of device than cpu"):
        restore_training_state(other, None, torch.Generator(), of_a_gpu)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_run_needs_no_hard_links(monkeypatch, tmp_path, overrides, whole):
    """As there are none on Google Drive, exFAT and some clusters."""

    def link(source, target, **_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", link)
    run(composed(*overrides), tmp_path)
    assert_same_run(tmp_path, whole)
    assert load_checkpoint(tmp_path, torch.device("cpu"))["epoch"] == EPOCHS
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["epoch"] == EPOCHS - 1
    with pytest.raises(ConfigError, match="already holds a run"):
        run(composed(*overrides, "seed=1"), tmp_path)
    assert_same_run(tmp_path, whole)


def test_of_many_that_take_a_folder_at_once_one_gets_it(tmp_path):
    def take(content: bytes, path: Path, barrier: threading.Barrier) -> bytes | None:
        barrier.wait()
        try:
            write_once(path, content)
        except FileExistsError:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        for trial in range(50):
            path = tmp_path / str(trial)
            barrier = threading.Barrier(8)
            took = [pool.submit(take, bytes([number]), path, barrier) for number in range(8)]
            assert [content for future in took if (content := future.result())] == [path.read_bytes()]
    assert len(list(tmp_path.iterdir())) == 50


KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
from src.training import checkpoint

checkpoint.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write_once(pathlib.Path(sys.argv[1]) / "config.yaml", b"half")
"""


def test_a_process_killed_while_it_writes_stands_in_nobodys_way(tmp_path, overrides):
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    run(composed(*overrides, "training.epochs=1"), tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_start_that_was_cut_off_is_said(tmp_path, overrides):
    claim = tmp_path / ".config.yaml.tmp"
    claim.touch()
    with pytest.raises(ConfigError, match=f"another run is starting there; if none is, delete {claim}$"):
        run(composed(*overrides), tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, overrides, whole):
    last_but_one(whole, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with locked(tmp_path / "config.yaml"), pytest.raises(ConfigError, match=r"another process is training this run$"):
        run(composed(*overrides), tmp_path, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    run(composed(*overrides), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_its_net_is_saved_before_another_process_may_clear_up(monkeypatch, tmp_path, overrides, whole):
    last_but_one(whole, tmp_path)
    save = experiment.save_model

    def save_locked(net, path):
        with pytest.raises(BlockingIOError), locked(tmp_path / "config.yaml"):
            pass
        save(net, path)

    monkeypatch.setattr(experiment, "save_model", save_locked)
    run(composed(*overrides), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_a_run_that_goes_on_with_other_code_names_both(monkeypatch, tmp_path, overrides, whole, caplog):
    last_but_one(whole, tmp_path)
    first = read_result(whole)
    monkeypatch.setattr(experiment, "provenance", lambda: {"versions": first["versions"], "commit": "another"})
    result = run(composed(*overrides), tmp_path, resume=True)
    assert result["commit"] == "another"
    origin = ("versions", "commit", "hardware", "threads", "compiled")
    assert result["resumed_from"] == [{key: first[key] for key in origin}]
    assert "the epochs before differ in commit; result.json will name both" in caplog.text


def test_the_checkpoint_before_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        content = {"epoch": epoch, "state": {}, "metrics": [], "train_seconds": 0.0, "origins": []}
        save_checkpoint(tmp_path, content)
    assert load_checkpoint(tmp_path, torch.device("cpu"))["epoch"] == 3
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, PREVIOUS]


def test_another_file_in_the_place_of_a_checkpoint_is_named(tmp_path, overrides, whole):
    torch.save({"epoch": 3}, last_but_one(whole, tmp_path))
    with pytest.raises(ConfigError, match=rf"{tmp_path}/{LATEST} is no checkpoint of a run$"):
        run(composed(*overrides), tmp_path, resume=True)


def test_a_loss_that_diverges_ends_the_run_with_its_layer(tmp_path, overrides):
    config = composed(*overrides, "training.learning_rate=1e20")
    with pytest.raises(
        ConfigError, match=r"the loss of layer \d became (inf|nan) in epoch 1; a lower training.learning_r"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "model.pt").exists()


def test_a_loss_that_is_looked_at_after_the_epoch_as_on_a_gpu_is_told_too(monkeypatch, tmp_path, overrides):
    looked_at = []

    def check_after_the_epoch(*losses):
        looked_at.append(losses)
        if len(looked_at) > 20:  # steps
            check_finite(*losses)

    monkeypatch.setattr("src.training.epochs.check_finite", check_after_the_epoch)
    config = composed(*overrides, "training.learning_rate=1e20")
    with pytest.raises(ConfigError, match=r"the loss of layer \d became (inf|nan) in epoch 1;.* no checkpoint yet"):
        run(config, tmp_path)


def test_a_read_out_that_diverges_is_told_of_its_own_rate(tmp_path, overrides):
    config = composed(*overrides, "training.readout_learning_rate=1e30")
    with pytest.raises(
        ConfigError, match=r"the read-out became .* a lower training.readout_learning_rate \(now 1e\+30\)"
    ):
        run(config, tmp_path)


def test_an_update_that_no_cuda_graph_can_capture_is_one_line(monkeypatch, tmp_path, overrides):
    def refused(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be")

    monkeypatch.setattr("src.training.epochs._update", refused)
    with pytest.raises(ConfigError, match=r"^training.cuda_graph=true: .* waits for the host .*_graph=false$"):
        run(composed(*overrides), tmp_path)


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, whole):
    """With a limit on the size of files in place of a full disk."""
    before, limits = last_but_one(whole, tmp_path).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(SystemExit, match=r"^error: \[Errno 27\] File too large$"), one_line_errors():
            run(load_saved(tmp_path), tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / LATEST).read_bytes() == before
