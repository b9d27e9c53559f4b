"""The bound on what a file describes: its value can be walked by recursion, in bounded time."""

from __future__ import annotations

from typing import Any

from torch_utils.pickles.machine import Record

MAX_DEPTH = 100
MAX_ITEMS = 2_000_000


def check_tree(root: Any) -> None:
    """Raise ValueError unless `root` can be walked by recursion: no cycle, bounded depth, bounded repeated size."""
    done: dict[int, tuple[int, int]] = {}  # id -> depth, size; ids stay valid because `root` keeps everything alive
    open_ids: set[int] = set()
    pending: list[tuple[Any, bool]] = [(root, False)]
    while pending:
        value, leaving = pending.pop()
        if id(value) in done:
            continue
        children = _children(value)
        if leaving:
            known = [done[id(c)] for c in children if id(c) in done]
            depth = 1 + max((d for d, _ in known), default=0)
            size = 1 + len(children) + sum(s for _, s in known)
            if depth > MAX_DEPTH or size > MAX_ITEMS:
                raise ValueError(f"its data is nested deeper than {MAX_DEPTH} or has more than {MAX_ITEMS} items")
            done[id(value)] = depth, size
            open_ids.discard(id(value))
        elif id(value) in open_ids:
            raise ValueError("its data contains itself")
        elif children:
            open_ids.add(id(value))
            pending.append((value, True))
            pending.extend((c, False) for c in children if isinstance(c, dict | list | tuple | Record))


def _children(value: Any) -> list[Any]:
    if isinstance(value, Record):
        return list(value.state.values())
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []
