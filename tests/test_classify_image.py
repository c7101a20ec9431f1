"""Pictures of digits, on disk and in memory, classified by a net that was really trained."""

import itertools
import shutil
import sys
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import command
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pictures_of_digits import KINDS, SEVERAL, drawn, in_a_row, pictures, printed
from PIL import Image, ImageOps
from torch import Tensor

from src.classify_image import boxed, main, table
from src.config import errors
from src.datasets.batches import Examples
from src.datasets.idx import DataError
from src.datasets.table import load_test
from src.evaluate import load_trained
from src.methods.net import Net
from src.own_digits.finding import SIDE, Digit, digits, read
from src.training.validation import scores_for

INKS = [((0, 0, 0), (255, 255, 255)), ((30, 40, 140), (230, 225, 210)), ((250, 240, 120), (20, 60, 40))]
SHIFTS = list(itertools.product((-1, 0, 1), repeat=2))  # a centre of mass may be rounded to the next pixel


@pytest.fixture(scope="module")
def test_set(mnist_root) -> Examples:
    return load_test("mnist", mnist_root, "cpu")


@pytest.fixture(scope="module")
def images(test_set) -> np.ndarray:
    return test_set.images.view(-1, SIDE, SIDE).numpy()


@pytest.fixture(scope="module")
def net(learned) -> Net:
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


def as_mnist(image: Image.Image) -> Tensor:
    """The pixels of the only digit."""
    (digit,) = digits(image)
    assert digit.pixels.dtype == torch.uint8 and digit.pixels.shape == (SIDE, SIDE)
    return digit.pixels


def alike(ours: Tensor, theirs: Tensor) -> float:
    """The cosine between two images, 1 for the same strokes in the same place."""
    shifted = [ours.float().roll(shift, (0, 1)).flatten() for shift in SHIFTS]
    return max(torch.cosine_similarity(of_shift, theirs.float().flatten(), dim=0).item() for of_shift in shifted)


# --- What becomes of a digit ------------------------------------------------------------------------------


def test_mnist_images_stay_as_they_are_and_are_moved_into_the_middle(images, tmp_path):
    for number in range(0, 10_000, 20):
        pixels = torch.from_numpy(images[number])
        assert torch.equal(as_mnist(grey(pixels)), pixels)
        used = pixels.nonzero()
        for corner in (used.amin(dim=0), used.amax(dim=0) - 27):
            moved = pixels.roll((-corner).tolist(), (0, 1))
            for back in map(as_mnist, (grey(moved), grey(255 - moved))):
                assert any(torch.equal(back.roll(step, (0, 1)), pixels) for step in SHIFTS)
    grey(pixels).convert("RGB").save(tmp_path / "digit.png")
    assert torch.equal(as_mnist(read(tmp_path / "digit.png")), pixels)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_digit_on_paper_becomes_like_mnist(data, test_set):
    digit = grey(test_set.images[data.draw(st.integers(0, 9999), "number")])
    side = data.draw(st.integers(60, 180), "side")
    where = data.draw(st.integers(0, 200 - side), "x"), data.draw(st.integers(0, 300 - side), "y")
    ink, paper = data.draw(st.sampled_from(INKS), "ink and paper")
    try:
        (found,) = digits(on_paper(digit, ink, paper, side, where), single=True)
    except DataError:  # a few of MNIST's are too wide, for example
        reject()
    ours = found.pixels
    assert ours.min() == 0 and ours.max() == 255
    first, last = ours.nonzero().aminmax(dim=0)
    assert (last - first + 1).max() == 20
    for axis in (0, 1):
        mass = ours.float().sum(dim=1 - axis)
        assert abs((mass * torch.arange(SIDE)).sum() / mass.sum() - 14) < 0.51

    first, last = (torch.from_numpy(np.array(digit)) > 128).nonzero().flip(1).aminmax(dim=0)  # x, y
    expected = (torch.cat([first, last + 1]) * side / SIDE).tolist()
    box = [at + offset for at, offset in zip(expected, 2 * where, strict=True)]
    assert found.box == pytest.approx(box, abs=0.06 * side)


def grey_of(ink: np.ndarray) -> Image.Image:
    """Black ink ([H, W] of 0..1) with white paper around it."""
    return Image.fromarray((255 * (1 - np.pad(ink, 60))).astype(np.uint8))


NEAR_AN_EDGE = [2503, 2506, 2593]


@pytest.mark.parametrize("kind", [*KINDS, SEVERAL])
def test_every_kind_of_picture_gives_the_digit_that_is_in_it(kind, images):
    """As it comes out of a clean drawing. How often a net errs is measured by tests/pictures_of_digits.py."""
    strokes = partial(drawn, pen=16) if "pen" in kind else printed
    for picture, numbers in pictures(kind, images, [13] if kind != "desk" else [13, *NEAR_AN_EDGE]):
        for digit, number in zip(digits(picture), numbers, strict=True):
            limit = 0.8 if number in NEAR_AN_EDGE else 0.85
            assert alike(digit.pixels, as_mnist(grey_of(strokes(images[number], 200)))) > limit


