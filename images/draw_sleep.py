"""Draws images/sleep.png: the error over how long positives and negatives are apart (section 5). Prints the table, too.

`python -m images.draw_sleep` draws the runs of results/sleep.json; with a folder of other runs, it puts those there
before.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from src.results.runs import gather
from src.results.tables import markdown
from src.training.log import HEADLINES, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "results" / "sleep.json", ROOT / "images" / "sleep.png"
KEYS = ("model.goodness", "training.learning_rate", "training.momentum", "training.sleep")
COLOURS = {"sum_of_squares": "#0072B2", "minus_sum_of_squares": "#D55E00", "sum_of_activities": "#009E73"}


def table(rows: list[dict]) -> str:
    """Errors by goodness / in one pass, a column for each K."""
    lengths = sorted({row["training.sleep"] for row in rows})
    lines = {}
    for row in rows:
        errors = " / ".join(f"{row[rule]:.2f}" for rule in HEADLINES)
        lines.setdefault(tuple(row[key] for key in KEYS[:3]), {})[row["training.sleep"]] = errors
    titles = ["goodness", "rate, momentum", *("both" if K == 0 else f"K = {K:,}" for K in lengths)]
    sets = [[key[0], f"{key[1]}, {key[2]}", *(of.get(K, "-") for K in lengths)] for key, of in sorted(lines.items())]
    return markdown(titles, sets)


def main(folder: str | None = None) -> None:
    if folder:
        runs = gather([Path(folder)])
        protocol = ("seed", "epochs", "train_images", "hidden_dims", "hardware", "precision", "train_seconds")
        rows = [
            {**{key: run.values[key] for key in KEYS}, **run.errors, **{key: run.result[key] for key in protocol}}
            for run in runs
        ]
        write_json(RESULTS, rows)
    rows = read_json(RESULTS)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for key in sorted({tuple(row[each] for each in KEYS[:3]) for row in rows}):
        goodness, rate, momentum = key
        points = sorted(
            (row["training.sleep"], row["goodness"]) for row in rows if key == tuple(row[each] for each in KEYS[:3])
        )
        style = {"color": COLOURS.get(goodness), "linestyle": "-" if momentum == 0.9 else "--", "marker": "o"}
        places = [K or 0.1 for K, _ in points]  # "both" is left of 1
        axes.plot(
            places, [error for _, error in points], label=f"{goodness}, rate {rate:g}, momentum {momentum:g}", **style
        )
    axes.set(
        xscale="log", yscale="log", xlabel="updates with one kind before the other", ylabel="test error by goodness (%)"
    )
    axes.set_xticks([0.1, 1, 10, 100, 1000], ["both", "1", "10", "100", "1,000"])
    axes.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)
    print(table(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
