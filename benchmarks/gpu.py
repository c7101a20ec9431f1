"""Whether this project works on a GPU, and how fast.

    python -m benchmarks.gpu FILE.json [OVERRIDE...]                 measures with these values, and prints a table
    python -m benchmarks.gpu FILE.json --parts resume runs           some parts alone
    python -m benchmarks.gpu FILE.json --show                        prints the table of what was measured
    python -m benchmarks.gpu FILE.json --quick device=cpu            tries the script itself

What fails is a row, and the next one follows. FILE is rewritten after each row, so that nothing is lost with a lease.
"""

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import EXPERIMENTS, Running, configured, in_a_line, measured, speeds
from src.config.errors import one_line_errors
from src.config.values import Config
from src.datasets.batches import Examples
from src.datasets.table import load
from src.results.tables import markdown
from src.training.device import describe
from src.training.log import REPOSITORY, provenance, read_json, write_json
from src.training.validation import count_errors, scores_for

Row = tuple[str, str, str]  # what, value, target
ONE_OF_EACH = ["paper", "recurrent", "unsupervised", "local_receptive_fields", "backprop"]
FEW = "data.validation_images=57000"  # 3,000 to train on
QUICK = ("model.hidden_dims=[32,18,8]", "training.epochs=2")
data = cache(load)


def prepared(name: str, *overrides: str) -> tuple[Config, Examples, Examples, Examples]:
    """An experiment, with its training, validation and test examples on its device."""
    config, device = configured(f"experiment={name}", *overrides)
    return config, *data(config.dataset, config.data.root, device, config.data.validation_images)


def error(running: Running, examples: Examples) -> str:
    """By the method's first rule."""
    errors = count_errors(scores_for(running.net, examples.images, 1000), examples)
    return f"error {100 * next(iter(errors.values())) / len(examples):.2f} %"


def tests(_: str, *overrides: str) -> Iterator[Row]:
    """Those that need CUDA."""
    files = [str(path) for path in (REPOSITORY / "tests").glob("test_*.py") if "on_cuda" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-k", "cuda or host_never_waits", *files]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for failed in re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE):
        yield "a test", failed, ""
    yield "tests of CUDA", done.stdout.splitlines()[-1], "all pass"


def short_run(name: str, *overrides: str) -> tuple[dict[str, Tensor], str, float]:
    """A few epochs: the net, its error on the validation images and the seconds of the last epoch."""
    config, examples, validation, _ = prepared(name, FEW, "training.epochs=8", *overrides)
    running = Running(config, examples, config.training.epochs)
    *_, last = running.several(config.training.epochs)
    return running.net.state_dict(), error(running, validation), last


def graph(name: str, *overrides: str) -> Iterator[Row]:
    """A captured graph next to single launches, which should leave the same bits."""
    ours, its_error, last = short_run(name, *overrides, "training.cuda_graph=true")
    theirs, _, single = short_run(name, *overrides, "training.cuda_graph=false")
    yield f"{name}, graph", f"{alike(ours, theirs)}, {single / last:.2f} x as fast, {its_error}", "the same bits"


def compiled(name: str, *overrides: str) -> Iterator[Row]:
    """A compiled update next to one that is not."""
    _, its_error, last = short_run(name, *overrides, "training.compile=true")
    _, other_error, other = short_run(name, *overrides, "training.compile=false")
    yield f"{name}, compiled", f"{other / last:.2f} x as fast, {its_error}, else {other_error}", "as not compiled"


def alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    return "the same bits" if all(map(torch.equal, ours.values(), theirs.values())) else "other bits"


def resume(name: str, *overrides: str) -> Iterator[Row]:
    """A run that SIGTERM stops next to one that nothing does, in real processes."""

    def main(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "main", *arguments]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    unsaved = ("training.epochs=100", "evaluation.every=0", "training.checkpoint_every=0", "logging.pictures=false")
    run = (f"experiment={name}", FEW, *overrides, *unsaved)
    with tempfile.TemporaryDirectory() as folder:
        stopped, whole = (f"{folder}/{part}" for part in ("stopped", "whole"))
        with main(*run, f"hydra.run.dir={stopped}") as process:
            next((line for line in process.stdout if line.startswith("epoch 2/")), None)
            process.send_signal(signal.SIGTERM)
            *_, last = process.stdout.read().splitlines()
        for process in [main(f"resume={stopped}"), main(*run, f"hydra.run.dir={whole}")]:
            process.communicate()
        nets = [torch.load(f"{part}/model.pt", "cpu", weights_only=True) for part in (stopped, whole)]
    yield f"{name}, {last.partition(' of ')[0]} of 100", alike(*nets), "the same bits"


def speed(name: str, *overrides: str) -> Iterator[Row]:
    """As `python -m benchmarks.speed` has it."""
    config, examples, _, _ = prepared(name, *overrides)
    epoch, by_compiler, start = speeds(measured(config, examples[:6000], 5, compiled=examples.labels.is_cuda))
    yield f"{name}, 60,000 images", f"{epoch}; compiled {by_compiler}, start {start}", ""


def runs(name: str, *overrides: str) -> Iterator[Row]:
    """A whole run, compiled. Start: by how much longer its first epoch takes."""
    config, examples, _, test = prepared(name, "training.compile=true", *overrides)
    running = Running(config, examples, config.training.epochs)
    seconds = running.several(config.training.epochs)
    start = seconds[0] - statistics.median(seconds)
    what = f"{name}, {len(seconds)} epochs of {len(examples)}, {config.precision}"
    yield what, f"{sum(seconds) - start:.2f} s, start {start:.2f} s, {error(running, test)}", ""


# What is compiled comes last: how long the compiler takes is least certain.
PARTS = {
    "tests": (tests, [""]),
    "graph": (graph, [*ONE_OF_EACH, *(name for name in EXPERIMENTS if name not in ONE_OF_EACH)]),
    "resume": (resume, ONE_OF_EACH[:3]),
    "speed": (speed, ["matlab", "paper", "recurrent", "unsupervised"]),
    "runs": (runs, ["paper", "matlab"]),
    "compiled": (compiled, ONE_OF_EACH),
}


def table(result: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = []
    for name, part in result["parts"].items():
        rows += [*part["rows"], *([[name, part["error"], ""]] if part.get("error") else [])]
    header = f"{result['hardware']}, torch {result['versions']['torch']}:"
    return f"{header}\n\n{markdown(['what', 'value', 'target'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="few epochs of small nets, and one experiment a part")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_intermixed_args()
    path = arguments.file
    if arguments.show:
        print(table(read_json(path)))
        return
    if path.exists():
        sys.exit(f"error: {path} exists; name another file, or print its table with --show")
    overrides = ["device=cuda", *arguments.overrides, *(QUICK if arguments.quick else ())]
    _, device = configured(*overrides)
    result = {"hardware": describe(device), **provenance(), "parts": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        measure, names = PARTS[part]
        rows = result["parts"].setdefault(part, {"rows": []})["rows"]
        for name in names[:1] if arguments.quick else names:
            print(part, name, file=sys.stderr, flush=True)
            try:
                rows += measure(name, *overrides)
            except Exception as wrong:
                rows.append([name, in_a_line(wrong), ""])
            write_json(path, result)
    print(table(result))


if __name__ == "__main__":
    with one_line_errors():
        main()
