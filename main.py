"""Trains and tests a Forward-Forward net: `python -m main key=value`; `python -m main --cfg job` lists the keys."""

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.config.errors import one_line_errors
from src.config.launch import check_search, job, load_job
from src.config.loading import register_schemas
from src.config.values import expanded
from src.experiment import run
from src.results.tables import result_table


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(values: DictConfig) -> float | None:
    """Returns the last validation error, for a sweeper that searches."""
    settings = HydraConfig.get()
    # Around a single run too, as Hydra adds a line of its own to an error that leaves this function.
    with job(values) if settings.mode == RunMode.MULTIRUN else one_line_errors():
        os.chdir(settings.runtime.cwd)  # hydra.job.chdir=true or not, paths are as they were typed
        folder = expanded(values.resume or settings.runtime.output_dir)
        config, resume = load_job(values, settings.overrides.task, folder)
        check_search(config, settings.runtime.choices["hydra/sweeper"])
        result = run(config, folder, resume=resume)
        print(result_table(result))
        return result.get("validation_error")


if __name__ == "__main__":
    with one_line_errors():
        os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print its errors at length and not hand them on
        # Jobs that start elsewhere import this checkout, and not what lies in the folder that they are in.
        path = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONSAFEPATH": "1"}
        register_schemas()
        main()
