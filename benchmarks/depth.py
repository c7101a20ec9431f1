"""What Forward-Forward costs or gains against back-propagation as a net gets deeper: error, time and memory.

    python -m benchmarks.depth FILE.json [OVERRIDE...]   measures what is missing in the file, and prints its table

Both train on the same images for as many epochs (`RUNS`), on the CPU. Each run is a process of its own, for its memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from src.config.errors import one_line_errors
from src.results.tables import markdown, ranges, with_spread
from src.training.device import describe, use
from src.training.log import REPOSITORY, read_json, write_json

RUNS = {
    "Forward-Forward": ["experiment=quick"],
    "back-propagation": ["experiment=backprop", "data.validation_images=10000", "training.epochs=10"],
}
KEPT = ("test_error_goodness", "test_error_one_pass", "seconds_per_epoch", "epochs", "train_images", "precision",
        "hardware", "commit")  # fmt: skip


def measure(method: str, depth: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run's test errors (%), seconds, and the most memory (GB) that it has had at a time."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *RUNS[method], f"model.hidden_dims={[1000] * depth}", f"seed={seed}", "device=cpu", "evaluation.every=0",
            "logging.pictures=false", f"hydra.run.dir={folder}/run", *overrides,
        ]  # fmt: skip
        command = [sys.executable, "-m", "main", *arguments]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {method}, {depth} layers, seed {seed}: status {process.returncode}")
        result = read_json(Path(folder) / "run" / "result.json")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    row = {"method": method, "depth": depth, "seed": seed, "overrides": overrides, "peak_resident_gb": peak}
    return row | {key: result[key] for key in KEPT if key in result}


def table(rows: list[dict[str, Any]]) -> str:
    """The runs over their seeds as Markdown."""
    lines = []
    for depth, method in product(sorted({row["depth"] for row in rows}), RUNS):
        of_net = [row for row in rows if (row["depth"], row["method"]) == (depth, method)]
        if of_net:
            errors = [with_spread([row[key] for row in of_net if key in row]) for key in KEPT[:2]]
            seconds, peak = (median(row[key] for row in of_net) for key in ("seconds_per_epoch", "peak_resident_gb"))
            seeds = ranges(sorted(row["seed"] for row in of_net))
            lines.append([str(depth), method, seeds, *errors, f"{seconds:.1f} s", f"{peak:.2f} GB"])
    return markdown(["layers", "trained by", "seeds", "% by goodness", "% in one pass", "an epoch", "memory"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="values that both methods get")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8], metavar="L")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], metavar="SEED")
    arguments = parser.parse_intermixed_args()
    rows = read_json(arguments.file) if arguments.file.exists() else []
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    here = (describe(use("cpu")), arguments.overrides)
    done = {(row["seed"], row["depth"], row["method"]) for row in rows}
    for run in product(arguments.seeds, arguments.depths, RUNS):
        if run in done:
            continue
        if any((row["hardware"], row["overrides"]) != here for row in rows):
            sys.exit(f"error: {arguments.file} was measured on other hardware or with other values; name another file")
        seed, depth, method = run
        rows.append(measure(method, depth, seed, arguments.overrides))
        write_json(arguments.file, rows)
    print(table(rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
