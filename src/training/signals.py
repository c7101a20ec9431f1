"""Ctrl-C, SIGTERM and SIGHUP: stop training at once, but nothing else half-way."""

import signal
import threading
from collections.abc import Iterator


class Stopped(BaseException):
    """A signal came; `exit_status` is what the shell expects of a process that it ended: 130, 143 or 129."""

    def __init__(self, signal_number: int):
        self.exit_status = 128 + signal_number


# SIGHUP: the terminal was closed, or ssh dropped. Windows has none.
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopSignals:
    """Within `with StopSignals() as stop`, a signal acts while `stop.stoppable(epochs)` computes, and waits elsewhere.

    What is ignored does not count: SIGHUP under nohup, SIGINT in the background of a script. Only the main thread gets
    signals.
    """

    received: int | None = None
    can_stop = False

    def __enter__(self) -> "StopSignals":
        numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.handlers = {number: signal.signal(number, self._receive) for number in numbers if in_main_thread}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        if self.can_stop:
            self.can_stop = False
            raise Stopped(number)

    def stoppable(self, epochs: Iterator) -> Iterator:
        """The same; raises `Stopped` if a signal has come before one, or comes within, or has come after the last."""
        while True:
            self.can_stop = True
            try:
                if self.received:
                    raise Stopped(self.received)
                epoch = next(epochs)
            except StopIteration:
                return
            finally:
                self.can_stop = False
            yield epoch
