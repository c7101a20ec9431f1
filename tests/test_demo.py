"""The page to draw on: what it says of every method's nets, and the page itself in a real Chromium."""

import base64
import io
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from commands import ONE_THREAD, REPOSITORY
from PIL import Image, ImageDraw

from src import demo
from src.classify_image import columns, headlines
from src.config.loading import METHODS, composed, load, load_saved
from src.config.values import ConfigError
from src.datasets.batches import to_unit
from src.datasets.table import MNIST_MAP, load_test
from src.evaluate import evaluate, load_trained
from src.experiment import new_net
from src.own_digits.finding import Digit
from src.training.log import read_json

Strokes = Sequence[Sequence[tuple[float, float]]]  # points on the canvas of 280 x 280

SEVEN = [[(80, 70), (200, 70), (150, 140), (120, 220)]]
NOUGHT = [[(140 + 55 * math.sin(angle / 3), 140 - 80 * math.cos(angle / 3)) for angle in range(20)]]
SCRIBBLE = [[(20 + 37 * step % 240, 20 + 91 * step % 240) for step in range(40)]]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [
    *(f"{name} (pip install -r requirements-demo.txt)" for name in ("gradio", "playwright") if not find_spec(name)),
    *([] if CHROMIUM else ["a Chromium (apt-get install chromium)"]),
]


def drawing(strokes: Strokes) -> Image.Image:
    image = Image.new("L", (280, 280), 255)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, fill=0, width=22, joint="curve")
    return image


