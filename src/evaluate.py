"""Tests the net of a finished run again: `python -m src.evaluate RUN_FOLDER`. Nothing is written."""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

if not __package__:  # as in `python src/evaluate.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import ConfigError
from src.datasets.batches import Examples
from src.datasets.table import load_test
from src.experiment import new_net, resuming
from src.layers.fields import Map
from src.methods.net import Net
from src.results.tables import errors_table
from src.training.checkpoint import loaded
from src.training.device import resolve_precision, use
from src.training.log import read_json
from src.training.validation import count_errors, scores_for


def load_trained(folder: Path | str, device: str = "auto") -> Net:
    """The net of the finished run in `folder`, on a device that may be another than the run's.

    Raises ConfigError if there is no model.pt (the run is not finished, or its net was not kept), or if it is damaged
    or of another architecture.
    """
    folder = Path(folder)
    config, device, path = load_saved(folder), use(device), folder / "model.pt"
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    if not path.is_file():
        if (folder / "result.json").is_file():
            raise ConfigError(f"{folder}: this run's net was not kept (no model.pt)")
        raise ConfigError(f"{folder}: this run is not finished (no model.pt); go on with: {resuming(folder)}")
    with loaded(path, f"without it and result.json, {resuming(folder)} makes it again") as state:
        *shape, classes = state["sizes"].tolist()  # of the images that it was made for
        net = new_net(config, Map(*shape), classes)
        net.load_state_dict(state)
    return net.to(device)


def tested(
    folder: Path | str, device: str = "auto", data_root: str | None = None
) -> tuple[Net, Examples, dict[str, Tensor]]:
    """The net of the finished run in `folder`, the test images, and its scores for them by every way to classify.

    Raises ConfigError and DataError as `load_trained` and `load_test` do.
    """
    config, net = load_saved(Path(folder)), load_trained(folder, device)
    test = load_test(config.dataset, data_root or config.data.root, net.sizes.device)
    if (test.shape, test.classes) != (net.shape, net.classes):
        wrong = f"its net is for {net.classes} classes of {net.shape}, the data have {test.classes} of {test.shape}"
        raise ConfigError(f"{folder}: {wrong}; name the right ones with --data-root")
    return net, test, scores_for(net, test.images, config.evaluation.batch_size)


def evaluate(folder: Path | str, device: str = "auto", data_root: str | None = None) -> dict[str, Any]:
    """Tests the net of the finished run in `folder` again.

    Returns "test_errors", counts by every way to classify on the "test_images"; and "test_errors_before", those in
    result.json (empty where there is none). Raises as `tested` does, and ConfigError if result.json is damaged.
    """
    before = read_json(Path(folder) / "result.json") if (Path(folder) / "result.json").is_file() else {}
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
