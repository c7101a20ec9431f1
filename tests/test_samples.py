"""Positive, negative and neutral inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_others import blurred

from src.samples import (
    blurring,
    embed_label,
    embed_neutral,
    hard_negative_labels,
    hybrids,
    random_masks,
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
    uniform = uniform_negative_labels(torch.tensor(logits).expand(50, 10), labels, generator)
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
    labels = torch.full((count,), 3)
    drawn = uniform_negative_labels(torch.zeros(count, 10), labels, torch.Generator().manual_seed(0))
    expected = [0 if label == 3 else 1 / 9 for label in range(10)]
    assert frequencies(drawn) == pytest.approx(expected, abs=0.003)


def test_the_generator_alone_decides():
    logits, labels = torch.zeros(100, 10), torch.zeros(100, dtype=torch.int64)
    for draw in (hard_negative_labels, uniform_negative_labels):
        first, again, other = (draw(logits, labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("side", [1, 2, 5, 28])
@pytest.mark.parametrize("blurs", [0, 1, 6])
def test_blurring_is_a_repeated_convolution(side, blurs):
    blur = blurring(side, blurs)
    assert blur.shape == (side, side) and blur.dtype == torch.float32
    assert blur.sum(dim=1).tolist() == pytest.approx([1.0] * side)
    image = np.random.default_rng(0).random((side, side))
    blur = blur.double().numpy()  # it is exact in either precision
    assert (blur @ image @ blur.T).tolist() == pytest.approx(blurred(image, blurs), rel=1e-12)


@pytest.mark.parametrize("blurs", [0, 1, 6])
def test_masks_are_blurred_bits_above_one_half(blurs):
    """Ties included: all sums of quarters are exact."""
    bits = torch.randint(0, 2, (5, 28, 28), generator=torch.Generator().manual_seed(3)).numpy()
    masks = random_masks(5, blurring(28, blurs), torch.Generator().manual_seed(3))
    assert masks.shape == (5, 784) and masks.dtype == torch.bool
    expected = np.array([blurred(image, blurs) > 0.5 for image in bits])
    assert np.array_equal(masks.view(5, 28, 28).numpy(), expected)


def test_masks_are_large_regions_of_either_kind():
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(400, blurring(28, 6), generator).view(-1, 28, 28)
    assert masks.float().mean().item() == pytest.approx(0.5, abs=0.02)

    def agreement(distance: int) -> float:
        along, across = masks[:, distance:] == masks[:, :-distance], masks[:, :, distance:] == masks[:, :, :-distance]
        return ((along.float().mean() + across.float().mean()) / 2).item()

    # Of a Gaussian with variance 6 / 2: 1/2 + arcsin(exp(-distance^2 / (4 * 3))) / pi.
    assert agreement(1) == pytest.approx(0.87, abs=0.02)
    assert agreement(12) == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(random_masks(400, blurring(28, 6), generator), masks.flatten(1))  # drawn anew


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_each_pixel_of_a_hybrid_is_of_the_image_or_of_one_other(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.arange(count * 16.0).view(count, 16)  # no pixel twice
    masks = torch.rand(count, 16, generator=generator) < 0.5
    negatives = hybrids(images, masks)
    assert negatives.shape == images.shape and negatives.dtype == images.dtype
    for index, (mask, negative) in enumerate(zip(masks, negatives.long(), strict=True)):
        origin, pixel = negative // 16, negative % 16
        assert pixel.tolist() == list(range(16))
        assert (origin[mask] == index).all()
        others = set(origin[~mask].tolist())
        assert len(others) <= 1 and index not in others
