"""SIGTERM and SIGHUP end a command as Ctrl-C does: by an exception, so that files in the making are removed.

A signal that is ignored from the start (`nohup`) stays ignored. A command that a signal ended exits with 128 + its
number, whatever it had time to write, so that `&&`, make and batch systems do not take it for finished.
"""

from __future__ import annotations

import os
import signal
import sys
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


def _is_leaving(error: BaseException | None) -> bool:
    """Whether a signal's exception is being handled, or was when this one was raised."""
    while error is not None and not isinstance(error, SignalExit | KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Leave the process at a signal while the block runs: for imports, which lose exceptions and leave nothing behind.

    PyTorch, for one, imports NumPy from C++ and drops what that raises: the command would go on as if nothing was.
    """

    def leave(number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        os.write(2, f"Stopped by {name}\n".encode())
        os._exit(128 + number)

    with answering((*ENDING, signal.SIGINT), leave):
        yield


@contextmanager
def ending_as_exit() -> Iterator[None]:
    """Raise an exception where the main thread is: `SignalExit` for SIGTERM and SIGHUP, `KeyboardInterrupt` for Ctrl-C.

    A further Ctrl-C does so too; another further signal only where the exception of those before got lost (foreign code
    drops exceptions here and there), so that cleaning up is not disturbed: torchrun and batch systems send several.
    """
    ended = False

    def answer(number: int) -> None:
        nonlocal ended
        if number == signal.SIGINT:
            ended = True
            raise KeyboardInterrupt
        if not (ended and _is_leaving(sys.exc_info()[1])):
            ended = True
            raise SignalExit(number)

    with answering((*ENDING, signal.SIGINT), answer):
        yield
