"""Pictures of digits, on disk and in memory, classified by a net that was really trained."""

import itertools
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from src.classify_image import draw, main, table
from src.config import errors
from src.config.values import SIDE
from src.datasets.batches import Examples
from src.datasets.idx import DataError
from src.datasets.photographs import as_mnist, read
from src.datasets.table import load_test
from src.evaluate import load_trained
from src.methods.supervised import FFNet, scores
from src.training.validation import scores_for

INKS = [((0, 0, 0), (255, 255, 255)), ((30, 40, 140), (230, 225, 210)), ((250, 240, 120), (20, 60, 40))]


@pytest.fixture(scope="module")
def test_set(mnist_root) -> Examples:
    return load_test("mnist", mnist_root, "cpu")


@pytest.fixture(scope="module")
def net(learned) -> FFNet:
    return load_trained(learned[0], device="cpu")


@pytest.fixture
def run_folder(learned, tmp_path) -> Path:
    return shutil.copytree(learned[0], tmp_path / "run")


def grey(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.view(SIDE, SIDE).numpy())


def on_paper(digit: Image.Image, ink: tuple, paper: tuple, side: int = 140, where: tuple = (25, 90)) -> Image.Image:
    """A 28 x 28 digit enlarged to `side` pixels and written on a sheet of 200 x 300."""
    sheet = Image.new("RGB", (200, 300), paper)
    sheet.paste(ink, where, digit.resize((side, side), Image.Resampling.BICUBIC))  # the digit says how much ink
    return sheet


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Of two sets of images, as a share of the latter's ink."""
    return ((ours.float() - theirs.float()).abs().sum() / theirs.float().sum()).item()


def test_mnist_images_stay_as_they_are(test_set, tmp_path):
    for number in range(0, 10_000, 20):
        pixels = test_set.images[number].view(SIDE, SIDE)
        assert torch.equal(as_mnist(grey(pixels)), pixels)
        assert torch.equal(as_mnist(grey(pixels).convert("RGB")), pixels)
    grey(pixels).save(tmp_path / "digit.png")
    assert torch.equal(read(tmp_path / "digit.png")[1], pixels)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_digit_on_paper_becomes_like_mnist(data, test_set):
    digit = grey(test_set.images[data.draw(st.integers(0, 9999), "number")])
    side = data.draw(st.integers(60, 180), "side")
    where = data.draw(st.integers(0, 200 - side), "x"), data.draw(st.integers(0, 300 - side), "y")
    ink, paper = data.draw(st.sampled_from(INKS), "ink and paper")
    ours = as_mnist(on_paper(digit, ink, paper, side, where))
    assert ours.dtype == torch.uint8 and ours.shape == (SIDE, SIDE)
    assert ours.min() == 0 and ours.max() == 255

    top_left, bottom_right = ours.nonzero().min(dim=0).values, ours.nonzero().max(dim=0).values
    assert (bottom_right - top_left + 1).max() == 20
    for axis in (0, 1):
        mass = ours.float().sum(dim=1 - axis)
        assert abs((mass * torch.arange(SIDE)).sum() / mass.sum() - 14) < 0.51


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_says_nothing_of_the_digit_changes_little(data, test_set):
    digit = grey(test_set.images[data.draw(st.integers(0, 9999), "number")])
    sheet = on_paper(digit, *INKS[0]).convert("L")
    as_is = as_mnist(sheet)
    assert torch.equal(as_mnist(ImageOps.invert(sheet)), as_is)
    margin = data.draw(st.tuples(*[st.integers(0, 150)] * 4), "margin")
    assert torch.equal(as_mnist(ImageOps.expand(sheet, margin, fill=255)), as_is)

    shifts = list(itertools.product((-1, 0, 1), repeat=2))  # a centre of mass may be rounded to the next pixel
    dusty = sheet.copy()
    dusty.putpixel((3, 3), 120)
    dusty = as_mnist(dusty)
    assert min(difference(dusty.roll(shift, (0, 1)), as_is) for shift in shifts) < 0.2  # faint edges may fall out

    levels = np.asarray(sheet, dtype=np.float32)
    pale = 90 + levels * data.draw(st.floats(0.2, 0.6), "contrast")
    fading = np.linspace(-1, 1, 300)[:, None] * data.draw(st.floats(-20, 20), "fading")
    noise = np.random.default_rng(0).normal(0, data.draw(st.floats(0, 2), "noise"), levels.shape)
    photo = Image.fromarray((pale + fading * pale.max() / 255 + noise).clip(0, 255).astype(np.uint8))
    ours = as_mnist(photo)
    assert min(difference(ours.roll(shift, (0, 1)), as_is) for shift in shifts) < 0.5


