"""The pictures show the figures they are made from."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import ONE_THREAD, REPOSITORY
from nets import MNIST_MAP, examples
from PIL import Image
from src.results.pictures import draw_run
from test_config import composed

from images import draw_training
from src.config.values import Config
from src.datasets.batches import Examples
from src.experiment import new_net, run
from src.methods import named
from src.methods.recurrent import draw_goodness_over_time
from src.methods.unsupervised import draw_hybrids, goodness_with_hybrids
from src.negatives.masks import mixed, random_masks
from src.pictures import figures
from src.training.validation import scores_for

ALWAYS = {"learning_curve", "receptive_fields", "confusion", "most_wrong"}
PICTURES = {
    "backprop": ALWAYS,
    "local_receptive_fields": ALWAYS | {"goodness", "hybrids"},
    "recurrent": ALWAYS | {"goodness", "goodness_over_time"},
}


def small_test(*overrides: str, classes: int = 10) -> tuple[Config, torch.nn.Module, Examples]:
    """The configuration of a small net, the net untrained, and 20 test images of random pixels."""
    config = composed(*overrides, "model.hidden_dims=[20,15]", "precision=fp32")
    return config, new_net(config), Examples(examples(20).images, torch.arange(20) % classes, MNIST_MAP, 10)


def test_drawing_leaves_the_backend_of_a_notebook_alone(tmp_path):
    code = (
        "import sys, pathlib, matplotlib, src.plots, src.classify_image\n"
        "figure = src.plots.draw_learning_curve([{'epoch': 1, 'loss': [], 'readout_loss': 1.0}])\n"
        "src.plots.save_figure(figure, pathlib.Path(sys.argv[1]))\n"
        "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "picture.png")], cwd=REPOSITORY, capture_output=True, text=True,
        env=ONE_THREAD | {"MPLBACKEND": "svg"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("svg False\n", "")
    assert not [path for path in (REPOSITORY / "src").rglob("*.py") if "pyplot" in path.read_text(encoding="utf-8")]


def test_the_picture_of_the_algorithm_is_drawn(monkeypatch, mnist_root, tmp_path):
    monkeypatch.setattr(draw_training, "FOLDER", tmp_path)
    draw_training.main(str(mnist_root))
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.width == 1600
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("experiment", PICTURES)
def test_every_method_has_the_pictures_that_mean_something_for_it(experiment, few_images, tmp_path):
    dims = "[16]" if experiment == "recurrent" else "[32,18,8]"  # one layer, where no rule leaves the first one out
    small = [f"model.hidden_dims={dims}", "training.epochs=1", "device=cpu", "evaluation.every=0"]
    config = composed(f"experiment={experiment}", *few_images, *small)
    if config.method == "unsupervised":
        config.training.readout_epochs = 1
    run(config, tmp_path / "run")
    drawn = {path.stem: path for path in (tmp_path / "run").glob("*.png")}
    assert set(drawn) == PICTURES[experiment]
    for path in drawn.values():
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # not blank


def test_goodness_of_positives_and_negatives_with_the_threshold():
    true = F.one_hot(torch.arange(100) % 10, 10).bool()
    noise = torch.rand(2, 100, 10, generator=torch.Generator().manual_seed(0))
    goodnesses = torch.stack([20 + 10 * true, 5 + 100 * true]) + noise
    figure = figures.draw_goodness(goodnesses[:, true], goodnesses[:, ~true], [25.0, 50.0], ("right", "wrong"))
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
        assert {text.get_text() for text in axis.get_legend().get_texts()} == {f"threshold {theta}", "right", "wrong"}


def test_goodness_of_hybrids_is_that_of_the_test_images_mixed_batch_by_batch():
    _, net, test = small_test("method=unsupervised")
    masks = random_masks(20, 28, 2, torch.Generator().manual_seed(0))
    positive, negative = goodness_with_hybrids(net, test.images, masks, batch_size=8)
    hybrids = torch.cat([mixed(x, m) for x, m in zip(test.images.split(8), masks.split(8), strict=True)])
    with torch.no_grad():
        for goodness, pixels in ((positive, test.images), (negative, hybrids)):
            expected = torch.stack([h.square().sum(dim=1) for h in net.activities(pixels / 255)])
            torch.testing.assert_close(goodness, expected)


def test_receptive_fields_are_of_the_strongest_units_each_on_its_own_scale():
    weight = torch.zeros(300, 784)
    rows, columns = 2 + torch.arange(300) // 26, 1 + torch.arange(300) % 26  # not at an edge
    weight[torch.arange(300), 28 * rows + columns] = 1.0 + torch.arange(300)  # unit u: one pixel of weight 1 + u
    axis = figures.draw_receptive_fields(weight, rows=3, columns=4).axes[0]
    picture = torch.tensor(axis.images[0].get_array().filled(torch.nan))
    assert picture.shape == (3 * 30 - 2, 4 * 30 - 2) and axis.images[0].get_clim() == (-1, 1)
    for place, unit in enumerate(range(299, 287, -1)):
        top, left = 30 * (place // 4), 30 * (place % 4)
        field = picture[top : top + 28, left : left + 28]
        row, column = rows[unit].item(), columns[unit].item()
        assert field.nonzero().tolist() == [[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert field.max() == 1
    few = figures.draw_receptive_fields(weight[:5], rows=2, columns=4).axes[0].images[0].get_array()
    assert few.shape == (2 * 30 - 2, 4 * 30 - 2)


def test_local_receptive_fields_lie_where_their_location_does():
    weight = torch.zeros(4, 6, 25)  # 2 x 2 locations, 6 channels, 5 x 5 pixels
    weight[:, :, 12] = torch.tensor([-1.0, -1.0, 1.0, -1.0])[:, None]  # the middle pixel
    picture = figures.draw_receptive_fields(weight, rows=4, columns=8).axes[0].images[0].get_array().filled(0.0)
    height, width = picture.shape
    bottom_left = picture[height // 2 :, : width // 2]
    assert bottom_left.max() == 1 and bottom_left.min() == 0
    assert picture[: height // 2].max() == 0 and picture[: height // 2].min() == -1


def test_the_labels_pixels_are_left_out_of_the_receptive_fields_where_there_is_a_label(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "draw_receptive_fields", drawn.append)
    for method in ("supervised", "unsupervised", "recurrent", "backprop"):
        config, net, test = small_test(f"method={method}")
        scores = scores_for(named(method).scores, net, test.images, 20)
        named(method).pictures(net, test, scores, **vars(config.training))
        weight = drawn.pop()
        assert (not weight[:, :10].any()) == (method == "supervised") and weight[:, 10:].all(), method
        first = net.weights[0] if method == "backprop" else net.layers[0].weight
        assert first.all()  # it is a copy that they are left out of


def test_confusion_counts_every_image():
    labels = torch.tensor([0, 0, 0, 1, 1, 9, 9, 9, 9])
    chosen = torch.tensor([0, 0, 1, 1, 1, 9, 4, 4, 9])
    axis = figures.draw_confusion(chosen, labels, "goodness").axes[0]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert shown == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (9, 9): "2", (9, 4): "2"}
    assert axis.get_title() == "3 of 9 test images wrong (33.33 %), by goodness"
    colours = axis.images[0].get_array()
    assert colours[0, 0] == 0 and colours[9, 4] == 2  # only mistakes are coloured
    assert figures.draw_confusion(chosen, labels, "one_pass").axes[0].get_title().endswith(", in one pass")


def test_the_most_wrong_images_come_first_and_none_that_is_right():
    images, labels = examples(6).images, torch.tensor([3, 3, 3, 7, 7, 7])
    goodness = torch.full((6, 10), 10.0)
    for image, (label, value) in enumerate([(3, 50), (5, 20), (5, 90), (7, 11), (0, 30), (7, 60)]):
        goodness[image, label] = value
    axes = figures.draw_most_wrong(images, labels, goodness, "goodness").axes
    shown = [axis for axis in axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["test image 2", "test image 4", "test image 1"]
    assert torch.equal(torch.tensor(shown[0].images[0].get_array().data).flatten(), images[2])
    bars = axes[axes.index(shown[0]) + 1]
    assert bars.get_title() == "true 3, chosen 5"
    assert [bar.get_height() for bar in bars.patches] == [0, 0, 0, 0, 0, 80, 0, 0, 0, 0]
    blue = [label for label, bar in enumerate(bars.patches) if bar.get_facecolor() != bars.patches[0].get_facecolor()]
    assert blue == [3]
    one_pass = figures.draw_most_wrong(images, labels, goodness, "one_pass").axes
    heights = [bar.get_height() for bar in one_pass[one_pass.index(next(a for a in one_pass if a.images)) + 1].patches]
    assert sum(heights) == pytest.approx(100) and heights[5] == pytest.approx(100)


def test_hybrids_are_shown_below_what_they_are_made_of():
    images, masks = examples(4).images, random_masks(4, 28, 3, torch.Generator().manual_seed(0))
    axes = draw_hybrids(images, masks).axes
    shown = torch.stack([torch.tensor(axis.images[0].get_array().data).flatten() for axis in axes])
    assert torch.equal(shown[:4], images) and torch.equal(shown[4:8].bool(), masks)
    for column in range(4):
        left = images[column - 1]
        assert torch.equal(shown[8 + column], torch.where(masks[column], images[column], left))


def test_goodness_over_time_is_that_above_the_labels_mean():
    goodness = torch.rand(8, 2, 10, generator=torch.Generator().manual_seed(0))
    goodness[2:5, 0, 4] += 5  # iterations 3 to 5
    goodness[5:, 0, 7] += 50  # later ones do not count
    goodness[:, 1, 2] += 9
    images = torch.zeros(2, 784, dtype=torch.uint8)
    axes = draw_goodness_over_time([12, 34], images, torch.tensor([4, 1]), goodness).axes
    assert [axes[0].get_title(), axes[2].get_title()] == ["test image 12", "test image 34"]
    assert [axes[1].get_title(), axes[3].get_title()] == ["true 4, chosen 4", "true 1, chosen 2"]
    for number, axis in enumerate((axes[1], axes[3])):
        for label, line in enumerate(axis.lines):
            expected = goodness[:, number, label] - goodness[:, number].mean(dim=1)
            assert list(line.get_xdata()) == list(range(1, 9))
            assert line.get_ydata() == pytest.approx(expected.tolist())


LAYERS = ["Local loss of each layer", "Pairs ordered wrongly while training"]
SOFTMAX, ERROR = ["Softmax over the classes"], ["Validation error"]


@pytest.mark.parametrize(
    ("layered", "rules", "titles"),
    [
        (4, {}, LAYERS),
        (0, {"one_pass": 5}, SOFTMAX + ERROR),
        (2, {"one_pass": 5, "one_pass_layer_1": 9}, LAYERS + SOFTMAX + ERROR),
    ],
    ids=["supervised", "backprop", "unsupervised"],
)
def test_learning_curves_of_what_there_is(layered, rules, titles):
    none = {"loss": [], "pairs_ordered_wrongly": []}
    metrics = [{"epoch": n + 1, "readout_loss": 3.0 - n / 10} | none for n in range(4)]
    for record in metrics[:layered]:
        record |= {"loss": [2.0, 1.0], "pairs_ordered_wrongly": [0.5, 0.25]}
    for record in metrics[1::2] if rules else []:
        record |= {"validation_errors": rules, "validation_images": 50}
    axes = {axis.get_title(): axis for axis in figures.draw_learning_curve(metrics).axes}
    assert list(axes) == titles
    for title, of_layers in zip(LAYERS if layered else [], ([2.0, 1.0], [50.0, 25.0]), strict=False):
        assert [list(line.get_ydata()) for line in axes[title].lines] == [[y] * layered for y in of_layers]
    if "Softmax over the classes" in axes:
        assert list(axes["Softmax over the classes"].lines[0].get_ydata()) == [3.0, 2.9, 2.8, 2.7]
    if "Validation error" in axes:
        (line,) = axes["Validation error"].lines
        assert list(line.get_xdata()) == [2, 4] and list(line.get_ydata()) == [10, 10]


@pytest.mark.parametrize(("method", "more"), [("supervised", set()), ("recurrent", {"goodness_over_time"})])
def test_pictures_of_a_net_that_is_always_right(tmp_path, method, more):
    """Nothing is wrong, so there is nothing to show as most wrong; nor is there a curve without figures of epochs."""
    config, net, test = small_test(f"method={method}")
    scores = scores_for(named(method).scores, net, test.images, 20)
    test = dataclasses.replace(test, labels=scores["goodness"].argmax(dim=1))
    drawn = {path.stem for path in draw_run(config, tmp_path, net, test, scores)}
    assert drawn == ALWAYS - {"learning_curve"} | {"goodness"} | more


@pytest.mark.parametrize(("loss", "lines"), [("logistic", 1), ("symba", 0)])
def test_the_threshold_is_drawn_where_the_loss_has_one(loss, lines):
    config, net, test = small_test(f"model.loss={loss}")
    scores = scores_for(named("supervised").scores, net, test.images, 20)
    figure = named("supervised").pictures(net, test, scores, **vars(config.training))["goodness"]
    assert [len(axis.lines) for axis in figure.axes] == [lines] * 2


def test_adversarial_images_are_drawn_where_the_net_learned_from_such():
    config, net, test = small_test("training.adversarial=2")
    net.readout.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    scores = scores_for(named("supervised").scores, net, test.images, 20)
    figure = named("supervised").pictures(net, test, scores, **vars(config.training))["adversarial"]
    rows = np.array([axis.images[0].get_array() for axis in figure.axes], dtype=float).reshape(3, 10, 784) / 255
    assert rows[0] * 255 == pytest.approx(test.images[:10].numpy())
    added = rows[2] - 0.5  # on a scale of its own, from -0.5 to 0.5
    assert np.abs(added).max() == pytest.approx(0.5, abs=0.005)
    assert np.linalg.norm(added, axis=1) == pytest.approx(np.linalg.norm(added[0]), rel=0.05)
    inside = (rows[1] > 0) & (rows[1] < 1)  # the rest was cut off
    scale = 2 / np.linalg.norm(added[0])
    assert (rows[1] - rows[0])[inside] == pytest.approx(scale * added[inside], abs=0.02)


@pytest.mark.parametrize("classes", [1, 3])
def test_hybrids_of_data_without_all_ten_classes(classes):
    config, net, test = small_test("method=unsupervised", classes=classes)
    figure = named("unsupervised").pictures(net, test, {}, **vars(config.training))["hybrids"]
    assert len(figure.axes) == 3 * classes
