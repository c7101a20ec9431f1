"""How fast training is on this machine, beside what its matrix products alone would take.

    python -m benchmarks.speed                  measures, and writes results/speed/HARDWARE_PRECISION.json
    python -m benchmarks.speed --growth         also how time grows with width, depth, batch size and threads
    python -m benchmarks.speed --again NAME...  measures these experiments again, for the file that is there
    python -m benchmarks.speed --show FILE...   prints the tables of what was measured before

Nominal work (`products_of`): 2 floating-point operations (FLOP) for each row of a product and each weight. A supervised
step multiplies 5 B rows by every weight: B neutral, B positive, B negative cases forward, 2 B cases for the gradient.
What a step need not do of that counts as done (cases without a gradient; the image's part of the first layer's product,
which three passes share), so a share above 100 % is possible.
"""

import argparse
import json
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
import torch._inductor.config
from torch.profiler import ProfilerActivity

from benchmarks.plain import seconds_per_image
from src import train
from src.checkpoint import write_atomically
from src.classify import goodness_per_label
from src.config import Config, composed, load, one_line_errors
from src.data import SIDE, Examples, load_mnist, to_unit
from src.device import PRECISIONS, describe, resolve_device, resolve_precision, synchronise
from src.experiment import build_model, build_phases, compiled
from src.report import markdown, net_name
from src.runlog import provenance
from src.samples import NUM_CLASSES

