"""Positive, negative and neutral inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.samples import (
    embed_label,
    embed_neutral,
    hard_negative_labels,
    uniform_negative_labels,
)


def test_codes_are_written_into_a_copy():
    images = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    labelled, neutral = embed_label(images, torch.tensor([0, 9, 4])), embed_neutral(images)
    assert torch.equal(images, before)
    assert labelled[:, :10].tolist() == [[float(pixel == label) for pixel in range(10)] for label in (0, 9, 4)]
    assert neutral[:, :10].tolist() == [[pytest.approx(0.1)] * 10] * 3
    assert torch.equal(labelled[:, 10:], before[:, 10:])
    assert torch.equal(neutral[:, 10:], before[:, 10:])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=10, max_size=10),
    label=st.integers(0, 9),
)
def test_a_negative_never_carries_the_true_label(seed, logits, label):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((50,), label)
    hard = hard_negative_labels(torch.tensor(logits).expand(50, 10), labels, generator)
    uniform = uniform_negative_labels(labels, generator)
    for negatives in (hard, uniform):
        assert negatives.shape == labels.shape
        assert ((negatives >= 0) & (negatives < 10) & (negatives != labels)).all()


def frequencies(labels: torch.Tensor) -> list[float]:
    return (torch.bincount(labels, minlength=10) / len(labels)).tolist()


def test_hard_negatives_are_sampled_in_proportion_to_the_read_out():
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
    count = 200_000
    drawn = hard_negative_labels(
        probabilities.log().expand(count, 10),
        torch.zeros(count, dtype=torch.int64),
        torch.Generator().manual_seed(0),
    )
    expected = [0, *(probabilities[1:] / 0.6).tolist()]
    assert frequencies(drawn) == pytest.approx(expected, abs=0.005)  # four standard errors


def test_uniform_negatives_are_uniform():
    count = 200_000
    drawn = uniform_negative_labels(torch.full((count,), 3, dtype=torch.int64), torch.Generator().manual_seed(0))
    expected = [0 if label == 3 else 1 / 9 for label in range(10)]
    assert frequencies(drawn) == pytest.approx(expected, abs=0.003)


def test_the_generator_alone_decides():
    logits, labels = torch.zeros(100, 10), torch.zeros(100, dtype=torch.int64)
    for draw in (
        lambda generator: hard_negative_labels(logits, labels, generator),
        lambda generator: uniform_negative_labels(labels, generator),
    ):
        first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
