"""benchmarks/gpu.py, as far as it goes without a GPU."""

import sys
from unittest.mock import Mock

import pytest
from commands import REPOSITORY

from benchmarks import gpu
from src.training.log import read_json


def test_every_part_has_its_rows_and_one_that_fails_costs_no_other(tmp_path, few_images, monkeypatch, capfd):
    """The tests of CUDA are left out, and what compiles."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has; the runs are others
    monkeypatch.setitem(gpu.PARTS, "runs", (Mock(side_effect=ValueError("no luck\nand more")), ["paper"]))
    path = tmp_path / "gpu.json"
    overrides = [*few_images, "data.validation_images=500", "device=cpu"]
    arguments = ["gpu", str(path), "--quick", *overrides, "--parts", "runs", "graph", "resume", "speed"]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu.main()
    printed = capfd.readouterr().out
    parts = read_json(path)["parts"]
    (failed,), (graph,), (resumed,), (speed,) = (part["rows"] for part in parts.values())
    assert failed == ["paper", "error: ValueError: no luck", ""]
    assert graph[0] == "paper, graph" and graph[1].startswith("the same bits, ")
    assert resumed == ["paper, stopped after epoch 2 of 100", "the same bits", "the same bits"]
    assert speed[0] == "matlab, 60,000 images" and speed[1].endswith(" x; compiled -, start -")
    with pytest.raises(SystemExit, match=r"gpu\.json exists"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu", str(path), "--show"])
    gpu.main()
    assert capfd.readouterr().out == printed


def test_the_kept_file_is_shown():
    shown = gpu.table(read_json(REPOSITORY / "results" / "gpu" / "nvidia_h200.json"))
    assert shown.startswith("NVIDIA H200, torch 2.11.0:") and "| paper, 60 epochs, bf16 " in shown
