"""The epoch loop: every example once, the right negatives, jitter, and figures that are means over examples."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import optimizer_for, small_net
from test_config import composed
from torch import nn

import src.experiment
import src.layers
import src.train
from src import fast, unsupervised
from src.config import ConfigError
from src.cuda_graph import WARM_UPS, GraphedUpdate
from src.data import Examples
from src.experiment import build_model, build_phases, run
from src.layers import FFLayer, logistic_loss
from src.model import FFNet
from src.train import Phase, gain_of, train_epochs, train_step
from src.unsupervised import UnsupervisedFFNet

COUNT, BATCH = 25, 10  # the last batch of an epoch has five examples


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 784), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.randint(0, 10, (COUNT,), generator=generator))


def net() -> FFNet:
    return small_net(784, [20, 12])


def recorded_epochs(
    examples: Examples, epochs: int = 1, max_shift: int = 0
) -> tuple[list, list[dict[str, torch.Tensor]]]:
    """The batches of images and labels of all steps, and what the epochs yielded, with learning rates of zero."""
    calls = []
    model = net()
    still = optimizer_for(model, learning_rate=0.0, readout_learning_rate=0.0)

    def recording_step(images, labels):
        calls.append((images, labels))
        return train_step(model, still, images, labels, lambda logits, labels: (labels + 1) % 10)

    phases = [Phase(epochs, still, recording_step)]
    options = dict(batch_size=BATCH, max_shift=max_shift, generator=torch.Generator())
    return calls, list(train_epochs(phases, examples, **options))


def test_an_epoch_sees_every_example_once(examples):
    calls, _ = recorded_epochs(examples, epochs=2)
    assert [len(labels) for _, labels in calls] == [10, 10, 5] * 2
    for epoch in (calls[:3], calls[3:]):
        seen = torch.cat([images for images, _ in epoch])
        assert sorted(row.tolist() for row in seen) == sorted((row / 255).tolist() for row in examples.images)
    assert not torch.equal(calls[0][0], calls[3][0])  # shuffled anew


@pytest.mark.parametrize("negatives", ["hard", "uniform"])
def test_negatives_are_drawn_as_asked(monkeypatch, examples, negatives):
    """By the phases that a configuration makes."""
    offsets = set()

    def recording_step(model, optimizer, images, labels, draw_negative_labels):
        logits = torch.full((len(labels), 10), -20.0)
        logits[torch.arange(len(labels)), (labels + 1) % 10] = 20.0  # one wrong label is all that is likely
        offsets.update(((draw_negative_labels(logits, labels) - labels) % 10).tolist())
        return train_step(model, optimizer, images, labels, lambda logits, labels: (labels + 1) % 10)

    monkeypatch.setattr(src.experiment, "train_step", recording_step)
    config = composed(f"training.negatives={negatives}", "training.step=plain", "training.epochs=8")
    generator = torch.Generator().manual_seed(0)
    phases = build_phases(config, net(), examples, generator)
    list(train_epochs(phases, examples, batch_size=BATCH, max_shift=0, generator=generator))
    assert offsets == ({1} if negatives == "hard" else set(range(1, 10)))


def test_jitter_moves_the_images_that_are_trained_on(examples):
    still, _ = recorded_epochs(examples)
    moved, _ = recorded_epochs(examples, max_shift=2)

    def sums(calls):
        return sorted(round(255 * row.sum().item()) for images, _ in calls for row in images)

    assert sums(still) == sorted(row.sum().item() for row in examples.images.long())
    assert sum(ours != theirs for ours, theirs in zip(sums(still), sums(moved), strict=True)) > COUNT / 2


def test_figures_are_means_over_examples(examples):
    """Not over batches: the last one is smaller."""
    calls, (figures,) = recorded_epochs(examples)
    model = net()
    cases = []
    for images, labels in calls:
        for image, label in zip(images, labels, strict=True):
            positive = src.train.embed_label(image[None], label[None])
            negative = src.train.embed_label(image[None], (label[None] + 1) % 10)
            cases.append(model.local_losses(positive, negative)[1])
    logits = torch.cat(cases, dim=2)  # [L, 2, COUNT]
    torch.testing.assert_close(figures["loss"], logistic_loss(logits[:, 0], logits[:, 1]))
    wrong = (logits[:, 1] >= logits[:, 0]).float().mean(dim=1)
    torch.testing.assert_close(figures["pairs_ordered_wrongly"], wrong)
    # The read-out starts at zero and, with a rate of zero, stays there: ten classes alike.
    assert figures["readout_loss"].item() == pytest.approx(torch.tensor(10.0).log().item())


def test_learning_rates_follow_the_gain():
    optimizer = optimizer_for(small_net(), learning_rate=0.5, readout_learning_rate=0.7)
    src.train.set_gain(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.07])


def test_phases_follow_one_another(examples):
    """Each with its own optimiser and its own rise and fall of the rates; taken up anywhere."""
    calls = []

    def phase(name: str, epochs: int) -> Phase:
        optimizer = optimizer_for(net(), learning_rate=1.0)

        def step(images, labels):
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
        assert [name for of_epoch in figures for name in of_epoch if "loss" not in name] == [name for name, _ in calls]
    assert [gain_of(phases, epoch) for epoch in range(1, 6)] == [
        (phases[0] if name == "first" else phases[2], rate) for name, rate in expected
    ]
    with pytest.raises(ValueError, match="ended"):
        gain_of(phases, 6)


def assert_same_training(ours: tuple, theirs: tuple) -> None:
    for a, b in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    for a, b in zip(ours[1], theirs[1], strict=True):
        for name in ("loss", "readout_loss"):  # and not the pairs, of which rounding may settle a near tie otherwise
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


CHANGES = {
    "negatives count twice": ("logistic_loss", lambda p, n: (F.softplus(-p) + 2 * F.softplus(n)).mean(-1) / 2),
    "no negatives": ("logistic_loss", lambda p, n: F.softplus(-p).mean(-1) / 2),
    "another goodness": ("goodness", lambda h: h.abs().sum(dim=1)),
    "another normalisation": ("length_normalise", lambda v: v / v.norm(dim=1, keepdim=True)),
}


STEPS = {  # what a run compares: the steps, written out and plainly, their kind of net, their last argument
    "supervised": (fast.train_step, train_step, FFNet, lambda _, labels: (labels + 1) % 10),
    "unsupervised": (
        fast.unsupervised_step, unsupervised.train_step, UnsupervisedFFNet, lambda images: images.flip(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", STEPS)
def test_a_changed_algorithm_is_told_from_the_fast_step(monkeypatch, examples, change, dtype, method):
    """At a real width, where a new net's negatives have no gradient at all, and in bf16."""
    fast_step, plain_step, kind, negatives = STEPS[method]
    model = small_net(784, [400, 300], matmul_dtype=dtype, kind=kind)
    before = copy.deepcopy(model.state_dict())
    arguments = (model, optimizer_for(model), examples.images / 255, examples.labels, negatives)
    assert fast.differs(fast_step, plain_step, *arguments) is None
    monkeypatch.setattr(src.layers, *CHANGES[change])
    assert fast.differs(fast_step, plain_step, *arguments) is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # copies were trained


