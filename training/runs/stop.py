"""SIGTERM, SIGHUP and Ctrl-C as a request to stop after the step under way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from torch_utils.signals import ENDING, answering


class StopRequest:
    """True once SIGTERM, SIGHUP or SIGINT arrived; a second Ctrl-C interrupts at once.

    Attributes:
        number: of the first such signal, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        def answer(number: int) -> None:
            if self.number and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.number = self.number or number

        with answering((*ENDING, signal.SIGINT), answer):
            yield
