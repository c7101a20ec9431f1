"""Finished runs, found below folders and grouped by their configurations."""

import json
import os
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config.loading import CONFIGS, MAY_DIFFER, METHODS, composed, flat
from src.datasets.table import DATASETS
from src.training.log import HEADLINES, read_metrics

# Values and sections of a configuration that do not change what is being measured, or stand in the result as well.
NOT_COMPARED = {*MAY_DIFFER, "seed", "precision", "resume", "logging", "evaluation"}
RUN_FILES = {"config.yaml", "metrics.jsonl", "result.json"}
IN_BOTH = ("name", "method", "dataset", "seed")  # of config.yaml and result.json
RESULT_TYPES = {
    "name": str, "method": str, "dataset": str, "seed": int, "hidden_dims": list, "epochs": int, "train_images": int,
    "precision": str, "device": str, "hardware": str, "seconds_per_epoch": (int, float), "train_seconds": (int, float),
}  # fmt: skip


class NotARun(ValueError):
    """A folder does not hold a finished run. The message says why."""


class Run(NamedTuple):
    folder: Path
    result: dict[str, Any]  # the content of result.json, with the "processors" and "threads" of its hardware
    errors: dict[str, float]  # in percent, by rule: on the test images, or `validated`
    values: dict[str, Any]  # its configuration's `compared_values`


def composed_values(override: str) -> dict[str, Any]:
    return flat(OmegaConf.to_container(composed(override), resolve=True))


def compared_values(values: dict[str, Any]) -> dict[str, Any]:
    """{"training.epochs": 100, ...}: those of the `flat` values of a configuration that may change its result.

    A key that was added after the configuration was saved has its default.
    """
    values = composed_values(f"method={values['method']}") | values
    left_out = NOT_COMPARED | ({"model.field"} if values.get("model.grids") is None else set())
    if DATASETS[values["dataset"]].own:
        left_out = left_out - {"data.root"}  # which tells data of one's own apart
    return {key: value for key, value in values.items() if not {key, key.partition(".")[0]} & left_out}


