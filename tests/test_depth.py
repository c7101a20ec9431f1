"""benchmarks/depth.py: real runs of small nets."""

import json
import sys

import pytest
from commands import REPOSITORY

from benchmarks import depth
from src.config.values import ConfigError


@pytest.fixture
def measured(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has; the runs are others

    def measured(*arguments):
        monkeypatch.setattr(sys, "argv", ["depth", str(tmp_path / "depth.json"), *arguments])
        depth.main()
        return capfd.readouterr().out

    return measured


def test_both_methods_are_measured_once_and_shown(tmp_path, few_images, measured):
    path = tmp_path / "depth.json"
    with pytest.raises(ConfigError, match=r"depth\.json cannot be read: "):
        measured("--show")
    arguments = [*few_images, "model.hidden_dims=[20,20]", "training.epochs=1", "--depths", "2", "--seeds", "3"]
    first = measured(*arguments)
    rows = json.loads(path.read_text())
    assert [(row["method"], row["depth"], row["seed"]) for row in rows] == [
        ("Forward-Forward", 2, 3), ("back-propagation", 2, 3),
    ]  # fmt: skip
    assert all(row["train_images"] == 1000 and 0.1 < row["peak_resident_gb"] < 5 for row in rows)
    ours, theirs = ([cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines()[2:])
    errors = [f"{rows[0][f'test_error_{rule}']:.2f}" for rule in ("goodness", "one_pass")]
    assert ours[:5] == ["2", "Forward-Forward", "3", *errors]
    assert theirs[:4] == ["2", "back-propagation", "3", "-"]

    assert measured(*arguments) == measured("--show") == first
    assert json.loads(path.read_text()) == rows
    with pytest.raises(SystemExit, match="measured with other overrides"):
        measured()
    path.write_text(json.dumps([row | {"hardware": "another"} for row in rows]))
    with pytest.raises(SystemExit, match="measured on other hardware"):
        measured(*arguments, "--seeds", "4")
    assert {row["seed"] for row in json.loads(path.read_text())} == {3}


def test_a_run_that_fails_ends_the_measurement(tmp_path, measured, capfd):
    with pytest.raises(SystemExit, match="ended with status 1"):
        measured("training.epochs=-1")
    assert "training.epochs" in capfd.readouterr().err and not (tmp_path / "depth.json").exists()


def test_the_page_has_the_measured_table():
    rows = json.loads((REPOSITORY / "results" / "depth.json").read_text())
    assert depth.table(rows) in (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8")
