"""Trains and tests a Forward-Forward net: `python -m main key=value`; `python -m main --cfg job` lists the keys."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config import load, load_saved, one_line_errors
from src.experiment import run
from src.report import result_table


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(values: DictConfig) -> None:
    with one_line_errors():  # here too, as Hydra adds a line of its own to what leaves this function
        if values.resume:
            folder = Path(values.resume)
            results = run(load_saved(folder, values, HydraConfig.get().overrides.task), folder, resume=True)
        else:
            results = run(load(values), Path(HydraConfig.get().runtime.output_dir))
    print(result_table(results))


if __name__ == "__main__":
    with one_line_errors():
        main()
