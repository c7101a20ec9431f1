"""Real runs of the real command line on real MNIST, with small nets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_config import EXPERIMENTS, composed

from src.data import load_mnist
from src.evaluate import count_errors
from src.experiment import build_model

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = ["model.hidden_dims=[16,16]", "training.epochs=1", "data.validation_images=59000", "evaluation.every=0"]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the environment of the runs: the same bits each time
ONE_THREAD.pop("HYDRA_FULL_ERROR", None)


def command(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "main", *overrides],
        cwd=REPOSITORY,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=170,
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory, mnist_root) -> tuple[Path, str]:
    """The folder and the output of a run that is long enough to learn something."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    done = command(
        f"data.root={mnist_root}",
        f"hydra.run.dir={folder}",
        "model.hidden_dims=[100,100,100]",
        "training.epochs=4",
        "evaluation.every=2",
        "data.validation_images=50000",
        "training.batch_size=20",
        "device=cpu",
        "precision=fp32",
        "seed=3",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_learns(learned):
    result = json.loads((learned[0] / "result.json").read_text())
    assert result["test_error_goodness"] < 16
    assert result["test_error_one_pass"] < 13
    losses = [json.loads(line)["loss"] for line in (learned[0] / "metrics.jsonl").read_text().splitlines()]
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))


def test_a_run_leaves_its_result_with_protocol(learned):
    result = json.loads((learned[0] / "result.json").read_text())
    for rule in ["goodness", "one_pass", "goodness_all_layers", *(f"goodness_layer_{layer}" for layer in (1, 2, 3))]:
        assert result[f"test_error_{rule}"] == result[f"test_errors_{rule}"] / 100
    assert (result["test_images"], result["train_images"], result["epochs"], result["seed"]) == (10000, 10000, 4, 3)
    assert result["train_seconds"] == pytest.approx(4 * result["seconds_per_epoch"])
    assert (result["device"], result["precision"]) == ("cpu", "fp32")
    assert result["versions"]["torch"] == torch.__version__


def test_a_run_leaves_metrics_configuration_and_picture(learned):
    records = [json.loads(line) for line in (learned[0] / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["gain"] for record in records] == [1, 1, 0.75, 0.25]
    assert ["validation_errors" in record for record in records] == [False, True, False, True]
    config = yaml.safe_load((learned[0] / "config.yaml").read_text())
    assert config["model"]["hidden_dims"] == [100, 100, 100]
    assert config["training"]["negatives"] == "hard"
    assert (learned[0] / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_model_makes_the_reported_errors(learned, mnist_root):
    result = json.loads((learned[0] / "result.json").read_text())
    model = build_model(composed("model.hidden_dims=[100,100,100]"), torch.float32)
    model.load_state_dict(torch.load(learned[0] / "model.pt", weights_only=True))
    _, _, test = load_mnist(root=mnist_root, device="cpu", validation_images=0)
    for batch_size in (1000, 3333):  # every image counts, also those of a last, smaller batch
        for rule, count in count_errors(model, test, batch_size).items():
            # Other sums inside the matrix products may settle a near tie differently.
            assert abs(int(count) - result[f"test_errors_{rule}"]) <= 3


def test_a_run_prints_progress_and_the_published_results(learned):
    lines = learned[1].splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 4
    for expected in ("this run (matlab)", "1.36", "1.47", "1.45", "seed 3", "layer 1 alone", "Tested once"):
        assert any(expected in line for line in lines)


def sweep(folder: Path, *overrides: str) -> list[dict]:
    """The results of a multirun: several jobs in one process, one after another."""
    done = command("-m", f"hydra.sweep.dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name.split("_")[0]))
    return [json.loads((job / "result.json").read_text()) for job in jobs]


def test_every_experiment_runs(tmp_path, mnist_root):
    results = sweep(tmp_path, f"experiment={','.join(EXPERIMENTS)}", f"data.root={mnist_root}", *SMALL)
    assert [result["name"] for result in results] == EXPERIMENTS
    assert all(result["test_images"] == 10000 and result["train_images"] == 1000 for result in results)


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, mnist_root):
    results = sweep(tmp_path, "seed=0,1,0", f"data.root={mnist_root}", *SMALL)
    first_errors, other_errors, again_errors = (
        {key: value for key, value in result.items() if key.startswith("test_error")} for result in results
    )
    assert first_errors == again_errors != other_errors
    first, other, again = (torch.load(next(tmp_path.glob(f"{job}_*")) / "model.pt", weights_only=True) for job in "012")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("override", ["training.epochz=1", "training.batch_size=0", "experiment=papier"])
def test_bad_input_is_one_line_before_any_data_is_loaded(override, tmp_path):
    done = command(f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", override)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_that_holds_a_run_is_left_alone(learned, mnist_root):
    before = {path: path.read_bytes() for path in learned[0].iterdir() if path.is_file() and path.name != "main.log"}
    done = command(f"data.root={mnist_root}", f"hydra.run.dir={learned[0]}", *SMALL)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {learned[0]} already holds a run; choose another hydra.run.dir, or resume={learned[0]}\n"
    )
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_damaged_data_file_is_one_line_and_nothing_is_trained(tmp_path, mnist_root):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_root / "MNIST" / "raw").glob("*-ubyte"):
        (raw / file.name).write_bytes(file.read_bytes())
    labels = raw / "train-labels-idx1-ubyte"
    damaged = bytearray(labels.read_bytes())
    damaged[100] ^= 1
    labels.write_bytes(damaged)
    done = command(f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "train-labels-idx1-ubyte" in done.stderr
    assert labels.read_bytes() == damaged
    assert not (tmp_path / "run" / "model.pt").exists()
