"""Overrides of the command line, as they are to be typed. This module imports nothing of the project."""

import re
import shlex

from hydra.core.override_parser.types import Quote, QuotedString


def as_argument(key: str, value: str) -> str:
    """The override KEY=VALUE of a string, as a program gets it: quoted for Hydra if need be."""
    if "/" in value and re.fullmatch(r"[\w./+-]+", value, re.ASCII):  # with a slash, it is no number, null or true
        return f"{key}={value}"
    # OmegaConf takes ${...} for an interpolation, but for a backslash before it.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{key}={QuotedString(literal, Quote.double).with_quotes()}"


def as_typed(key: str, value: str) -> str:
    """The same, as it is typed in a shell: quoted for the shell, too, if need be."""
    return shlex.quote(as_argument(key, value))
