"""Tensors out of the files of `torch.save` (zip and legacy layout), read with the restricted pickle interpreter.

A tensor is a view (offset, size, stride) of a storage, and a storage is a run of raw little-endian bytes: a member
`data/<key>` of the zip, or bytes after the pickle in the legacy stream. Sizes in a pickle are claims. Each is compared
with the bytes that are really there before memory is allocated, and a view never has more elements than its storage:
what is read can not be much larger than the file.

PyTorch's own `weights_only=True` reads the same files; it had two holes (CVE-2025-32434, and CVE-2026-24747 up to
2.9), knows no such limits, and cannot read EDM-style pickles. It serves as the second opinion in the tests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torch_utils.pickles.machine import Budget, Record, Vocabulary, plain_key, run, shown
from torch_utils.pickles.tree import check_tree
from torch_utils.pickles.zip_directory import check_crc, read_directory

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE = 64 << 20
MAX_TENSORS = 100_000
MAX_ALIASING = 8  # bytes of all tensors together, relative to their storages: tied weights are few


@dataclass(frozen=True)
class StorageType:
    """`torch.FloatStorage` and its like: an element type."""

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements of one storage, `[numel]`."""

    data: torch.Tensor


DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_OTHER = {"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}  # read, not written
STORAGES = {f"torch.{name}Storage": StorageType(dtype) for name, dtype in (DTYPES | _OTHER).items()}

# Types without a storage class of their own: raw bytes, and the name of the type beside them.
_BYTES = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
STORAGES |= dict.fromkeys(_BYTES, StorageType(torch.uint8))
_YOUNG = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "uint16", "uint32",
    "uint64",
)  # fmt: skip
YOUNG_TYPES = {f"torch.{name}": getattr(torch, name) for name in _YOUNG if hasattr(torch, name)}


class TorchReader:
    """Reads one file. `calls`, `classes` and `build` may be extended before reading, as `foreign` does.

    Args:
        view: all bytes of the file.
        crc: compare storages of a zip with their checksums.
    """

    def __init__(self, view: memoryview, *, crc: bool = True) -> None:
        self.view = view
        self.crc = crc
        self.budget = Budget()
        self.met: set[str] = set()
        # Bytes that may still be made of each kind. A value can be used again and again, so each use is counted.
        self.left = {"storage": len(view), "stream": len(view), "text": len(view)}
        self.calls: dict[str, Callable[[tuple], Any]] = {
            "collections.OrderedDict": self._ordered_dict,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
            "torch._utils._rebuild_parameter": _parameter,
        }
        self.classes: dict[str, Callable[[], Any]] = {}
        self.other_class: Callable[[str], Callable[[], Any] | None] = lambda name: None
        self.inert: Callable[[str, str], bool] = lambda module, attribute: False
        self.values: dict[str, Any] = {}
        self.build: Callable[[Any, Any], None] = _drop_metadata

    # The three layouts.

    def read_zip(self) -> Any:
        """Value of the archive `<root>/data.pkl`, `<root>/data/<key>`."""
        members = read_directory(self.view)
        if "data.pkl" not in members:
            raise ValueError("the archive holds no data.pkl: it is not a file of torch.save")
        if "constants.pkl" in members or any(name.startswith("code/") for name in members):
            raise ValueError("the archive is a TorchScript program: only files of torch.save are read")
        order = members.get("byteorder")
        if order and bytes(self.view[order.start : order.start + order.size]) != b"little":
            raise ValueError("the archive was written on a big-endian machine")
        stream = members["data.pkl"]
        if stream.size > MAX_PICKLE:
            raise ValueError(f"its data.pkl has {stream.size} bytes, more than the {MAX_PICKLE} allowed")
        check_crc(self.view, stream, "data.pkl")
        storages: dict[str, Storage] = {}

        def persistent(key: Any) -> Storage:
            kind, name, count = _storage_id(key, 5)
            member = members.get(f"data/{name}")
            nbytes = count * kind.dtype.itemsize
            if member is None or member.size != nbytes:
                raise ValueError(f"storage {shown(name)} should have {nbytes} bytes, which the archive does not hold")
            if name not in storages:
                if self.crc or kind.dtype == torch.bool:  # booleans are normalised, which no later hash could see
                    check_crc(self.view, member, f"storage {shown(name)}")
                raw = self.view[member.start : member.start + member.size]
                storages[name] = Storage(self._copy(raw, kind.dtype))
            return _of_type(storages[name], kind, name)

        value, end = self._run(self.view[stream.start : stream.start + stream.size], 0, persistent)
        if end != stream.size:
            raise ValueError("bytes follow the end of its data.pkl")
        check_tree(value)
        return value

    def read_plain(self) -> Any:
        """Value of a file that is one pickle."""
        value, end = self._run(self.view, 0, None)
        if end != len(self.view):
            raise ValueError("bytes follow the end of the pickle")
        check_tree(value)
        return value

    def read_legacy(self) -> Any:
        """Value of a file in the layout of `torch.save` before version 1.6."""
        value = self._legacy(self.view, self._run)
        check_tree(value)
        return value

    def load_from_bytes(self, arguments: tuple) -> Storage:
        """`torch.storage._load_from_bytes(bytes)`: a legacy stream that holds one storage and nothing else."""
        if len(arguments) != 1 or not isinstance(arguments[0], memoryview | bytes):
            raise ValueError("a storage is not given as bytes")
        self._spend("stream", len(arguments[0]))

        def only_storages(view: memoryview, position: int, persistent: Callable[[Any], Any]) -> tuple[Any, int]:
            return run(view, position, Vocabulary(values=STORAGES, persistent=persistent), self.budget)

        value = self._legacy(memoryview(arguments[0]), only_storages)
        if not isinstance(value, Storage):
            raise ValueError("an embedded stream holds something else than one storage")
        return value

    def latin1(self, arguments: tuple) -> bytes:
        """Protocol 2 has no bytes: it spells them as text and asks for this conversion back."""
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            raise ValueError("_codecs.encode is called with something else than text and latin1")
        self._spend("text", len(arguments[0]))
        try:
            return arguments[0].encode("latin1")
        except UnicodeEncodeError:
            raise ValueError("_codecs.encode is called with text that is not latin1") from None

    def _ordered_dict(self, arguments: tuple) -> dict:
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or type(pairs) is not list:
            raise ValueError("an ordered dict is not described by a list of pairs")
        self.budget.spend(len(pairs))
        if not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
            raise ValueError("an ordered dict is not described by a list of pairs")
        return {plain_key(key): value for key, value in pairs}

    def _run(self, view: memoryview, position: int, persistent: Callable[[Any], Any] | None) -> tuple[Any, int]:
        values = self.values if persistent is None else {**self.values, **STORAGES, **YOUNG_TYPES}
        vocabulary = Vocabulary(
            self.calls, self.classes, values, self.build, persistent, self.met, self.other_class, self.inert
        )
        return run(view, position, vocabulary, self.budget)

    def _legacy(self, view: memoryview, read_object: Callable[..., tuple[Any, int]]) -> Any:
        storages: dict[str, Storage] = {}

        def persistent(key: Any) -> Storage:
            kind, name, count = _storage_id(key, 6)
            if name not in storages:
                nbytes = count * kind.dtype.itemsize
                if nbytes > len(view):
                    raise ValueError(f"storage {shown(name)} declares {nbytes} bytes, more than the file has")
                self._spend("storage", nbytes)
                storages[name] = Storage(torch.zeros(count, dtype=kind.dtype))
            elif len(storages[name].data) != count:
                raise ValueError(f"storage {shown(name)} is declared with two sizes")
            return _of_type(storages[name], kind, name)

        plain = Vocabulary()
        magic, position = run(view, 0, plain, self.budget)
        version, position = run(view, position, plain, self.budget)
        system, position = run(view, position, plain, self.budget)
        if magic != LEGACY_MAGIC or version != 1001 or type(system) is not dict:
            raise ValueError("an embedded stream is not in the layout of torch.save")
        if system.get("little_endian") is not True:
            raise ValueError("a storage was written on a big-endian machine")
        value, position = read_object(view, position, persistent)
        keys, position = run(view, position, plain, self.budget)
        listed = keys if type(keys) is list and all(isinstance(k, str) for k in keys) else []
        if sorted(listed) != sorted(storages):
            raise ValueError("the list of storages does not agree with those in use")
        for name in listed:
            data = storages[name].data
            end = position + 8 + data.nbytes
            if end > len(view) or struct.unpack_from("<q", view, position)[0] != len(data):
                raise ValueError(f"storage {shown(name)} is truncated or has another size than declared")
            _fill(data, view[position + 8 : end])
            position = end
        if position != len(view):
            raise ValueError("bytes follow the end of a storage stream")
        return value

    # Storages and tensors.

    def _spend(self, what: str, nbytes: int) -> None:
        self.left[what] -= nbytes
        if self.left[what] < 0:
            raise ValueError(f"its {what} data together has more bytes than the file")

    def _copy(self, raw: memoryview, dtype: torch.dtype) -> torch.Tensor:
        self._spend("storage", len(raw))
        data = torch.empty(len(raw) // dtype.itemsize, dtype=dtype)
        _fill(data, raw)
        return data


def _tensor(arguments: tuple) -> torch.Tensor:
    """View of a storage; it never has more elements than the storage, so repeating strides cannot inflate it."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage) or arguments[5] != {}:
        raise ValueError("a tensor is not described by storage, offset, size and stride")
    storage, offset, size, stride = arguments[:4]
    shaped = type(size) is type(stride) is tuple and len(size) == len(stride) <= 8
    if not shaped or not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)):
        raise ValueError(f"a tensor has the impossible size {shown(size)}, stride {shown(stride)}")
    count = math.prod(size)
    extent = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else 0
    available = len(storage.data)
    if offset + extent > available or count > available:
        raise ValueError(f"a tensor of size {shown(size)} does not fit its storage of {available} elements")
    return storage.data.as_strided(size, stride, offset)


def _tensor_of_bytes(arguments: tuple) -> torch.Tensor:
    """View of a storage as `_tensor` makes it, with the element type among the arguments."""
    storage, dtype = (arguments[0], arguments[6]) if len(arguments) in (7, 8) else (None, None)
    raw = isinstance(storage, Storage) and storage.data.dtype == torch.uint8 and isinstance(dtype, torch.dtype)
    if not raw or dtype == torch.bool or len(storage.data) % dtype.itemsize:
        raise ValueError("a tensor is not described by bytes, offset, size, stride and type")
    return _tensor((Storage(storage.data.view(dtype)), *arguments[1:6]))


def check_aliasing(tensors: Iterable[torch.Tensor]) -> None:
    """Raise ValueError when tensors share memory so often that walking over them would take a disproportionate time."""
    storages: dict[int, int] = {}
    total = 0
    for count, tensor in enumerate(tensors, 1):
        total += tensor.nbytes
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if count > MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS} tensors")
    if total > MAX_ALIASING * sum(storages.values()):
        raise ValueError(f"its tensors use the same memory more than {MAX_ALIASING} times over")


def is_legacy(view: memoryview) -> bool:
    """Whether the file begins with the magic number of the legacy layout."""
    return bytes(view[2:14]) == b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")


def _storage_id(key: Any, fields: int) -> tuple[StorageType, str, int]:
    """Type, name and element count out of `('storage', type, name, location, count[, None])`."""
    good = type(key) is tuple and len(key) == fields and key[0] == "storage" and isinstance(key[1], StorageType)
    counted = good and type(key[4]) is int and 0 <= key[4] < 1 << 48
    if not counted or not isinstance(key[2], str) or any(view is not None for view in key[5:]):
        raise ValueError(f"it refers to {shown(key)}, which is not a storage")
    return key[1], key[2], key[4]


def _of_type(storage: Storage, kind: StorageType, name: str) -> Storage:
    if storage.data.dtype != kind.dtype:
        raise ValueError(f"storage {shown(name)} is declared with two element types")
    return storage


def _fill(data: torch.Tensor, raw: memoryview) -> None:
    """Copy raw bytes into a contiguous tensor; booleans become 0 or 1, other bytes in them are undefined behaviour."""
    if data.numel():
        source = np.frombuffer(raw, np.uint8)
        data.view(torch.uint8).numpy()[:] = source != 0 if data.dtype == torch.bool else source


def _parameter(arguments: tuple) -> torch.Tensor:
    if len(arguments) != 3 or not isinstance(arguments[0], torch.Tensor):
        raise ValueError("a parameter is not described by a tensor")
    return arguments[0]


def _drop_metadata(value: Any, state: Any) -> None:
    """Old state dicts carry a version table as an attribute of the dict: nothing in it is needed."""
    if type(value) is not dict or type(state) is not dict or not set(state) <= {"_metadata"}:
        kind = shown(value.class_name) if isinstance(value, Record) else type(value).__name__
        raise ValueError(f"it sets the attributes of a value of type {kind}")
