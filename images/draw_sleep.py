"""Draws images/sleep.png: the error over how long positives and negatives are apart (section 5). Prints the table, too.

`python -m images.draw_sleep` draws the runs of results/sleep.json; with a folder of other runs, it puts those there
before.
"""

import sys
from pathlib import Path

import numpy as np

from src.pictures.figures import COLOURS, new_figure
from src.results.runs import gather
from src.results.tables import markdown
from src.training.log import HEADLINES, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "results" / "sleep.json", ROOT / "images" / "sleep.png"
VALUES = ("model.goodness", "training.learning_rate", "training.momentum")
PROTOCOL = ("seed", "epochs", "train_images", "hidden_dims", "hardware", "precision", "train_seconds")
COLOUR = dict(zip(("sum_of_squares", "minus_sum_of_squares", "sum_of_activities"), COLOURS, strict=False))

Curves = dict[tuple, dict[int, np.ndarray]]  # VALUES of runs -> K, 0 for both kinds at once -> errors by HEADLINES


def curves_of(rows: list[dict]) -> Curves:
    """Means over the seeds."""
    curves = {}
    for row in sorted(rows, key=lambda row: (*(row[key] for key in VALUES), row["training.sleep"])):
        curve = curves.setdefault(tuple(row[key] for key in VALUES), {})
        curve.setdefault(row["training.sleep"], []).append([row[rule] for rule in HEADLINES])
    return {values: {K: np.mean(seeds, axis=0) for K, seeds in curve.items()} for values, curve in curves.items()}


def table(curves: Curves) -> str:
    """Errors by goodness / in one pass, a column for each K."""
    lengths = sorted({K for curve in curves.values() for K in curve})
    titles = ["goodness", "rate, momentum", *(f"K = {K:,}" if K else "both" for K in lengths)]
    lines = []
    for (goodness, rate, momentum), curve in curves.items():
        errors = {K: " / ".join(f"{error:.2f}" for error in of_rules) for K, of_rules in curve.items()}
        lines.append([goodness, f"{rate}, {momentum}", *(errors.get(K, "-") for K in lengths)])
    return markdown(titles, lines)


def main(folder: str | None = None) -> None:
    if folder:
        runs, keys = gather([Path(folder)]), (*VALUES, "training.sleep")
        of_runs = [({key: run.values[key] for key in keys}, run.errors, run.result) for run in runs]
        write_json(RESULTS, [values | errors | {key: of[key] for key in PROTOCOL} for values, errors, of in of_runs])
    curves = curves_of(read_json(RESULTS))
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for (goodness, rate, momentum), curve in curves.items():
        label = f"{goodness}, rate {rate:g}, momentum {momentum:g}"
        style = {"color": COLOUR.get(goodness), "linestyle": {0.9: "-", 0.99: ":"}.get(momentum, "--"), "marker": "o"}
        places = [K or 0.1 for K in curve]  # "both" is left of 1
        axes.plot(places, [by_goodness for by_goodness, _ in curve.values()], label=label, **style)
    titles = {"xlabel": "updates with one kind before the other", "ylabel": "test error by goodness (%)"}
    axes.set(xscale="log", yscale="log", **titles)
    axes.set_xticks([0.1, 1, 10, 100, 1000], ["both", "1", "10", "100", "1,000"])
    figure.legend(fontsize=7, loc="outside right center")
    figure.savefig(PICTURE, dpi=150)
    print(table(curves))


if __name__ == "__main__":
    main(*sys.argv[1:])
