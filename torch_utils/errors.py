"""Errors of other packages as one sentence for a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(otherwise: str) -> Iterator[None]:
    """Around the import of an optional package: a ValueError that says `otherwise` where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise ValueError(otherwise) from error


def reason(error: BaseException) -> str:
    """What went wrong, `KeyError: 'name'`, in one line that is not too long to be a part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
