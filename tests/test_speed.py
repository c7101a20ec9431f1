"""benchmarks/speed.py counts the products of a step, and its plain way does the work it is compared for."""

import json
import sys
from unittest.mock import Mock

import pytest
import torch
from commands import REPOSITORY
from nets import HIDDEN_DIMS, INPUT_DIM, examples, small_net, tensors

from benchmarks import speed
from benchmarks.plain import PlainNet
from src.layers.layer import activities
from src.layers.losses import logistic
from src.methods import unsupervised
from src.negatives.codes import embed, neutral, one_hot

WEIGHTS = 784 * 20 + 20 * 12
CODES = 3 * 10 * 20  # of labels, in each of three passes
BY_HAND = {  # rows times weights, of batches of 100: a row more is learnt from, the mean of the positives
    "matlab": 100 * (784 * 20 + CODES) + 300 * 20 * 12 + 201 * WEIGHTS + 2 * 100 * 12 * 10,
    "backprop": 200 * WEIGHTS + 100 * 20 * 12 + 3 * 100 * 12 * 10,
    # Bottom-up, at eight iterations, and learning; the label is seen by one layer alone.
    "recurrent": 100 * WEIGHTS + 100 * 784 * 20 + 200 * 12 * 10 + 8 * 200 * 2 * 20 * 12
    + 101 * 784 * 20 + 2 * (8 * 200 + 1) * 20 * 12 + 201 * 12 * 10 + 2 * 100 * 32 * 10,
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_products_of_a_step_are_those_counted_by_hand(name, precision):
    overrides = ("model.hidden_dims=[20,12]", f"precision={precision}", "device=cpu")
    config, device = speed.configured(f"experiment={name}", *overrides)
    products = speed.products_of_a_step(config, examples(100))
    assert products.flop == 2 * BY_HAND[name]
    assert 0 < speed.seconds_alone(products, device) < 1


def test_the_plain_way_has_the_same_loss():
    ours, plain = small_net(peer_normalisation=0.0), PlainNet([INPUT_DIM, *HIDDEN_DIMS], 10)
    ours.readout.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    plain.readout.load_state_dict(ours.readout.state_dict())
    for mine, layer in zip(ours.layers, plain.layers, strict=True):
        layer.load_state_dict({"weight": mine.below.weight, "bias": mine.bias})
    images, labels, wrong = tensors(0)
    inputs = [embed(images, code) for code in (one_hot(labels, 10), one_hot(wrong, 10), neutral(images, 10))]
    with torch.no_grad():
        positive, negative, at_rest = (activities(ours.layers, x) for x in inputs)
        expected = torch.nn.functional.cross_entropy(
            ours.readout(torch.cat([plain.normalise(h) for h in at_rest[1:]], dim=1)), labels
        )
        for layer, p, n in zip(ours.layers, positive, negative, strict=True):
            expected += logistic(layer.goodness(p), layer.goodness(n), theta=layer.theta, temperature=1.0).mean()
    assert plain.loss(*inputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_experiments_are_timed_and_one_that_fails_costs_no_other(tmp_path, few_images, monkeypatch, capsys):
    path, small = tmp_path / "speed.json", ["model.hidden_dims=[20,12]", "device=cpu"]
    options = ["--experiments", "matlab", "unsupervised", "minute", "--images", "600", "--epochs", "2", "--uncompiled"]
    monkeypatch.setattr(sys, "argv", ["speed", str(path), *few_images, *small, "training.batch_size=100", *options])
    monkeypatch.setattr(unsupervised, "step", Mock(side_effect=ValueError("no luck\nand more")))
    with pytest.raises(SystemExit, match="not measured: unsupervised"):
        speed.main()
    printed = capsys.readouterr()
    assert "error: ValueError: no luck\n" in printed.err
    rows = json.loads(path.read_text())["experiments"]
    assert [(row["experiment"], row["images"], len(row["epoch_seconds"])) for row in rows] == [
        ("matlab", 600, 2), ("minute", 600, 2),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["speed", str(path), "--show"])
    speed.main()
    assert capsys.readouterr().out == printed.out


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results" / "speed").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_measured_tables(path):
    shown = speed.tables(json.loads(path.read_text(encoding="utf-8")))
    assert shown in (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
