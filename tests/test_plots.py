"""The pictures show the figures they are made from."""

import pytest
import torch
import torch.nn.functional as F

from src.plots import draw_confusion, draw_goodness, draw_most_wrong, draw_receptive_fields


def test_goodness_of_true_and_wrong_labels_with_the_threshold():
    labels = torch.arange(100) % 10
    true = F.one_hot(labels, 10).float()
    goodnesses = torch.stack([20 + 10 * true, 5 + 100 * true])  # [2, 100, 10]
    goodnesses += torch.rand(goodnesses.shape, generator=torch.Generator().manual_seed(0))
    figure = draw_goodness(goodnesses, labels, [25.0, 50.0])
    for axis, low, high, theta in zip(figure.axes, (20, 5), (30, 105), (25, 50), strict=True):
        positive, negative = (
            {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars if bar.get_height()}
            for bars in axis.containers
        )
        assert all(high - 1 <= x <= high + 2 for x in positive) and all(low - 1 <= x <= low + 2 for x in negative)
        for bars in axis.containers:
            assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
        (line,) = axis.lines
        assert line.get_xdata() == [theta, theta]
        assert axis.get_legend() is not None


def test_receptive_fields_are_of_the_strongest_units_and_leave_the_label_out():
    weight = torch.zeros(300, 784)
    weight[:, :10] = 1000.0
    rows, columns = 2 + torch.arange(300) // 26, 1 + torch.arange(300) % 26  # not at an edge
    weight[torch.arange(300), 28 * rows + columns] = 1.0 + torch.arange(300)  # unit u: one pixel of weight 1 + u
    pictures = [axis.images[0] for axis in draw_receptive_fields(weight, rows=3, columns=4).axes]
    assert len(pictures) == 12
    for unit, picture in zip(range(299, 287, -1), pictures, strict=True):
        row, column = rows[unit].item(), columns[unit].item()
        shown = torch.tensor(picture.get_array().data)
        assert shown.nonzero().tolist() == [[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert picture.get_clim() == pytest.approx((-(1.0 + unit) / 9, (1.0 + unit) / 9))
    assert len([axis for axis in draw_receptive_fields(weight[:5]).axes if axis.images]) == 5  # fewer units than fields


def test_confusion_counts_every_image():
    labels = torch.tensor([0, 0, 0, 1, 1, 9, 9, 9, 9])
    chosen = torch.tensor([0, 0, 1, 1, 1, 9, 4, 4, 9])
    axis = draw_confusion(chosen, labels).axes[0]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert shown == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (9, 9): "2", (9, 4): "2"}
    assert axis.get_title().startswith("3 of 9 test images wrong (33.33 %)")
    colours = axis.images[0].get_array()
    assert colours[0, 0] == 0 and colours[9, 4] == 2  # only mistakes are coloured


def test_the_most_wrong_images_come_first_and_none_that_is_right():
    images = torch.randint(0, 256, (6, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 3, 3, 7, 7, 7])
    goodness = torch.full((6, 10), 10.0)
    for image, (label, value) in enumerate([(3, 50), (5, 20), (5, 90), (7, 11), (0, 30), (7, 60)]):
        goodness[image, label] = value
    axes = draw_most_wrong(images, labels, goodness).axes
    shown = [axis for axis in axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["test image 2", "test image 4", "test image 1"]
    assert torch.equal(torch.tensor(shown[0].images[0].get_array().data).flatten(), images[2])
    bars = axes[axes.index(shown[0]) + 1]
    assert bars.get_title() == "true 3, chosen 5"
    assert [bar.get_height() for bar in bars.patches] == [0, 0, 0, 0, 0, 80, 0, 0, 0, 0]
    blue = [label for label, bar in enumerate(bars.patches) if bar.get_facecolor() != bars.patches[0].get_facecolor()]
    assert blue == [3]