REPOSITORY = Path(__file__).resolve().parents[1]
NETS = {"matlab": [1000] * 3, "paper": [2000] * 4}
EXPERIMENTS = {  # of the other methods -> images of an epoch that is timed
    "backprop": 12_000,
    "unsupervised": 12_000,
    "local_receptive_fields": 12_000,
    "recurrent": 6_000,
}
GROWTH_IMAGES = 3000
KINDS = {  # of work -> the operators that do it
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
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
    iterations = config.recurrent.iterations
    learning = iterations + 1 - config.recurrent.first_learning_iteration
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


class Training:
    """What `config` describes on `examples`, ready to train epoch after epoch at the full rate."""

    def __init__(self, examples: Examples, config: Config, *, precision: str, device: torch.device):
        self.model = build_model(config, PRECISIONS[precision]).to(device)
        self.device = device
        generator = torch.Generator(device).manual_seed(0)
        self.epochs = train.train_epochs(
            build_phases(config, self.model, examples, generator),
            examples,
            batch_size=config.training.batch_size,
            max_shift=0,
            generator=generator,
            cuda_graph=config.training.cuda_graph and device.type == "cuda",
        )

    def epoch_seconds(self) -> float:
        synchronise(self.device)
        started = time.perf_counter()
        next(self.epochs)
        synchronise(self.device)
        return time.perf_counter() - started


def profile(training: Training) -> dict[str, float]:
    """Milliseconds of an epoch by kind of work; what no operator accounts for is Python, waiting and the profiler."""
    cuda = training.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *activities]) as profiler:
        seconds = training.epoch_seconds()
    kind_of = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    milliseconds = dict.fromkeys([*KINDS, "elementwise and other"], 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.key.startswith("aten::"):
            milliseconds[kind_of.get(event.key, "elementwise and other")] += own / 1000
    milliseconds["Python, waiting"] = 1000 * seconds - sum(milliseconds.values())
    return milliseconds


def settings(*overrides: str) -> Config:
    """Of so many epochs that none of those measured has a falling rate."""
    return load(composed(*overrides, "training.epochs=1000"))


def of_dims(dims: list[int], *overrides: str) -> Config:
    return settings(f"model.hidden_dims={dims}", *overrides)


def subset(examples: Examples, count: int) -> Examples:
    return Examples(examples.images[:count], examples.labels[:count])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure_net(
    name: str, examples: Examples, test: Examples, precision: str, device: torch.device, epochs: int
) -> dict[str, Any]:
    """Everything about one net at batch size 100."""
    dims, dtype = NETS[name], PRECISIONS[precision]
    config = of_dims(dims)
    say(f"{net_name(dims)}, {precision}: matrix products")
    rate = products_rate(config, dtype, device)
    result: dict[str, Any] = {"net": net_name(dims), "precision": precision, "products_gflops": rate / 1e9}
    result["products_seconds"] = nominal_seconds(config, len(examples), rate)
    say(f"  {rate / 1e9:.0f} GFLOP/s; {epochs} epochs of {len(examples)} images")
    training = Training(examples, config, precision=precision, device=device)
    result["epoch_seconds"] = epochs_seconds(training, epochs)
    say("  compiled")
    by_compiler = Training(examples, of_dims(dims, "training.compile=true"), precision=precision, device=device)
    result["compiled_epoch_seconds"] = epochs_seconds(by_compiler, 1 + epochs)  # the first with the compiler's start
    say("  the same, computed otherwise")
    part = subset(examples, len(examples) // 5)
    ways = [("plain", True)]
    if device.type == "cuda":
        ways += [("fast", False), ("plain", False)]
    for step, graph in ways:
        otherwise = of_dims(dims, f"training.step={step}", f"training.cuda_graph={graph}")
        other = Training(part, otherwise, precision=precision, device=device)
        fast_part = Training(part, config, precision=precision, device=device)
        other.epoch_seconds(), fast_part.epoch_seconds()
        pairs = [(other.epoch_seconds(), fast_part.epoch_seconds()) for _ in range(3)]
        label = f"{step}{'' if graph else ', no graph'}"
        result.setdefault("time_over_fast", {})[label] = statistics.median(a / b for a, b in pairs)
    say("  classification by goodness")
    images = to_unit(test.images)
    seconds = median_seconds(
        lambda: [goodness_per_label(training.model, part) for part in images.split(1000)], device, 3, at_least=0
    )
    result["classification_seconds"] = seconds
    weights = sum(a * b for a, b in pairwise([SIDE * SIDE, *dims]))
    result["classification_gflops"] = 2 * NUM_CLASSES * len(images) * weights / seconds / 1e9
    say("  profile")
    # Without a CUDA graph, as the profiler sees single operators only.
    ungraphed = of_dims(dims, "training.cuda_graph=false")
    short = Training(subset(examples, 12_000), ungraphed, precision=precision, device=device)
    short.model.load_state_dict(training.model.state_dict())
    short.epoch_seconds()
    result["profile_milliseconds"] = profile(short)
    return result


def epochs_seconds(training: Training, epochs: int) -> list[float]:
    seconds = []
    for _ in range(epochs):
        seconds.append(training.epoch_seconds())
        say(f"  {seconds[-1]:.2f} s")
    return seconds


def nominal_seconds(config: Config, images: int, rate: float) -> float:
    return images / config.training.batch_size * step_flop(config) / rate


def measure_experiment(name: str, examples: Examples, precision: str, device: torch.device) -> dict[str, Any]:
    """Five short epochs of another method, and five compiled ones where there are such, beside its matrix products."""
    config, part = settings(f"experiment={name}"), subset(examples, EXPERIMENTS[name])
    rate = products_rate(config, PRECISIONS[precision], device)

    def epochs(config: Config) -> list[float]:
        training = Training(part, config, precision=precision, device=device)
        return [training.epoch_seconds() for _ in range(5)]

    seconds = epochs(config)
    say(f"{name}: {rate / 1e9:.0f} GFLOP/s; {seconds[-1]:.2f} s for {len(part)} images")
    result = {
        "experiment": name,
        "net": net_name(config.model.hidden_dims),
        "images": len(part),
        "precision": precision,
        "products_gflops": rate / 1e9,
        "products_seconds": nominal_seconds(config, len(part), rate),
        "epoch_seconds": seconds,
    }
    if config.method != "backprop" and not config.model.grids:  # the first of these epochs with the compiler's start
        result["compiled_epoch_seconds"] = epochs(settings(f"experiment={name}", "training.compile=true"))
        say(f"  compiled: {result['compiled_epoch_seconds'][-1]:.2f} s")
    return result


def measure_plain_way(examples: Examples, device: torch.device) -> dict[str, float]:
    """Seconds per image of the plain way at 3 x 1000, with and without loader processes."""
    dims = [SIDE * SIDE, *NETS["matlab"]]
    host = Examples(examples.images.cpu(), examples.labels.cpu())
    return {
        f"{workers} loader processes": seconds_per_image(
            host, dims, batch_size=100, images=6000, workers=workers, device=device
        )
        for workers in (0, os.cpu_count() or 1)
    }


def measure_process(root: str, device: torch.device) -> dict[str, float]:
    """Seconds from `python -m main` to its first step, and the peak memory (GB) of two epochs of the default run."""
    with tempfile.TemporaryDirectory() as folder:

        def start(name: str, *overrides: str) -> subprocess.Popen:
            command = [
                sys.executable, "-m", "main", f"hydra.run.dir={folder}/{name}", f"data.root={root}",
                f"device={device.type}", *overrides,
            ]  # fmt: skip
            return subprocess.Popen(
                command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        starts = []
        for repeat in range(3):
            started = time.perf_counter()
            one_step = ("data.validation_images=59900", "evaluation.every=0", "training.epochs=1")
            with start(f"start{repeat}", *one_step) as process:
                next(line for line in process.stdout if line.startswith("epoch 1/"))
                starts.append(time.perf_counter() - started)
                process.stdout.read()
        with start("memory", "training.epochs=2", "evaluation.every=1") as process:
            process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"error: the run for the memory ended with status {process.returncode}")
    return {"first_step_seconds": statistics.median(starts), "peak_resident_gb": usage.ru_maxrss / 1e6}


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
        part = subset(examples, max(GROWTH_IMAGES, 10 * batch_size))
        config = of_dims(dims, f"training.batch_size={batch_size}")
        rate = products_rate(config, PRECISIONS[precision], device)
        training = Training(part, config, precision=precision, device=device)
        training.epoch_seconds()
        seconds = training.epoch_seconds() / len(part)
        rows.append(
            {
                "varied": varied,
                "net": net_name(dims),
                "batch_size": batch_size,
                "threads": values["threads"],
                "products_gflops": rate / 1e9,
                "seconds_per_60000": 60_000 * seconds,
                "share": nominal_seconds(config, 1, rate) / seconds,
            }
        )
        say(f"{varied}: {net_name(dims)}, batch {batch_size}: {rows[-1]['seconds_per_60000']:.1f} s per 60,000")
    torch.set_num_threads(threads)
    return rows


def measure(arguments: argparse.Namespace, device: torch.device, precision: str) -> dict[str, Any]:
    examples, _, test = load_mnist(root=arguments.data_root, device=device, validation_images=0)
    result: dict[str, Any] = {"hardware": describe(device), "device": device.type, "precision": precision}
    result |= provenance()
    result["process"] = measure_process(arguments.data_root, device)
    result["nets"] = [measure_net(name, examples, test, precision, device, arguments.epochs) for name in NETS]
    result["experiments"] = [measure_experiment(name, examples, precision, device) for name in EXPERIMENTS]
    result["products_gflops"] = {
        name: {net: products_rate(of_dims(dims), dtype, device) / 1e9 for net, dims in NETS.items()}
        for name, dtype in PRECISIONS.items()
    }
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
    examples, _, _ = load_mnist(root=root, device=device, validation_images=0)
    rows = {row["experiment"]: row for row in result.get("experiments", [])}
    for name in names:
        rows[name] = measure_experiment(name, examples, precision, device) | {"commit": origin["commit"]}
    return result | {"experiments": list(rows.values())}


def experiment_cells(row: dict[str, Any]) -> list[str]:
    """Of one of the other methods' experiments, in the table of `tables`."""

    def per_60000(seconds: float) -> str:
        return f"{60_000 / row['images'] * seconds:.1f} s"

    def share(seconds: float) -> str:
        return f"{row['products_seconds'] / seconds:.0%}"

    first, last = row["epoch_seconds"][0], row["epoch_seconds"][-1]
    cells = [row["experiment"], row["net"], f"{row['products_gflops']:,.0f} GFLOP/s {row['precision']}"]
    cells += [per_60000(first), per_60000(last), f"{share(first)} to {share(last)}"]
    if "compiled_epoch_seconds" not in row:
        return [*cells, "-", "-", "-"]
    start, *_, last = row["compiled_epoch_seconds"]
    return [*cells, f"{start - last:.0f} s", per_60000(last), share(last)]


def tables(result: dict[str, Any]) -> str:
    """The figures of one machine as Markdown."""
    nets = result["nets"]
    header = ["net", "matrix products", "nominal time of an epoch", "first epoch"]
    header += [f"epoch {len(nets[0]['epoch_seconds'])}", "share", "autograd step (first epochs)"]
    speed = markdown(
        [*header, "classification by goodness"],
        [
            [
                net["net"],
                f"{net['products_gflops']:,.0f} GFLOP/s {net['precision']}",
                f"{net['products_seconds']:.2f} s",
                *(f"{net['epoch_seconds'][index]:.2f} s" for index in (0, -1)),
                " to ".join(f"{net['products_seconds'] / net['epoch_seconds'][index]:.0%}" for index in (0, -1)),
                f"{net['time_over_fast']['plain']:.2f} x",
                f"{net['classification_seconds']:.2f} s, "
                f"{net['classification_gflops'] / net['products_gflops']:.0%} of the rate",
            ]
            for net in nets
        ],
    )
    kinds = list(nets[0]["profile_milliseconds"])
    shares = markdown(
        ["where the time goes", *kinds],
        [
            [
                net["net"],
                *(
                    f"{milliseconds / sum(net['profile_milliseconds'].values()):.0%}"
                    for milliseconds in net["profile_milliseconds"].values()
                ),
            ]
            for net in nets
        ],
    )
    products = result["products_gflops"].items()
    plain = min(result["plain_seconds_per_image"].values())
    ours = {"the first epoch's time": nets[0]["epoch_seconds"][0], "the last one's": nets[0]["epoch_seconds"][-1]}
    if "compiled_epoch_seconds" in nets[0]:
        ours["that of the last compiled one"] = nets[0]["compiled_epoch_seconds"][-1]
    lines = [
        f"{result['hardware']}, torch {result['versions']['torch']}:",
        speed,
        shares,
        "Matrix products alone, GFLOP/s: "
        + "; ".join(
            f"{net_name(NETS[net])} {', '.join(f'{rates[net]:,.0f} in {precision}' for precision, rates in products)}"
            for net in NETS
        )
        + ".",
        f"The plain way, 3 x 1000: {60_000 * plain:.1f} s per 60,000 images, "
        + ", ".join(f"{60_000 * plain / seconds:.1f} times {what}" for what, seconds in ours.items())
        + ". From `python -m main` to the first step: "
        f"{result['process']['first_step_seconds']:.1f} s. Peak resident memory of the default run: "
        f"{result['process']['peak_resident_gb']:.2f} GB.",
    ]
    if "compiled_epoch_seconds" in nets[0]:
        lines.append(
            "With `training.compile=true`: "
            + "; ".join(
                f"{net['net']} {seconds[1]:.2f} to {seconds[-1]:.2f} s an epoch, "
                f"{net['products_seconds'] / seconds[1]:.0%} to {net['products_seconds'] / seconds[-1]:.0%} of the "
                f"products' rate, after a first one of {seconds[0]:.1f} s"
                for net in nets
                for seconds in [net["compiled_epoch_seconds"]]
            )
            + "."
        )
    for net in nets if result["device"] == "cuda" else ():
        others = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in net["time_over_fast"].items())
        lines.append(f"Beside the fast step in a CUDA graph, {net['net']}: {others}.")
    if "experiments" in result:
        header = ["experiment", "net", "matrix products", "first epoch, per 60,000 images", "epoch 5", "share"]
        lines.append(
            markdown(
                [*header, "compiled: start", "epoch 5", "share"], list(map(experiment_cells, result["experiments"]))
            )
        )
    if "growth" in result:
        lines.append(
            markdown(
                ["varied", "net", "batch size", "threads", "GFLOP/s of the products", "s per 60,000 images", "share"],
                [
                    [
                        row["varied"], row["net"], str(row["batch_size"]), str(row["threads"]),
                        f"{row['products_gflops']:,.0f}", f"{row['seconds_per_60000']:.1f}", f"{row['share']:.0%}",
                    ]
                    for row in result["growth"]
                ],
            )
        )  # fmt: skip
    return "\n\n".join(lines)


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
        print("\n\n".join(tables(json.loads(path.read_text(encoding="utf-8"))) for path in arguments.show))
        return
    torch._inductor.config.force_disable_caches = True  # what the compiler's start costs at first
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    compiled(lambda: None)  # if there is no compiler, that is said now
    precision = resolve_precision("auto", device)
    # Processors of one name differ in what they multiply fast.
    name = re.sub(r"[^a-z0-9]+", "_", f"{describe(device)} {precision}".lower()).strip("_")
    path = REPOSITORY / "results" / "speed" / f"{name}.json"
    if arguments.again:
        if not path.is_file():
            raise SystemExit(f"error: there is no {path} yet; measure without --again first")
        result = json.loads(path.read_text(encoding="utf-8"))
        result = measure_again(result, arguments.again, arguments.data_root, device, precision)
    else:
        result = measure(arguments, device, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
    print(tables(result))


if __name__ == "__main__":
    with one_line_errors():
        main()
