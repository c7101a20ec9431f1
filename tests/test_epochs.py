"""The epoch loop, and what all ways to train have in common: figures, compiled and captured steps, precision."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import nets
import pytest
import torch
from nets import WAYS, configured, new_net, on_cuda, optimizer_for, small_net, tensors, updated

import src.training.epochs
from src import methods
from src.config.values import ConfigError
from src.datasets.batches import Examples, shuffled_batches
from src.methods import supervised
from src.methods.net import Net
from src.negatives import wrong_labels
from src.negatives.masks import mixed, random_masks
from src.training import compiling
from src.training.epochs import Phase, step_figures, train_epochs

COUNT, BATCH = 25, 10  # the last batch of an epoch has five examples
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def examples() -> Examples:
    return nets.examples(COUNT)


def recorded_epochs(examples: Examples, epochs: int = 1, max_shift: int = 0) -> tuple[list, list[dict]]:
    """Images, labels and figures of all steps, and what the epochs yielded, with learning rates of zero."""
    calls, net = [], small_net(784, [20, 12])
    still = optimizer_for(net, learning_rate=0.0, readout_learning_rate=0.0)

    def recording_step(images, labels, generator):
        figures = supervised.step(net, still, images, labels, None, choose=lambda _, labels, noise: (labels + 1) % 10)
        calls.append((images, labels, figures))
        return figures

    phases = [Phase(epochs, still, recording_step)]
    options = dict(batch_size=BATCH, max_shift=max_shift, generator=torch.Generator())
    return calls, list(train_epochs(phases, examples, **options))


def test_an_epoch_sees_every_example_once_and_where_the_jitter_has_moved_it(examples):
    calls, _ = recorded_epochs(examples, epochs=2)
    assert [len(labels) for _, labels, _ in calls] == [10, 10, 5] * 2
    for epoch in (calls[:3], calls[3:]):
        seen = torch.cat([images for images, *_ in epoch])
        assert sorted(row.tolist() for row in seen) == sorted((row / 255).tolist() for row in examples.images)
    assert not torch.equal(calls[0][0], calls[3][0])  # shuffled anew
    jittered = torch.cat([images for images, *_ in recorded_epochs(examples, max_shift=2)[0]]).sum(dim=1)
    still = torch.cat([images for images, *_ in calls[:3]]).sum(dim=1)  # most lose pixels over the edge
    assert (jittered.sort().values - still.sort().values).abs().gt(1e-3).sum() > COUNT / 2


def told(monkeypatch, method: str, *overrides: str, size: int = 6, seed: int = 0, steps: int = 1) -> SimpleNamespace:
    """What the method's step, the last of `steps`, is told of a batch."""
    monkeypatch.setattr(methods.named(method), "step", lambda *given, **more: SimpleNamespace(given=given, **more))
    images, labels, _ = tensors(0, size, dim=784)
    phase, *_ = new_net(method, *overrides).phases(configured(method, *overrides).training)
    generator = torch.Generator().manual_seed(seed)
    return [phase.step(images, labels, generator) for _ in range(steps)][-1]


@pytest.mark.parametrize(
    ("method", "value", "key", "expected"),
    [
        *((method, "negatives=hard", "choose", wrong_labels.hard) for method in ("supervised", "recurrent")),
        *((method, "negatives=uniform", "choose", wrong_labels.uniform) for method in ("supervised", "recurrent")),
        *((method, "adversarial=0.25", "adversarial", 0.25) for method in ("supervised", "backprop")),
    ],
)
def test_a_step_is_told_which_negatives_to_draw_and_how_far_to_move_images(monkeypatch, method, value, key, expected):
    assert getattr(told(monkeypatch, method, f"training.{value}"), key) == expected


@pytest.mark.parametrize("blurs", [3, 6])
def test_unsupervised_negatives_are_hybrids_of_the_batch_by_masks_drawn_anew(monkeypatch, blurs):
    drawn, generator = [], torch.Generator().manual_seed(0)
    for steps in (1, 2):
        _, _, images, negatives, _ = told(monkeypatch, "unsupervised", f"training.blurs={blurs}", steps=steps).given
        assert torch.equal(negatives, mixed(images, random_masks(6, nets.MNIST_MAP, blurs, generator)))
        drawn.append(negatives)
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(("method", "scale"), [("supervised", 1.0), ("backprop", 1 / 0.8)])
def test_pixels_are_dropped_as_asked(monkeypatch, method, scale):
    _, _, pixels, *_ = told(monkeypatch, method, "training.input_dropout=0.2", size=500).given
    images, kept = tensors(0, 500, dim=784)[0], pixels != 0
    torch.testing.assert_close(pixels, kept * scale * images)
    assert 1 - kept.float().mean().item() == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize("method", ["backprop", "recurrent"])
