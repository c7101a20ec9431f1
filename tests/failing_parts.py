"""Parts of benchmarks/parts.py that fail. They import nothing, so that their processes start at once."""

import time


def hanging(seconds):
    yield "before", "1", ""
    time.sleep(seconds)


def failing(name):
    yield name, "1", ""
    raise ValueError(f"no {name}\nand more")
