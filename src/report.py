"""Results as tables: `python -m src.report FOLDER...` makes them of every run in or below the folders.

`--published` makes the README's table of the experiments, beside what was published; `--csv FILE` writes full figures;
`--compare` tests whether two configurations differ in their errors.
"""

import argparse
import json
import sys
from pathlib import Path

from src.config.loading import CONFIGS
from src.results.runs import gather
from src.results.tables import (
    comparison,
    errors_by_layer,
    errors_over_seeds,
    experiments_table,
    measured_on,
    rows_of,
    summary_csv,
    two_sides,
)
from src.training.checkpoint import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description="Test errors (%%) of the runs in or below folders, over their seeds.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("results")], metavar="FOLDER")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too, with full figures")
    output.add_argument("--published", action="store_true", help="the experiments, beside what was published")
    output.add_argument("--compare", action="store_true", help="test two configurations for a difference (Welch)")
    parser.add_argument("--time", type=Path, metavar="FILE", help="of results/speed: how long the experiments take")
    arguments = parser.parse_args()
    runs = gather(arguments.folders)
    if arguments.compare:
        print(comparison(two_sides(runs)))
        return
    rows = rows_of(runs)
    if arguments.published:
        experiments = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
        try:
            speed = json.loads(arguments.time.read_text(encoding="utf-8")) if arguments.time else None
        except (OSError, ValueError) as error:
            sys.exit(f"error: {arguments.time} cannot be read: {error}")
        print(experiments_table(rows, experiments, speed))
        return
    by_layer = errors_by_layer(rows)
    print("\n\n".join(filter(None, [errors_over_seeds(rows), by_layer, measured_on(rows)])))
    if arguments.csv:
        try:
            write_atomically(arguments.csv, summary_csv(rows).encode())
        except (OSError, ValueError) as error:  # ValueError: "." and "/" are not names of files
            reason = error.strerror if isinstance(error, OSError) else error
            sys.exit(f"error: {arguments.csv} cannot be written: {reason}")


if __name__ == "__main__":
    main()