def test_every_kind_of_file_gives_the_same_digit(test_set, tmp_path):
    pixels = test_set.images[0].view(SIDE, SIDE).numpy()
    sheet = on_paper(grey(test_set.images[0]), *INKS[0]).convert("L")
    expected = as_mnist(sheet)
    transparent = Image.new("RGBA", sheet.size, (0, 0, 0, 0))
    transparent.putalpha(ImageOps.invert(sheet))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, a camera stores the picture lying on its side
    kinds = {
        "rgb.png": sheet.convert("RGB"), "rgba.png": sheet.convert("RGBA"), "transparent.png": transparent,
        "palette.gif": sheet.convert("P"), "cmyk.tif": sheet.convert("CMYK"), "quality.jpg": sheet,
        "16_bits.png": Image.fromarray(np.asarray(sheet).astype(np.uint16) * 257),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
        original, ours = read(tmp_path / name)
        assert difference(ours, expected) < 0.03, name
        assert original.size == sheet.size and np.asarray(original).max() == 255
    sheet.rotate(90, expand=True).save(tmp_path / "rotated.png", exif=exif)
    assert torch.equal(read(tmp_path / "rotated.png")[1], expected)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "mnist.png")
    assert torch.equal(read(tmp_path / "mnist.png")[1], torch.from_numpy(pixels))


def test_enlarged_in_colour_mnist_digits_come_back_and_are_classified_the_same(test_set, net):
    images = test_set.images[:300]
    ours = torch.stack([as_mnist(on_paper(grey(image), *INKS[number % 3])) for number, image in enumerate(images)])
    assert difference(ours.flatten(1), images) < 0.3  # enlarging alone blurs
    of_ours, of_mnist = (scores_for(scores, net, pixels, 300) for pixels in (ours.flatten(1), images))
    for rule in ("goodness", "one_pass"):
        assert (of_ours[rule].argmax(dim=1) == of_mnist[rule].argmax(dim=1)).float().mean() > 0.9


def test_the_command_prints_and_draws_what_the_net_says(run_folder, test_set, net):
    """Each picture under a name of its own."""
    inputs = [run_folder / name for name in ("a/7.png", "b/7.jpg", "classified/7_2.png")]
    pictures = [run_folder / "classified" / name for name in ("7.png", "7_3.png", "7_2_2.png")]
    for path in inputs:
        path.parent.mkdir()
    for path, (ink, paper) in zip(inputs, INKS, strict=True):
        on_paper(grey(test_set.images[0]), ink, paper).save(path)
    before = [path.read_bytes() for path in inputs]
    done = command(str(run_folder), *map(str, inputs), module="src.classify_image")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert [path.read_bytes() for path in inputs] == before

    said = scores_for(scores, net, torch.stack([read(path)[1] for path in inputs]).flatten(1), 3)
    for number, block in enumerate(done.stdout.strip().split("\n\n")):
        lines = block.splitlines()
        goodness = torch.stack([said[f"goodness_layer_{layer}"][number] for layer in (1, 2, 3)])
        probabilities = said["one_pass"][number].softmax(dim=0)
        assert lines[0] == str(inputs[number])
        assert lines[1].split() == ["label", "G_1", "G_2", "G_3", "sum", "from", "G_2", "read-out"]
        for label in range(10):
            printed = [float(cell) for cell in lines[2 + label].removesuffix("%").split()]
            exact = [label, *goodness[:, label], goodness[1:, label].sum(), 100 * probabilities[label]]
            assert printed == pytest.approx([float(value) for value in exact], abs=0.051)
        assert lines[12] == f"by goodness (sum from G_2): {goodness[1:].sum(dim=0).argmax()}"
        assert lines[13] == f"in one pass (read-out):     {probabilities.argmax()}"
        assert lines[14] == f"picture: {pictures[number]}"
        with Image.open(pictures[number]) as picture:
            assert picture.size[0] > 1000


def test_the_picture_shows_both_choices():
    goodness = torch.full((10,), 7.0).index_fill(0, torch.tensor([4]), 57.0)
    probabilities = torch.full((10,), 0.02).index_fill(0, torch.tensor([6]), 0.82)
    scores = {"goodness": goodness, "one_pass": probabilities.log() + 3}
    figure = draw(Image.new("RGB", (20, 30)), torch.zeros(SIDE, SIDE), scores)
    assert [axis.get_title() for axis in figure.axes[2:]] == ["By goodness: 4", "In one pass: 6"]
    assert [bar.get_height() for bar in figure.axes[2].patches] == [0, 0, 0, 0, 50, 0, 0, 0, 0, 0]
    assert [bar.get_height() for bar in figure.axes[3].patches] == pytest.approx([2.0] * 6 + [82] + [2] * 3)
    for axis, chosen in zip(figure.axes[2:], (4, 6), strict=True):
        colours = [bar.get_facecolor() for bar in axis.patches]
        assert colours.count(colours[chosen]) == 1


