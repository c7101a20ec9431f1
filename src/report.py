"""Results as tables: `python -m src.report FOLDER...` makes them of every run in or below the folders.

`--published` makes the README's table of the experiments, beside what was published; `--csv FILE` writes full figures;
`--compare` tests whether two configurations differ in their errors; `--validation` takes the validation images' errors.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # as in `python src/report.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import CONFIGS
from src.results import tables
from src.results.runs import gather
from src.training.checkpoint import write_atomically


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description="Errors (%%) of the runs in or below folders, over their seeds.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("results")], metavar="FOLDER")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too, with full figures")
    output.add_argument("--published", action="store_true", help="the experiments, beside what was published")
    output.add_argument("--compare", action="store_true", help="test two configurations for a difference (Welch)")
    parser.add_argument("--validation", action="store_true", help="errors on the validation images, to choose by")
    arguments = parser.parse_args()
    if arguments.validation and arguments.published:
        parser.error("what was published are test errors: --validation does not go with --published")
    runs = gather(arguments.folders, arguments.validation)
    if arguments.compare:
        print(tables.comparison(tables.two_sides(runs), "validation" if arguments.validation else "test"))
        return
    rows = tables.rows_of(runs)
    if arguments.published:
        experiments = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
        print(tables.experiments_table(rows, experiments))
        return
    images = "On the validation images:" if arguments.validation else ""
    shown = [images, tables.errors_over_seeds(rows), tables.errors_by_layer(rows), tables.measured_on(rows)]
    print("\n\n".join(filter(None, shown)))
    if arguments.csv:
        try:
            write_atomically(arguments.csv.resolve(), tables.summary_csv(rows).encode())
        except (OSError, ValueError) as error:  # ValueError: "." and "/" are not names of files
            sys.exit(f"error: {arguments.csv} cannot be written: {getattr(error, 'strerror', error)}")


if __name__ == "__main__":
    main()
