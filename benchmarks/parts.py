"""Measurements in parts, each a process of its own that is ended when its time is up."""

import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Row = tuple[str, str, str]  # of a table: what, value, target


def told(error: Exception) -> str:
    """An error's type and the first line of what it says; the traceback goes to stderr."""
    traceback.print_exception(error)
    return "error: " + "".join(traceback.format_exception_only(error)).splitlines()[0].replace("|", "/")[:200]


def each(names: Iterable[str], rows_of: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
    """The rows of all names; an error stands in a row in place of those that are left of its name."""
    for name in names:
        try:
            yield from rows_of(name)
        except Exception as error:
            yield name, told(error), ""


def measured(part: Callable[..., Iterator[Row]], *arguments: Any, limit: float) -> dict[str, Any]:
    """The "rows" of a part, which are kept whatever comes after them, its "seconds" and its "error" (None for none).

    Args:
        part: like its arguments, it can be pickled.
        limit: seconds, after which it is ended, and with it all that it started.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.touch()
        process = multiprocessing.get_context("spawn").Process(target=_write, args=(path, part, arguments))
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            process.kill()
            with suppress(ProcessLookupError):  # none of its group is left
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    error = f"error: status {process.exitcode}" if process.exitcode else None
    if rows and isinstance(rows[-1], str):
        error = rows.pop()
    elif late:
        error = f"error: ended after {limit} s"
    return {"rows": rows, "seconds": time.perf_counter() - started, "error": error}


def _write(path: Path, part: Callable[..., Iterator[Row]], arguments: tuple) -> None:
    """The rows of a part, each as soon as it is known, and last of all its error."""
    os.setsid()
    with path.open("w", encoding="utf-8") as file:
        try:
            for row in part(*arguments):
                print(json.dumps(row), file=file, flush=True)
        except Exception as error:
            print(json.dumps(told(error)), file=file, flush=True)
