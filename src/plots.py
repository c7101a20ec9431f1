"""Draws the pictures of a run into its folder: `python -m src.plots RUN_FOLDER`."""

import argparse
import logging
import sys
from pathlib import Path

if not __package__:  # as in `python src/plots.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import ConfigError
from src.evaluate import tested
from src.pictures.figures import draw_learning_curve, save_figure
from src.results.pictures import draw_run
from src.training.log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data-root", help="where the data are, if no longer where the run found them")
    arguments = parser.parse_args()
    folder = arguments.folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # for data that have to be fetched
    with one_line_errors():
        config = load_saved(folder)
        if (folder / "model.pt").is_file():
            for path in draw_run(config, folder, *tested(folder, data_root=arguments.data_root)):
                print(path)
            return
        metrics = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
        why = "its net was not kept" if (folder / "result.json").is_file() else "it is not finished"
        if not metrics:
            raise ConfigError(f"{folder}: of this run there is nothing to draw ({why})")
        print(save_figure(draw_learning_curve(metrics), folder / "learning_curve.png"))
        print(f"The other pictures need the net of this run ({why}: no model.pt).")


if __name__ == "__main__":
    main()
