"""Parts of benchmarks/parts.py that fail. They import nothing, so that their processes start at once."""

import atexit
import time


def hanging(seconds):
    yield "before", "1", ""
    time.sleep(seconds)


def failing_slowly(seconds):
    atexit.register(time.sleep, seconds)
    yield from failing("slowness")


def failing(name):
    yield name, "1", ""
    raise ValueError(f"no {name}\nand more")
