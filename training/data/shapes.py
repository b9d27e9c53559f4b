"""Shapes as sets of parts: `--data=shapes:boxes`, with `:size=N` and `:seed=S` after it, or a file `.npz` of parts.

Such a file holds `parts [N, L, V]`, float: existence, box (centre and size), codes. Optional are `groups`, the numbers
of each (default 1, 6, V - 7), `labels [N]`, classes from 0, and `class_names`. Networks see parts in the units of
`PartLayout`, which are those of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_utils.arrays import holds, opened_arrays
from torch_utils.files import atomic_write
from torch_utils.parts import BOX, PartLayout, check_groups
from training.data.boxes import FAMILIES, draw_boxes
from training.data.in_memory import InMemoryDataset
from training.data.toys import sized

__all__ = ["ShapeDataset", "Shapes", "is_shapes", "read_shapes", "write_shapes"]

PREFIX = "shapes:"


class Shapes(NamedTuple):
    """Shapes in the units of the data.

    parts: `[N, L, V]` float32, existence 0 or 1, zeros where there is no part. groups: numbers of a part by group.
    labels: `[N]` int64, or None. class_names: or None.
    """

    parts: Tensor
    groups: tuple[int, ...]
    labels: Tensor | None = None
    class_names: list[str] | None = None


def is_shapes(data: object) -> bool:
    """Whether `--data` names shapes."""
    if str(data).startswith(PREFIX):
        return True
    return str(data).endswith(".npz") and Path(str(data)).is_file() and holds(str(data), "parts")


def read_shapes(data: str) -> Shapes:
    """The shapes of a name or of a file.

    Raises:
        ValueError: nothing of that name, or arrays that are no parts, in one sentence.
    """
    if data.startswith(PREFIX):
        name, *given = data.removeprefix(PREFIX).split(":")
        if name != "boxes":
            raise ValueError(f"there are no shapes '{name}': say shapes:boxes, or give a .npz file of parts")
        size, seed = sized(data, given, "shapes:boxes:size=20000:seed=1")
        parts, labels = draw_boxes(size, seed)
        return Shapes(torch.from_numpy(parts), (1, BOX, parts.shape[2] - 7), torch.from_numpy(labels), list(FAMILIES))
    if not Path(data).is_file():
        raise ValueError(f"there is no file {data}: give a .npz file of parts, or shapes:boxes")
    with opened_arrays(data, "an array file that can be read") as arrays:
        found = {name: arrays[name] for name in ("parts", "groups", "labels", "class_names") if name in arrays}
    return _checked(data, found)


def _checked(data: str, found: dict[str, np.ndarray]) -> Shapes:
    parts = found.get("parts", np.empty(0))
    if parts.ndim != 3 or not parts.size or parts.dtype.kind not in "fiu":
        raise ValueError(
            f"{data} must hold numbers `parts` [shapes, parts, numbers of a part], and holds "
            + (f"{list(parts.shape)} of {parts.dtype}" if "parts" in found else "none")
        )
    size = parts.shape[2]
    given, names = found.get("groups", np.array([1, BOX, *([size - 7] if size > 7 else [])])), found.get("class_names")
    if given.ndim != 1 or given.dtype.kind not in "iu" or (names is not None and names.ndim != 1):
        raise ValueError(f"{data}: groups are a list of whole numbers, and class_names a list of texts")
    groups = tuple(given.tolist())
    try:
        check_groups(groups)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error
    if sum(groups) != size:
        raise ValueError(f"{data}: parts have {size} numbers, and groups {list(groups)} make {sum(groups)}")
    parts = torch.from_numpy(parts.astype(np.float32))
    if not parts.isfinite().all():
        raise ValueError(f"{data} holds parts with numbers that are not finite: replace or remove them")
    if bool(((parts[..., 0] < 0) | (parts[..., 0] > 1)).any()):
        raise ValueError(f"{data}: existence, the first number of a part, goes from 0 to 1")
    exists = parts[..., :1] > 0.5
    if not exists.any():
        raise ValueError(f"{data} holds no part that exists: existence is the first number of a part, 1 where it does")
    parts = torch.cat([exists.float(), torch.where(exists, parts[..., 1:], 0.0)], dim=-1)
    if "labels" not in found:
        return Shapes(parts, groups)
    labels = found["labels"]
    if labels.shape != parts.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"{data}: labels are one class from 0 for each of {len(parts)} shapes, not {labels.dtype} "
                         f"{list(labels.shape)}")  # fmt: skip
    if names is not None and labels.max() >= len(names):
        raise ValueError(f"{data}: label {labels.max()} has no name among {len(names)} class_names")
    return Shapes(
        parts, groups, torch.from_numpy(labels.astype(np.int64)), None if names is None else list(map(str, names))
    )


def write_shapes(path: str | Path, shapes: Shapes) -> None:
    """Write what `read_shapes` reads; the file appears whole."""
    arrays = {"parts": shapes.parts.numpy(), "groups": np.array(shapes.groups)}
    if shapes.labels is not None:
        arrays["labels"] = shapes.labels.numpy()
    if shapes.class_names is not None:
        arrays["class_names"] = np.array(shapes.class_names)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def layout_of(shapes: Shapes) -> PartLayout:
    """The units in which the numbers of existing parts have mean 0 and deviation 1, to four digits."""
    parts = shapes.parts[shapes.parts[..., 0] > 0.5].double()
    mean, std = parts.mean(0), parts.std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)
    mean[0] = std[0] = 0.5
    return PartLayout(shapes.groups, *(tuple(float(f"{v:.4g}") for v in values.tolist()) for values in (mean, std)))


class ShapeDataset(InMemoryDataset):
    """Sets of parts, as networks see them.

    Args:
        text: as `read_shapes` takes it.
        use_labels: give classes, where there are some.

    Attributes:
        shapes: in the units of the data.
        layout: the units of networks.

    Raises:
        ValueError: of `read_shapes`.
    """

    def __init__(self, text: str, *, use_labels: bool = False) -> None:
        self.shapes = read_shapes(text)
        self.layout = layout_of(self.shapes)
        name = text.removeprefix(PREFIX).split(":")[0] if text.startswith(PREFIX) else Path(text).stem
        classes = self.shapes.labels if use_labels else None
        self.class_names = None if classes is None else self.shapes.class_names
        label_dim = 0 if classes is None else len(self.class_names or range(int(classes.max()) + 1))
        super().__init__(name, self.layout.encode(self.shapes.parts), classes, label_dim)
