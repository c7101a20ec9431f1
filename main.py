"""Trains and tests a Forward-Forward net: `python -m main key=value`; `python -m main --help` lists the keys."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.config import USER_ERRORS, explain
from src.experiment import run
from src.report import result_table


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(values: DictConfig) -> None:
    config = OmegaConf.to_object(values)  # runs the range checks
    results = run(config, Path(HydraConfig.get().runtime.output_dir))
    print(result_table(results))


if __name__ == "__main__":
    if os.environ.setdefault("HYDRA_FULL_ERROR", "1") == "1":  # Hydra hands errors on instead of printing them
        try:
            main()
        except USER_ERRORS as error:
            sys.exit(f"error: {explain(error)}")
