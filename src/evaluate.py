"""Tests the net of a finished run again: `python -m src.evaluate RUN_FOLDER`. Nothing is written."""

import argparse
import dataclasses
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

if not __package__:  # as in `python src/evaluate.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import ConfigError
from src.datasets.batches import Examples
from src.datasets.table import load_test
from src.experiment import new_net, resuming
from src.results.tables import errors_table
from src.training.checkpoint import CheckpointError, load_model
from src.training.device import resolve_precision, use
from src.training.log import read_result
from src.training.validation import count_errors, scores_for


def load_trained(folder: Path, device: str = "auto") -> nn.Module:
    """The net of the finished run in `folder`, on a device that may be another than the run's.

    Raises:
        ConfigError: there is no model.pt (the run is not finished, or its net was not kept), or it is damaged or of
            another architecture.
    """
    config, device = load_saved(folder), use(device)
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    if not (folder / "model.pt").is_file():
        if (folder / "result.json").is_file():
            raise ConfigError(f"{folder}: this run's net was not kept (no model.pt)")
        raise ConfigError(f"{folder}: this run is not finished (no model.pt); go on with: {resuming(folder)}")
    try:
        return load_model(partial(new_net, config), folder / "model.pt", device)
    except CheckpointError as error:
        raise ConfigError(f"{folder}: {error}") from error


def tested(
    folder: Path, device: str = "auto", data_root: str | None = None
) -> tuple[nn.Module, Examples, dict[str, Tensor]]:
    """The net of the finished run in `folder`, the test images, and its scores for them by every way to classify.

    Raises ConfigError and DataError as `load_trained` and `load_test` do.
    """
    config, net = load_saved(folder), load_trained(folder, device)
    test = load_test(config.dataset, data_root or config.data.root, next(net.parameters()).device)
    scores = scores_for(net, test.images, config.evaluation.batch_size)
    return net, test, scores


def evaluate(folder: Path, device: str = "auto", data_root: str | None = None) -> dict[str, Any]:
    """Tests the net of the finished run in `folder` again.

    Returns:
        "test_errors", counts by every way to classify on the "test_images"; "test_errors_before", those in result.json
        (empty where there is none).

    Raises ConfigError and DataError as `tested` does, and ConfigError if result.json is damaged.
    """
    before = read_result(folder) if (folder / "result.json").is_file() else {}
    _, test, scores = tested(folder, device, data_root)
    errors = count_errors(scores, test)
    known = {rule: before[f"test_errors_{rule}"] for rule in errors if f"test_errors_{rule}" in before}
    return {"test_images": len(test), "test_errors": errors, "test_errors_before": known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--device", default="auto", help="as the key device of a run")
    parser.add_argument("--data-root", help="where the data are, if no longer where the run found them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # for data that have to be fetched
    with one_line_errors():
        print(errors_table(evaluate(arguments.folder, arguments.device, arguments.data_root)))


if __name__ == "__main__":
    main()
