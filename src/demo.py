"""A page to draw on: `python -m src.demo [RUN_FOLDER]` shows what a net makes of a digit while it is drawn.

Without a RUN_FOLDER, the net is the one that is kept in results/. The page is for this machine alone: it is served on
127.0.0.1, fetches nothing from elsewhere, and sends nothing anywhere.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import getproxies

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

if not __package__:  # as in `python src/demo.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.classify_image import columns, headlines, net_for_digits, source
from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import Config, ConfigError
from src.datasets.idx import DataError
from src.methods.net import Net
from src.own_digits.finding import Digit, coloured, digits, read
from src.pictures.figures import POSITIVE
from src.pictures.methods import draw_settling
from src.results.tables import net_name
from src.training.log import HEADLINES, REPOSITORY, read_json
from src.training.validation import scores_for

if TYPE_CHECKING:
    import gradio

KEPT = REPOSITORY / "results" / "minute" / "seed0"
PARTS = REPOSITORY / "src" / "own_digits"  # page.css and drawing.js
EMPTY = "Draw a digit, or drop a photograph of one. What the net makes of it is shown here."
GOODNESS = "G<sub>l</sub>: goodness of layer l under each label; bars begin at the lowest"


def digits_in(given: Image.Image | Path) -> tuple[Image.Image, list[Digit]]:
    """The picture that is given or is in a file, and the digits in it: one in a drawing, from left to right in a file.

    Raises:
        DataError: it cannot be read, or there is no digit in it.
    """
    if not isinstance(given, Path):
        return given, digits(given, single=True)
    image = read(given)
    return image, digits(image)


# --- What the page says, in HTML --------------------------------------------------------------------------


def about(config: Config, folder: Path) -> str:
    """Which net it is, and how often it errs."""
    net = f"<b>{escape(config.name)}, seed {config.seed}</b>: {net_name(config.model.hidden_dims)}, {config.method}"
    try:
        result = read_json(folder / "result.json")
    except (OSError, ValueError):
        result = {}
    errors = {how: result.get(f"test_error_{rule}") for rule, how in HEADLINES.items()}
    known = [f"{error:.2f} % {how}" for how, error in errors.items() if error is not None]
    erring = f"test error {', '.join(known)}" if known else "how often it errs is not known (no result.json)"
    return f"<h1>Forward-Forward: draw a digit</h1><p>{net}, trained on {config.dataset}; {erring}.</p>"


def line(text: str) -> str:
    """What is said where there is nothing to show."""
    return f"<p class='line'>{escape(text)}</p>"


def embedded(image: Image.Image, kind: str) -> str:
    """A picture, with its content in its address."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"<img class='{kind}' alt='{kind}' src='data:image/png;base64,{content}'>"


