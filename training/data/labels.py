"""Labels of a data set: `dataset.json`, the kinds of label, and the checks that writing and reading share.

    {"labels": [["cat/1.png", 0], ...], "label_kind": "classes", "class_names": ["cat", "dog"]}

Only `labels` is required, and is all that published EDM code reads. Kinds: `classes` are numbers from 0; `multi-hot`
are vectors of 0 and 1, one place per attribute; `vector` is any other vector. Vectors of 0 and 1 alone are multi-hot
unless `label_kind` says vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.archive import ImageArchive

FILE = "dataset.json"
KINDS = ("classes", "multi-hot", "vector")
MAX_CLASSES = 1 << 20  # one-hot labels beyond this are a mistake


@dataclass(frozen=True)
class LabelFile:
    """What a `dataset.json` says.

    Attributes:
        where: its place, for messages.
        labels: name of a file of the archive (or of none) -> label; None for `"labels": null`.
        kind: `label_kind` where it is given; class_names: likewise.
    """

    where: str
    labels: dict[str, Any] | None
    kind: str | None = None
    class_names: list[str] | None = None


def find_labels(archive: ImageArchive) -> str | None:
    """The name of `dataset.json` at the root of an archive, or in the highest folder that holds all its images."""
    parts = archive.root.split("/") if archive.root else []
    above = ("".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) + 1))
    return next((folder + FILE for folder in above if folder + FILE in archive), None)


def read_labels(archive: ImageArchive) -> LabelFile | None:
    """The labels of an archive; None without `dataset.json`.

    Names in the file are relative to the folder it lies in; `\\` counts as `/`.

    Raises:
        ValueError: the file has another form.
    """
    found = find_labels(archive)
    if found is None:
        return None
    folder = found.removesuffix(FILE)
    where = f"{found} in {archive.path}"
    try:
        content = json.loads(archive.read(found))
        entries, kind, names = content["labels"], content.get("label_kind"), content.get("class_names")
        labels = None if entries is None else [(name.replace("\\", "/"), label) for name, label in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{where} must be {{"labels": [[file name, label], ...]}} or {{"labels": null}}, and is not'
        ) from error
    if kind not in (None, *KINDS):
        raise ValueError(f"label_kind in {where} is {kind!r}: it must be one of {', '.join(KINDS)}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"class_names in {where} must be a list of texts, one per class")
    known: dict[str, Any] = {}
    for name, label in labels or ():
        name = name.removeprefix("./")
        name = folder + name if folder + name in archive else name
        if known.setdefault(name, label) != label:
            raise ValueError(f"{where} gives {name} two labels, {_short(known[name])} and {_short(label)}")
    return LabelFile(where, None if labels is None else known, kind, names)


def check_labels(values: Sequence[Any], name: Callable[[int], str], file: LabelFile) -> tuple[str, np.ndarray]:
    """The kind of these labels, one or more, and their array: int64 `[n]` of classes, or float32 `[n, L]`.

    Args:
        values: as JSON gives them.
        name: index -> name of the image, for messages.
        file: where they are from.

    Raises:
        ValueError: labels that are neither all class numbers nor all vectors of one length, or of another kind than
            the file says; the first that does not fit is named.
    """
    if not (all(type(value) is int for value in values) and min(values) >= 0 and max(values) < MAX_CLASSES):
        for index, value in enumerate(values):
            reason = _flaw(value) or _difference(value, values[0], name)
            if reason is not None:
                raise ValueError(
                    f"{file.where} gives {name(index)} the label {_short(value)}, {reason}: labels must be all class "
                    f"numbers or all vectors of one length; classes are 0..{MAX_CLASSES - 1}"
                )
    if isinstance(values[0], int):
        kind, array = "classes", np.array(values, np.int64)
    else:
        array = np.array(values, np.float64).astype(np.float32)
        kind = "multi-hot" if ((array == 0) | (array == 1)).all() else "vector"
    if file.kind not in (None, kind) and (file.kind, kind) != ("vector", "multi-hot"):
        raise ValueError(f"{file.where} says that its labels are of kind {file.kind}, and they are {kind}: correct it")
    if file.class_names is not None and (kind != "classes" or len(file.class_names) <= array.max()):
        classes = f"classes 0..{array.max()}" if kind == "classes" else f"{kind} labels"
        raise ValueError(f"{file.where} has {len(file.class_names)} class_names for {classes}: name every class")
    return file.kind or kind, array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_LARGEST = float(np.finfo(np.float32).max)


def _flaw(value: Any) -> str | None:
    if type(value) is int:
        return None if 0 <= value < MAX_CLASSES else "a class number out of range"
    if not isinstance(value, list):
        kinds = {str: "a text", float: "a fraction", bool: "neither number nor vector", type(None): "nothing"}
        return kinds.get(type(value), "neither number nor vector")
    if not value:
        return "an empty vector"
    for number in value:
        if type(number) not in (int, float, bool):
            return "a vector that holds something else than numbers"
        if not -_LARGEST <= number <= _LARGEST:
            return "a vector that holds a number beyond float32"
    return None


def _difference(value: Any, first: Any, name: Callable[[int], str]) -> str | None:
    if isinstance(value, list) != isinstance(first, list):
        return f"and {name(0)} a {'vector' if isinstance(first, list) else 'class number'}"
    if isinstance(value, list) and len(value) != len(first):
        return f"of length {len(value)}, and {name(0)} one of length {len(first)}"
    return None