def test_activities_are_dropped_as_asked(monkeypatch, method):
    draws = [told(monkeypatch, method, "training.dropout=0.3", size=500, seed=seed) for seed in (0, 0, 1)]
    assert [tuple(mask.shape) for mask in draws[0].masks] == [(500, 20), (500, 12)]
    assert method == "recurrent" or draws[0].scale == pytest.approx(1 / 0.7)
    for mask in draws[0].masks:
        assert mask.unique().tolist() == [0, pytest.approx(1 / 0.7)]
        assert (mask == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    first, again, other = (draw.masks[0] for draw in draws)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_figures_are_means_over_examples(examples):
    """Not over batches: the last one is smaller."""
    calls, (figures,) = recorded_epochs(examples)
    for name in ("loss", "pairs_ordered_wrongly", "readout_loss"):
        of_steps = torch.stack([step[name] for *_, step in calls])
        assert figures[name] == pytest.approx((of_steps.sum(dim=0) / COUNT).tolist())
    # The read-out starts at zero and, with a rate of zero, stays there: ten classes alike.
    assert figures["readout_loss"] == pytest.approx(math.log(10))
    # A pair of equal goodness, as of a layer in which no unit fires, is ordered wrongly.
    tied = step_figures([(torch.zeros(2), torch.tensor([0.0, 3.0, 0.0, 2.0]))], torch.tensor(0.0))
    assert tied["pairs_ordered_wrongly"].tolist() == [1]


def test_phases_follow_one_another(examples):
    """Each with its own optimiser and its own rise and fall of the rates; taken up anywhere."""
    calls = []

    def phase(name: str, epochs: int) -> Phase:
        optimizer = optimizer_for(small_net(), learning_rate=1.0)

        def step(images, labels, generator):
            calls.append((name, round(optimizer.param_groups[0]["lr"].item(), 6)))
            return {name: torch.tensor(1.0), "loss": torch.zeros(0), "readout_loss": torch.tensor(0.0)}

        return Phase(epochs, optimizer, step)

    phases = [phase("first", 2), phase("none", 0), phase("last", 3)]
    options = dict(batch_size=COUNT, max_shift=0, generator=torch.Generator())
    expected = [("first", 1.0), ("first", 0.5), ("last", 1.0), ("last", 1.0), ("last", pytest.approx(1 / 3, abs=1e-6))]
    for first_epoch in range(1, 7):
        calls.clear()
        figures = list(train_epochs(phases, examples, first_epoch=first_epoch, **options))
        assert calls == expected[first_epoch - 1 :]
        assert [of_epoch["gain"] for of_epoch in figures] == pytest.approx([rate for _, rate in calls], abs=1e-6)
        assert all(name in of_epoch for of_epoch, (name, _) in zip(figures, calls, strict=True))


@pytest.mark.parametrize(
    ("method", "phase", "rate"),
    [
        ("supervised", 0, "readout_learning_rate"),
        ("unsupervised", 1, "readout_learning_rate"),
        ("backprop", 0, "learning_rate"),  # all weights depend on it
    ],
)
def test_a_read_out_that_diverges_alone_is_told_of_the_rate_it_depends_on(examples, method, phase, rate):
    diverged = {"loss": torch.zeros(0), "readout_loss": torch.tensor(torch.nan)}
    of_method = new_net(method).phases(configured(method).training)[phase]._replace(step=lambda *_: diverged)
    expected = f"^the loss of the read-out became nan in epoch 1; a lower training.{rate} may help$"
    with pytest.raises(ConfigError, match=expected):
        list(train_epochs([of_method], examples, batch_size=COUNT, max_shift=0, generator=torch.Generator()))


# --- Captured and compiled ------------------------------------------------------------------------------------------


def epochs_as(
    way: str, examples: Examples, *overrides: str, batch_size: int, cuda_graph: bool = False
) -> tuple[Net, Iterator]:
    """A net on the examples' device, and its epochs: three of every phase."""
    readout_epochs = ["training.readout_epochs=3"] if configured(way).method == "unsupervised" else []
    overrides = ("training.epochs=3", *readout_epochs, *overrides)
    device = examples.labels.device
    net, generator = new_net(way, *overrides).to(device), torch.Generator(device).manual_seed(0)
    options = dict(batch_size=batch_size, max_shift=1, generator=generator, cuda_graph=cuda_graph)
    return net, train_epochs(net.phases(configured(way, *overrides).training), examples, **options)


def assert_same_training(*both: tuple[Net, Iterator], tolerance: float = 1e-4) -> None:
    """After all their epochs, the nets are the same, and so are the figures."""
    (ours, our_figures), (theirs, their_figures) = ((net, list(epochs)) for net, epochs in both)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
    for a, b in zip(our_figures, their_figures, strict=True):
        for name in ("loss", "readout_loss"):  # and not the pairs, of which rounding may settle a near tie otherwise
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=1e-6)


