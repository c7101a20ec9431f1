"""README.md and docs/ keep their word: links, commands, generated tables, symbols and the library snippet."""

import importlib
import os
import re
import shlex
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from commands import REPOSITORY
from omegaconf import OmegaConf

from src import report
from src.config.loading import CONFIGS, composed, load
from src.results.runs import experiment_values
from src.results.tables import result_table
from src.training.log import read_json

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
NOTEBOOK = read_json(REPOSITORY / "docs" / "forward_forward.ipynb")
PAGES["docs/forward_forward.ipynb"] = "\n".join(
    "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"
)
README = PAGES["README.md"]
GENERATED = {  # page and marker -> arguments of src.report; those of docs/speed.md are in test_speed.py
    ("README.md", "experiments"): "--published results",
    ("docs/results.md", "results"): "results",
}
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[tuple[str, str]]:
    """The file (seen from the repository) and the heading ("" for none) that each link within the project leads to."""
    targets = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", prose(page))
    folder = Path(page).parent
    return [(os.path.normpath(folder / file) if file else page, heading) for file, heading in targets]


def commands(page: str) -> list[list[str]]:
    """The arguments of every `python -m main`."""
    return [shlex.split(arguments) for arguments in re.findall(r"python -m main\b([^`\n]*)", PAGES[page])]


def printed(monkeypatch, capsys, arguments: str) -> str:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["report", *arguments.split()])
    report.main()
    return capsys.readouterr().out.strip()


@every_page
def test_links_lead_to_files_and_headings(page):
    for file, heading in links(page):
        assert (REPOSITORY / file).exists(), file
        assert not re.fullmatch(r"L\d+.*", heading), "links with line numbers go stale"
        assert not heading or heading in anchors(file), f"{file}#{heading}"


def test_the_front_page_is_short_and_every_page_can_be_reached_from_it():
    assert {file for file, _ in links("README.md")} >= PAGES.keys() - {"README.md"}
    assert len(README.splitlines()) <= 250
    assert len(README.encode()) <= 15_000


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page != "docs/extending.md"])
def test_commands_can_be_configured(page):
    """Of a sweep, its first run. What the page's own code defines is left out (extending.md: test_extending.py)."""
    defined = re.findall(r"^def (\w+)", PAGES[page], re.MULTILINE)
    for arguments in commands(page):
        overrides = [word for word in arguments if "=" in word and word.partition("=")[2] not in defined]
        if "-m" in arguments:
            overrides = [re.sub(r"range\(\d+\)", "0", override).split(",")[0] for override in overrides]
        load(composed(*overrides))


@every_page
def test_tables_are_narrow_and_commands_name_modules_that_exist_and_have_no_trailing_comments(page):
    """Comments that an interactive zsh, the shell of a Mac, would pass on as arguments."""
    for row in re.findall(r"^\|.*$", prose(page), re.MULTILINE):
        assert len(row) <= 120 and row.count("|") <= 8, row
    for module in re.findall(r"python -m ((?:src|benchmarks)\.\w+)", PAGES[page]):
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), module
    assert not any(" #" in block for block in blocks(page, "bash"))


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_every_experiment_is_described(experiment):
    assert f"python -m main experiment={experiment}\n" in PAGES["docs/experiments.md"]
    row = re.search(rf"^\| \[`{experiment}`\].*$", PAGES["docs/experiments.md"], re.MULTILINE)[0]
    values = experiment_values(experiment)
    assert row.split(" | ")[3] == str(values["training.epochs"])


@pytest.mark.parametrize(("page", "marker"), GENERATED)
def test_generated_tables_are_what_the_commands_print(monkeypatch, capsys, page, marker):
    """Perhaps with text between them."""
    shown = re.findall(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", PAGES[page], re.DOTALL)
    assert "\n".join(shown).strip() == printed(monkeypatch, capsys, GENERATED[page, marker])


def test_what_commands_print_is_quoted_as_it_is(monkeypatch, capsys):
    (of_a_run, *_), (comparison,) = blocks("README.md", "text"), blocks("docs/study.md", "text")
    result = read_json(REPOSITORY / "results" / "minute" / "seed0" / "result.json")
    assert set(of_a_run.splitlines()) < set(result_table(result).splitlines())
    assert comparison.strip() in printed(monkeypatch, capsys, "--compare results/negatives")


def test_symbols_are_in_the_files_beside_them():
    named = [link for page in PAGES for link in re.findall(r"\[`([\w.]+)`\]\((?:\.\./)?([^)#]+)\)", prose(page))]
    assert len(named) > 40
    for symbol, file in named:
        if file.endswith(".py"):
            attrgetter(symbol)(importlib.import_module(file.removesuffix(".py").replace("/", ".")))
        else:
            assert OmegaConf.select(OmegaConf.load(REPOSITORY / file), symbol) is not None, f"{symbol} in {file}"


def test_the_library_snippet_runs(mnist_root, monkeypatch, capsys):
    snippet = "\n".join(blocks("docs/running.md", "python"))
    monkeypatch.chdir(REPOSITORY)
    exec(snippet.replace('"datasets"', repr(str(mnist_root))), {})
    said = dict(re.findall(r"(.+) (\[.*\])", capsys.readouterr().out))
    assert said["goodness"] == said["one_pass"] == "[7, 2, 1, 0, 4, 1, 4, 9, 5, 9]"