def drawn(figure: Figure) -> str:
    """A figure as SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]  # without the XML of a file of its own


def subscript(name: str) -> str:
    """The name of a column with G_1 as G<sub>1</sub>."""
    return re.sub(r"_(\d+)", r"<sub>\1</sub>", name)


def verdict(scores: dict[str, Tensor]) -> str:
    """The label of one image ([10] by rule) that each headline rule chooses."""
    return "".join(
        f"<div>{HEADLINES[rule]}<b data-rule='{rule}'>{label}</b><small>{subscript(source(rule, scores))}</small></div>"
        for rule, label in headlines(scores).items()
    )


def bars(scores: dict[str, Tensor]) -> str:
    """A table of one image's scores ([10] by rule): a row for each label, and in it a bar for each of `columns`.

    The bars of a goodness begin at the lowest of the ten labels', which differ little; those of a probability at 0.
    """
    head, cells = ["<th>label</th>"], [[f"<th>{label}</th>"] for label in range(10)]
    for name, values in columns(scores).items():
        percent = name == source("one_pass", scores)
        lowest, highest = (0.0, 100.0) if percent else (values.min().item(), values.max().item())
        head.append(f"<th>{subscript(name)}</th>")
        for label, value in enumerate(values.tolist()):
            best = " class='best'" if label == values.argmax() else ""
            width = 100 * (value - lowest) / ((highest - lowest) or 1)
            text = f"{value:.1f} %" if percent else f"{value:.1f}"
            cells[label].append(f"<td{best}><i style='width:{width:.1f}%'></i><span>{text}</span></td>")
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in [head, *cells])
    note = f"<caption>{GOODNESS}</caption>" if "goodness" in scores else ""
    return f"<table>{note}{rows}</table>"


def boxed(image: Image.Image, found: list[Digit]) -> str:
    """A small copy of a picture; several digits in it have boxes."""
    image = Image.fromarray(np.rint(255 * coloured(image)).astype(np.uint8))
    for digit in found if len(found) > 1 else ():
        ImageDraw.Draw(image).rectangle(digit.box, outline=POSITIVE, width=max(2, max(image.size) // 150))
    image.thumbnail((400, 400))
    return embedded(image, "photograph")


def answer(net: Net, given: Image.Image | Path) -> str:
    """What the net says of each digit in a drawing or a file. Raises DataError as `digits_in`."""
    image, found = digits_in(given)
    images = torch.stack([digit.pixels for digit in found]).flatten(1)
    scores = scores_for(net, images, batch_size=100)
    parts = [boxed(image, found)] if isinstance(given, Path) else []
    for number, digit in enumerate(found):
        of_digit = {rule: of_images[number] for rule, of_images in scores.items()}
        pixels = embedded(Image.fromarray(digit.pixels.numpy()), "pixels")
        seen = f"<div>the net gets{pixels}<small>28 x 28</small></div>"
        settling = drawn(draw_settling(net, images[number])) if hasattr(net, "goodness_over_time") else ""
        chosen = f"<div class='verdict'>{seen}{verdict(of_digit)}</div>"
        parts.append(f"<section>{chosen}{bars(of_digit)}{settling}</section>")
    return "".join(parts)


# --- The page ---------------------------------------------------------------------------------------------


def page(folder: Path) -> "gradio.Blocks":
    """The page for the net of the finished run in `folder`.

    Raises:
        ConfigError: Gradio is not installed, or as `load_trained`.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read when Gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"the page needs Gradio: pip install -r requirements-demo.txt ({error})") from error
    config, net = load_saved(folder), net_for_digits(folder)

    def of_drawing(url: str) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")
        if image.getextrema() == (255, 255):
            return line(EMPTY)
        try:
            return answer(net, image)
        except DataError as error:
            return line(str(error))

    def of_file(name: str) -> tuple[str, None]:
        """The answer, and an empty field for the next file."""
        try:
            return answer(net, Path(name)), None
        except DataError as error:
            return line(str(error).replace(name, Path(name).name)), None

    with gradio.Blocks(title="Forward-Forward: draw a digit", analytics_enabled=False) as blocks:
        gradio.HTML(about(config, folder), elem_id="about")
        with gradio.Row():
            with gradio.Column(min_width=300, scale=2):
                drawing = gradio.HTML(
                    html_template="<canvas width='280' height='280'></canvas><button>Clear</button>",
                    js_on_load=(PARTS / "drawing.js").read_text(encoding="utf-8"),
                    elem_id="drawing",
                )
                photograph = gradio.UploadButton("Photograph", size="sm", elem_id="photograph")
            with gradio.Column(min_width=320, scale=5):
                said = gradio.HTML(line(EMPTY), elem_id="answer")
        quietly = {"show_progress": "hidden", "api_visibility": "private"}
        drawing.input(of_drawing, drawing, said, trigger_mode="always_last", **quietly)
        photograph.upload(of_file, photograph, [said, photograph], **quietly)
    return blocks


def serve(blocks: "gradio.Blocks") -> str:
    """Begins to serve the page, on this machine alone; returns its address.

    Raises:
        OSError: no port is free.
    """
    import gradio

    # Gradio asks itself whether it can be reached: not by way of a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [getproxies().get("no"), "127.0.0.1"]))
    _, address, _ = blocks.launch(
        server_name="127.0.0.1",
        share=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size="50mb",
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=(PARTS / "page.css").read_text(encoding="utf-8"),
    )
    return address


def main() -> None:
    parser = argparse.ArgumentParser(description="Opens a page to draw on, which shows what a net makes of a digit.")
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT, metavar="RUN_FOLDER")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # a photograph stays no longer than the page
        blocks = page(arguments.folder)
        print(f"draw at {serve(blocks)} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()


if __name__ == "__main__":
    main()