@pytest.mark.xdist_group("compiled")  # in one process: the compiler takes seconds to import
@pytest.mark.parametrize(("way", "precision"), [*((way, "fp32") for way in WAYS), ("supervised", "bf16")])
def test_compiled_steps_train_as_they_do_otherwise(monkeypatch, examples, way, precision):
    """Traced and run without generated code, which takes long to compile."""
    traced = Mock(side_effect=partial(compiling.compiled, backend="aot_eager"))
    method = methods.named(configured(way).method)
    monkeypatch.setattr(method, "compiled", traced)
    size = BATCH if way == "supervised" else BATCH // 2  # the last batch is smaller, or as large as the others
    torch._dynamo.utils.counters.clear()
    compiled, plain = (
        epochs_as(way, examples, f"precision={precision}", f"training.compile={yes}", batch_size=size)
        for yes in (True, False)
    )
    assert_same_training(compiled, plain, tolerance=0.02 if precision == "bf16" else 1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
    traced.assert_called_once_with(method.step, compiled[0])


@pytest.mark.xdist_group("compiled")
@pytest.mark.parametrize("way", ["uniform, adversarial", "unsupervised", "recurrent", "backprop"])  # of each method
def test_all_compiling_is_done_before_a_capture(monkeypatch, examples, way):
    compiled_before = []

    def graphs() -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    @contextmanager
    def capture():
        compiled_before.append(graphs())
        yield
        assert graphs() == compiled_before[0]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(register_generator_state=lambda generator: None, replay=lambda: None)
    stand_ins = dict(Stream=lambda: stream, current_stream=lambda: stream, stream=lambda stream: nullcontext())
    stand_ins |= dict(CUDAGraph=lambda: graph, graph=lambda graph, stream: capture())
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    method = methods.named(configured(way).method)
    monkeypatch.setattr(method, "compiled", partial(compiling.compiled, backend="eager"))
    torch._dynamo.utils.counters.clear()
    _, epochs = epochs_as(way, examples, "training.compile=true", batch_size=BATCH, cuda_graph=True)
    for _ in range(3):
        next(epochs)
    assert len(compiled_before) == 1 and compiled_before[0] > 0


@pytest.mark.xdist_group("compiled")
def test_every_run_of_a_long_sweep_is_compiled():
    from torch._dynamo.testing import CompileCounter  # here, because this takes seconds

    counter = CompileCounter()
    for seed in range(10):
        net = small_net()
        step = compiling.compiled(lambda optimizer: optimizer.param_groups[0]["lr"] * 2, net, counter)
        assert step(optimizer_for(net, learning_rate=seed / 2)) == seed
    assert counter.frame_count == 10


# --- On a GPU, in bf16, and saved -----------------------------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("batch_size", [BATCH // 2, BATCH])  # the last one as large as the others, or smaller
@every_way
def test_a_cuda_graph_trains_as_single_launches_do(examples, way, batch_size):
    both = (epochs_as(way, examples.to("cuda"), batch_size=batch_size, cuda_graph=graph) for graph in (True, False))
    assert_same_training(*both)


@on_cuda
@every_way
def test_the_host_never_waits_between_the_batches_of_an_epoch(monkeypatch, examples, way):
    _, epochs = epochs_as(way, examples.to("cuda"), batch_size=BATCH)
    next(epochs)  # what is done once only may wait

    def watched(**options):
        torch.cuda.set_sync_debug_mode("error")
        yield from shuffled_batches(**options)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(src.training.epochs, "shuffled_batches", watched)
    try:
        next(epochs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_near(ours: Net, theirs: Net, precision: str, way: str) -> None:
    tolerance = {"fp32": 1e-4, "bf16": 0.03}[precision]
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.dtype == a.grad.dtype == torch.float32
        # Biases have moved by little from zero, and the ReLU of few units may have been switched otherwise. So may
        # those that images are moved by, and the read-out of this way sees twelve units.
        less_sure = "bias" in name or (way, name) == ("uniform, adversarial", "readout.weight")
        assert (a - b).norm() < tolerance * b.norm() * (3 if less_sure else 1), name


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_way
def test_cuda_agrees_with_the_cpu(way, precision):
    ours, theirs = (updated(way, f"precision={precision}", device=device) for device in ("cuda", "cpu"))
    assert_near(ours, theirs, precision, way)


@every_way
def test_bf16_products_stay_near_fp32_and_keep_fp32_weights(way):
    ours, theirs = updated(way, "precision=bf16"), updated(way)
    assert_near(ours, theirs, "bf16", way)
    assert all((a != b).any() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
