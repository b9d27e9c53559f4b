"""References and strengths of graded control for shapes: which parts, and which attributes of all parts, are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from samplers.field import Facts
from torch_utils.arrays import read_floats
from torch_utils.misc import parse_int_list
from torch_utils.parts import PartLayout
from training.data.shapes import read_shapes
from training.generation_options import PART_WORDS as WORDS

STRENGTH = 0.9  # of the paper's completion and assembly


def read_part_references(source: str, facts: Facts) -> tuple[Tensor, Tensor | None]:
    """References `[n, L, V]` as networks see them, parts that exist first: part k is then the k-th that there is.

    Also their labels `[n, label_dim]`, where they have classes of the model.

    Raises:
        ValueError: no shapes there, parts of other numbers than those of the network, or classes that it has not.
    """
    shapes, layout, shape = read_shapes(source), facts.parts, facts.shape
    if tuple(shapes.parts.shape[1:]) != tuple(shape) or shapes.groups != layout.groups:
        raise ValueError(
            f"the references of {source} have {'x'.join(map(str, shapes.parts.shape[1:]))} numbers (parts, numbers of "
            f"a part) in groups {list(shapes.groups)}, and shapes of this network {'x'.join(map(str, shape))} in "
            f"{list(layout.groups)}: give references like its data"
        )
    order = (shapes.parts[..., 0] <= 0.5).int().argsort(dim=1, stable=True)
    references = layout.encode(shapes.parts.gather(1, order[..., None].expand_as(shapes.parts)))
    if shapes.labels is None or not facts.label_dim:
        return references, None
    if int(shapes.labels.max()) >= facts.label_dim:
        raise ValueError(
            f"the references of {source} have class {int(shapes.labels.max())}, and this network has {facts.label_dim} "
            "classes: give references of its data"
        )
    return references, one_hot(shapes.labels, facts.label_dim).float()


def read_part_keep(text: str, layout: PartLayout, shape: tuple[int, ...]) -> Tensor:
    """Strengths `[1, L or 1, V or 1]` float64 in [0, 1] of what `--keep` says of shapes.

    Raises:
        ValueError: words that mean nothing, parts or attributes that there are not, a mask of another shape.
    """
    count, size = shape
    kind, _, rest = text.partition(":")
    keep = torch.zeros(1, count if kind == "parts" else 1, size if kind != "parts" else 1, dtype=torch.float64)
    with naming_keep(text, f"strengths of parts: give for example {WORDS}"):
        if kind == "parts":
            numbers, _, strength = rest.partition("=")
            chosen = parse_int_list(numbers)
            if max(chosen, default=0) >= count:
                raise ValueError(f"--keep={text} names part {max(chosen)}, and shapes have parts 0 to {count - 1}")
            keep[0, chosen] = float(strength or STRENGTH)
        elif kind == "assembly":
            for name in ("size", "code"):
                keep[0, 0, layout.attributes.get(name, slice(0, 0))] = float(rest or STRENGTH)
        elif kind == "attributes":
            named = torch.zeros(size)
            for part in rest.split(","):
                name, value = part.split("=")
                if name not in layout.attributes:
                    raise ValueError(f"--keep={text} names {name}, and parts have {', '.join(layout.attributes)}")
                if named[layout.attributes[name]].any():
                    raise ValueError(f"--keep={text} names numbers of {name} twice: give one strength of each")
                keep[0, 0, layout.attributes[name]] = float(value)
                named[layout.attributes[name]] = 1
        elif Path(text).suffix == ".npy":
            keep = read_mask(Path(text), shape, "shapes", "parts, numbers of a part")
        else:
            keep = torch.full((1, 1, 1), float(text), dtype=torch.float64)
    return checked_strengths(keep, text)


@contextmanager
def naming_keep(text: str, words: str) -> Iterator[None]:
    """Let errors about `--keep=text` be of what it names, or else say that it gives no `words`."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(("--keep", str(Path(text)))):
            raise
        raise ValueError(f"--keep={text} says no {words}") from error


def checked_strengths(keep: Tensor, text: str) -> Tensor:
    """Strengths as they are; a ValueError that names `--keep=text` where some are not in [0, 1]."""
    if not bool(((keep >= 0) & (keep <= 1)).all()):
        raise ValueError(f"--keep={text} holds strengths outside of 0 (made anew) to 1 (kept): keep them between")
    return keep


def read_mask(
    path: Path, shape: tuple[int, ...], what: str, axes: str, pixels: Callable[[Path], np.ndarray] | None = None
) -> Tensor:
    """Strengths `[1, ...]` float64 of a mask, whose axes are 1 or those of a sample; that of maps may have no channels.

    Args:
        shape: of a sample.
        what, axes: what samples and their axes are called.
        pixels: reads a file that is no array file.

    Raises:
        ValueError: no file, one that cannot be read, or a mask of another shape.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: --keep takes a mask of {'x'.join(map(str, shape[-2:]))}, or words")
    mask = torch.from_numpy(pixels(path) if pixels else read_floats(path, "a mask of numbers", "fiub"))
    whole = mask[None] if (mask.ndim, len(shape)) == (2, 3) else mask
    if whole.ndim != len(shape) or any(n not in (1, size) for n, size in zip(whole.shape, shape, strict=True)):
        raise ValueError(
            f"{path} is a mask of {'x'.join(map(str, mask.shape)) or 'one number'}, and {what} are "
            f"{'x'.join(map(str, shape))} ({axes}): make it that large"
        )
    return whole[None]
