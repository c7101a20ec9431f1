"""The README keeps its word: its links, its commands and its tables are those of the repository."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from test_config import EXPERIMENTS, composed

from src import report

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)", README))))
def test_links_lead_to_files(target):
    assert (REPOSITORY / target).exists()


def test_links_within_the_page_lead_to_headings():
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links and set(links) <= anchors


def test_quoted_lines_stand_where_the_links_say():
    quotes = re.findall(r"\[`([^`]+)`\]\(([^)#]+)#L(\d+)\)", README)
    assert len(quotes) > 20
    for fragment, file, number in quotes:
        assert fragment in (REPOSITORY / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]


def test_every_command_can_be_configured():
    """Of a sweep, its first run."""
    commands = re.findall(r"python -m main\b([^`\n]*)", README)
    assert len(commands) > 8
    for arguments in commands:
        overrides = [word for word in shlex.split(arguments) if "=" in word]
        if " -m " in arguments:
            overrides = [override.replace("range(5)", "0").split(",")[0] for override in overrides]
        composed(*overrides)


def test_commands_have_no_trailing_comments():
    """An interactive zsh, the shell of a Mac, would pass them on as arguments."""
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        assert " #" not in block


def test_every_experiment_is_described():
    for experiment in EXPERIMENTS:
        assert f"| `{experiment}` |" in README


@pytest.mark.parametrize("options", [[], ["--published"]])
def test_the_results_tables_are_what_the_commands_make(monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", ["report", *options, str(REPOSITORY / "results")])
    report.main()
    assert capsys.readouterr().out.strip() in README
