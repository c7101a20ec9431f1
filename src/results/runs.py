"""Finished runs, found below folders and grouped by their configurations."""

import json
import os
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from src.config.loading import CONFIGS, MAY_DIFFER, composed
from src.datasets.table import DATASETS
from src.training.log import HEADLINES, read_json

# Values and sections of a configuration that do not change what is being measured, or stand in the result as well.
NOT_COMPARED = {*MAY_DIFFER, "seed", "precision", "resume", "logging", "evaluation"}
READ = {
    "name": str, "method": str, "seed": int, "hidden_dims": list, "epochs": int, "train_images": int, "precision": str,
    "device": str, "hardware": str, "train_seconds": float,
}  # fmt: skip


class Run(NamedTuple):
    folder: Path
    result: dict[str, Any]  # of the content of result.json, what READ names
    errors: dict[str, float]  # in percent, by rule: on the test or on the validation images
    values: dict[str, Any]  # its configuration's `compared_values`


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """{"training": {"epochs": 100}, "seed": 0} -> {"training.epochs": 100, "seed": 0}."""
    values = {}
    for key, content in config.items():
        section = isinstance(content, dict)
        values |= {f"{key}.{name}": value for name, value in content.items()} if section else {key: content}
    return values


def composed_values(override: str) -> dict[str, Any]:
    return flat(OmegaConf.to_container(composed(override), resolve=True))


def compared_values(values: dict[str, Any]) -> dict[str, Any]:
    """{"training.epochs": 100, ...}: those of the `flat` values of a configuration that may change its result.

    A key that was added after the configuration was saved has its default.
    """
    values = composed_values(f"method={values['method']}") | values
    # Its folder tells data of one's own apart.
    left_out = NOT_COMPARED - ({"data.root"} if DATASETS[values["dataset"]].own else set())
    return {key: value for key, value in values.items() if not {key, key.partition(".")[0]} & left_out}


@cache
def experiment_values(name: str) -> dict[str, Any] | None:
    """The `compared_values` of an experiment; None if there is none of this name."""
    if not (CONFIGS / "experiment" / f"{name}.yaml").is_file():
        return None
    return compared_values(composed_values(f"experiment={name}"))


def percent_wrong(result: dict[str, Any]) -> dict[str, float]:
    """The content of result.json -> test errors in percent, by rule."""
    prefix = "test_error_"
    return {key.removeprefix(prefix): float(value) for key, value in result.items() if key.startswith(prefix)}


def read_run(folder: Path, validation: bool = False) -> Run:
    """The finished run in `folder`, with its errors on the test images or, of its last epoch, on the `validation` ones.

    Raises whatever comes of files that are missing, damaged or not those of a run.
    """
    result = json.loads((folder / "result.json").read_bytes())
    values = flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True))
    errors = percent_wrong(result)
    if validation:
        last = read_json(folder / "metrics.jsonl")[-1]
        errors = {rule: 100 * count / last["validation_images"] for rule, count in last["validation_errors"].items()}
    if not HEADLINES.keys() & errors.keys():
        raise LookupError(f"no error {' or '.join(HEADLINES.values())}")
    return Run(folder, {key: kind(result[key]) for key, kind in READ.items()}, errors, compared_values(values))


def gather(folders: list[Path], validation: bool = False) -> list[Run]:
    """`read_run` of those at or below `folders`, sorted by path, each once; stderr names what is skipped, and why.

    Raises SystemExit if one of the folders does not exist, or none holds a finished run.
    """
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"error: there is no folder {folder}")
    found = {}  # by where it really is, as links are followed
    for top in folders:
        for path, below, files in os.walk(top, followlinks=True):
            below.sort()
            if (real := os.path.realpath(path)) in found or path.endswith(".hydra"):  # Hydra's own record
                below.clear()
            else:
                found[real] = Path(path) if "config.yaml" in files else None
    runs, wanted = [], "finished run with validation errors" if validation else "finished run"
    for path in sorted(filter(None, found.values())):
        try:
            runs.append(read_run(path, validation))
        except Exception as error:  # what comes of files that are missing, damaged or not those of a run
            why = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"skipped {path}: no {wanted} ({why})", file=sys.stderr)
    if not runs:
        sys.exit(f"error: there is no {wanted} below {', '.join(map(str, folders))}")
    return runs


def rows_of(runs: list[Run]) -> list[list[Run]]:
    """`runs` by configuration and precision, in each by seed, each seed once; stderr names what is left out.

    A seed stands for the same initial weights and the same samples, so that a second run of it is no second sample:
    counting both would make the interval too narrow. The first by path counts, whatever their figures are.
    """
    rows = defaultdict(dict)
    for run in runs:
        row = rows[json.dumps([run.values, run.result["precision"]], sort_keys=True)]
        counted = row.setdefault(run.result["seed"], run)
        if counted is not run:
            print(f"not counted {run.folder}: the same seed as {counted.folder}", file=sys.stderr)
    return [[row[seed] for seed in sorted(row)] for row in rows.values()]