def differing(values: dict[str, Any], reference: dict[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    """ "negatives=uniform, training.batch_size=50": the values that are not those of `reference`, as overrides.

    What `values` has no key for is left out; what `reference` has none for is compared with the defaults. A key goes
    without its section where that is enough to know it by.
    """
    reference = composed_values(f"method={values['method']}") | reference
    last_parts = [key.rpartition(".")[2] for key in reference | values]
    overrides = []
    for key, value in values.items():
        if key not in leave_out and value != reference.get(key, "absent"):
            last_part = key.rpartition(".")[2]
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            overrides.append(f"{last_part if last_parts.count(last_part) == 1 else key}={text}")
    return ", ".join(overrides)


@cache
def experiment_values(name: str) -> dict[str, Any] | None:
    """The `compared_values` of an experiment; None if there is none of this name."""
    if not (CONFIGS / "experiment" / f"{name}.yaml").is_file():
        return None
    return compared_values(composed_values(f"experiment={name}"))


def read_run(folder: Path) -> Run:
    """The finished run in `folder`.

    Raises:
        NotARun: it is not finished, or a file is missing, damaged or not a run's.
    """
    if not (folder / "result.json").is_file():
        raise NotARun("there is no result.json (not finished)")
    if not (folder / "config.yaml").is_file():
        raise NotARun("there is no config.yaml beside its result.json")
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError) as error:
        raise NotARun(f"result.json cannot be read ({error})") from error
    if not isinstance(result, dict):
        raise NotARun("result.json is not that of a run")
    wrong = [key for key, kind in RESULT_TYPES.items() if not isinstance(result.get(key), kind)]
    errors = percent_wrong(result)
    for rule, error in errors.items():
        if not (isinstance(error, (int, float)) and 0 <= error <= 100):
            wrong.append(f"test_error_{rule}")
    if not HEADLINES.keys() & errors.keys():
        wrong.append(" or ".join(f"test_error_{rule}" for rule in HEADLINES))
    if wrong:
        raise NotARun(f"result.json is not that of a run (no usable {', '.join(wrong)})")
    used = [made["hardware"] for made in origins(result)]  # "AMD EPYC, 2 threads"
    with_threads = re.compile(r", (\d+) threads?$")
    result["processors"] = [with_threads.sub("", hardware) for hardware in used]
    result["threads"] = [int(threads) for hardware in used for threads in with_threads.findall(hardware)]
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise NotARun(f"config.yaml cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict) or any(config.get(key) != result[key] for key in IN_BOTH):
        raise NotARun(f"config.yaml is not that of its result.json (another {', '.join(IN_BOTH)})")
    for key, known in (("method", METHODS), ("dataset", DATASETS)):
        if config[key] not in known:
            raise NotARun(f"there is no {key} {config[key]} here")
    return Run(folder, result, errors, compared_values(flat(config)))


def validated(run: Run) -> Run:
    """The same run, with the errors of its last epoch on the validation images.

    Raises:
        NotARun: it has none, or its metrics.jsonl is missing or damaged.
    """
    try:
        *_, last = read_metrics(run.folder)
        errors = {rule: 100 * count / last["validation_images"] for rule, count in last["validation_errors"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotARun("there are no validation errors in the last line of its metrics.jsonl") from error
    return run._replace(errors=errors)


def gather(folders: list[Path], validation: bool = False) -> list[Run]:
    """The finished runs at or below `folders`, sorted by path, each once; stderr names what is skipped, and why.

    `validation`: those that were `validated`.

    Raises:
        SystemExit: one of the folders does not exist, or none holds a finished run.
    """
    found = {}
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"error: there is no folder {folder}")
        for parent, below, files in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(".")]  # in hidden ones, Hydra records overrides
            if RUN_FILES & set(files):
                found[Path(parent).resolve()] = Path(parent)
    runs = []
    for path in sorted(found.values()):
        try:
            run = read_run(path)
            runs.append(validated(run) if validation else run)
        except NotARun as reason:
            print(f"skipped {path}: {reason}", file=sys.stderr)
    if not runs:
        with_errors = " with validation errors" if validation else ""
        sys.exit(f"error: there is no finished run{with_errors} below {', '.join(map(str, folders))}")
    return runs


def grouped(runs: list[Run], *result_keys: str) -> list[list[Run]]:
    """`runs` by configuration and by these values of their results."""
    groups = defaultdict(list)
    for run in runs:
        key = (json.dumps(run.values, sort_keys=True), *(run.result[key] for key in result_keys))
        groups[key].append(run)
    return list(groups.values())


def one_a_seed(group: list[Run]) -> list[Run]:
    """The runs of a group by seed, each seed once; stderr names what is left out.

    A seed stands for the same initial weights and the same samples, so that a second run of it is no second sample:
    counting both would make the interval too narrow. The first by path counts, whatever their figures are.
    """
    by_seed = {}
    for run in group:
        counted = by_seed.setdefault(run.result["seed"], run)
        if counted is not run:
            print(f"not counted {run.folder}: the same seed as {counted.folder}", file=sys.stderr)
    return [by_seed[seed] for seed in sorted(by_seed)]


def origins(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the content of result.json, what the last epochs were made by and, of a resumed run, those before."""
    return [result, *result.get("resumed_from", [])]


def percent_wrong(result: dict[str, Any]) -> dict[str, float]:
    """The content of result.json -> test errors in percent, by rule."""
    prefix = "test_error_"
    return {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}


def errors_by_rule(runs: list[Run]) -> dict[str, list[float]]:
    """Errors in percent, one a run, by each rule that all `runs` have."""
    of_runs = [run.errors for run in runs]
    return {rule: [errors[rule] for errors in of_runs] for rule in of_runs[0] if all(rule in e for e in of_runs)}
