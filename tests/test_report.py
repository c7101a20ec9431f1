"""Tables from result files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.report import group_runs, mean_and_deviation, net_name, summary_table
from src.runlog import clock

REPOSITORY = Path(__file__).resolve().parents[1]


def write_run(folder: Path, seed: int, goodness: float, learning_rate: float = 0.01) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"name: matlab\nseed: {seed}\ntraining: {{learning_rate: {learning_rate}}}\n"
        f"data: {{root: {folder}}}\nevaluation: {{every: {seed}}}\n"
    )
    result = {
        "name": "matlab", "seed": seed, "hidden_dims": [30, 30], "epochs": 7, "train_images": 60000,
        "test_error_goodness": goodness, "test_error_one_pass": goodness + 1, "test_error_goodness_layer_1": 9.0,
        "test_error_goodness_layer_2": 8.0, "test_error_goodness_all_layers": 7.0, "precision": "fp32",
        "hardware": "a CPU", "seconds_per_epoch": 2.0,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def test_runs_that_differ_only_in_seed_and_folder_share_a_row(tmp_path):
    write_run(tmp_path / "a" / "0", 0, 1.4)
    write_run(tmp_path / "a" / "1", 1, 1.6)
    write_run(tmp_path / "b", 0, 3.0, learning_rate=0.02)
    table = summary_table(group_runs(tmp_path))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    by_name = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [row["goodness"] for row in by_name] == ["1.50 ± 0.14", "3.00"]
    assert [row["one pass"] for row in by_name] == ["2.50 ± 0.14", "4.00"]
    assert [row["seeds"] for row in by_name] == ["0, 1", "0"]
    assert [row["published"] for row in by_name] == ["1.47 (goodness)", "-"]  # the second is not what was published


def test_an_empty_folder_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "src.report", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == f"error: there is no result.json below {tmp_path}\n"


@pytest.mark.parametrize(("values", "expected"), [([1.0], "1.00"), ([1.0, 2.0, 3.0], "2.00 ± 1.00")])
def test_mean_and_sample_deviation(values, expected):
    assert mean_and_deviation(values) == expected


def test_names():
    assert net_name([2000] * 4) == "4 x 2000"
    assert net_name([500, 300]) == "500-300"
    assert clock(59.6) == "1:00"
    assert clock(3 * 3600 + 61) == "3:01:01"
