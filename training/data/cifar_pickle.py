"""Batches of CIFAR-10, pickled dicts of plain values and one numpy array, read by `torch_utils.pickles.machine`.

Nothing in them is run: the few names that numpy writes become inert values, every other name is refused. Files of numpy
1 and 2, of Python 3 and of Python 2 (byte strings for text) are understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_utils.pickles.machine import Budget, Vocabulary, run

_BYTES = object()  # stands for the element type of pixels
_CLASS = object()  # stands for numpy.ndarray


@dataclass(eq=False)
class _Array:
    """What an array was made from: raw bytes (or text, a byte a character), element type, shape, order."""

    raw: Any = b""
    dtype: Any = None
    shape: Any = (0,)
    order: Any = "C"

    def restore(self) -> np.ndarray:
        if self.dtype is not _BYTES:
            raise ValueError("its array is not uint8")
        if type(self.shape) is not tuple or not all(type(n) is int and n >= 0 for n in self.shape):
            raise ValueError("its array has no shape")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        return np.frombuffer(raw, np.uint8).reshape(self.shape, order="F" if self.order == "F" else "C")


def _build(value: Any, state: Any) -> None:
    if isinstance(value, _Array) and type(state) is tuple and len(state) == 5:
        _, value.shape, value.dtype, fortran, value.raw = state
        value.order = "F" if fortran else "C"
    elif value is not _BYTES:  # whose byte order says nothing
        raise ValueError("it sets the state of something that is not an array")


_MODULES = ("numpy.core", "numpy._core")
_NUMPY = Vocabulary(
    calls={
        "numpy.dtype": lambda given: _BYTES if given[:1] == ("u1",) else None,
        # How Python 3 writes bytes in old protocols: as text, and never in another encoding.
        "_codecs.encode": lambda given: given[0] if given else None,
        **{f"{module}.multiarray._reconstruct": lambda given: _Array() for module in _MODULES},
        **{f"{module}.numeric._frombuffer": lambda given: _Array(*given[:4]) for module in _MODULES},
    },
    values={"numpy.ndarray": _CLASS},
    build=_build,
    steps={
        ord("U"): lambda m: m.push(str(m.take(m.number("<B")), "latin1")),  # Python 2: keys and names
        ord("T"): lambda m: m.push(m.take(m.number("<I"))),  # Python 2: pixels
        0x96: lambda m: m.push(m.take(m.number("<Q"))),  # protocol 5: pixels
    },
    max_text=1 << 26,  # 10,000 images as text
)


def read_batch(pickled: bytes, name: str) -> tuple[np.ndarray, list[Any]]:
    """Images uint8 `[n, 3072]` and labels of a batch; nothing in it is executed.

    Args:
        pickled: the whole file.
        name: of the file, for messages.

    Raises:
        ValueError: a name that is not allowed, damaged data, or no batch.
    """
    try:
        value, _ = run(memoryview(pickled), 0, _NUMPY, Budget())
        data, labels = (value.get(key) if isinstance(value, dict) else None for key in ("data", "labels"))
        images = data.restore() if isinstance(data, _Array) else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if images is None or images.ndim != 2 or images.shape[1] != 3072 or not isinstance(labels, list):
        raise ValueError(f"{name} is not a batch of CIFAR-10: it needs `data` [n,3072] and a list `labels`")
    return images, labels