def test_digits_are_read_line_by_line_and_single_takes_them_for_one(images):
    rows = [[(0, 90), (1, 80), (2, 95)], [(3, 90), (4, 90)]]
    rows = [in_a_row([printed(images[number], tall) for number, tall in row], 35) for row in rows]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 40), (0, width - row.shape[1]))) for row in rows])
    found = digits(grey_of(sheet))
    assert len(found) == 5
    for number, digit in enumerate(found):
        assert alike(digit.pixels, as_mnist(grey_of(printed(images[number], 90)))) > 0.9
    assert [digit.box[0] for digit in found[:3]] == sorted(digit.box[0] for digit in found[:3])
    assert found[3].box[1] > found[0].box[3] and found[3].box[0] < found[4].box[0]
    (one,) = digits(grey_of(sheet), single=True)
    assert one.box[0] <= found[0].box[0] and one.box[3] >= found[4].box[3]


def test_every_kind_of_file_gives_the_same_digit(images, tmp_path):
    sheet = on_paper(grey(torch.from_numpy(images[0])), *INKS[0]).convert("L")
    expected = as_mnist(sheet)
    transparent = Image.new("RGBA", sheet.size, (0, 0, 0, 0))
    transparent.putalpha(ImageOps.invert(sheet))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, a camera stores the picture lying on its side
    kinds = {
        "rgb.png": sheet.convert("RGB"), "rgba.png": sheet.convert("RGBA"), "transparent.png": transparent,
        "palette.gif": sheet.convert("P"), "cmyk.tif": sheet.convert("CMYK"), "quality.jpg": sheet,
        "16_bits.png": Image.fromarray(np.asarray(sheet).astype(np.uint16) * 257), "black.png": ImageOps.invert(sheet),
        **{f"{n}_in_16.png": Image.fromarray(np.asarray(sheet).astype(np.uint16) << n - 8) for n in (10, 12)},
        "floats.tif": Image.fromarray(np.asarray(sheet, dtype=np.float32) / 255),
        "large.png": sheet.resize((2400, 3600)), "two_colours.png": sheet.resize((2400, 3600)).convert("1", dither=0),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
        assert alike(as_mnist(read(tmp_path / name)), expected) > 0.97, name
    assert 1000 < max(read(tmp_path / "large.png").size) <= 2000
    sheet.rotate(90, expand=True).save(tmp_path / "rotated.png", exif=exif)
    assert torch.equal(as_mnist(read(tmp_path / "rotated.png")), expected)


# --- The command ------------------------------------------------------------------------------------------


def test_the_command_prints_and_draws_what_the_net_says(run_folder, test_set, images, net):
    """Each picture under a name of its own."""
    inputs = [run_folder / name for name in ("a/7.png", "b/7.jpg", "c/8.png", "two.png")]
    pictures = [run_folder / "classified" / name for name in ("1_7.png", "2_7.png", "3_8.png", "4_two.png")]
    for path, (ink, paper) in zip(inputs, INKS, strict=False):
        path.parent.mkdir()
        on_paper(grey(test_set.images[0]), ink, paper).save(path)
    grey_of(in_a_row([printed(images[number], 90) for number in (1, 4)], 40)).save(inputs[3])
    before = [path.read_bytes() for path in inputs]
    done = command(str(run_folder), *map(str, inputs), module="src.classify_image")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert [path.read_bytes() for path in inputs] == before

    found = [digit for path in inputs for digit in digits(read(path))]
    said = scores_for(net, torch.stack([digit.pixels for digit in found]).flatten(1), 5)
    tables = [table({rule: of_all[number] for rule, of_all in said.items()}) for number in range(5)]
    *blocks, of_two = done.stdout.strip().split("\n\n")
    expected = [
        f"{path}\n{of_digit}\npicture: {made}" for path, of_digit, made in zip(inputs, tables, pictures, strict=False)
    ]
    assert blocks == expected[:3]
    two = f"{inputs[3]}\ndigit 1 of 2\n{tables[3]}\ndigit 2 of 2\n{tables[4]}\n"
    assert of_two.startswith(two) and of_two.endswith(f"\npicture: {pictures[3]}")
    for line, rule in zip(of_two.splitlines()[-3:-1], ("goodness", "one_pass"), strict=True):
        assert line.endswith(": {} {}".format(*said[rule][3:].argmax(dim=1).tolist()))
    assert [Image.open(picture).size for picture in pictures[:3]] == 3 * [(200, 300)]


def test_where_nothing_can_be_drawn_the_verdicts_are_given(run_folder, test_set, tmp_path):
    grey(test_set.images[0]).save(tmp_path / "seven.png")
    (run_folder / "classified").write_text("no folder")
    done = command(str(run_folder), *2 * [str(tmp_path / "seven.png")], module="src.classify_image")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("in one pass: ") == 2 == done.stdout.count("\nno picture: [Errno 17] File exists: ")


def test_the_picture_has_a_box_around_each_digit():
    seen = [Digit(torch.zeros(SIDE, SIDE), box) for box in ((1, 2, 5, 9), (8, 2, 12, 8))]
    pixels = np.asarray(boxed(Image.new("RGB", (20, 30)), seen)).any(axis=2)
    expected = np.zeros((30, 20), bool)
    for left, top, right, bottom in (digit.box for digit in seen):
        expected[top : bottom + 1, left : right + 1] = True
        expected[top + 1 : bottom, left + 1 : right] = False
    assert (pixels == expected).all()


def test_the_table_has_what_the_net_has():
    """The read-out's shares; and, if there is goodness, that of each layer and all that the net decides by."""
    shares = torch.full((10,), 0.02).index_fill(0, torch.tensor([6]), 0.82)
    scores = {"one_pass": shares.log(), "one_pass_layer_1": torch.zeros(10)}
    lines = table(scores).splitlines()
    assert lines[0].split() == ["label", "read-out"] and lines[7].split() == ["6", "82.00", "%"]
    assert lines[11:] == ["in one pass: 6"]

    layers = {f"goodness_layer_{layer}": torch.arange(10.0) * layer for layer in (1, 2)}
    lines = table(scores | layers | {"goodness": torch.arange(10.0) * 3}).splitlines()
    assert lines[0].split() == ["label", "G_1", "G_2", "goodness", "read-out"]
    assert lines[3].split() == ["2", "2.0", "4.0", "6.0", "2.00", "%"] and lines[11] == "by goodness: 9"


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


def test_what_is_no_readable_image_is_named_before_any_is_read(run_folder, test_set, tmp_path, monkeypatch, capsys):
    grey(test_set.images[0]).save(tmp_path / "good.png")
    (tmp_path / "words.png").write_text("no picture")
    sheet = on_paper(grey(test_set.images[0]), *INKS[1])
    for name in ("cut.png", "cut.jpg"):
        sheet.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    (tmp_path / "empty.png").touch()
    Image.new("L", (100, 100), 200).save(tmp_path / "blank.png")
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])  # 8-bit grey, and no pixels follow
    chunks = [
        len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in (header, b"IDAT")
    ]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    reasons = {
        "cut.png": "truncated", "cut.jpg": "truncated", "empty.png": "cannot identify", "run": "Is a directory",
        "bomb.png": "exceeds limit", "none.png": "No such file",
        "words.png": "words.png: cannot be read; a picture such as a PNG or JPEG is needed", "blank.png": "no digit",
    }  # fmt: skip
    for name, reason in reasons.items():
        line = refusal(monkeypatch, run_folder, tmp_path / "good.png", tmp_path / name)
        assert line.startswith(f"error: {tmp_path / name}: ") and reason in line
        assert capsys.readouterr() == ("", "") and not (run_folder / "classified").exists()


