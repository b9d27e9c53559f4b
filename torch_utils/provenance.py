"""A record beside results that may be found again: what made them, so that nothing is taken for something else.

A folder that is filled bit by bit, and continued later, carries MADE_BY. Whoever finds it compares: with the same
record, what is there is what would be made again; with another one, nothing in the folder may be reused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_utils.files import write_json

MADE_BY = "made-by.json"


def digest(record: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that change with the record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]


def write_record(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record of a folder, plain JSON."""
    write_json(Path(folder, MADE_BY), record)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record of a folder; None where there is none that can be read."""
    try:
        record = json.loads(Path(folder, MADE_BY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two records, nested ones with a dot, in the order of `wanted`."""
    names: list[str] = []
    for key in dict.fromkeys([*wanted, *found]):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{key}.{name}" for name in differences(a, b)]
        elif json.dumps(a) != json.dumps(b):
            names.append(key)
    return names
