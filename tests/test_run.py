"""Real runs of the real command line on real MNIST, with small nets."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import ONE_THREAD, REPOSITORY, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_config import EXPERIMENTS, composed

import src
from src import evaluate, plots
from src.config.errors import one_line_errors
from src.datasets.table import load_test
from src.evaluate import load_trained
from src.experiment import run
from src.training.log import read_json, scalars

PICTURES = ["learning_curve.png", "confusion.png", "most_wrong.png", "receptive_fields.png", "goodness.png"]
SMALL = [  # widths that the grids of local receptive fields can share out
    "model.hidden_dims=[32,18,8]", "training.epochs=1", "data.validation_images=59000", "evaluation.every=0",
    "logging.pictures=false",
]  # fmt: skip


def files(folder: Path) -> dict[Path, bytes]:
    """The content of every file of a run, but for what Hydra writes."""
    every = (path for path in folder.rglob("*") if path.is_file() and path.name != "main.log")
    return {path: path.read_bytes() for path in every if ".hydra" not in path.parts}


def test_a_run_learns_and_leaves_its_figures_configuration_and_pictures(learned):
    folder, output = learned
    records, result = read_json(folder / "metrics.jsonl"), read_json(folder / "result.json")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["gain"] for record in records] == [1, 1, 0.75, 0.25]
    assert ["validation_errors" in record for record in records] == [False, True, False, True]
    assert all(last < first for first, last in zip(records[0]["loss"], records[-1]["loss"], strict=True))
    assert result["test_error_goodness"] < 16 and result["test_error_one_pass"] < 13
    for rule in ["goodness", "one_pass", "goodness_all_layers", *(f"goodness_layer_{layer}" for layer in (1, 2, 3))]:
        assert result[f"test_error_{rule}"] == result[f"test_errors_{rule}"] / 100
    assert (result["test_images"], result["train_images"], result["epochs"], result["seed"]) == (10000, 10000, 4, 3)
    assert (result["method"], result["dataset"], result["readout_epochs"]) == ("supervised", "mnist", 0)
    assert result["train_seconds"] == pytest.approx(4 * result["seconds_per_epoch"])
    assert (result["device"], result["precision"], result["threads"]) == ("cpu", "fp32", 1)
    assert result["versions"]["torch"] == torch.__version__ and "resumed" not in result
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["hidden_dims"], config["training"]["negatives"]) == ([100, 100, 100], "hard")
    assert all((folder / picture).read_bytes().startswith(b"\x89PNG") for picture in PICTURES)
    assert len(re.findall(r"^epoch ", output, re.MULTILINE)) == 4
    for expected in ("this run (matlab)", "1.36", "1.47", "1.45", "seed 3", "goodness_layer_1", "Tested once"):
        assert expected in output


def test_tensorboard_reads_the_figures_of_metrics_jsonl(learned):
    events = EventAccumulator(str(learned[0] / "tensorboard"))
    events.Reload()
    records = {record["epoch"]: scalars(record) for record in read_json(learned[0] / "metrics.jsonl")}
    assert set(events.Tags()["scalars"]) == set(records[4])
    for name in records[4]:
        expected = {epoch: pytest.approx(figures[name]) for epoch, figures in records.items() if name in figures}
        assert {event.step: event.value for event in events.Scalars(name)} == expected


def test_a_saved_run_is_tested_again(learned, mnist_root):
    """To the last image, with its data elsewhere, and without a trace."""
    result, before = read_json(learned[0] / "result.json"), files(learned[0])
    log = (learned[0] / "main.log").read_bytes()
    done = command(str(learned[0]), "--device", "cpu", "--data-root", str(mnist_root), module="src.evaluate")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[3:]]
    assert [row[0] for row in rows if row[0]] == [key[12:] for key in result if key.startswith("test_errors_")]
    for rule, percent, count, count_before in (row for row in rows if row[0]):
        assert count == count_before == str(result[f"test_errors_{rule}"])
        assert percent == f"{result[f'test_error_{rule}']:.2f}"
    assert files(learned[0]) == before and (learned[0] / "main.log").read_bytes() == log


def unfinish(folder: Path) -> None:
    for name in ("model.pt", "result.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (unfinish, "this run is not finished (no model.pt); go on with: python -m main resume="),
        (lambda folder: (folder / "model.pt").unlink(), "this run's net was not kept (no model.pt)"),
        (
            lambda folder: (folder / "model.pt").write_bytes(b"PK"),
            "model.pt is damaged or not of this net (BadZipFile: File is not a zip file); without it and result.json, ",
        ),
        (
            lambda folder: (folder / "result.json").write_text("{"),
            "result.json is damaged or cannot be read: Expecting property name",
        ),
        (lambda folder: (folder / "config.yaml").unlink(), "there is no run (no config.yaml)"),
    ],
    ids=["not finished", "net not kept", "damaged", "result damaged", "no run"],
)
def test_what_cannot_be_tested_again_is_said(learned, tmp_path, monkeypatch, change, expected):
    for name in ("config.yaml", "model.pt", "result.json"):
        shutil.copy(learned[0] / name, tmp_path / name)
    change(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}.*{re.escape(expected)}"):
        evaluate.main()


def test_pictures_are_drawn_again(learned, mnist_root, tmp_path, monkeypatch):
    for name in ("config.yaml", "metrics.jsonl", "model.pt", "result.json"):
        shutil.copy(learned[0] / name, tmp_path / name)
    done = command(str(tmp_path), "--data-root", str(mnist_root), module="src.plots", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / picture) for picture in PICTURES]
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes() == (learned[0] / picture).read_bytes()
        (tmp_path / picture).unlink()

    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{" + metrics.read_text())
    monkeypatch.setattr(sys, "argv", ["plots", str(tmp_path), "--data-root", str(mnist_root)])
    with pytest.raises(SystemExit, match=rf"^error: {metrics} is damaged or cannot be read: [^\n]*$"):
        plots.main()


def test_nothing_is_imported_before_it_is_needed(tmp_path, mnist_root):
    """No net to read a configuration, which leaves the environment alone; nothing slow in the first epoch."""
    code = """if True:
        import os, runpy, sys
        before = dict(os.environ)
        import src.config.errors, src.config.loading
        early = [name for name in sys.modules if name.startswith(("src.methods.", "src.training.epochs"))]
        assert not early, early
        assert dict(os.environ) == before
        import src.evaluate, src.experiment, src.report
        def epoch(*_):
            slow = {"cv2", "matplotlib", "pandas", "scipy", "tensorboard", "torch._dynamo", "torchvision"}
            found = slow & set(sys.modules)
            sys.exit(str(found) if found else 7)
        src.experiment.RunLog.epoch = epoch
        runpy.run_module("main", run_name="__main__")
    """
    arguments = [f"hydra.run.dir={tmp_path}", f"data.root={mnist_root}", *SMALL]
    done = command(*arguments, code=code)
    assert (done.returncode, done.stderr) == (7, "")


def test_every_experiment_runs(tmp_path, few_images):
    """In a multirun: several jobs in one process, one after another."""
    names = [name for name in EXPERIMENTS if not name.startswith("cifar10")]
    done = command("-m", f"experiment={','.join(names)}", f"hydra.sweep.dir={tmp_path}", *SMALL, *few_images)
    assert done.returncode == 0, done.stderr
    results = [read_json(tmp_path / f"{job}_{name}_seed0" / "result.json") for job, name in enumerate(names)]
    assert [result["method"] for result in results] == [composed(f"experiment={name}").method for name in names]
    for result in results:
        protocol = (result["test_images"], result["train_images"], result["epochs"], result["hidden_dims"])
        assert protocol == (1000, 1000, 1, [32, 18, 8])
        assert result["readout_epochs"] == (20 if result["method"] == "unsupervised" else 0)
        errors = [result[key] for key in result if key.startswith("test_errors_")]
        assert errors and all(0 < count < 1000 for count in errors)


def test_those_on_colour_images_run_too(monkeypatch, tmp_path):
    """On small images of people's own; and a net of each of their methods has its pictures."""
    names, random = [name for name in EXPERIMENTS if name.startswith("cifar10")], np.random.default_rng(0)
    parts = {"train": 30, "test": 20}
    images = {f"{part}_images": random.integers(0, 256, (n, 12, 12, 3), np.uint8) for part, n in parts.items()}
    np.savez(tmp_path / "own.npz", **images, **{f"{part}_labels": np.arange(n) % 10 for part, n in parts.items()})
    data = ["dataset=npz", f"data.root={tmp_path / 'own.npz'}", "data.validation_images=0", "training.batch_size=15"]
    values = ["model.hidden_dims=[288,144]", "training.epochs=1", "evaluation.training_errors=true"]
    values += ["logging.pictures=false", f"hydra.sweep.dir={tmp_path}", *data]
    done = command("-m", f"experiment={','.join(names)}", *values)
    assert done.returncode == 0, done.stderr
    for job, name in enumerate(names):
        folder = tmp_path / f"{job}_{name}_seed0"
        result = read_json(folder / "result.json")
        assert all(0 < result[f"{part}_error_one_pass"] <= 100 for part in ("test", "training"))
        assert load_trained(folder).pixel_mean.tolist() == pytest.approx([0.5] * 3, abs=0.01)
        if name in ("cifar10_backprop_2", "cifar10_min_ssq_2"):
            monkeypatch.setattr(sys, "argv", ["plots", str(folder)])
            plots.main()
            assert {"receptive_fields.png", "most_wrong.png"} <= {path.name for path in folder.iterdir()}