def test_a_net_without_goodness_says_what_it_has():
    """Back-propagation and unsupervised nets; and the recurrent one, whose sum is of all its layers."""
    probabilities = torch.full((10,), 0.02).index_fill(0, torch.tensor([6]), 0.82)
    scores = {"one_pass": probabilities.log(), "one_pass_layer_1": torch.zeros(10)}
    lines = table(scores).splitlines()
    assert lines[0].split() == ["label", "read-out"] and lines[7].split() == ["6", "82.00", "%"]
    assert lines[11:] == ["in one pass (read-out): 6"]
    figure = draw(Image.new("RGB", (20, 30)), torch.zeros(SIDE, SIDE), scores)
    assert [axis.get_title() for axis in figure.axes[2:]] == ["In one pass: 6"]

    layers = {f"goodness_layer_{layer}": torch.arange(10.0) * layer for layer in (1, 2)}
    lines = table(scores | layers | {"goodness": torch.arange(10.0) * 3}).splitlines()
    assert lines[0].split() == ["label", "G_1", "G_2", "sum", "read-out"]
    assert lines[3].split() == ["2", "2.0", "4.0", "6.0", "2.00", "%"] and lines[11] == "by goodness (sum):      9"


# --- Bad input --------------------------------------------------------------------------------------------


def refusal(monkeypatch, *arguments: Path) -> str:
    """The one line that ends the command."""
    monkeypatch.setattr(sys, "argv", ["classify_image", *map(str, arguments)])
    monkeypatch.setattr(errors, "SHOW_TRACEBACK", False)
    with pytest.raises(SystemExit) as caught:
        main()
    line = caught.value.code
    assert line.startswith("error: ") and "\n" not in line
    return line


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG file of 8-bit grey, with no pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        for chunk in (header, b"IDAT")
    )


def test_what_is_no_readable_image_is_named_before_any_is_classified(
    run_folder, test_set, tmp_path, monkeypatch, capsys
):
    grey(test_set.images[0]).save(tmp_path / "good.png")
    (tmp_path / "words.png").write_text("no picture")
    sheet = on_paper(grey(test_set.images[0]), *INKS[1])
    for name in ("cut.png", "cut.jpg"):
        sheet.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    (tmp_path / "empty.png").touch()
    (tmp_path / "bomb.png").write_bytes(png_header(40_000, 40_000))
    (tmp_path / "large.png").write_bytes(png_header(10_000, 10_000))  # for which Pillow has a warning only
    reasons = {
        "cut.png": "truncated", "cut.jpg": "truncated", "empty.png": "cannot identify", "run": "is a folder",
        "bomb.png": "exceeds limit", "large.png": "exceeds limit", "none.png": "there is no such file",
        "words.png": "words.png: cannot be read; a PNG or JPEG file of one digit is needed",
    }  # fmt: skip
    for name, reason in reasons.items():
        line = refusal(monkeypatch, run_folder, tmp_path / "good.png", tmp_path / name)
        assert line.startswith(f"error: {tmp_path / name}: ") and reason in line
        assert capsys.readouterr() == ("", "") and not (run_folder / "classified").exists()


def test_an_image_without_a_digit_is_refused():
    noise = np.random.default_rng(0).normal(0, 4, (500, 500))
    blank = {
        "white": np.full((100, 80), 255.0), "black 28 x 28": np.zeros((SIDE, SIDE)), "one pixel": np.zeros((1, 1)),
        "paper": 200 + noise, "paper in fading light": 200 + noise + np.linspace(-40, 40, 500),
    }  # fmt: skip
    for name, levels in blank.items():
        with pytest.raises(DataError, match="no digit stands out"):
            print(name, as_mnist(Image.fromarray(levels.astype(np.uint8))))  # the name of what was not refused


def test_a_run_without_a_whole_net_is_named(run_folder, test_set, tmp_path, monkeypatch):
    image = tmp_path / "seven.png"
    grey(test_set.images[0]).save(image)
    for folder in (tmp_path / "none", tmp_path):
        assert refusal(monkeypatch, folder, image) == f"error: {folder}: there is no run (no config.yaml)"
    (run_folder / "model.pt").unlink()
    assert refusal(monkeypatch, run_folder, image).endswith(": this run's net was not kept (no model.pt)")
    (run_folder / "result.json").unlink()
    line = refusal(monkeypatch, run_folder, image)
    assert f"this run is not finished (no model.pt); go on with: python -m main resume={run_folder}" in line
    assert not (tmp_path / "none").exists() and not (run_folder / "classified").exists()
