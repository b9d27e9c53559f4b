"""Pickles of plain values and numpy uint8 arrays, as CIFAR-10 is distributed, read without trusting them.

A pickle may name any function and call it. This reader knows the few names that numpy writes and maps them to inert
classes of its own: bytes and a shape are kept, numpy itself is never called by the file. Every other name is refused.
Files of numpy 1 and 2 and of Python 2 (byte strings for text) are understood.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

import numpy as np

__all__ = ["load_plain"]


class _Dtype:
    """Stands for numpy.dtype: keeps its name, ignores its state."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray: keeps shape, element type, order and bytes."""

    def __init__(self) -> None:
        self.fields: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.fields = (raw, dtype, shape, "F" if fortran else "C")

    def restore(self) -> np.ndarray:
        raw, dtype, shape, order = self.fields
        if not isinstance(dtype, _Dtype) or dtype.name != "u1":
            raise ValueError("its array is not uint8")
        return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _from_buffer(*fields: Any) -> _Array:
    array = _Array()
    array.fields = fields
    return array


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes in old protocols; never another encoding


_NAMES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


# The Python class, not its C twin: that one allocates tables of any size a file asks for.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ValueError(f"it asks for {ascii(module)[1:81]}.{ascii(name)[1:81]}, which image data has no need of")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to data outside of itself")

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _Dtype):  # else it could set attributes of the functions above
            raise ValueError("it sets the state of something that is not an array")
        super().load_build()

    def load_bytearray8(self) -> None:
        self.append(self.read(struct.unpack("<Q", self.read(8))[0]))  # never allocates more than the file has

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def load_plain(data: bytes, name: str) -> Any:
    """The value of a pickle; text keys of a dict as str, arrays as numpy.

    Args:
        data: the whole pickle.
        name: of the file, for messages.

    Raises:
        ValueError: a name that is not allowed, damaged data, arrays that are not uint8.
    """
    try:
        value = _Reader(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(value, dict):
            return value
        plain = {key.decode("latin1") if isinstance(key, bytes) else key: item for key, item in value.items()}
        return {key: item.restore() if isinstance(item, _Array) else item for key, item in plain.items()}
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