def cells(html: str) -> list[list[str]]:
    """The texts of a table's rows."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(?:<i[^>]*></i><span>)?(.*?)(?:</span>)?</t[hd]>", row) for row in rows]


def shown_in(html: str) -> list[Image.Image]:
    """The pictures on it."""
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^']+)'", html)]


# --- What it says -----------------------------------------------------------------------------------------


def test_the_kept_net_makes_the_published_errors_again(mnist_root):
    assert (demo.KEPT / "model.pt").stat().st_size <= 6_000_000
    tracked = subprocess.run(["git", "check-ignore", "-q", demo.KEPT / "model.pt"], cwd=REPOSITORY).returncode
    assert tracked == 1, "git ignores it"
    outcome = evaluate(demo.KEPT, "cpu", str(mnist_root))
    published = outcome["test_errors_before"]
    assert {rule: outcome["test_errors"][rule] for rule in published} == published and len(published) == 5


@pytest.mark.parametrize(
    "overrides", [*([f"method={method}"] for method in METHODS), ["experiment=local_receptive_fields"]]
)
def test_the_nets_of_every_method_say_what_they_have(overrides):
    config = load(composed(*overrides, "precision=fp32"))
    if overrides[0].startswith("method"):
        config.model.hidden_dims = [20, 30]
    net, image = new_net(config, MNIST_MAP, 10), drawing(SEVEN)
    pixels = demo.digits(image, single=True)[0].pixels
    scores = {rule: of_image[0] for rule, of_image in net.scores(to_unit(pixels.view(1, -1))).items()}
    with pytest.raises(ValueError, match=r"images are torch.uint8, but should be floats in \[0, 1\], as to_unit makes"):
        net.scores(pixels.view(1, -1))

    said = demo.answer(net, image)
    assert dict(re.findall(r"data-rule='(\w+)'>(\d)<", said)) == {k: str(v) for k, v in headlines(scores).items()}
    head, *rows = cells(said)
    shown = columns(scores)
    assert head == ["label", *shown]
    for label, row in enumerate(rows):
        values = [float(cell.removesuffix(" %")) for cell in row]
        assert values == pytest.approx([label, *(of_labels[label].item() for of_labels in shown.values())], abs=0.051)


def test_the_bars_of_silent_layers_are_empty():
    rows = re.findall(r"width:(.*?)%", demo.bars({"goodness_layer_1": torch.zeros(10), "one_pass": torch.zeros(10)}))
    assert set(rows) == {"0.0", "10.0"}


def test_each_of_several_digits_is_answered_and_boxed(monkeypatch, tmp_path):
    config = load(composed("method=backprop", "model.hidden_dims=[20]", "precision=fp32"))
    image = Image.new("RGB", (600, 300), "white")
    boxes = {50: (50, 50, 130, 200), 250: (250, 50, 330, 200)}  # by the grey of a digit's pixels
    digits = [Digit(torch.full((28, 28), grey, dtype=torch.uint8), box) for grey, box in boxes.items()]
    monkeypatch.setattr(demo, "find", lambda path: (image, digits))
    said = demo.answer(new_net(config, MNIST_MAP, 10), tmp_path / "two.png")
    assert said.count("<table>") == 2 and said.count("data-rule") == 2
    photograph, first, second = shown_in(said)
    assert (first.getpixel((0, 0)), second.getpixel((0, 0))) == (50, 250)
    assert photograph.size == (400, 200)
    assert photograph.getpixel((50 * 2 // 3, 80)) != photograph.getpixel((60, 80)) == (255, 255, 255)


def test_the_picture_is_shown_as_it_was_taken():
    """What is transparent as paper, and 16-bit greys as greys."""
    drawing = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (20, 10, 40, 50))
    deep = Image.fromarray(np.linspace(0, 65_535, 3600).astype(np.uint16).reshape(60, 60))
    for given in (drawing, deep):
        (picture,) = shown_in(demo.embedded(demo.boxed(given, []), "photograph"))
        levels = np.asarray(picture.convert("L"))
        assert levels.min() == 0 and levels.max() == 255 and 50 < levels.mean() < 250


def test_it_says_which_net_it_is_and_how_often_that_errs():
    said, result = demo.about(load_saved(demo.KEPT), demo.KEPT), read_json(demo.KEPT / "result.json")
    errors = "{test_error_goodness:.2f} % by goodness, {test_error_one_pass:.2f} % in one pass".format(**result)
    assert all(words in said for words in ("minute, seed 0", "2 x 800", errors))


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-demo.txt"):
        demo.page(demo.KEPT)


# --- The page ---------------------------------------------------------------------------------------------

# Each address that the server's process connects to or asks for.
WATCH = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, *map(repr, arguments[1 if event in ("socket.connect", "socket.sendto") else 0:]), file=file)

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """`python -m src.demo`, with a proxy that leads nowhere, and what it does on the network noted."""
    folder = tmp_path_factory.mktemp("server")
    watched, temporary = folder / "watched", folder / "tmp"
    temporary.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH)
    environment = {"WATCHED": str(watched), "PYTHONPATH": str(folder), "TMPDIR": str(temporary)}
    environment |= {"http_proxy": "http://127.0.0.9:9", "ALL_PROXY": "socks://127.0.0.9:9", "GRADIO_SHARE": "True"}
    options = dict(cwd=REPOSITORY, env=ONE_THREAD | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-m", "src.demo"], text=True, **options) as process:
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said + process.stderr.read()
        yield SimpleNamespace(process=process, address=found[0], watched=watched, temporary=temporary)
        process.kill()


class Visitor:
    """Somebody with a browser's window of their own."""

    def __init__(self, browser, server: SimpleNamespace):
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(15_000)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(server.address)
        self.canvas = self.page.locator("#drawing canvas")
        self.canvas.wait_for()
        self.said = self.page.locator("#answer")

    def draw(self, strokes: Strokes, *, lift: bool = True) -> None:
        box = self.canvas.bounding_box()
        for stroke in strokes:
            for x, y in stroke:
                self.page.mouse.move(box["x"] + x * box["width"] / 280, box["y"] + y * box["height"] / 280, steps=3)
                self.page.mouse.down()
            if lift:
                self.page.mouse.up()

    def clear(self) -> None:
        self.page.get_by_role("button", name="Clear").click()
        self.said.get_by_text(demo.EMPTY).wait_for()

    def wait_for(self, label: int) -> None:
        """Until this label is chosen by both rules."""
        for rule in ("goodness", "one_pass"):
            self.said.locator(f"[data-rule={rule}]", has_text=str(label)).wait_for()


