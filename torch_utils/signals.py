"""SIGTERM and SIGHUP end a command as Ctrl-C does: by an exception, so that files in the making are removed.

A signal that is ignored from the start (`nohup`) stays ignored. A command that a signal ended exits with 128 + its
number, whatever it had time to write, so that `&&`, make and batch systems do not take it for finished.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class SignalExit(SystemExit):
    """Leaves the program with 128 + the signal's number. `said`: the user has been told why."""

    def __init__(self, number: int, *, said: bool = False) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.said = said


@contextmanager
def answering(numbers: Iterable[int], answer: Callable[[int], None]) -> Iterator[None]:
    """Call `answer(number)` for these signals while the block runs, but for those that are ignored."""
    previous = {}
    try:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, lambda n, _: answer(n))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ending_as_exit() -> Iterator[None]:
    """Raise an exception where the main thread is: `SignalExit` for SIGTERM and SIGHUP, `KeyboardInterrupt` for Ctrl-C.

    Only the first signal does, so that cleaning up is not disturbed (torchrun and batch systems send several), and any
    further Ctrl-C.
    """
    ended: list[int] = []

    def answer(number: int) -> None:
        first = not ended
        ended.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if first:
            raise SignalExit(number)

    with answering((*ENDING, signal.SIGINT), answer):
        yield
