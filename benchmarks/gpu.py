"""Whether this project works on a GPU, and how fast: all in one call of less than nine minutes.

    python -m benchmarks.gpu FILE.json                        measures, writes the file and prints its table
    python -m benchmarks.gpu FILE.json --parts resume         measures one part or some anew; the others stay
    python -m benchmarks.gpu FILE.json --show                 prints the table of a file that is there
    python -m benchmarks.gpu FILE.json --device cpu --quick   tries the script itself on few images and small nets

Each part is a process of its own that is ended when its time is up, and the file is rewritten after each. So a kernel
that hangs, or leaves the device unusable, costs the rest of its part and no other.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

from benchmarks.parts import Row, each, measured
from benchmarks.plain import seconds_per_image
from benchmarks.speed import EXPERIMENTS, NETS, REPOSITORY, Running, say, settings
from src import methods
from src.config.errors import one_line_errors
from src.config.loading import as_argument
from src.config.values import SIDE, Config
from src.datasets.batches import Examples
from src.datasets.table import DATASETS, load
from src.results.tables import markdown
from src.training.device import describe, resolve_device, resolve_precision
from src.training.log import provenance, read_json, write_json
from src.training.validation import count_errors, scores_for

# For each part, in order.
SECONDS = {"tests": 30, "experiments": 125, "resume": 85, "timings": 90, "runs": 85, "compiled": 100}
CUDA_TESTS = ["tests/test_epochs.py", "tests/test_layers.py", "-k", "cuda or host_never_waits"]
ONE_OF_EACH = ["paper", "recurrent", "unsupervised", "local_receptive_fields", "backprop"]
SHORT = 8  # epochs, after which the errors of most experiments differ by no more than a few points
QUICK = ("model.hidden_dims=[32,18,8]", "training.epochs=2", "data.validation_images=0")
NEEDS_CUDA = "needs CUDA"
data = cache(load)


class At(NamedTuple):
    """Where, with what, and how much to measure."""

    device: str  # cuda or cpu
    dataset: str
    root: str
    images: int  # to train on where runs are compared
    experiments: list[str]
    overrides: tuple[str, ...]

    def config(self, *overrides: str, device: str | None = None) -> Config:
        """For `device`, or else for that of `At`: in the precision that is the fastest on a GPU, or fp32 on a CPU."""
        precision = resolve_precision("auto", torch.device("cuda")) if (device or self.device) == "cuda" else "fp32"
        return settings(*overrides, *self.overrides, precision=precision)

    def examples(self, validation_images: int = 0) -> tuple[Examples, Examples, Examples]:
        return data(self.dataset, self.root, self.device, validation_images)


def tests(at: At) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *CUDA_TESTS]
    wide = os.environ | {"COLUMNS": "400"}  # or the names leave no room for what went wrong
    done = subprocess.run(command, cwd=REPOSITORY, env=wide, stdout=subprocess.PIPE, text=True)
    for failed in re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE):
        yield "a test", failed.replace("|", "/")[:300], ""
    yield "tests of CUDA", (done.stdout.splitlines() or [f"error: pytest ended with {done.returncode}"])[-1], "all pass"


def test_error(config: Config, net: torch.nn.Module, examples: Examples) -> float:
    """In percent, by the method's first rule."""
    scores = scores_for(methods.named(config.method).scores, net, examples.images, config.evaluation.batch_size)
    return 100 * next(iter(count_errors(scores, examples).values())) / len(examples)


def short_run(at: At, config: Config, device: str) -> dict[str, float]:
    """Losses of the last of SHORT epochs and its seconds; the error (in percent) after it, on other training images."""
    examples, validation, _ = (part[: at.images].to(device) for part in at.examples(at.images))
    running = Running(examples, config, torch.device(device))
    for _ in range(SHORT):
        started = time.perf_counter()
        figures = next(running.epochs)
        seconds = time.perf_counter() - started
    losses = {"loss": sum(figures["loss"])} if figures["loss"] else {}
    losses["read-out"] = figures["readout_loss"]
    return losses | {"error": test_error(config, running.net, validation), "seconds": seconds}


