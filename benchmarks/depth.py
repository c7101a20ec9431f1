"""What Forward-Forward costs or gains against back-propagation as a net gets deeper: error, time and memory.

    python -m benchmarks.depth results/depth.json [OVERRIDE...]   measures what is missing in the file
    python -m benchmarks.depth results/depth.json --show          prints its table

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
from src.config.loading import composed
from src.results.tables import markdown, ranges, with_spread
from src.training.device import describe, resolve_precision, use
from src.training.log import REPOSITORY, read_json, read_result, write_json

RUNS = {
    "Forward-Forward": ["experiment=quick"],
    "back-propagation": ["experiment=backprop", "data.validation_images=10000", "training.epochs=10"],
}
WIDTH = 1000
KEPT = ("test_error_goodness", "test_error_one_pass", "seconds_per_epoch", "epochs", "train_images", "precision",
        "hardware", "commit")  # fmt: skip


def peak_resident_gb(arguments: list[str]) -> float:
    """The most memory that `python -m main ARGUMENT...` has had at a time, in GB.

    Raises:
        SystemExit: it failed.
    """
    process = subprocess.Popen([sys.executable, "-m", "main", *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: python -m main {' '.join(arguments)} ended with status {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(method: str, depth: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run's test errors (%), seconds and memory."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"model.hidden_dims={[WIDTH] * depth}".replace(" ", ""), f"seed={seed}", f"hydra.run.dir={folder}/run"]
        common = ["device=cpu", "evaluation.every=0", "logging.pictures=false"]
        peak = peak_resident_gb([*RUNS[method], *common, *own, *overrides])
        result = read_result(Path(folder) / "run")
    kept = {key: result[key] for key in KEPT if key in result}
    return {"method": method, "depth": depth, "seed": seed, "overrides": overrides, "peak_resident_gb": peak} | kept


def table(rows: list[dict[str, Any]]) -> str:
    """The runs over their seeds as Markdown."""
    lines = []
    for depth, method in product(sorted({row["depth"] for row in rows}), RUNS):
        of_net = [row for row in rows if (row["depth"], row["method"]) == (depth, method)]
        if of_net:
            errors = [
                with_spread([row[key] for row in of_net if key in row])
                for key in ("test_error_goodness", "test_error_one_pass")
            ]
            seconds, peak = (median(row[key] for row in of_net) for key in ("seconds_per_epoch", "peak_resident_gb"))
            seeds = ranges(sorted(row["seed"] for row in of_net))
            lines.append([str(depth), method, seeds, *errors, f"{seconds:.1f} s", f"{peak:.2f} GB"])
    return markdown(["layers", "trained by", "seeds", "% by goodness", "% in one pass", "an epoch", "memory"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="values that both methods get")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8], metavar="L")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument("--show", action="store_true", help="print the table of what was measured before")
    arguments = parser.parse_args()
    rows = read_json(arguments.file) if arguments.show or arguments.file.exists() else []
    if any(row["overrides"] != arguments.overrides for row in rows) and not arguments.show:
        sys.exit(f"error: {arguments.file} was measured with other overrides; name another file")
    cpu, asked = use("cpu"), composed(*arguments.overrides).precision
    here = {"hardware": describe(cpu), "precision": resolve_precision(asked, cpu)}
    if any(row[key] != value for row in rows for key, value in here.items()) and not arguments.show:
        sys.exit(f"error: {arguments.file} was measured on other hardware, threads or precision; name another file")
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    for seed, depth, method in product([] if arguments.show else arguments.seeds, arguments.depths, RUNS):
        if not any((row["seed"], row["depth"], row["method"]) == (seed, depth, method) for row in rows):
            rows.append(measure(method, depth, seed, arguments.overrides))
            write_json(arguments.file, rows)
    print(table(rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
