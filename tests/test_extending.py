"""docs/extending.md keeps its word: every addition on that page is made in a copy of the repository, and trained."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ONE_THREAD, REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(python|yaml|bash)\n(.*?)```", re.DOTALL)
PLACE = re.compile(r"^# (append to|new file) (\S+)$", re.MULTILINE)
SMALL = [
    "training.epochs=1", "data.validation_images=59000", "evaluation.every=0", "logging.pictures=false", "device=cpu",
    "model.hidden_dims=[24,20]",
]  # fmt: skip
RUNS = """
import json, sys
from pathlib import Path
from src.config.loading import composed, load
from src.experiment import run

for number, overrides in enumerate(json.loads(sys.argv[1])):
    result = run(load(composed(*overrides)), Path(f"run{number}"))
    print(json.dumps({key: result[key] for key in ("name", "method", "dataset", "epochs")}))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory, mnist_root) -> tuple[Path, list[list[str]]]:
    """A copy of the repository with all that the page adds, and the overrides of its commands."""
    copy, commands = tmp_path_factory.mktemp("extended"), []
    for name in ("src", "configs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "datasets").mkdir()
    (copy / "datasets" / "MNIST").symlink_to(mnist_root.resolve() / "MNIST")
    for language, content in BLOCK.findall(PAGE):
        if language == "bash":
            commands += [shlex.split(line) for line in content.splitlines()]
        else:
            how, name = PLACE.search(content).groups()
            assert (copy / name).exists() == (how == "append to"), name
            with (copy / name).open("a", encoding="utf-8") as file:
                file.write("\n\n" + content if how == "append to" else content)
    return copy, commands


def test_every_addition_trains(extended):
    copy, commands = extended
    runs = [words[3:] for words in commands if words[:3] == ["python", "-m", "main"]]
    options = dict(cwd=copy, env=ONE_THREAD | {"PYTHONPATH": "."}, text=True)
    for words in commands:
        if words[1].endswith(".py"):  # which makes a data set
            subprocess.run([sys.executable, "-B", *words[1:]], check=True, **options)
    names = [word.removeprefix("name=") for words in runs for word in words if word.startswith("name=")]
    assert len(names) == len(runs) >= 7
    small = json.dumps([[*words, *SMALL] for words in runs])
    done = subprocess.run([sys.executable, "-c", RUNS, small], capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(result["name"], result["epochs"]) for result in results] == [(name, 1) for name in names]
    assert {"supervised", "unsupervised"} < {result["method"] for result in results}
    assert {"npz", "mirrored"} < {result["dataset"] for result in results}


def test_an_addition_is_short():
    assert all(len(content.splitlines()) <= 25 for _, content in BLOCK.findall(PAGE))
