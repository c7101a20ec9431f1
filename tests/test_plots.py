"""The pictures of a run show what they say, for images of any shape and any number of classes, and none is blank."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import command
from nets import MNIST_MAP, examples
from PIL import Image
from test_config import composed

from images import draw_sleep, draw_training
from src.datasets.batches import Examples
from src.experiment import new_net, run
from src.layers.fields import Map
from src.layers.losses import logistic, symba
from src.negatives.masks import random_masks
from src.pictures import figures, methods
from src.plots import draw_run
from src.training.validation import scores_for

ALWAYS = {"receptive_fields", "confusion", "most_wrong"}
OWN = {
    "supervised": {"goodness", "adversarial"}, "unsupervised": {"goodness", "hybrids"}, "backprop": set(),
    "recurrent": {"goodness", "goodness_over_time"},
}  # fmt: skip
COLOUR = Map(6, 8, 3)


def coloured(classes: int, count: int = 40) -> Examples:
    """Random images in colour."""
    images = torch.randint(0, 256, (count, COLOUR.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Examples(images, torch.arange(count) % classes, COLOUR, classes)


def small(test: Examples, *overrides: str):
    """The values of a method's training, a small net for such images, untrained, and its scores for them."""
    config = composed(*overrides, "model.hidden_dims=[20,15]", "precision=fp32")
    net = new_net(config, test.shape, test.classes)
    for weight in [weight for name, weight in net.named_parameters() if name.startswith("readout")]:
        weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return config, net, scores_for(net, test.images, 20)


def drawn(axis) -> np.ndarray:
    """The image in a plot."""
    return np.asarray(axis.images[0].get_array(), dtype=float)


def test_the_picture_of_the_algorithm_is_drawn(monkeypatch, mnist_root, tmp_path):
    monkeypatch.setattr(draw_training, "FOLDER", tmp_path)
    draw_training.main(str(mnist_root))
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.width == 1600
        assert np.asarray(picture.convert("L")).std() > 5


def test_the_page_has_the_table_of_sleep_and_its_picture_is_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(draw_sleep, "PICTURE", tmp_path / "sleep.png")
    draw_sleep.main()
    assert capsys.readouterr().out in (draw_sleep.ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "sleep.png") as picture:
        assert picture.width == 1350 and np.asarray(picture.convert("L")).std() > 5


def test_a_run_leaves_its_pictures(few_images, tmp_path):
    small = ["model.hidden_dims=[32,18,8]", "training.epochs=1", "training.readout_epochs=1"]
    run(composed("experiment=local_receptive_fields", *few_images, *small), tmp_path)
    drawn = {path.stem: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert drawn.keys() == ALWAYS | OWN["unsupervised"] | {"learning_curve"} and max(drawn.values()) < 300_000


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_table(few_images, tmp_path):
    (tmp_path / "confusion.png").mkdir()
    small = ["model.hidden_dims=[8,6]", "training.epochs=1", f"hydra.run.dir={tmp_path}"]
    done = command(*few_images, *small)
    assert done.returncode == 0 and (tmp_path / "result.json").exists(), done.stderr
    assert done.stdout.count("not all pictures were drawn (IsADirectoryError: ") == 1 and "Tested once" in done.stdout


@pytest.mark.parametrize(("method", "classes"), [*zip(OWN, (13, 2, 26, 2), strict=True)])
def test_every_method_has_its_pictures_of_colour_images_in_any_number_of_classes(tmp_path, method, classes):
    test = coloured(classes)
    adversarial = ["training.adversarial=1"] if method == "supervised" else []
    config, net, scores = small(test, f"method={method}", *adversarial)
    paths = draw_run(config, tmp_path, net, test, scores)
    assert {path.stem for path in paths} == ALWAYS | OWN[method]
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, path  # not blank


@pytest.mark.parametrize(("loss", "lines"), [(logistic, 1), (symba, 0)])
def test_goodness_of_positives_and_negatives_with_the_threshold_of_a_loss_that_has_one(loss, lines):
    noise = torch.rand(2, 2, 100, generator=torch.Generator().manual_seed(0))
    goodnesses = {"right": torch.tensor([[30.0], [105]]) + noise[0], "wrong": torch.tensor([[20.0], [5]]) + noise[1]}
    layers = [SimpleNamespace(loss=loss, theta=theta) for theta in (25.0, 50.0)]
    figure = figures.draw_goodness(goodnesses, layers)
    for axis, lowest, layer in zip(figure.axes, ((30, 20), (105, 5)), layers, strict=True):
        for bars, low in zip(axis.containers, lowest, strict=True):
            heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in bars if bar.get_height()}
            assert all(low - 1 <= x <= low + 2 for x in heights) and sum(heights.values()) == pytest.approx(100)
        assert [list(line.get_xdata()) for line in axis.lines] == [[layer.theta] * 2] * lines
        assert {text.get_text() for text in axis.get_legend().get_texts()} >= {"right", "wrong"}


