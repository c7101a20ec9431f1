"""Pictures of a run."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from src.checkpoint import write_atomically
from src.runlog import HEADLINE_RULES, read_metrics

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def plot_learning_curve(folder: Path) -> Path:
    """Draws `folder`/learning_curve.png from its metrics.jsonl: each layer's loss and pairs ordered wrongly, and
    the validation error by both rules where there was a validation."""
    metrics = read_metrics(folder)
    epochs = [record["epoch"] for record in metrics]
    validated = [record for record in metrics if "validation_errors" in record]
    marker = "o" if len(epochs) < 20 else None

    panels = 3 if validated else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.7 * panels, 4), sharex=True, layout="constrained")
    for layer in range(len(metrics[0]["loss"])):
        style = {"color": COLOURS[layer % len(COLOURS)], "label": f"layer {layer + 1}", "marker": marker}
        axes[0].plot(epochs, [record["loss"][layer] for record in metrics], **style)
        shares = [100 * record["pairs_ordered_wrongly"][layer] for record in metrics]
        axes[1].plot(epochs, shares, **style)
    axes[0].set(title="Local loss of each layer", ylabel="logistic loss / 2 (nats)", yscale="log")
    axes[1].set(title="Pairs ordered wrongly while training", ylabel="pairs (%)")
    if validated:
        for rule, colour in zip(HEADLINE_RULES, COLOURS, strict=False):
            errors = [100 * record["validation_errors"][rule] / record["validation_images"] for record in validated]
            when = [record["epoch"] for record in validated]
            axes[2].plot(when, errors, "o-", color=colour, label=rule.replace("_", " "))
        axes[2].set(title="Validation error", ylabel="error (%)", ylim=(0, 1.1 * axes[2].get_ylim()[1]))
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    write_atomically(folder / "learning_curve.png", buffer.getvalue())
    return folder / "learning_curve.png"