def shortened(model, *arguments):
    figures = train_step(model, *arguments)
    with torch.no_grad():
        model.layers[0].weight.mul_(0.9)
    return figures


def with_any_negatives(model, optimizer, images, labels, draw):
    return train_step(model, optimizer, images, labels, lambda logits, labels: draw(torch.zeros_like(logits), labels))


@pytest.mark.parametrize(
    ("changed_step", "what"),
    [(shortened, "layers.0.weight after the update"), (with_any_negatives, "what negatives are drawn from")],
)
def test_so_is_a_changed_step(examples, changed_step, what):
    model = small_net(784, [40, 30])
    arguments = (model, optimizer_for(model), examples.images / 255, examples.labels, STEPS["supervised"][-1])
    assert fast.differs(fast.train_step, changed_step, *arguments) == what


@pytest.mark.parametrize("method", STEPS)
def test_a_run_refuses_to_measure_the_old_algorithm(monkeypatch, tmp_path, mnist_root, method):
    plain_logit = FFLayer.logit
    monkeypatch.setattr(FFLayer, "logit", lambda self, h: 0.5 * plain_logit(self, h))
    config = composed("model.hidden_dims=[8,8]", f"method={method}", f"data.root={mnist_root}", "device=cpu")
    with pytest.raises(ConfigError, match=r"training\.step=plain"):
        run(config, tmp_path)


def test_every_batch_is_trained_on_once_whether_replayed_or_not(monkeypatch):
    """The bookkeeping of `GraphedUpdate`, with a stand-in for the CUDA graph where there is no GPU."""
    seen, capturing = [], []

    class Graph:
        def register_generator_state(self, generator):
            assert generator == "generator"

        def replay(self):
            update(graphed.batch)  # what was captured, with what is in the captured tensors now

    @contextmanager
    def capture(graph):
        capturing.append(graph)
        yield
        capturing.pop()

    def update(batch):
        if not capturing:  # a capture records and computes nothing
            seen.append(batch.tolist())

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": capture,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graphed = GraphedUpdate(update, "generator")
    batches = list(torch.arange(10 * (WARM_UPS + 3) + 4).split(10)) * 2  # the last of each epoch is smaller
    for batch in batches:
        graphed(batch)
    assert seen == [batch.tolist() for batch in batches]