def test_goodness_of_more_cases_than_torch_finds_quantiles_of():
    cases = torch.arange(2.0**24 + 2)[None]
    figure = figures.draw_goodness({"right": cases[:, :1], "wrong": cases[:, 1:]}, [SimpleNamespace(loss=symba)])
    low, high = figure.axes[0].containers[1][0].get_x(), figure.axes[0].containers[1][-1].get_x()
    assert low == pytest.approx(0.001 * 2**24, rel=1e-3) and 0.98 * 2**24 < high < 0.999 * 2**24


def test_receptive_fields_are_of_the_strongest_units_each_on_its_own_scale():
    weight = torch.zeros(300, 28, 28)
    rows, columns = 2 + torch.arange(300) // 26, 1 + torch.arange(300) % 26  # not at an edge
    weight[torch.arange(300), rows, columns] = 1.0 + torch.arange(300)  # unit u: one pixel of weight 1 + u
    axis = figures.draw_receptive_fields(weight.flatten(1), MNIST_MAP).axes[0]
    picture = torch.tensor(axis.images[0].get_array().filled(torch.nan))
    assert picture.shape == (8 * 30 - 2, 16 * 30 - 2) and axis.images[0].get_clim() == (-1, 1)
    for place, unit in enumerate(range(299, 171, -1)):
        top, left = 30 * (place // 16), 30 * (place % 16)
        field = picture[top : top + 28, left : left + 28]
        around = [[rows[unit] + i, columns[unit] + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert field.nonzero().tolist() == around and field.max() == 1


def test_receptive_fields_of_colour_images_are_in_colour_and_grey_where_they_are_zero():
    weight = torch.zeros(1, *COLOUR)
    weight[0, 2, 3] = torch.tensor([4.0, 0.0, -2.0])
    picture = drawn(figures.draw_receptive_fields(weight.flatten(1), COLOUR).axes[0])
    assert picture[2, 3] == pytest.approx([1, 0.5, 0.25]) and picture[5, 7] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("seen", [MNIST_MAP, Map(9, 9, 3)])
def test_local_receptive_fields_lie_where_their_location_does(seen):
    weight = torch.zeros(4, 6, 5, 5, seen.channels)  # 2 x 2 locations, 6 channels
    weight[:, :, 2, 2] = torch.tensor([-1.0, -1.0, 1.0, -1.0])[:, None, None]  # the middle pixel
    picture = np.ma.filled(figures.draw_receptive_fields(weight.flatten(2), seen).axes[0].images[0].get_array(), 0.0)
    height, width = picture.shape[:2]
    middles = picture[2 : height // 2 : 6, 2 : width // 2 : 6], picture[-3 : height // 2 : -6, 2 : width // 2 : 6]
    assert (middles[0][0] == (-1 if seen.channels == 1 else 0)).all() and (middles[1][-1] == 1).any()


@pytest.mark.parametrize("method", OWN)
def test_the_labels_numbers_are_left_out_of_the_receptive_fields_where_there_is_a_label(monkeypatch, method):
    given, test = [], coloured(13)
    monkeypatch.setattr(figures, "draw_receptive_fields", lambda weight, seen: given.append(weight))
    config, net, scores = small(test, f"method={method}")
    methods.pictures_of(net, test, scores, config.training)
    assert (not given[0][:, :13].any()) == (method == "supervised") and given[0][:, 13:].all()
    assert net.layers[0].below.weight.all()  # it is a copy that they are left out of


def test_confusion_counts_every_image():
    labels, chosen = torch.tensor([0, 0, 0, 1, 1, 9, 9, 9, 9]), torch.tensor([0, 0, 1, 1, 1, 9, 4, 4, 9])
    (axis, *_) = figures.draw_confusion(torch.nn.functional.one_hot(chosen, 10).float(), labels, "goodness").axes
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert shown == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (9, 9): "2", (9, 4): "2"}
    assert axis.get_title() == "3 of 9 test images wrong (33.33 %), by goodness"
    assert drawn(axis)[0, 0] == 0 and drawn(axis)[9, 4] == 2  # only mistakes are coloured


@pytest.mark.parametrize("test", [examples(6), coloured(10, count=6)], ids=["grey", "colour"])
def test_the_most_wrong_images_come_first_and_none_that_is_right(test):
    test.labels.copy_(torch.tensor([3, 3, 3, 7, 7, 7]))
    goodness = torch.full((6, 10), 10.0)
    for image, (label, value) in enumerate([(3, 50), (5, 20), (5, 90), (7, 11), (0, 30), (7, 60)]):
        goodness[image, label] = value
    axes = figures.draw_most_wrong(test, goodness, "goodness").axes
    shown = [axis for axis in axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["test image 2", "test image 4", "test image 1"]
    assert drawn(shown[0]).flatten().tolist() == test.images[2].tolist()
    bars = axes[axes.index(shown[0]) + 1]
    heights = [bar.get_height() for bar in bars.patches]
    assert bars.get_title() == "true 3, chosen 5" and heights == [0] * 5 + [80] + [0] * 4
    colours = [bar.get_facecolor() for bar in bars.patches]
    assert [label for label, colour in enumerate(colours) if colour != colours[0]] == [3]
    assert figures.label_heights(goodness, "one_pass").sum(dim=1).tolist() == pytest.approx([100] * 6)
    test.labels.copy_(goodness.argmax(dim=1))
    assert not [axis for axis in figures.draw_most_wrong(test, goodness, "goodness").axes if axis.images]


@pytest.mark.parametrize("classes", [1, 3, 26])
def test_hybrids_are_shown_below_what_they_are_made_of(classes):
    test = coloured(classes)
    _, net, _ = small(test, "method=unsupervised")
    axes = methods.draw_hybrids(net, test, blurs=2)["hybrids"].axes
    count = min(classes, 10)
    images, masks, hybrids = np.array([drawn(axis) for axis in axes], dtype=int).reshape(3, count, -1)
    assert (images == test.images[:count].numpy()).all()
    made = random_masks(len(test), COLOUR, 2, torch.Generator().manual_seed(0))[:count].numpy()
    assert (masks == 255 * made).all() and (hybrids == np.where(made, images, np.roll(images, 1, axis=0))).all()


def test_adversarial_images_are_the_images_and_what_was_added():
    test = examples(20)
    _, net, _ = small(test)
    rows = np.array([drawn(axis) for axis in methods.draw_adversarial(net, test, 2.0).axes]).reshape(3, -1, 784) / 255
    assert rows[0] * 255 == pytest.approx(test.first_of_each_class().images[:10].numpy())
    added = rows[2] - 0.5  # on a scale of its own, from -0.5 to 0.5
    assert np.abs(added).max() == pytest.approx(0.5, abs=0.005) and np.abs(added[:, :10]).max() < 0.005  # no label's
    assert np.linalg.norm(added, axis=1) == pytest.approx(np.linalg.norm(added[0]), rel=0.05)
    inside = (rows[1] > 0) & (rows[1] < 1)  # the rest was cut off
    scale = 2 / np.linalg.norm(added[0])
    assert (rows[1] - rows[0])[inside] == pytest.approx(scale * added[inside], abs=0.02)


def test_goodness_over_time_is_that_above_the_labels_mean():
    test = coloured(10)
    test.labels[:2] = torch.tensor([4, 1])
    goodness = torch.rand(8, 2, 10, generator=torch.Generator().manual_seed(0))
    goodness[2:5, 0, 4] += 5  # iterations 3 to 5
    goodness[5:, 0, 7] += 50  # later ones do not count
    goodness[:, 1, 2] += 9
    net = new_net(composed("method=recurrent", "model.hidden_dims=[5]", "precision=fp32"), test.shape, 10)
    axes = methods.draw_goodness_over_time(net, test, [0, 1], goodness).axes
    shown = [axis for axis in axes if axis.lines]
    assert [axis.get_title() for axis in shown] == ["true 4, chosen 4", "true 1, chosen 2"]
    for axis, expected in zip(shown, (goodness - goodness.mean(dim=2, keepdim=True)).unbind(1), strict=True):
        for line, of_label in zip(axis.lines, expected.unbind(1), strict=True):
            assert line.get_xydata() == pytest.approx(np.stack([range(1, 9), of_label], axis=1))


LOSS, PAIRS, ERROR = "loss", "pairs ordered wrongly (%)", "validation error (%)"


@pytest.mark.parametrize(
    ("layered", "validated", "titles"),
    [(4, False, [LOSS, PAIRS]), (0, True, [LOSS, ERROR]), (2, True, [LOSS, PAIRS, ERROR])],
    ids=["supervised", "backprop", "unsupervised"],
)
def test_learning_curves_of_what_there_is(layered, validated, titles):
    metrics = [{"epoch": n, "readout_loss": 3.0 - n / 10, "gain": 1.0} for n in range(1, 5)]
    for number, record in enumerate(metrics):
        there = number < layered
        record |= {"loss": [2.0, 1.0] * there, "pairs_ordered_wrongly": [0.5, 0.25] * there}
        if validated and number % 2:
            record |= {"validation_errors": {"one_pass": 5, "one_pass_layer_1": 9}, "validation_images": 50}
    axes = figures.draw_learning_curve(metrics).axes
    curves = {axis.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in axes}
    assert list(curves) == titles
    assert curves[LOSS]["read-out"] == [[1, 2.9], [2, 2.8], [3, 2.7], [4, 2.6]]
    if layered:
        assert curves[LOSS]["layer 2"] == [[n, 1.0] for n in range(1, layered + 1)]
        assert curves[PAIRS]["layer 1"] == [[n, 50.0] for n in range(1, layered + 1)]
    assert curves.get(ERROR, {}) == ({"in one pass": [[2, 10], [4, 10]]} if validated else {})
