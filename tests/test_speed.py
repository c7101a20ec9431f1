"""The benchmark counts the right work, and its plain way does the work it is compared for."""

import json
from pathlib import Path

import pytest
import torch
from nets import HIDDEN_DIMS, INPUT_DIM, MNIST_MAP, batch, small_net
from src.layers.stack import activities

from benchmarks import speed
from benchmarks.plain import LabelledImages, PlainNet
from src.datasets.batches import Examples
from src.layers.losses import logistic
from src.negatives.codes import embed, neutral, one_hot

REPOSITORY = Path(__file__).resolve().parents[1]


def test_nominal_work_of_an_epoch():
    # 500 rows a batch through 784 * 1000 + 2 * 1000 * 1000 weights, 2 FLOP each, 600 batches
    assert 600 * speed.step_flop(speed.of_dims(speed.NETS["matlab"])) == 600 * 500 * 2 * 2_784_000


def test_nominal_work_of_the_other_methods():
    """Counted by hand: rows times weights, 2 FLOP each."""
    weights = 784 * 1000 + 2 * 1000 * 1000
    assert speed.step_flop(speed.settings("experiment=backprop")) == 2 * 100 * (3 * weights - 784 * 1000)
    local = 16 * 128 * 100 + 9 * 220 * 4 * 128 + 4 * 512 * 4 * 220
    assert speed.step_flop(speed.settings("experiment=local_receptive_fields")) == 2 * 400 * local
    # Bottom-up and at eight iterations one product for 2000 units each way; the image's twice forward, once back.
    image, between = 784 * 2000, 2000 * 2000
    recurrent = 100 * (image + between) + 200 * image + 2 * 8 * 200 * 2 * between
    assert speed.step_flop(speed.settings("experiment=recurrent")) == 2 * recurrent


def test_the_plain_way_has_the_same_loss():
    ours, plain = small_net(peer_normalisation=0.0), PlainNet([INPUT_DIM, *HIDDEN_DIMS])
    with torch.no_grad():
        for mine, layer in zip(ours.layers, plain.layers, strict=True):
            layer.weight.copy_(mine.weight)
            layer.bias.copy_(mine.bias)
        ours.readout.weight.normal_(generator=torch.Generator().manual_seed(0))
        plain.readout.weight.copy_(ours.readout.weight)
    images, labels, wrong = (torch.tensor(part) for part in batch(0))
    images = images.float()
    inputs = [embed(images, code) for code in (one_hot(labels), one_hot(wrong), neutral(images))]
    with torch.no_grad():
        positive, negative, at_rest = (activities(ours.layers, x, [None] * len(ours.layers)) for x in inputs)
        losses = [
            logistic(layer.goodness(p), layer.goodness(n), theta=layer.theta, temperature=1.0)[0].mean()
            for layer, p, n in zip(ours.layers, positive, negative, strict=True)
        ]
        logits = ours.readout(torch.cat([plain.normalise(h) for h in at_rest[1:]], dim=1))
        expected = sum(losses) + torch.nn.functional.cross_entropy(logits, labels)
    assert plain.loss(*inputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_plain_way_labels_one_image_at_a_time():
    images = torch.randint(0, 256, (1, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = LabelledImages(Examples(images, torch.tensor([7]), MNIST_MAP, 10))
    for _ in range(30):
        positive, negative, at_rest, label = dataset[0]
        assert torch.equal(positive, embed(images / 255, one_hot(torch.tensor([7])))[0])
        assert torch.equal(at_rest, embed(images / 255, neutral(images / 255))[0])
        assert label == 7 and negative[:10].sum() == 1 and negative[7] == 0
        assert torch.equal(negative[10:], positive[10:])


def test_every_experiment_can_be_timed(monkeypatch):
    """On a handful of images, with small nets and without the compiler; the whole run is so many times an epoch."""
    monkeypatch.setattr(speed, "products_rate", lambda *_: 1e9)
    monkeypatch.setattr(speed.Running, "several", lambda running, epochs: [running.epoch_seconds()] * epochs)
    for method in ("unsupervised", "recurrent", "backprop"):
        monkeypatch.setattr(f"src.methods.{method}.compiled", lambda step, _: step)
    settings = speed.settings
    dims = "model.hidden_dims=[32,18,8]"  # which the grids of local receptive fields can share out
    monkeypatch.setattr(speed, "settings", lambda *overrides, precision="fp32": settings(*overrides, dims))
    examples = Examples(torch.zeros(60_000, 784, dtype=torch.uint8), torch.arange(60_000) % 10, MNIST_MAP, 10)
    monkeypatch.setattr(speed, "PART", 200)
    for name in speed.EXPERIMENTS:
        row = speed.measure_experiment(name, examples, "fp32", torch.device("cpu"))
        config = settings(f"experiment={name}")
        scale = (60_000 - config.data.validation_images) / 200
        epochs = config.training.epochs
        if name in ("unsupervised", "local_receptive_fields"):  # the read-outs' own epochs, too
            assert row["run_seconds"] > scale * epochs * row["epoch_seconds"][-1]
        else:
            assert row["run_seconds"] == pytest.approx(scale * epochs * row["epoch_seconds"][-1])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results" / "speed").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_measured_tables(path):
    """Which are narrow enough to read."""
    shown = speed.tables(json.loads(path.read_text(encoding="utf-8")))
    assert shown in (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
    for line in shown.splitlines():
        assert not line.startswith("|") or (len(line) <= 120 and line.count("|") <= 8)
