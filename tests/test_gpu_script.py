"""benchmarks/gpu.py, as far as it goes without a GPU: the real command on few images, and parts that fail."""

import json
import sys

import pytest
from commands import REPOSITORY, command
from failing_parts import failing, failing_slowly, hanging

from benchmarks import gpu
from benchmarks.parts import each, measured
from src.config.values import ConfigError


def measure(path, few_images, *arguments):
    root = next(override.partition("=")[2] for override in few_images if override.startswith("data.root="))
    options = ["--device", "cpu", "--quick", "--dataset", "idx", "--data-root", root]
    return command(str(path), *options, *arguments, module="benchmarks.gpu")


def test_every_part_has_its_rows(tmp_path, few_images, monkeypatch, capsys):
    """The tests of CUDA are left out: they need no script to be skipped."""
    path = tmp_path / "gpu.json"
    done = measure(path, few_images, "--parts", "experiments", "resume", "timings", "runs", "compiled")
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text(encoding="utf-8"))
    assert all(part["error"] is None for part in result["parts"].values()) and "error:" not in done.stdout
    rows = {row[0]: row[1] for part in result["parts"].values() for row in part["rows"]}
    assert "(+0.0%)" in rows["paper"] and rows["paper, no graph"] == rows["paper, compiled"] == "needs CUDA"
    assert sum("relative difference 0.0e+00" in value for value in rows.values()) == 1
    assert rows["matlab, 2 epochs of 1000, fp32"].endswith(" s") and rows["paper, test error"].endswith(" %")
    monkeypatch.setattr(sys, "argv", ["gpu", str(path), "--show"])
    gpu.main()
    assert capsys.readouterr().out == done.stdout
    monkeypatch.setattr(sys, "argv", ["gpu", str(path), "--device", "cpu", "--parts", "resume"])
    for key in ("hardware", "versions"):
        other = json.dumps(result | {key: "another"})
        path.write_text(other, encoding="utf-8")
        with pytest.raises(SystemExit, match="was measured on other hardware"):
            gpu.main()
        assert path.read_text(encoding="utf-8") == other
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "none.json"), "--show"])
    with pytest.raises(ConfigError, match="cannot be read"):
        gpu.main()


def test_a_part_that_fails_loses_itself_alone(tmp_path, few_images):
    """There are no data for the first one; the second one takes the place of what was there."""
    path = tmp_path / "gpu.json"
    kept = {"rows": [["kept", "1 s", ""]], "seconds": 1, "error": None}
    path.write_text(json.dumps({"parts": {"timings": kept, "compiled": kept}}), encoding="utf-8")
    done = measure(path, few_images, "--parts", "experiments", "compiled", "--data-root", str(tmp_path))
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert parts["timings"] == kept
    assert parts["compiled"]["rows"][0] == ["paper, compiled", "needs CUDA", "as not compiled"]
    assert all(row[1].startswith("error: src.datasets.idx.DataError") for row in parts["experiments"]["rows"])
    assert done.stdout.count("DataError") == 1


def test_what_was_known_before_a_failure_is_kept():
    late = measured(hanging, 100, limit=4)
    assert late["rows"] == [["before", "1", ""]] and late["error"] == "error: ended after 4 s" and late["seconds"] < 40
    failed = measured(failing, "luck", limit=60)
    assert failed["rows"] == [["luck", "1", ""]] and failed["error"] == "error: ValueError: no luck"
    slow = measured(failing_slowly, 100, limit=4)
    assert slow["rows"] == [["slowness", "1", ""]] and slow["error"] == "error: ValueError: no slowness"
    assert list(each("ab", failing))[1::2] == [
        ("a", "error: ValueError: no a", ""),
        ("b", "error: ValueError: no b", ""),
    ]


def test_all_fits_into_nine_minutes_and_no_test_of_cuda_is_forgotten():
    assert gpu.SECONDS.keys() == gpu.PARTS.keys() and sum(gpu.SECONDS.values()) < 9 * 60 - 20
    files = (REPOSITORY / "tests").glob("test_*.py")
    marked = {f"tests/{path.name}" for path in files if "@on_cuda" in (text := path.read_text()) or "=on_cuda" in text}
    assert marked - {"tests/test_gpu_script.py"} == set(gpu.CUDA_TESTS[:2])
