"""Ctrl-C and SIGTERM (a cluster's pre-emption): stop training at once, but nothing else half-way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal came; `exit_status` is what the shell expects of a process that it ended: 130 or 143."""

    def __init__(self, signal_number: int):
        self.exit_status = 128 + signal_number


class StopSignals:
    """Within `with StopSignals() as stop`, a signal acts where `stop.allowed()` says so, and waits elsewhere."""

    def __init__(self):
        self.received: int | None = None
        self.can_stop = False

    def __enter__(self) -> "StopSignals":
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if self.can_stop:
            raise Stopped(number)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raises `Stopped` if a signal has come before or comes within."""
        if self.received:
            raise Stopped(self.received)
        self.can_stop = True
        try:
            yield
        finally:
            self.can_stop = False
