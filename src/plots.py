"""Draws the pictures of a run into its folder: `python -m src.plots RUN_FOLDER`."""

import argparse
import logging
import sys
from pathlib import Path

from torch import Tensor

if not __package__:  # as in `python src/plots.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import Config
from src.datasets.batches import Examples
from src.evaluate import tested
from src.methods.net import Net
from src.pictures.figures import draw_confusion, draw_learning_curve, draw_most_wrong, save_figure
from src.pictures.methods import pictures_of
from src.training.log import headline, read_json


def draw_run(config: Config, folder: Path, net: Net, test: Examples, scores: dict[str, Tensor]) -> list[Path]:
    """Writes all pictures of a run that have a meaning for its method into `folder`, and returns the files; that of the
    epochs only where there are figures of them (metrics.jsonl). The net is moved to the CPU.

    `scores`: what the net says of the `test` images, by rule ([N, K]).
    """
    net, test, scores = net.cpu(), test.to("cpu"), {rule: of_classes.cpu() for rule, of_classes in scores.items()}
    rule, path = headline(scores), folder / "metrics.jsonl"
    metrics = read_json(path) if path.is_file() else []
    figures = {
        **({"learning_curve": draw_learning_curve(metrics)} if metrics else {}),
        "confusion": draw_confusion(scores[rule], test.labels, rule),
        "most_wrong": draw_most_wrong(test, scores[rule], rule),
        **pictures_of(net, test, scores, config.training),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data-root", help="where the data are, if no longer where the run found them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # for data that have to be fetched
    with one_line_errors():
        config = load_saved(arguments.folder)
        outcome = tested(arguments.folder, data_root=arguments.data_root)
        print(*draw_run(config, arguments.folder, *outcome), sep="\n")


if __name__ == "__main__":
    main()
