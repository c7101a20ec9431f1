"""benchmarks/depth.py: real runs of small nets."""

import json
import sys

import pytest
from commands import REPOSITORY

from benchmarks import depth


def test_both_methods_are_measured_once(tmp_path, few_images, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has; the runs are others
    path = tmp_path / "depth.json"

    def measured(*arguments):
        monkeypatch.setattr(sys, "argv", ["depth", str(path), *arguments])
        depth.main()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in capfd.readouterr().out.splitlines()[2:]]

    with pytest.raises(SystemExit, match="Forward-Forward, 2 layers, seed 1: status 1"):
        measured("training.epochs=-1")
    assert "training.epochs" in capfd.readouterr().err and not path.exists()
    arguments = [*few_images, "model.hidden_dims=[20,20]", "training.epochs=1", "--depths", "2", "--seeds", "3"]
    ours, theirs = first = measured(*arguments)
    rows = json.loads(path.read_text())
    assert all(row["train_images"] == 1000 and 0.1 < row["peak_resident_gb"] < 5 for row in rows)
    errors = [f"{rows[0][f'test_error_{rule}']:.2f}" for rule in ("goodness", "one_pass")]
    assert ours[:5] == ["2", "Forward-Forward", "3", *errors]
    assert theirs[:4] == ["2", "back-propagation", "3", "-"]
    assert measured(*arguments) == first and json.loads(path.read_text()) == rows
    with pytest.raises(SystemExit, match="with other values"):
        measured("--seeds", "4")


def test_the_page_has_the_measured_table():
    rows = json.loads((REPOSITORY / "results" / "depth.json").read_text())
    assert depth.table(rows) in (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8")
