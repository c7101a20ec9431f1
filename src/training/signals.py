"""Ctrl-C, SIGTERM, SIGHUP and a cluster's SIGUSR2: stop training at once, but nothing else half-way."""

import signal
import threading
from collections.abc import Iterator


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
    """Within `with StopSignals() as stop`, a signal acts while `stop.stoppable(epochs)` computes, and waits elsewhere.

    SIGUSR2 counts if somebody waits for it, as submitit does in a Slurm job to put it back into the queue: who that is
    gets the signal on leaving, when the run has been saved. What is ignored does not count: SIGHUP under nohup, SIGINT
    in the background of a script. Only the main thread gets signals.
    """

    received: int | None = None
    can_stop = False

    def __enter__(self) -> "StopSignals":
        self.hand_on = getattr(signal, "SIGUSR2", None)  # Windows has none
        numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        if self.hand_on and callable(signal.getsignal(self.hand_on)):
            numbers.append(self.hand_on)
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.handlers = {number: signal.signal(number, self._receive) for number in numbers if in_main_thread}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received and self.received == self.hand_on:
            signal.raise_signal(self.received)

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
