"""How fast training is on this machine, next to what the matrix products of its steps alone would take.

    python -m benchmarks.speed FILE.json [OVERRIDE...]            measures every experiment, with these values
    python -m benchmarks.speed FILE.json --experiments NAME...    or some of them
    python -m benchmarks.speed FILE.json --show                   prints the tables of what was measured

The products are those of a step in which every sample matters. On a CPU, a step leaves out samples whose derivative is
negligible (`src.layers.connections.rows_that_matter`), so it can be faster than these products.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from benchmarks.plain import seconds_per_image, synchronise
from src.config.errors import one_line_errors
from src.config.loading import CONFIGS, composed
from src.config.loading import load as load_config
from src.config.values import Config
from src.datasets.batches import Examples, to_unit
from src.datasets.table import load
from src.experiment import new_net
from src.layers import connections
from src.results.tables import markdown, net_name
from src.training.device import describe, resolve_precision, use
from src.training.epochs import train_epochs
from src.training.log import provenance, read_json, write_json

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
STEADY_EPOCHS = 1000  # so many that none of those measured has a falling rate
aten = torch.ops.aten
FACTORS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.addmm_: 1, aten.baddbmm: 1}  # product -> its first factor


class MatrixProducts(TorchDispatchMode):
    """Records the matrix products of what runs within it as `calls`; `flop`: 2 for each row and each weight."""

    def __init__(self):
        super().__init__()
        self.calls: list[Callable] = []
        self.flop = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        call = partial(function, *args, **(kwargs or {}))
        if (first := FACTORS.get(function.overloadpacket)) is not None:
            self.calls.append(call)
            self.flop += 2 * args[first].numel() * args[first + 1].shape[-1]
        return call()


def products_of_a_step(config: Config, examples: Examples) -> MatrixProducts:
    """Of an update with the first batch of `examples`, all of whose samples matter."""
    batch = examples[: config.training.batch_size]
    device = batch.labels.device
    net = new_net(config, batch.shape, batch.classes).to(device)
    step = net.phases(config.training)[0].step
    with patch.object(connections, "NEGLIGIBLE", -1.0), MatrixProducts() as products:
        step(to_unit(batch.images), batch.labels, torch.Generator(device).manual_seed(0))
    return products


def seconds_alone(products: MatrixProducts, device: torch.device) -> float:
    """What these products take with nothing between them."""

    @torch.no_grad()
    def again() -> None:
        for call in products.calls:
            call()

    if device.type == "cuda":  # else the launches would be measured
        again()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again()
        again = graph.replay
    names = {"again": again, "synchronise": synchronise, "device": device}
    timer = Timer("again(); synchronise(device)", globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).median


class Running:
    """What `config` trains first, on `examples`, ready to go epoch after epoch."""

    def __init__(self, config: Config, examples: Examples, epochs: int = STEADY_EPOCHS):
        self.device = examples.labels.device
        self.net = new_net(config, examples.shape, examples.classes).to(self.device)
        self.epochs = train_epochs(
            [self.net.phases(config.training)[0]._replace(epochs=epochs)],
            examples,
            batch_size=config.training.batch_size,
            max_shift=config.data.jitter,
            generator=torch.Generator(self.device).manual_seed(0),
            cuda_graph=config.training.cuda_graph and self.device.type == "cuda",
        )

    def several(self, epochs: int) -> list[float]:
        """The seconds of each of the next epochs."""
        seconds = []
        for _ in range(epochs):
            synchronise(self.device)
            started = time.perf_counter()
            next(self.epochs)
            synchronise(self.device)
            seconds.append(time.perf_counter() - started)
        return seconds


def configured(*overrides: str) -> tuple[Config, torch.device]:
    """What `python -m main OVERRIDE...` would train here and on what, with its precision resolved."""
    config = load_config(composed(*overrides))
    device = use(config.device)
    return replace(config, precision=resolve_precision(config.precision, device)), device


def measured(config: Config, examples: Examples, epochs: int, *, compiled: bool = True) -> dict[str, Any]:
    """The seconds of several epochs, of compiled ones, and of the products of as many steps as an epoch has."""
    products = products_of_a_step(config, examples)
    alone = seconds_alone(products, examples.labels.device)
    result: dict[str, Any] = {
        "net": net_name(config.model.hidden_dims),
        "images": len(examples),
        "products_gflops": products.flop / alone / 1e9,
        "products_seconds": len(examples) / config.training.batch_size * alone,
        "epoch_seconds": Running(config, examples).several(epochs),
    }
    if compiled:
        config = replace(config, training=replace(config.training, compile=True))
        result["compiled_epoch_seconds"] = Running(config, examples).several(1 + epochs)
    return result


def speeds(row: dict[str, Any]) -> list[str]:
    """Of what was `measured`: an epoch of 60,000 images, a compiled one, and what the compiler's start takes."""

    def epoch(seconds: list[float]) -> str:
        return f"{60_000 / row['images'] * seconds[-1]:.2f} s, {row['products_seconds'] / seconds[-1]:.2f} x"

    compiled = row.get("compiled_epoch_seconds")
    of_compiled = [epoch(compiled), f"{compiled[0] - compiled[1]:.0f} s"] if compiled else ["-", "-"]
    return [epoch(row["epoch_seconds"]), *of_compiled]


