"""The pictures of a finished run."""

from pathlib import Path

from torch import Tensor, nn

from src import methods
from src.config.values import Config
from src.datasets.batches import Examples
from src.pictures.figures import draw_confusion, draw_learning_curve, draw_most_wrong, save_figure
from src.training.log import headline, read_metrics


def draw_run(config: Config, folder: Path, net: nn.Module, test: Examples, scores: dict[str, Tensor]) -> list[Path]:
    """Writes all pictures of a run that have a meaning for its method into `folder`; that of its epochs only where
    there are figures of them (metrics.jsonl).

    `scores`: what the net says of the `test` images by every way to classify ([N, 10]). Returns the files.
    """
    scores = {rule: of_classes.cpu() for rule, of_classes in scores.items()}
    test, rule = test.to("cpu"), headline(scores)
    has_metrics = (folder / "metrics.jsonl").is_file()
    figures = {
        **({"learning_curve": draw_learning_curve(read_metrics(folder))} if has_metrics else {}),
        "confusion": draw_confusion(scores[rule].argmax(dim=1), test.labels, rule),
        "most_wrong": draw_most_wrong(test.images, test.labels, scores[rule], rule),
        **methods.named(config.method).pictures(net, test, scores, **vars(config.training)),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
