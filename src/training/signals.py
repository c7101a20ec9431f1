"""Ctrl-C, SIGTERM, SIGHUP and a cluster's SIGUSR2: stop training at once, but nothing else half-way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal came; `exit_status` is what the shell expects of a process that it ended: 130, 143, 129 or 140."""

    def __init__(self, signal_number: int):
        self.exit_status = 128 + signal_number


class StoppedJob(Exception):
    """One job of a sweep was stopped; Hydra carries this to the process that waits for all of them."""

    def __init__(self, exit_status: int):
        super().__init__(exit_status)
        self.exit_status = exit_status


# SIGHUP: the terminal was closed, or ssh dropped. Windows has none.
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
EXIT_STATUSES = [128 + number for number in SIGNALS]


class StopSignals:
    """Within `with StopSignals() as stop`, a signal acts where `stop.allowed()` says so, and waits elsewhere.

    SIGUSR2 counts if somebody waits for it, as submitit does in a Slurm job to put it back into the queue: who that is
    gets the signal on leaving, when the run has been saved. What is ignored does not count: SIGHUP under nohup, SIGINT
    in the background of a script. And no signal does in a thread other than the main one, which is the one that gets
    them.
    """

    def __init__(self):
        self.received: int | None = None
        self.can_stop = False

    def __enter__(self) -> "StopSignals":
        self.hand_on = getattr(signal, "SIGUSR2", None)  # Windows has none
        numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        if self.hand_on and callable(signal.getsignal(self.hand_on)):
            numbers.append(self.hand_on)
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        self.handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received and self.received == self.hand_on:
            signal.raise_signal(self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if self.can_stop:
            raise Stopped(number)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raises `Stopped` if a signal has come before or comes within."""
        self.can_stop = True
        try:
            if self.received:
                raise Stopped(self.received)
            yield
        finally:
            self.can_stop = False