def tables(result: dict[str, Any]) -> str:
    """What was measured on one machine, as Markdown."""
    rows = result["experiments"]
    header = ["experiment", "net", "GFLOP/s", "60,000 images", "compiled", "start"]
    cells = [[row["experiment"], row["net"], f"{row['products_gflops']:,.0f}", *speeds(row)] for row in rows]
    title = f"{result['hardware']}, torch {result['versions']['torch']}, {result['precision']}:"
    parts = [title, markdown(header, cells)]
    for row in rows:
        if "plain_seconds_per_image" in row:
            plain = min(row["plain_seconds_per_image"].values())
            epochs = {"": row["epoch_seconds"], "compiled ": row.get("compiled_epoch_seconds")}
            times = [f"{how}{plain * row['images'] / of[-1]:.1f} times" for how, of in epochs.items() if of]
            parts.append(
                f"The plain way, {row['net']}: {60_000 * plain:.1f} s. "
                f"`{row['experiment']}` is {', '.join(times)} as fast."
            )
    return "\n\n".join(parts)


def in_a_line(error: Exception) -> str:
    return f"error: {type(error).__name__}: {error}".splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--images", type=int, default=6000, help="in an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="of which the last one counts")
    parser.add_argument("--uncompiled", action="store_true", help="leave compiled epochs out")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_intermixed_args()
    if min(arguments.images, arguments.epochs) < 1:
        parser.error("--images and --epochs must be at least 1")
    path, failed = arguments.file, []
    if arguments.show:
        print(tables(read_json(path)))
        return
    if path.exists():
        sys.exit(f"error: {path} exists; name another file, or print its tables with --show")
    if not arguments.uncompiled:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what the compiler's start costs at first
    configs = {name: configured(f"experiment={name}", *arguments.overrides) for name in arguments.experiments}
    first, device = configs[arguments.experiments[0]]
    examples = load(first.dataset, first.data.root, device, 0)[0]
    result = {"hardware": describe(device), "precision": first.precision, **provenance(), "experiments": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, (config, _) in configs.items():
        print(name, file=sys.stderr, flush=True)
        try:
            row = measured(config, examples[: arguments.images], arguments.epochs, compiled=not arguments.uncompiled)
            if name == "matlab":
                row["plain_seconds_per_image"] = seconds_per_image(
                    examples[: arguments.images], config.model.hidden_dims, config.training.batch_size
                )
        except Exception as error:
            print(in_a_line(error), file=sys.stderr)
            failed.append(name)
            continue
        result["experiments"].append({"experiment": name, **row})
        write_json(path, result)
    print(tables(result))
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
