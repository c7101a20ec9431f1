"""docs/forward_forward.ipynb, which newcomers open: kept without outputs, and every cell runs."""

import re
from contextlib import nullcontext

import nbformat
import pytest
from commands import REPOSITORY
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PATH = REPOSITORY / "docs" / "forward_forward.ipynb"
TEXT = PATH.read_text(encoding="utf-8")
FIGURES = "positives-and-negatives goodness-of-labels goodness-of-test-images receptive-fields activities"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.reads(TEXT, as_version=4)


def test_nothing_of_a_run_or_a_machine_is_stored(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata and not cell.get("outputs") and not cell.get("execution_count"), cell.id
    assert notebook.metadata.keys() == {"kernelspec", "language_info"} and len(notebook.metadata.language_info) == 1


@pytest.mark.parametrize("cloned", [True, False])
def test_the_first_cell_finds_a_clone_in_its_folder_or_asks_for_one(notebook, cloned, tmp_path):
    """As on Colab."""
    if cloned:
        (tmp_path / "clone").symlink_to(REPOSITORY)
    notebook.cells = [cell for cell in notebook.cells if cell.id == "set-up"]
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    with nullcontext() if cloned else pytest.raises(CellExecutionError, match="git clone"):
        client.execute()


def test_every_cell_runs(notebook, mnist_root, monkeypatch, tmp_path):
    """From its own folder, as Jupyter starts it. Its runs learn something, and its pictures are shown."""
    for name, value in {"FF_DATA_ROOT": mnist_root.resolve(), "OMP_NUM_THREADS": 1, "TMPDIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}}).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    shown = {name for name, its in outputs.items() if any("image/png" in output.get("data", {}) for output in its)}
    assert shown == set(FIGURES.split())
    said = {name: "".join(output.get("text", "") for output in its) for name, its in outputs.items()}
    errors = [float(error) for error in re.findall(r"test error by \w+: (.+) %", said["train"])]
    assert len(errors) == 2 and max(errors) < 6
    compared = re.findall(r"(\w+): validation error (.+) % by goodness, (.+) % by one_pass", said["compare"])
    assert [name for name, *_ in compared] == ["sum_of_squares", "length"]
    assert all(float(by_goodness) < 20 and float(one_pass) < 10 for _, by_goodness, one_pass in compared)
    assert said["export"].strip() == "chosen labels: [7, 2, 1, 0, 4, 1, 4, 9]"
