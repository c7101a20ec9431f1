"""The benchmark counts the right work, and its plain way does the work it is compared for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import HIDDEN_DIMS, INPUT_DIM, batch, small_net

from benchmarks.plain import LabelledImages, PlainNet
from benchmarks.speed import NETS, of_dims, settings, step_flop
from src.data import Examples
from src.samples import embed_label, embed_neutral

REPOSITORY = Path(__file__).resolve().parents[1]


def test_nominal_work_of_an_epoch():
    # 500 rows a batch through 784 * 1000 + 2 * 1000 * 1000 weights, 2 FLOP each, 600 batches
    assert 600 * step_flop(of_dims(NETS["matlab"])) == 600 * 500 * 2 * 2_784_000


def test_nominal_work_of_the_other_methods():
    """Counted by hand: rows times weights, 2 FLOP each."""
    weights = 784 * 1000 + 2 * 1000 * 1000
    assert step_flop(settings("experiment=backprop")) == 2 * 100 * (3 * weights - 784 * 1000)
    local = 16 * 128 * 100 + 9 * 220 * 4 * 128 + 4 * 512 * 4 * 220
    assert step_flop(settings("experiment=local_receptive_fields")) == 2 * 400 * local
    # Bottom-up and at eight iterations one product for 2000 units each way; the image's twice forward, once back.
    image, between = 784 * 2000, 2000 * 2000
    recurrent = 100 * (image + between) + 200 * image + 2 * 8 * 200 * 2 * between
    assert step_flop(settings("experiment=recurrent", "model.hidden_dims=[2000,2000]")) == 2 * recurrent


def test_the_plain_way_has_the_same_loss():
    ours, plain = small_net(peer_normalisation=0.0), PlainNet([INPUT_DIM, *HIDDEN_DIMS])
    with torch.no_grad():
        for mine, layer in zip(ours.layers, plain.layers, strict=True):
            layer.weight.copy_(mine.weight)
            layer.bias.copy_(mine.bias)
        plain.readout.weight.copy_(ours.readout_weight)
    images, labels, wrong = (torch.tensor(part) for part in batch(0))
    images = images.float()
    inputs = embed_label(images, labels), embed_label(images, wrong), embed_neutral(images)
    losses, *_ = ours.local_losses(*inputs[:2])
    expected = sum(losses) + torch.nn.functional.cross_entropy(ours.logits(inputs[2]), labels)
    assert plain.loss(*inputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_plain_way_labels_one_image_at_a_time():
    images = torch.randint(0, 256, (1, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = LabelledImages(Examples(images, torch.tensor([7])))
    for _ in range(30):
        positive, negative, neutral, label = dataset[0]
        assert torch.equal(positive, embed_label(images / 255, torch.tensor([7]))[0])
        assert torch.equal(neutral, embed_neutral(images / 255)[0])
        assert label == 7 and negative[:10].sum() == 1 and negative[7] == 0
        assert torch.equal(negative[10:], positive[10:])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results" / "speed").glob("*.json")), ids=lambda path: path.stem)
def test_the_readme_has_the_measured_tables(path):
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--show", str(path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.strip() in (REPOSITORY / "README.md").read_text(encoding="utf-8")
