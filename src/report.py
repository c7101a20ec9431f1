"""Results as tables: `python -m src.report FOLDER...` makes them of every run in or below the folders.

`--published` makes the README's table of the experiments, beside what was published; `--compare` tests whether two
configurations differ in their errors; `--validation` takes the validation images' errors.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # as in `python src/report.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import CONFIGS
from src.results import tables
from src.results.runs import gather, rows_of


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description="Errors (%%) of the runs in or below folders, over their seeds.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("results")], metavar="FOLDER")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--published", action="store_true", help="the experiments, beside what was published")
    output.add_argument("--compare", action="store_true", help="test two configurations for a difference (Welch)")
    parser.add_argument("--validation", action="store_true", help="errors on the validation images, to choose by")
    arguments = parser.parse_args()
    if arguments.validation and arguments.published:
        parser.error("what was published are test errors: --validation does not go with --published")
    rows = rows_of(gather(arguments.folders, arguments.validation))
    if arguments.compare:
        print(tables.comparison(rows, "validation" if arguments.validation else "test"))
    elif arguments.published:
        print(tables.experiments_table(rows, sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))))
    else:
        images = "On the validation images:" if arguments.validation else ""
        shown = [images, tables.errors_over_seeds(rows), tables.errors_by_layer(rows), tables.measured_on(rows)]
        print("\n\n".join(filter(None, shown)))


if __name__ == "__main__":
    main()