def test_damaged_data_are_one_line_of_their_job_and_do_not_end_the_others(tmp_path, mnist_root):
    """Nothing is trained on them, and the file stays as it is."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_root / "MNIST" / "raw").glob("*-ubyte"):
        (raw / file.name).symlink_to(file.absolute())
    labels = raw / "train-labels-idx1-ubyte"
    damaged = bytearray(labels.read_bytes())
    damaged[100] ^= 1
    labels.unlink()
    labels.write_bytes(damaged)
    done = command("-m", f"data.root={tmp_path},{mnist_root}", *SMALL, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    hydras, ours = done.stderr.splitlines()
    assert f"data.root={tmp_path}" in hydras
    assert re.match(f"error: {labels} .*not the official .*SHA-256", ours)
    (log,) = (tmp_path / "sweep" / "0_matlab_seed0").glob("*.log")
    assert log.read_text() == f"#0 {ours}\n"
    assert [path.parent.name for path in tmp_path.glob("sweep/*/result.json")] == ["1_matlab_seed0"]
    assert labels.read_bytes() == damaged


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochz=1", "epochz"),
        ("data.root=/dev/null/data", "Not a directory: '/dev/null/data"),
        ("hydra.run.dir=/dev/null/run", "Not a directory: '/dev/null/run"),
        ('data.root="~nobody.here/x"', "~nobody.here/x: there is no home folder of that name"),
        ('resume="~nobody.here/x"', "~nobody.here/x: there is no home folder of that name"),
    ],
)
def test_bad_input_is_one_line_before_any_data_is_loaded(tmp_path, override, expected):
    done = command(f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", override)
    assert done.returncode == 1 and re.fullmatch(rf"error: [^\n]*{expected}[^\n]*\n", done.stderr)
    assert not (tmp_path / "data").exists()


def test_what_a_machine_refuses_is_one_line(tmp_path, mnist_root):
    config = composed("model.hidden_dims=[1000000000,1000000000]", f"data.root={mnist_root}", "device=cpu")
    with pytest.raises(SystemExit, match=r"^error: out of memory; smaller model.hidden_dims, "), one_line_errors():
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ("CUDA-capable device(s) is/are busy or unavailable", "another process has the GPU to itself; wait "),
        ("no kernel image is available for execution on the device", "this build of torch has no code for this GPU; "),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line(refused, expected):
    with pytest.raises(SystemExit, match=f"^error: {expected}[^\n]*$"), one_line_errors():
        raise RuntimeError(f"CUDA error: {refused}\nCUDA kernel errors might be")


def test_a_reader_that_goes_and_a_terminal_without_some_characters_are_no_error(start, tmp_path, few_images):
    process = start(*SMALL, *few_images, "training.epochs=3", f"hydra.run.dir={tmp_path}/run", stdout=-1, stderr=-1)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(170)) == ("", 141)
    assert read_json(tmp_path / "run" / "result.json")["epochs"] == 3
    results = str(REPOSITORY / "results" / "minute")
    done = command(results, module="src.report", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and re.search(r"\d \? 0\.", done.stdout)
    few_images = [*few_images, 'name="Größe ×2"', f"hydra.run.dir={tmp_path}/named"]
    done = command(*SMALL, *few_images, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and "this run (Gr??e ?2, on idx)" in done.stdout


def test_of_runs_that_start_at_once_none_shares_a_folder(start, tmp_path, few_images):
    """Two with one name for their folders, where the second gets another; and two in a fixed one, where one is refused.

    All with a relative data.root, which hydra.job.chdir leaves alone.
    """
    up = os.path.relpath("/", REPOSITORY)
    few_images = [override.replace("data.root=", f"data.root={up}") for override in few_images]
    named, fixed = f'hydra.run.dir="${{new_folder:{tmp_path}/at/run}}"', f"hydra.run.dir={tmp_path}/at/fixed"
    processes = [
        start(*SMALL, *few_images, place, "hydra.job.chdir=true", f"seed={seed}", stderr=subprocess.PIPE)
        for place in (named, fixed)
        for seed in range(2)
    ]
    said = [process.communicate(timeout=170)[1] for process in processes]
    assert [(process.returncode, errors) for process, errors in zip(processes[:2], said, strict=False)] == [(0, "")] * 2
    assert sorted(process.returncode for process in processes[2:]) == [0, 1]
    assert re.fullmatch(rf"error: {tmp_path}/at/fixed(: another process is| already holds a) [^\n]*\n", "".join(said))
    folders = sorted((tmp_path / "at").iterdir())
    assert [folder.name for folder in folders] == ["fixed", "run", "run_2"]
    assert {read_json(folder / "result.json")["seed"] for folder in folders[1:]} == {0, 1}
    for folder in folders:
        assert (folder / "main.log").read_text().count(f"run in {folder}\n") == 1


def test_a_relative_data_root_is_found_from_another_folder(tmp_path, mnist_root):
    """By `src.evaluate` and a resumed run. It may name the folder of the files itself."""
    here, elsewhere, run = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "run"
    (here / "FashionMNIST").mkdir(parents=True)
    elsewhere.mkdir()
    raw = here / "FashionMNIST" / "raw"
    raw.symlink_to(mnist_root.absolute() / "MNIST" / "raw")
    python = partial(subprocess.run, env=ONE_THREAD | {"PATH": ""}, capture_output=True, text=True)
    main = [sys.executable, REPOSITORY / "main.py"]
    done = python([*main, *SMALL, "data.root=FashionMNIST/raw", f"hydra.run.dir={run}"], cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    for again in ([sys.executable, REPOSITORY / "src" / "evaluate.py", run], [*main, f"resume={run}"]):
        done = python(again, cwd=elsewhere)
        assert (done.returncode, done.stderr) == (0, "")
        (run / "result.json").unlink()
    assert not list(elsewhere.iterdir())
    assert len(load_test("fashion_mnist", raw, "cpu")) == 10000


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 14, 0)])
def test_another_python_is_told_in_one_line_which_ones_work(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=rf"^error: this is Python 3.{version[1]}; .* work with Python 3.10 to 3.13$"):
        importlib.reload(src)


def test_a_command_can_be_given_as_a_file_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "report.py"), str(REPOSITORY / "results" / "minute")],
        cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and "minute" in done.stdout
