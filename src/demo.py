"""A page to draw on: `python -m src.demo [RUN_FOLDER]` shows what a net makes of a digit while it is drawn.

Without a RUN_FOLDER, the net is the one that is kept in results/. The page is for this machine alone: it is served on
127.0.0.1, fetches nothing from elsewhere, and sends nothing anywhere.
"""

import argparse
import base64
import io
import os
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

if not __package__:  # as in `python src/demo.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.classify_image import boxed, columns, find, headlines, net_for_digits, scores_of
from src.config.errors import one_line_errors
from src.config.loading import load_saved
from src.config.values import Config, ConfigError
from src.datasets.idx import DataError
from src.methods.net import Net
from src.own_digits.finding import digits
from src.results.tables import net_name
from src.training.log import HEADLINES, REPOSITORY, read_json

KEPT = REPOSITORY / "results" / "minute" / "seed0"
PARTS = REPOSITORY / "src" / "own_digits"  # page.css and drawing.js
EMPTY = "Draw a digit, or drop a photograph of one. What the net makes of it is shown here."


# --- What the page says, in HTML --------------------------------------------------------------------------


def about(config: Config, folder: Path) -> str:
    """Which net it is, and how often it errs."""
    net = f"<b>{escape(config.name)}, seed {config.seed}</b>: {net_name(config.model.hidden_dims)}, {config.method}"
    result = read_json(folder / "result.json")
    known = {how: f"test_error_{rule}" for rule, how in HEADLINES.items() if f"test_error_{rule}" in result}
    errors = ", ".join(f"{result[key]:.2f} % {how}" for how, key in known.items())
    return f"<h1>Forward-Forward: draw a digit</h1><p>{net}, trained on {config.dataset}; test error {errors}.</p>"


def line(text: str) -> str:
    """What is said where there is nothing to show."""
    return f"<p class='line'>{escape(text)}</p>"


def embedded(image: Image.Image, kind: str) -> str:
    """A picture, with its content in its address."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"<img class='{kind}' alt='{kind}' src='data:image/png;base64,{content}'>"


def bars(scores: dict[str, Tensor]) -> str:
    """A table of one image's scores ([10] by rule): a row for each label, and in it a bar for each of `columns`.

    The bars of a goodness begin at the lowest of the ten labels', which differ little; those of a probability at 0.
    """
    head, cells = ["<th>label</th>"], [[f"<th>{label}</th>"] for label in range(10)]
    for name, values in columns(scores).items():
        lowest, highest, unit = (0, 100, " %") if name == "read-out" else (values.min(), values.max(), "")
        head.append(f"<th>{name}</th>")
        span = (highest - lowest) or 1  # silent layers
        for label, (value, width) in enumerate(zip(values, 100 * (values - lowest) / span, strict=True)):
            best = " class='best'" if label == values.argmax() else ""
            cells[label].append(f"<td{best}><i style='width:{width:.1f}%'></i><span>{value:.1f}{unit}</span></td>")
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in [head, *cells])
    return f"<table><caption>G_l: goodness of layer l; its bars begin at the lowest</caption>{rows}</table>"


def answer(net: Net, given: Image.Image | Path) -> str:
    """What the net says of the digit in a drawing, or of each in a file. Raises DataError as `find`."""
    parts, (image, found) = [], find(given) if isinstance(given, Path) else (given, digits(given, single=True))
    if isinstance(given, Path):
        image = boxed(image, found)
        image.thumbnail((400, 400))
        parts.append(embedded(image, "photograph"))
    for digit, scores in zip(found, scores_of(net, found), strict=True):
        pixels = embedded(Image.fromarray(digit.pixels.numpy()), "pixels")
        said = [f"<div>the net gets{pixels}<small>28 x 28</small></div>"]
        for rule, label in headlines(scores).items():
            said.append(f"<div>{HEADLINES[rule]}<b data-rule='{rule}'>{label}</b></div>")
        parts.append(f"<section><div class='verdict'>{''.join(said)}</div>{bars(scores)}</section>")
    return "".join(parts)


# --- The page ---------------------------------------------------------------------------------------------


def page(folder: Path) -> Any:
    """The page for the net of the finished run in `folder`: a gradio.Blocks.

    Raises ConfigError if Gradio is not installed, and as `load_trained` does.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read when Gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"the page needs Gradio: pip install -r requirements-demo.txt ({error})") from error
    config, net = load_saved(folder), net_for_digits(folder)

    def said_of(given: Image.Image | Path) -> str:
        try:
            return answer(net, given)
        except DataError as error:
            return line(str(error))

    def of_drawing(url: str) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")
        return line(EMPTY) if image.getextrema() == (255, 255) else said_of(image)

    def of_file(name: str) -> tuple[str, None]:
        """The answer, and an empty field for the next file."""
        return said_of(Path(name)).replace(escape(name), escape(Path(name).name)), None

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


def serve(blocks: Any) -> str:
    """Begins to serve the page, on this machine alone; returns its address. Raises OSError if no port is free."""
    import gradio

    _, address, _ = blocks.launch(
        server_name="127.0.0.1",
        share=False,
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="50mb",
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=PARTS / "page.css",
    )
    return address


def main() -> None:
    parser = argparse.ArgumentParser(description="Opens a page to draw on, which shows what a net makes of a digit.")
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT, metavar="RUN_FOLDER")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as uploads:
        # Gradio fails to start with some kinds of proxy. It asks nobody but itself.
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        os.environ["no_proxy"] = "127.0.0.1"  # of a proxy in the system's settings, too
        os.environ["GRADIO_TEMP_DIR"] = uploads  # a photograph stays no longer than the page
        blocks = page(arguments.folder)
        print(f"draw at {serve(blocks)} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()


if __name__ == "__main__":
    main()
