"""SIGTERM and Ctrl-C as a request to stop after the step under way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopRequest"]


class StopRequest:
    """True once SIGTERM or SIGINT arrived; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        def handle(number: int, _: Any) -> None:
            if self.name is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.name = signal.Signals(number).name

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
