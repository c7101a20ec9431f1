"""The pictures of a finished run."""

from pathlib import Path

from torch import Tensor, nn

from src.config.values import Config
from src.datasets.batches import Examples
from src.pictures.figures import draw_confusion, draw_learning_curve, draw_most_wrong, save_figure
from src.pictures.methods import pictures_of
from src.training.log import headline, read_metrics


def draw_run(config: Config, folder: Path, net: nn.Module, test: Examples, scores: dict[str, Tensor]) -> list[Path]:
    """Writes all pictures of a run that have a meaning for its method into `folder`, and returns the files; the net is
    moved to the CPU. There is one of the epochs only with their figures (metrics.jsonl).

    `scores`: what the net says of the `test` images by every rule ([N, K]).
    """
    net, test, scores = net.cpu(), test.to("cpu"), {rule: of_classes.cpu() for rule, of_classes in scores.items()}
    rule, metrics = headline(scores), read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
    figures = {
        **({"learning_curve": draw_learning_curve(metrics)} if metrics else {}),
        "confusion": draw_confusion(scores[rule], test.labels, rule),
        "most_wrong": draw_most_wrong(test, scores[rule], rule),
        **pictures_of(net, test, scores, config.training),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