def test_what_holds_no_digit_is_refused_with_the_reason(images):
    noise = 200 + np.random.default_rng(0).normal(0, 4, (500, 500))
    spot = cv2.circle(np.zeros((300, 300), np.float32), (150, 150), 60, 1, -1)
    (scribble, _), (ruled, _) = next(pictures("scribble", images, [1])), next(pictures("blank", images, [6]))
    refused = {
        "no digit stands out": [
            *map(Image.fromarray, np.stack([noise, noise + np.linspace(-40, 40, 500)]).astype(np.uint8)),
            Image.new("L", (SIDE, SIDE)), Image.new("L", (100, 80), 255), Image.new("RGBA", (50, 50)), ruled,
        ],
        "too small or too narrow": [Image.new("L", size) for size in ((1, 1), (400, 3), (9, 9))],
        "runs off the sheet": [grey_of(printed(images[0], 100)).crop((60 + 40, 0, 300, 300))],
        "wider than a digit": [grey_of(np.concatenate(3 * [printed(images[3], 100)[:, 8:-8]], axis=1))],
        "a spot": [grey_of(spot)],
        "scribble": [scribble],
        "36 things that may be digits; 30 at most": [grey_of(np.tile(np.pad(printed(images[2], 40), 20), (6, 6)))],
    }  # fmt: skip
    for reason, of_reason in refused.items():
        for number, image in enumerate(of_reason):
            with pytest.raises(DataError, match=reason):
                print(reason, number, digits(image))  # what was not refused


def test_a_picture_among_its_own_and_a_run_without_a_net_are_named(run_folder, monkeypatch):
    kept = run_folder / "classified" / "seven.png"
    assert refusal(monkeypatch, run_folder, kept).endswith("none of the given ones may be there")
    (run_folder / "model.pt").unlink()
    assert refusal(monkeypatch, run_folder, Path("seven.png")).endswith(": this run's net was not kept (no model.pt)")
    assert not (run_folder / "classified").exists()
