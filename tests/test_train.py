"""The epoch loop: every example once, the right negatives, jitter, and figures that are means over examples."""

from collections import Counter

import pytest
import torch
from nets import optimizer_for, small_net

import src.train
from src.data import Examples
from src.layers import logistic_loss
from src.model import FFNet
from src.train import train_epochs, train_step

COUNT, BATCH = 25, 10  # the last batch of an epoch has five examples


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 784), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.randint(0, 10, (COUNT,), generator=generator))


def net() -> FFNet:
    return small_net(784, [20, 12])


def recorded_epochs(monkeypatch, examples: Examples, **options) -> tuple[list, list[dict[str, torch.Tensor]]]:
    """What `train_step` was called with, and what the epochs yielded, with learning rates of zero."""
    calls = []

    def recording_step(model, optimizer, images, labels, draw):
        logits = torch.full((len(labels), 10), -20.0)
        logits[torch.arange(len(labels)), (labels + 1) % 10] = 20.0  # one wrong label is all that is likely
        calls.append((images, labels, draw(logits, labels)))
        return train_step(model, optimizer, images, labels, lambda logits, labels: (labels + 1) % 10)

    monkeypatch.setattr(src.train, "train_step", recording_step)
    model = net()
    still = optimizer_for(model, learning_rate=0.0, readout_learning_rate=0.0)
    defaults = dict(epochs=1, batch_size=BATCH, negatives="hard", max_shift=0, generator=torch.Generator())
    return calls, list(train_epochs(model, still, examples, **(defaults | options)))


def test_an_epoch_sees_every_example_once(monkeypatch, examples):
    calls, _ = recorded_epochs(monkeypatch, examples, epochs=2)
    assert [len(labels) for _, labels, _ in calls] == [10, 10, 5] * 2
    for epoch in (calls[:3], calls[3:]):
        seen = torch.cat([images for images, _, _ in epoch])
        assert sorted(row.tolist() for row in seen) == sorted((row / 255).tolist() for row in examples.images)
    assert not torch.equal(calls[0][0], calls[3][0])  # shuffled anew


@pytest.mark.parametrize("negatives", ["hard", "uniform"])
def test_negatives_are_drawn_as_asked(monkeypatch, examples, negatives):
    calls, _ = recorded_epochs(monkeypatch, examples, epochs=8, negatives=negatives)
    offsets = Counter(
        ((wrong - labels) % 10).item() for _, batch, drawn in calls for labels, wrong in zip(batch, drawn, strict=True)
    )
    assert set(offsets) == ({1} if negatives == "hard" else set(range(1, 10)))


def test_jitter_moves_the_images_that_are_trained_on(monkeypatch, examples):
    still, _ = recorded_epochs(monkeypatch, examples)
    moved, _ = recorded_epochs(monkeypatch, examples, max_shift=2)

    def sums(calls):
        return sorted(round(255 * row.sum().item()) for images, _, _ in calls for row in images)

    assert sums(still) == sorted(row.sum().item() for row in examples.images.long())
    assert sum(ours != theirs for ours, theirs in zip(sums(still), sums(moved), strict=True)) > COUNT / 2


def test_figures_are_means_over_examples(monkeypatch, examples):
    """Not over batches: the last one is smaller."""
    calls, (figures,) = recorded_epochs(monkeypatch, examples)
    model = net()
    cases = []
    for images, labels, _ in calls:
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