@pytest.fixture(scope="module")
def visitors(server) -> Iterator[tuple[Visitor, Visitor]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        yield Visitor(browser, server), Visitor(browser, server)


@pytest.fixture
def visitor(visitors) -> Visitor:
    return visitors[0]


@pytest.mark.skipif(bool(MISSING), reason=f"the page's tests in a browser need {', '.join(MISSING)}")
@pytest.mark.xdist_group("demo")  # one server, one browser
class TestInABrowser:
    def test_a_digit_is_answered_while_it_is_drawn(self, visitor):
        assert visitor.said.inner_text().endswith(demo.EMPTY)
        visitor.draw(SEVEN, lift=False)
        visitor.wait_for(7)
        visitor.page.mouse.up()

        url = visitor.canvas.evaluate("canvas => canvas.toDataURL()")
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")
        expected = cells(demo.answer(load_trained(demo.KEPT, "cpu"), image))
        rows = visitor.said.locator("tr")
        visitor.said.get_by_role("cell", name=expected[8][3], exact=True).first.wait_for()  # of the last stroke
        assert [row.split() for row in rows.all_inner_texts()[1:]] == [" ".join(row).split() for row in expected[1:]]
        bars = [[bar.bounding_box()["width"] for bar in row.locator("i").all()] for row in rows.all()[1:]]
        for column in zip(*bars, strict=True):
            assert max(column) == column[7] > 1.2 * sorted(column)[-2]
        assert "minute, seed 0" in visitor.page.locator("#about").inner_text()
        pixels = visitor.said.locator("img.pixels")
        assert pixels.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [28, 28]

    def test_nothing_scribbles_and_files_that_are_no_pictures_get_a_line(self, visitor, tmp_path, mnist_root):
        visitor.clear()
        visitor.draw(SCRIBBLE)
        visitor.said.locator(f"table, .line:not(:text('{demo.EMPTY}'))").first.wait_for()
        visitor.clear()

        transfer = "files = new DataTransfer(); files.items.add(new File(['no picture'], 'notes.png')); return files"
        dropped = visitor.page.evaluate_handle(f"() => {{ const {transfer} }}")
        visitor.canvas.dispatch_event("drop", {"dataTransfer": dropped})
        told = visitor.said.locator(".line", has_text="notes.png")
        told.wait_for()
        assert told.inner_text().startswith("notes.png: cannot be read")

        pixels = load_test("mnist", mnist_root, "cpu").images[0].view(28, 28)
        sheet = Image.new("L", (400, 300), 230)
        sheet.paste(0, (120, 80), Image.fromarray(pixels.numpy()).resize((140, 140)))
        sheet.save(tmp_path / "seven.jpg")
        visitor.page.locator("input[type=file]").set_input_files(tmp_path / "seven.jpg")
        visitor.wait_for(7)
        visitor.said.locator("img.photograph").wait_for()
        visitor.draw(NOUGHT)  # and on with the pen
        visitor.wait_for(0)
        assert visitor.page.get_by_text("Traceback").count() == visitor.page.locator(".toast-body").count() == 0

    def test_two_people_at_once_get_their_own_answers(self, visitors):
        visitor, another = visitors
        visitor.clear()
        visitor.draw(SEVEN)
        another.draw(NOUGHT)
        visitor.wait_for(7)
        another.wait_for(0)
        visitor.clear()
        another.wait_for(0)

    def test_it_keeps_to_this_machine_and_ends_without_a_trace(self, server, visitors):
        served_at = urlsplit(server.address)
        for someone in visitors:
            assert someone.complaints == []
            asked = {urlsplit(url).netloc for url in someone.asked if not url.startswith(("data:", "blob:"))}
            assert asked == {served_at.netloc}
        with pytest.raises(OSError):  # this machine too: it would be answered if others were
            socket.create_connection(("127.0.0.2", served_at.port), timeout=5)
        server.process.send_signal(signal.SIGINT)
        assert server.process.communicate(timeout=30)[1] == "" and server.process.returncode == 0
        assert list(server.temporary.iterdir()) == []
        notes = server.watched.read_text().splitlines()
        assert notes and [note for note in notes if "127.0.0.1" not in note] == []