def beside(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """ "loss 0.51 (+0.3%), read-out 0.2 (-1.0%), error 7.1 % (7.0 %), 12.00 x as fast": ours, beside theirs."""
    losses = [
        f"{key} {ours[key]:.4g} ({ours[key] / theirs[key] - 1:+.1%})" for key in ours.keys() & {"loss", "read-out"}
    ]
    errors = f"error {ours['error']:.2f} % ({theirs['error']:.2f} %)"
    return ", ".join([*sorted(losses), errors, f"{theirs['seconds'] / ours['seconds']:.2f} x as fast"])


def experiments(at: At) -> Iterator[Row]:
    """Each beside the CPU, whose random numbers are others: figures are alike, not equal."""

    def rows(name: str) -> Iterator[Row]:
        on_cpu = short_run(at, at.config(f"experiment={name}", device="cpu"), "cpu")
        ours = short_run(at, at.config(f"experiment={name}"), at.device)
        yield name, beside(ours, on_cpu), "as on the CPU"
        if at.device == "cuda":
            ungraphed = short_run(at, at.config(f"experiment={name}", "training.cuda_graph=false"), at.device)
        yield f"{name}, no graph", beside(ungraphed, on_cpu) if at.device == "cuda" else NEEDS_CUDA, "as on the CPU"

    return each(at.experiments, rows)


def compiled(at: At) -> Iterator[Row]:
    """One of each kind, beside the same without the compiler."""

    def rows(name: str) -> Iterator[Row]:
        value = NEEDS_CUDA
        if at.device == "cuda":
            config = at.config(f"experiment={name}")
            started = time.perf_counter()
            ours = short_run(at, at.config(f"experiment={name}", "training.compile=true"), at.device)
            value = f"{time.perf_counter() - started:.0f} s in all, {beside(ours, short_run(at, config, at.device))}"
        yield f"{name}, compiled", value, "as not compiled"

    return each([name for name in ONE_OF_EACH if name in at.experiments], rows)


def resume(at: At) -> Iterator[Row]:
    """A run that SIGTERM stops and one that nothing does, in real processes."""

    def main(*overrides: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "main", *overrides]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    def rows(name: str) -> Iterator[Row]:
        validation = f"data.validation_images={len(at.examples()[0]) - at.images}"
        unsaved = ("training.epochs=100", "evaluation.every=0", "training.checkpoint_every=0", "logging.pictures=false")
        run = (f"experiment={name}", f"device={at.device}", f"dataset={at.dataset}", as_argument("data.root", at.root))
        run = (*run, *at.overrides, *unsaved, validation)
        with tempfile.TemporaryDirectory() as folder:
            stopped, whole = (f"{folder}/{part}" for part in ("stopped", "whole"))
            with main(*run, f"hydra.run.dir={stopped}") as process:
                next((line for line in process.stdout if line.startswith("epoch 2/")), None)
                process.send_signal(signal.SIGTERM)
                last = process.stdout.read().splitlines()[-1:]
            if process.returncode != 128 + signal.SIGTERM:
                raise RuntimeError(f"the run to be stopped ended with {process.returncode}: {last}")
            for process in [main(f"resume={stopped}"), main(*run, f"hydra.run.dir={whole}")]:
                process.communicate()
                if process.returncode:
                    raise RuntimeError(f"a run ended with {process.returncode}")
            ours, theirs = (torch.load(f"{part}/model.pt", "cpu", weights_only=True) for part in (stopped, whole))
        furthest = max(float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs)
        yield f"{name}, {last[0].partition(' of ')[0]} of 100", f"relative difference {furthest:.1e}", "0, or rounding"

    return each([name for name in ONE_OF_EACH[:3] if name in at.experiments], rows)


def kernels(running: Running, steps: int) -> tuple[float, float]:
    """Kernels and copies a step, and the share of the time (measured without the profiler) in which none runs."""
    seconds = running.several(4)[-1]
    with torch.profiler.profile() as profiler:
        running.epoch_seconds()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    # Named ranges, as the optimiser's, lie over kernels.
    events = [event for event in events if not (event.is_user_annotation or event.name.startswith("Optimizer"))]
    return len(events) / steps, 1 - sum(event.time_range.elapsed_us() for event in events) / 1e6 / seconds


def of_kernels(at: At, name: str, how: str, *overrides: str) -> Iterator[Row]:
    value = NEEDS_CUDA
    if at.device == "cuda":
        config = at.config(f"experiment={name}", *overrides)
        examples = at.examples()[0][: 60 * config.training.batch_size]
        count, idle = kernels(Running(examples, config, torch.device(at.device)), 60)
        value = f"{count:.1f} a step, none runs {idle:.0%} of the time"
    yield f"{name}, {how}, kernels", value, ""


def runs(at: At) -> Iterator[Row]:
    """From the first epoch to the last, compiled where there is a GPU."""
    targets = {"paper": "at most 10 s", "matlab": "at most 6 s"}

    def rows(name: str) -> Iterator[Row]:
        yield from whole_run(at, name, targets[name])
        yield from of_kernels(at, name, "compiled", "training.compile=true")

    yield from each(targets, rows)


def whole_run(at: At, name: str, target: str) -> Iterator[Row]:
    compiling = ["training.compile=true"] if at.device == "cuda" else []
    config, device = at.config(f"experiment={name}", *compiling), torch.device(at.device)
    examples, _, test = at.examples(config.data.validation_images)
    running = Running(examples, config, device, epochs=config.training.epochs)
    times = [time.perf_counter()]  # an epoch ends with its figures on the host
    times += [time.perf_counter() for _ in running.epochs]
    seconds = [after - before for before, after in pairwise(times)]
    start = max(0.0, seconds[0] - statistics.median(seconds))
    what = f"{name}, {len(seconds)} epochs of {len(examples)}, {config.precision}"
    yield what, f"{sum(seconds) - start:.2f} s", target
    yield f"{name}, start", f"{start:.2f} s", ""
    yield f"{name}, test error", f"{test_error(config, running.net, test):.2f} %", ""


def timings(at: At) -> Iterator[Row]:
    """Start: how much longer the first epoch takes."""
    device = torch.device(at.device)

    def epoch(name: str) -> Iterator[Row]:
        examples = at.examples()[0]
        first, *_, last = Running(examples, at.config(f"experiment={name}"), device).several(3)
        yield f"{name}, an epoch of {len(examples)}", f"{last:.2f} s, start {max(0.0, first - last):.2f} s", ""

    def graphed_or_not(name: str) -> Iterator[Row]:
        yield from of_kernels(at, name, "a graph", "training.cuda_graph=true")
        yield from of_kernels(at, name, "no graph", "training.cuda_graph=false")

    def plain(workers: str) -> Iterator[Row]:
        sizes = {"batch_size": 100, "images": 2 * at.images, "workers": int(workers), "device": device}
        seconds = seconds_per_image(data(at.dataset, at.root, "cpu", 0)[0], [SIDE * SIDE, *NETS["matlab"]], **sizes)
        yield f"the plain way, 3 x 1000, {workers} loader processes", f"{60_000 * seconds:.1f} s an epoch of 60,000", ""

    names = ["matlab", "paper", "recurrent", "unsupervised"]
    yield from each(names, epoch)
    yield from each(names, graphed_or_not)
    yield from each(["0", str(min(8, os.cpu_count() or 1))], plain)


# What is compiled comes last: how long the compiler takes is least certain.
PARTS = {
    "tests": tests,
    "experiments": experiments,
    "resume": resume,
    "timings": timings,
    "runs": runs,
    "compiled": compiled,
}


def table(result: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = []
    for name, part in result["parts"].items():
        rows += [*part["rows"], *([[name, part["error"], ""]] if part["error"] else [])]
    header = f"{result['hardware']}, torch {result['versions']['torch']}:"
    return header + "\n\n" + markdown(["what", "value", "target"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--dataset", default="mnist", choices=DATASETS)
    parser.add_argument("--data-root", default="datasets")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    path, result = arguments.file, {"parts": {}}
    if arguments.show or path.exists():
        result = read_json(path)
    if not arguments.show:
        here = {"hardware": describe(resolve_device(arguments.device))} | provenance()
        if any(result.get(key, here[key]) != here[key] for key in ("hardware", "versions")):
            sys.exit(f"error: {path} was measured on other hardware, or with other versions; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        result |= here
        every = [*ONE_OF_EACH, *(name for name in EXPERIMENTS if name not in ONE_OF_EACH)]
        size = (200, ONE_OF_EACH[:1], QUICK) if arguments.quick else (3000, every, ())
        at = At(arguments.device, arguments.dataset, arguments.data_root, *size)
        for part in arguments.parts:
            say(f"{part}: at most {SECONDS[part]} s")
            result["parts"][part] = measured(PARTS[part], at, limit=SECONDS[part]) | {"commit": here["commit"]}
            write_json(path, result)
    print(table(result))


if __name__ == "__main__":
    with one_line_errors():
        main()
