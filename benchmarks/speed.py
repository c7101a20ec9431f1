"""How fast training is on this machine, beside what its matrix products alone would take.

    python -m benchmarks.speed                  measures, and writes results/speed/HARDWARE_PRECISION.json
    python -m benchmarks.speed --growth         also how time grows with width, depth, batch size and threads
    python -m benchmarks.speed --again NAME...  measures these experiments again, for the file that is there
    python -m benchmarks.speed --show FILE...   prints the tables of what was measured before

Nominal work (`products_of`): 2 floating-point operations (FLOP) for each row of a product and each weight, of an update
written plainly. A supervised step multiplies 5 B rows by every weight: B neutral, B positive, B negative cases forward,
2 B cases for the gradient. An update may do with less (cases without a gradient are left out, the image's part of the
first layer's product serves three passes), so it can be faster than these products alone.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from benchmarks.depth import peak_resident_gb
from benchmarks.plain import seconds_per_image
from src import methods
from src.config.errors import one_line_errors
from src.config.loading import CONFIGS, composed, load
from src.config.overrides import as_argument
from src.config.values import SIDE, Config, ConfigError
from src.datasets.batches import Examples, to_unit
from src.datasets.table import load as load_data
from src.experiment import new_net, phases_of
from src.negatives.codes import NUM_CLASSES
from src.results.tables import duration, markdown, net_name
from src.training.device import PRECISIONS, describe, resolve_precision, synchronise, use
from src.training.epochs import train_epochs
from src.training.log import REPOSITORY, provenance, read_json, write_json

NETS = {"matlab": [1000] * 3, "paper": [2000] * 4}
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PART = 6_000  # images of an epoch that is timed for an experiment
SHORT_EPOCHS = 5
GROWTH_IMAGES = 3000
STEADY_EPOCHS = 1000  # so many that none of those measured has a falling rate
KINDS = {  # of work -> the operators that do it
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_"),
    "updates": ("aten::_fused_sgd_", "aten::mul_", "aten::add_", "aten::_foreach_mul_", "aten::lerp_"),
    "casts and copies": ("aten::copy_", "aten::_to_copy"),
    "sampling": ("aten::exponential_", "aten::log", "aten::argmax", "aten::randperm"),
}


class Product(NamedTuple):
    """`times` products of `rows` rows with each of `matrices` weight matrices [d_out, d_in]: x W^T, or dz^T x."""

    rows: int
    d_in: int
    d_out: int
    gradient: bool = False
    matrices: int = 1
    times: int = 1

    def flop(self) -> int:
        return 2 * self.rows * self.d_in * self.d_out * self.matrices * self.times


def products_of(config: Config) -> list[Product]:
    """The matrix products of a nominal step, without those of ten columns (read-outs, labels): 1 % or less."""
    size, dims = config.training.batch_size, config.model.hidden_dims
    shapes = list(pairwise([SIDE * SIDE, *dims]))
    if config.method == "supervised":  # one neutral, one positive, one negative pass
        return [
            product
            for shape in shapes
            for product in (Product(size, *shape), Product(2 * size, *shape), Product(2 * size, *shape, gradient=True))
        ]
    if config.method == "backprop":  # forward, of the weights, and of the layer's input
        inputs = [Product(size, d_out, d_in) for d_in, d_out in shapes[1:]]
        return [Product(size, *shape, gradient) for shape in shapes for gradient in (False, True)] + inputs
    if config.method == "unsupervised":
        matrices = [1] * len(dims)
        if config.model.grids:
            matrices = [grid**2 for grid in config.model.grids]
            channels = [dim // count for dim, count in zip(dims, matrices, strict=True)]
            shapes = list(zip([config.model.field**2, *(4 * count for count in channels)], channels, strict=False))
        return [
            Product(2 * size, *shape, gradient, count)
            for shape, count in zip(shapes, matrices, strict=True)
            for gradient in (False, True)
        ]
    # Recurrent: the bottom-up pass, then at each iteration all weights between hidden layers; the image's part, of
    # positives and negatives and of all iterations, once.
    iterations = config.model.iterations
    learning = iterations + 1 - config.model.first_learning_iteration
    between = [(d_in, d_out) for pair in pairwise(dims) for d_in, d_out in (pair, pair[::-1])]
    return [
        *(Product(size, *shape) for shape in [*shapes, shapes[0]]),
        Product(size, *shapes[0], gradient=True),
        *(Product(2 * size, *shape, times=iterations) for shape in between),
        *(Product(2 * size * learning, *shape, gradient=True) for shape in between),
    ]


def step_flop(config: Config) -> int:
    return sum(product.flop() for product in products_of(config))


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 7, at_least: float = 0.2) -> float:
    """Of one call: the median over `repeats` rounds of `at_least` seconds each."""
    work()
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    calls = max(1, round(at_least / (time.perf_counter() - started)))
    rounds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        rounds.append((time.perf_counter() - started) / calls)
    return statistics.median(rounds)


def products_rate(config: Config, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a step's matrix products with nothing between them, each of its own nominal shape."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    work = []
    for product in products_of(config):
        rows, d_in, d_out, gradient, matrices, times = product
        x, weight = random(matrices, rows, d_in).squeeze(0), random(matrices, d_out, d_in).squeeze(0)
        if gradient:
            work += [(random(matrices, rows, d_out).squeeze(0).mT, x, weight)] * times
        else:
            work += [(x, weight.mT, random(matrices, rows, d_out).squeeze(0))] * times

    def products() -> None:
        for a, b, out in work:
            torch.matmul(a, b, out=out)

    if device.type == "cuda":  # else the launches would be measured
        products()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            products()
        products = graph.replay

    return step_flop(config) / median_seconds(products, device)


class Running:
    """What `config` trains, on `examples`, ready to go epoch after epoch at the full rate."""

    def __init__(
        self, examples: Examples, config: Config, device: torch.device, phase: int = 0, epochs: int = STEADY_EPOCHS
    ):
        self.net = new_net(config).to(device)
        self.device = device
        chosen = phases_of(config, self.net)[phase]
        self.epochs = train_epochs(
            [chosen._replace(epochs=epochs)],
            examples,
            batch_size=config.training.batch_size,
            max_shift=config.data.jitter,
            generator=torch.Generator(device).manual_seed(0),
            cuda_graph=config.training.cuda_graph and device.type == "cuda",
        )

    def epoch_seconds(self) -> float:
        synchronise(self.device)
        started = time.perf_counter()
        next(self.epochs)
        synchronise(self.device)
        return time.perf_counter() - started

    def several(self, epochs: int) -> list[float]:
        seconds = []
        for _ in range(epochs):
            seconds.append(self.epoch_seconds())
            say(f"  {seconds[-1]:.2f} s")
        return seconds


def profile(running: Running) -> dict[str, float]:
    """Milliseconds of an epoch by kind of work; what no operator accounts for is Python, waiting and the profiler."""
    cuda = running.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *activities]) as profiler:
        seconds = running.epoch_seconds()
    kind_of = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    milliseconds = dict.fromkeys([*KINDS, "elementwise and other"], 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.key.startswith("aten::"):
            milliseconds[kind_of.get(event.key, "elementwise and other")] += own / 1000
    milliseconds["Python, waiting"] = 1000 * seconds - sum(milliseconds.values())
    return milliseconds


def settings(*overrides: str, precision: str = "fp32") -> Config:
    return load(composed(*overrides, f"precision={precision}"))


def of_dims(dims: list[int], *overrides: str, precision: str = "fp32") -> Config:
    return settings(f"model.hidden_dims={dims}", *overrides, precision=precision)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def nominal_seconds(config: Config, images: int, rate: float) -> float:
    return images / config.training.batch_size * step_flop(config) / rate


def measure_net(
    name: str, examples: Examples, test: Examples, precision: str, device: torch.device, epochs: int
) -> dict[str, Any]:
    """Everything about one net at batch size 100."""
    dims = NETS[name]
    config = of_dims(dims, precision=precision)
    say(f"{net_name(dims)}, {precision}: matrix products")
    rate = products_rate(config, PRECISIONS[precision], device)
    result: dict[str, Any] = {"net": net_name(dims), "precision": precision, "products_gflops": rate / 1e9}
    result["products_seconds"] = nominal_seconds(config, len(examples), rate)
    say(f"  {rate / 1e9:.0f} GFLOP/s; {epochs} epochs of {len(examples)} images")
    running = Running(examples, config, device)
    result["epoch_seconds"] = running.several(epochs)
    say("  compiled, the first epoch with the compiler's start")
    by_compiler = Running(examples, of_dims(dims, "training.compile=true", precision=precision), device)
    result["compiled_epoch_seconds"] = by_compiler.several(1 + epochs)
    if device.type == "cuda":
        say("  without a graph")
        ungraphed = of_dims(dims, "training.cuda_graph=false", precision=precision)
        result["ungraphed_epoch_seconds"] = Running(examples, ungraphed, device).several(2)
    say("  classification by goodness")
    images, scores = to_unit(test.images), methods.named(config.method).scores
    seconds = median_seconds(lambda: [scores(running.net, part) for part in images.split(1000)], device, 3, at_least=0)
    result["classification_seconds"] = seconds
    weights = sum(a * b for a, b in pairwise([SIDE * SIDE, *dims]))
    result["classification_gflops"] = 2 * NUM_CLASSES * len(images) * weights / seconds / 1e9
    say("  profile")
    # Without a CUDA graph, as the profiler sees single operators only.
    short = Running(examples[:12_000], of_dims(dims, "training.cuda_graph=false", precision=precision), device)
    short.net.load_state_dict(running.net.state_dict())
    short.epoch_seconds()
    result["profile_milliseconds"] = profile(short)
    return result


def measure_experiment(name: str, examples: Examples, precision: str, device: torch.device) -> dict[str, Any]:
    """Short epochs of an experiment, compiled ones too, and from the last one the time of a run."""
    config, part = settings(f"experiment={name}", precision=precision), examples[:PART]
    images = len(examples) - config.data.validation_images
    rate = products_rate(config, PRECISIONS[precision], device)
    say(f"{name}: {rate / 1e9:.0f} GFLOP/s; epochs of {len(part)} images")
    seconds = Running(part, config, device).several(SHORT_EPOCHS)
    run_seconds = config.training.epochs * seconds[-1]
    if getattr(config.training, "readout_epochs", 0):
        run_seconds += config.training.readout_epochs * Running(part, config, device, phase=1).several(2)[-1]
    result = {
        "experiment": name,
        "net": net_name(config.model.hidden_dims),
        "images": len(part),
        "precision": precision,
        "products_gflops": rate / 1e9,
        "products_seconds": nominal_seconds(config, len(part), rate),
        "epoch_seconds": seconds,
        "run_seconds": run_seconds * images / len(part),
    }
    if config.method != "supervised":  # of which `measure_net` has it
        say("  compiled, the first epoch with the compiler's start")
        compiling = settings(f"experiment={name}", "training.compile=true", precision=precision)
        result["compiled_epoch_seconds"] = Running(part, compiling, device).several(SHORT_EPOCHS)
    return result


def measure_plain_way(examples: Examples, device: torch.device) -> dict[str, float]:
    """Seconds per image of the plain way at 3 x 1000, with and without loader processes."""
    dims = [SIDE * SIDE, *NETS["matlab"]]
    host = examples.to("cpu")
    return {
        f"{workers} loader processes": seconds_per_image(
            host, dims, batch_size=100, images=6000, workers=workers, device=device
        )
        for workers in (0, os.cpu_count() or 1)
    }


def measure_process(root: str, device: torch.device) -> dict[str, float]:
    """Seconds from `python -m main` to its first step, and the peak memory (GB) of two epochs of the default run."""
    with tempfile.TemporaryDirectory() as folder:
        common = [as_argument("data.root", root), f"device={device.type}"]
        one_step = ["data.validation_images=59900", "evaluation.every=0", "training.epochs=1"]
        starts = []
        for repeat in range(3):
            started = time.perf_counter()
            command = [sys.executable, "-m", "main", *common, *one_step, f"hydra.run.dir={folder}/{repeat}"]
            with subprocess.Popen(
                command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                line = ""
                for line in process.stdout:
                    if line.startswith("epoch 1/"):
                        starts.append(time.perf_counter() - started)
            if process.returncode:
                raise ConfigError(f"python -m main: {line.strip()}")
        memory = [*common, "training.epochs=2", "evaluation.every=1", f"hydra.run.dir={folder}/memory"]
        peak = peak_resident_gb(memory)
    return {"first_step_seconds": statistics.median(starts), "peak_resident_gb": peak}


def measure_growth(examples: Examples, precision: str, device: torch.device) -> list[dict[str, Any]]:
    """Speed of a short second epoch, as one thing is varied around 3 x 1000 at batch size 100."""
    threads = torch.get_num_threads()
    variants = [
        *(("width", {"dims": [width] * 3}) for width in (250, 500, 1000, 2000, 4000)),
        *(("depth", {"dims": [1000] * depth}) for depth in range(2, 7)),
        *(("batch size", {"batch_size": size}) for size in (50, 100, 200, 400, 800, 1600)),
        *(("threads", {"threads": count}) for count in range(1, threads + 1) if device.type == "cpu"),
    ]
    rows = []
    for varied, variant in variants:
        values = {"dims": [1000] * 3, "batch_size": 100, "threads": threads} | variant
        dims, batch_size = values["dims"], values["batch_size"]
        torch.set_num_threads(values["threads"])
        part = examples[: max(GROWTH_IMAGES, 10 * batch_size)]
        config = of_dims(dims, f"training.batch_size={batch_size}", precision=precision)
        rate = products_rate(config, PRECISIONS[precision], device)
        running = Running(part, config, device)
        running.epoch_seconds()
        seconds = running.epoch_seconds() / len(part)
        weights = sum(a * b for a, b in pairwise([SIDE * SIDE, *dims]))
        rows.append(
            {
                "varied": varied,
                "net": net_name(dims),
                "batch_size": batch_size,
                "threads": values["threads"],
                "products_gflops": rate / 1e9,
                "seconds_per_60000": 60_000 * seconds,
                "products_over_time": nominal_seconds(config, 1, rate) / seconds,
                "ns_per_weight_and_step": 1e9 * seconds * batch_size / weights,
            }
        )
        say(f"{varied}: {net_name(dims)}, batch {batch_size}: {rows[-1]['seconds_per_60000']:.1f} s per 60,000")
    torch.set_num_threads(threads)
    return rows


def measure(arguments: argparse.Namespace, device: torch.device, precision: str) -> dict[str, Any]:
    examples, _, test = load_data("mnist", arguments.data_root, device, 0)
    result: dict[str, Any] = {"hardware": describe(device), "device": device.type, "precision": precision}
    result |= provenance()
    result["process"] = measure_process(arguments.data_root, device)
    result["nets"] = [measure_net(name, examples, test, precision, device, arguments.epochs) for name in NETS]
    result["experiments"] = [measure_experiment(name, examples, precision, device) for name in EXPERIMENTS]
    say("the plain way")
    result["plain_seconds_per_image"] = measure_plain_way(examples, device)
    if arguments.growth:
        result["growth"] = measure_growth(examples, precision, device)
    return result


def measure_again(
    result: dict[str, Any], names: list[str], root: str, device: torch.device, precision: str
) -> dict[str, Any]:
    """`result` with the experiments of these `names` measured anew, for when something disturbed the machine."""
    origin = provenance()
    if origin["versions"] != result["versions"]:
        raise SystemExit("error: the file is of other versions; measure all of it again, without --again")
    examples, _, _ = load_data("mnist", root, device, 0)
    rows = {row["experiment"]: row for row in result.get("experiments", [])}
    for name in names:
        rows[name] = measure_experiment(name, examples, precision, device) | {"commit": origin["commit"]}
    return result | {"experiments": list(rows.values())}


def of_products(products_seconds: float, seconds: list[float]) -> str:
    """ "0.67 to 0.72 x": how fast epochs were, from the first to the last, beside the nominal products alone."""
    return " to ".join(f"{products_seconds / of_epoch:.2f}" for of_epoch in (seconds[0], seconds[-1])) + " x"


def net_tables(result: dict[str, Any]) -> list[str]:
    """The figures of the two supervised nets."""
    nets = result["nets"]
    speed = [
        [
            f"{net['net']}{how}",
            f"{net['products_gflops']:,.0f} {net['precision']}",
            f"{net['products_seconds']:.2f} s",
            f"{seconds[0]:.2f} s",
            f"{seconds[-1]:.2f} s",
            of_products(net["products_seconds"], seconds),
            f"{start:.0f} s" if start else "-",
        ]
        for net in nets
        for how, seconds, start in (
            ("", net["epoch_seconds"], 0),
            (
                ", compiled",
                net["compiled_epoch_seconds"][1:],
                net["compiled_epoch_seconds"][0] - net["compiled_epoch_seconds"][1],
            ),
        )
    ]
    header = ["net", "GFLOP/s", "products alone", "first epoch", "last epoch", "speed", "start"]
    kinds = list(nets[0]["profile_milliseconds"])
    shares = [
        [
            net["net"],
            *(
                f"{part / sum(net['profile_milliseconds'].values()):.0%}"
                for part in net["profile_milliseconds"].values()
            ),
        ]
        for net in nets
    ]
    plain = 60_000 * min(result["plain_seconds_per_image"].values())
    as_fast = [plain / nets[0][key][-1] for key in ("epoch_seconds", "compiled_epoch_seconds")]
    sentences = [
        f"The plain way, 3 x 1000: {plain:.1f} s per 60,000 images. "
        f"The last epoch is {as_fast[0]:.1f} times as fast, and the last compiled one {as_fast[1]:.1f} times.",
        "Classification of 10,000 images by goodness: "
        + "; ".join(
            f"{net['net']} {net['classification_seconds']:.2f} s, "
            f"{net['classification_gflops'] / net['products_gflops']:.2f} x the products' rate"
            for net in nets
        )
        + ".",
        f"From `python -m main` to the first step: {result['process']['first_step_seconds']:.1f} s. "
        f"Peak resident memory of the default run: {result['process']['peak_resident_gb']:.2f} GB.",
    ]
    if result["device"] == "cuda":
        sentences.append(
            "Without a graph: "
            + "; ".join(f"{net['net']} {net['ungraphed_epoch_seconds'][-1]:.2f} s an epoch" for net in nets)
            + "."
        )
    return [markdown(header, speed), "\n".join(sentences), markdown(["time spent on", *kinds], shares)]


def experiments_table(result: dict[str, Any]) -> str:
    """The figures of all experiments, per 60,000 images."""

    def cells(row: dict[str, Any]) -> list[str]:
        scale, seconds = 60_000 / row["images"], row["epoch_seconds"]
        by_compiler = row.get("compiled_epoch_seconds")
        return [
            row["experiment"],
            row["net"],
            f"{row['products_gflops']:,.0f}",
            f"{scale * seconds[-1]:.1f} s",
            of_products(row["products_seconds"], seconds),
            f"{scale * by_compiler[-1]:.1f} s" if by_compiler else "-",
            duration(row["run_seconds"]),
        ]

    header = ["experiment", "net", "GFLOP/s", f"epoch {SHORT_EPOCHS}", "speed", "compiled", "a whole run"]
    return markdown(header, list(map(cells, result["experiments"])))


def growth_table(result: dict[str, Any]) -> str:
    header = ["varied", "net", "batch", "threads", "s per 60,000", "speed", "ns per weight and step"]
    return markdown(
        header,
        [
            [
                row["varied"],
                row["net"],
                str(row["batch_size"]),
                str(row["threads"]),
                f"{row['seconds_per_60000']:.1f}",
                f"{row['products_over_time']:.2f} x",
                f"{row['ns_per_weight_and_step']:.2f}",
            ]
            for row in result["growth"]
        ],
    )


def tables(result: dict[str, Any]) -> str:
    """The figures of one machine as Markdown."""
    parts = [f"{result['hardware']}, torch {result['versions']['torch']}, {result['precision']}:", *net_tables(result)]
    parts += [experiments_table(result)] + ([growth_table(result)] if "growth" in result else [])
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--data-root", default="datasets")
    parser.add_argument("--epochs", type=int, default=6, help="of 60,000 images to time for each net")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--growth", action="store_true")
    what.add_argument("--again", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    what.add_argument("--show", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.show:
        print("\n\n".join(tables(read_json(path)) for path in arguments.show))
        return
    from torch._inductor import config as inductor  # here, because this takes seconds

    inductor.force_disable_caches = True  # what the compiler's start costs at first
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    device = use(arguments.device)
    precision = resolve_precision("auto", device)
    # Processors of one name differ in what they multiply fast.
    name = re.sub(r"[^a-z0-9]+", "_", f"{describe(device)} {precision}".lower()).strip("_")
    path = REPOSITORY / "results" / "speed" / f"{name}.json"
    if arguments.again:
        if not path.is_file():
            raise SystemExit(f"error: there is no {path} yet; measure without --again first")
        result = measure_again(read_json(path), arguments.again, arguments.data_root, device, precision)
    else:
        result = measure(arguments, device, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(tables(result))


if __name__ == "__main__":
    with one_line_errors():
        main()