WAYS = {  # to train: every step of src/, on a small net
    "fast": "",
    "plain": "training.step=plain",
    "uniform negatives": "training.negatives=uniform",
    "backprop": "method=backprop",
    "unsupervised": "method=unsupervised",
    "unsupervised, plain": "method=unsupervised training.step=plain",
    "local receptive fields": "method=unsupervised model.grids=[3,2] model.hidden_dims=[36,20]",
    "recurrent": "method=recurrent",
}


def epochs_as(overrides: str, examples: Examples, *, batch_size: int, cuda_graph: bool) -> tuple[nn.Module, Iterator]:
    """The net that a configuration describes, on the examples' device, and its epochs: three of every phase."""
    config = composed(
        "model.hidden_dims=[20,12]", "training.epochs=3", "unsupervised.readout_epochs=3", *overrides.split()
    )
    device = examples.labels.device
    model, generator = build_model(config, torch.float32).to(device), torch.Generator(device).manual_seed(0)
    phases = build_phases(config, model, examples, generator)
    options = dict(batch_size=batch_size, max_shift=1, generator=generator, cuda_graph=cuda_graph)
    return model, train_epochs(phases, examples, **options)


def trained_as(
    overrides: str, examples: Examples, *, batch_size: int = BATCH // 2, cuda_graph: bool = False
) -> tuple[nn.Module, list]:
    """The net of `epochs_as` after its epochs, and their figures."""
    model, epochs = epochs_as(overrides, examples, batch_size=batch_size, cuda_graph=cuda_graph)
    return model, list(epochs)


WRITTEN_OUT = ["fast", "unsupervised", "local receptive fields"]


@pytest.mark.parametrize("way", WRITTEN_OUT)
def test_the_fast_steps_train_like_the_plain_ones(examples, way):
    functions = STEPS["supervised" if way == "fast" else "unsupervised"][:2]
    for step, function in zip(("fast", "plain"), functions, strict=True):
        config = composed("model.hidden_dims=[20,12]", *WAYS[way].split(), f"training.step={step}")
        model = build_model(config, torch.float32)
        assert build_phases(config, model, examples, torch.Generator())[0].step.func is function
    assert_same_training(*(trained_as(f"{WAYS[way]} training.step={step}", examples) for step in ("fast", "plain")))


@pytest.mark.parametrize(
    ("way", "batch_size"), [("fast", BATCH), ("unsupervised", BATCH), ("recurrent", BATCH // 2)]
)  # the last batch of an epoch is smaller, or as large as the others
def test_compiled_steps_train_as_they_do_otherwise(monkeypatch, examples, way, batch_size):
    """Traced and run without generated code, which takes long to compile."""
    monkeypatch.setenv("CXX", sys.executable)  # nothing is generated for it
    compiled, asked = fast.compiled, []

    def traced(step):
        asked.append(step)
        return compiled(step, backend="aot_eager")

    monkeypatch.setattr(fast, "compiled", traced)
    both = (f"{WAYS[way]} training.compile={compile}" for compile in (True, False))
    assert_same_training(*(trained_as(overrides, examples, batch_size=batch_size) for overrides in both))
    assert len(asked) == 1


@pytest.mark.parametrize("way", ["fast", "recurrent"])
def test_without_a_compiler_that_is_said(monkeypatch, examples, way):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"training\.compile=true: there is no no-such-compiler; install a C\+\+"):
        epochs_as(f"{WAYS[way]} training.compile=true", examples, batch_size=BATCH, cuda_graph=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
# The last batch of an epoch is as large as the others, or smaller.
@pytest.mark.parametrize("batch_size", [BATCH // 2, BATCH])
@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_a_cuda_graph_trains_as_single_launches_do(examples, overrides, batch_size):
    examples = Examples(examples.images.cuda(), examples.labels.cuda())
    both = (trained_as(overrides, examples, batch_size=batch_size, cuda_graph=graph) for graph in (True, False))
    assert_same_training(*both)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_the_host_never_waits_within_an_epoch(examples, overrides):
    examples = Examples(examples.images.cuda(), examples.labels.cuda())
    _, epochs = epochs_as(overrides, examples, batch_size=BATCH, cuda_graph=False)
    next(epochs)  # what is done once only may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(epochs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
