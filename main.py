"""Trains and tests a Forward-Forward net: `python -m main key=value`; `python -m main --cfg job` lists the keys."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.config import one_line_errors
from src.experiment import evaluate, run
from src.report import errors_table, result_table
from src.runlog import read_result
from src.sweep import job, load_job, was_requeued


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(values: DictConfig) -> None:
    settings = HydraConfig.get()
    # Around a single run too, as Hydra adds a line of its own to an error that leaves this function.
    with job() if settings.mode == RunMode.MULTIRUN else one_line_errors():
        config = load_job(values, settings.overrides.task)
        if values.evaluate:
            print(errors_table(evaluate(config, Path(values.evaluate))))
        else:
            folder = Path(values.resume or settings.runtime.output_dir)
            requeued = was_requeued(folder)
            if requeued and (folder / "result.json").is_file():
                print(result_table(read_result(folder)))
            else:
                print(result_table(run(config, folder, resume=bool(values.resume) or requeued)))


if __name__ == "__main__":
    with one_line_errors():
        main()
