"""Results as tables: `python -m src.report results` makes the README's from every result.json below a folder."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from src.config import composed
from src.runlog import clock

# What others published, as (what, net, epochs, error by goodness, error in one pass); test errors in percent.
PUBLISHED = [
    ("Hinton's paper, section 3.3", "4 x 2000", "60", "1.36", "-"),
    ("Hinton's Matlab code", "3 x 1000", "100", "1.47", "-"),
    ("the reimplementation this one was modelled on", "3 x 1000", "100", "-", "1.45"),
]
PUBLISHED_FOR = {  # experiment -> published test error in percent
    "matlab": "1.47 (goodness)",
    "paper": "1.36",
    "paper_fast": "1.46",
    "paper_jitter": "0.64",
    "seed_repo": "1.45 (one pass)",
}
# Values of a configuration that do not change what is being measured, or stand in the result as well.
NOT_COMPARED = (
    "seed", "device", "precision", "data.root", "resume", "training.step", "training.cuda_graph",
    "training.checkpoint_every",
    "evaluation.every", "evaluation.batch_size",
)  # fmt: skip


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def net_name(hidden_dims: list[int]) -> str:
    """[1000, 1000, 1000] -> "3 x 1000"; [500, 300] -> "500-300"."""
    if len(set(hidden_dims)) == 1:
        return f"{len(hidden_dims)} x {hidden_dims[0]}"
    return "-".join(map(str, hidden_dims))


def layer_errors(result: dict[str, Any]) -> list[tuple[str, float]]:
    """(what, test error in percent) by the goodness of each layer alone, then of all layers."""
    alone = [
        (f"layer {layer} alone", result[f"test_error_goodness_layer_{layer}"])
        for layer in range(1, len(result["hidden_dims"]) + 1)
    ]
    return [*alone, ("all layers", result["test_error_goodness_all_layers"])]


def result_table(result: dict[str, Any]) -> str:
    """The closing table of one run: its test errors beside the published ones, and its protocol."""
    ours = [
        f"this run ({result['name']})",
        net_name(result["hidden_dims"]),
        str(result["epochs"]),
        f"{result['test_error_goodness']:.2f}",
        f"{result['test_error_one_pass']:.2f}",
    ]
    table = markdown(
        ["", "net", "epochs", "test error (%) by goodness", "in one pass"],
        [ours, *(list(row) for row in PUBLISHED)],
    )
    layers = ", ".join(f"{what} {error:.2f}" for what, error in layer_errors(result))
    return (
        f"\n{table}\n\n"
        f"Test error (%) by goodness of {layers}.\n"
        f"Trained on {result['train_images']:,} images, {result['epochs']} epoch(s), seed {result['seed']}, "
        f"{result['precision']} on {result['device']} ({result['hardware']}): "
        f"{clock(result['train_seconds'])} of training, {result['seconds_per_epoch']:.2f} s an epoch. "
        f"Tested once, on {result['test_images']:,} images.\n"
    )


def compared_values(config: DictConfig) -> dict[str, Any]:
    """{"training.epochs": 100, ...}: the values of a saved configuration that may change its result."""
    values = {}
    for section, content in config.items():
        if isinstance(content, DictConfig):
            values |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            values[section] = content
    return {key: value for key, value in values.items() if key not in NOT_COMPARED}


def is_as_published(config: DictConfig) -> bool:
    """Whether `config` has the values of the experiment it is named after, whichever images it trains on."""
    try:
        published = compared_values(composed(f"experiment={config.name}"))
    except MissingConfigException:  # a name of the user's own
        return False
    values = compared_values(config)
    return all(values[key] == published[key] for key in values.keys() & published.keys() - {"data.validation_images"})


def group_runs(folder: Path) -> list[list[dict[str, Any]]]:
    """The results below `folder`, grouped by hardware, precision and the configuration in config.yaml beside each."""
    groups = defaultdict(list)
    for path in sorted(folder.rglob("result.json")):
        config_path = path.with_name("config.yaml")
        if not config_path.exists():
            print(f"skipped {path}: there is no config.yaml beside it", file=sys.stderr)
            continue
        config = OmegaConf.load(config_path)
        result = json.loads(path.read_text(encoding="utf-8"))
        result["published"] = PUBLISHED_FOR.get(result["name"], "-") if is_as_published(config) else "-"
        groups[str(compared_values(config)), result["precision"], result["hardware"]].append(result)
    return list(groups.values())


def mean_and_deviation(values: list[float]) -> str:
    """ "1.42 ± 0.03" for several values, "1.42" for one."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def summary_table(groups: list[list[dict[str, Any]]]) -> str:
    """One row a group of runs: mean ± standard deviation over its seeds."""

    def over_seeds(runs: list[dict[str, Any]], key: str) -> str:
        return mean_and_deviation([run[key] for run in runs])

    header = [
        "run", "net", "epochs", "images", "seeds", "goodness", "one pass", "published",
        "layer 1 alone", "all layers", "precision", "hardware", "s / epoch",
    ]  # fmt: skip
    rows = [
        [
            f"`{runs[0]['name']}`",
            net_name(runs[0]["hidden_dims"]),
            str(runs[0]["epochs"]),
            f"{runs[0]['train_images']:,}",
            ", ".join(str(seed) for seed in sorted(run["seed"] for run in runs)),
            over_seeds(runs, "test_error_goodness"),
            over_seeds(runs, "test_error_one_pass"),
            runs[0]["published"],
            over_seeds(runs, "test_error_goodness_layer_1"),
            over_seeds(runs, "test_error_goodness_all_layers"),
            runs[0]["precision"],
            runs[0]["hardware"],
            f"{mean(run['seconds_per_epoch'] for run in runs):.1f}",
        ]
        for runs in groups
    ]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Test errors (%) of all results below a folder, as a Markdown table.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"))
    folder = parser.parse_args().folder
    groups = group_runs(folder)
    if not groups:
        sys.exit(f"error: there is no result.json below {folder}")
    print(summary_table(groups))


if __name__ == "__main__":
    main()
