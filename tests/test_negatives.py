"""Label codes, wrong labels, masks and hybrids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import MNIST_MAP
from reference_others import blurred

from src.config.values import choices
from src.layers.fields import Map
from src.negatives import wrong_labels
from src.negatives.codes import embed, neutral, one_hot
from src.negatives.masks import mixed, random_masks

WRONG_LABELS = choices(wrong_labels)
every_way = pytest.mark.parametrize("draw", WRONG_LABELS.values(), ids=WRONG_LABELS)


def test_codes_are_written_into_a_copy():
    images = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    labelled, unlabelled = embed(images, one_hot(torch.tensor([0, 9, 4]), 10)), embed(images, neutral(images, 10))
    assert labelled[:, :10].tolist() == [[float(pixel == label) for pixel in range(10)] for label in (0, 9, 4)]
    assert unlabelled[:, :10].tolist() == [[pytest.approx(0.1)] * 10] * 3
    assert torch.equal(images, before)
    for written in (labelled, unlabelled):
        assert torch.equal(written[:, 10:], before[:, 10:])


def noise(seed: int, count: int) -> torch.Tensor:
    return torch.empty(count, 10).exponential_(generator=torch.Generator().manual_seed(seed))


@every_way
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=10, max_size=10),
    label=st.integers(0, 9),
)
def test_a_negative_never_carries_the_true_label(draw, seed, logits, label):
    labels = torch.full((50,), label)
    drawn = draw(torch.tensor(logits).expand(50, 10), labels, noise(seed, 50))
    assert drawn.shape == labels.shape
    assert ((drawn >= 0) & (drawn < 10) & (drawn != labels)).all()


@pytest.mark.parametrize(
    ("draw", "label", "expected"),
    [  # within four standard errors
        (wrong_labels.hard, 0, [0, 0.0, 0.5, 1 / 6, 1 / 12, 1 / 12, 1 / 15, 0.05, 1 / 30, 1 / 60]),
        (wrong_labels.uniform, 3, [1 / 9] * 3 + [0] + [1 / 9] * 6),
    ],
)
def test_negatives_are_in_proportion_to_the_read_out_or_uniform(draw, label, expected):
    read_out = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
    labels = torch.full((200_000,), label)
    drawn = draw(read_out.log().expand(200_000, 10), labels, noise(0, 200_000))
    assert (torch.bincount(drawn, minlength=10) / 200_000).tolist() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("shape", [MNIST_MAP, Map(5, 7, 3)])
@pytest.mark.parametrize("blurs", [0, 1, 6])
def test_masks_are_blurred_bits_above_one_half_for_all_channels_of_a_pixel(shape, blurs):
    """Ties included: all sums of quarters are exact."""
    bits = torch.randint(0, 2, (5, *shape[:2]), generator=torch.Generator().manual_seed(3)).numpy()
    masks = random_masks(5, shape, blurs, torch.Generator().manual_seed(3))
    assert masks.shape == (5, shape.size) and masks.dtype == torch.bool
    expected = np.array([blurred(image, blurs) > 0.5 for image in bits])[..., None]
    assert np.array_equal(masks.view(5, *shape).numpy(), expected.repeat(shape.channels, axis=3))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_each_pixel_of_a_hybrid_is_of_the_image_or_of_one_other(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.arange(count * 16.0).view(count, 16)  # no pixel twice
    masks = torch.rand(count, 16, generator=generator) < 0.5
    negatives = mixed(images, masks)
    assert negatives.shape == images.shape and negatives.dtype == images.dtype
    for index, (mask, negative) in enumerate(zip(masks, negatives.long(), strict=True)):
        origin, pixel = negative // 16, negative % 16
        assert pixel.tolist() == list(range(16))
        assert (origin[mask] == index).all()
        others = set(origin[~mask].tolist())
        assert len(others) <= 1 and index not in others
