"""Restricted reader of other projects' pickles and files of `torch.save`: nothing in them is run.

A file may use the names of PyTorch's and numpy's own data below, and those of the `Words` it is read with: what one
project's files ask for beyond them (`networks/published/edm.py`). Objects become a `Record` of class name and
attributes, tensors are views of checked storages, and any other name stops the reading. Classes pickled by value (dill)
would have to be run to exist, and are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from torch_utils.files import map_file
from torch_utils.pickles.machine import Record, plain_key, shown
from torch_utils.pickles.torch_files import DTYPES, TorchReader, check_aliasing, is_legacy

MAX_MODULES = 20_000
MAX_NAME = 512

# Containers and layers of PyTorch that these files, and files derived from them, pickle as plain objects.
_TORCH_MODULES = {
    f"torch.nn.modules.{module}.{name}": name
    for module, name in (
        ("container", "ModuleDict"),
        ("container", "ModuleList"),
        ("container", "Sequential"),
        ("linear", "Linear"),
        ("linear", "Identity"),
        ("conv", "Conv2d"),
        ("normalization", "GroupNorm"),
        ("activation", "SiLU"),
    )
}

# numpy scalar type -> struct code
_SCALARS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_SCALARS |= {"u" + code[1]: letter.upper() for code, letter in _SCALARS.items() if code[0] == "i"}


@dataclass(frozen=True)
class Foreign:
    """A file of another project.

    Attributes:
        container: "pickle", "torch archive" or "legacy torch file".
        value: plain containers, numbers, text, tensors on the CPU, and `Record`s.
        globals: names the file asked for, all of them on the list; those inside of embedded storages not counted.
    """

    container: str
    value: Any
    globals: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """The names that one project's files use besides those of PyTorch and numpy.

    Attributes:
        calls: name -> function(arguments) that builds an inert value.
        classes: name -> function() that makes an empty one.
        other_class: function(name) for names not listed: as an entry of `classes`, or None to refuse.
        inert: function(module, attribute): whether what this class makes is read past, see `Vocabulary`.
    """

    calls: Mapping[str, Callable[[tuple], Any]] = field(default_factory=dict)
    classes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    other_class: Callable[[str], Callable[[], Any] | None] = lambda name: None
    inert: Callable[[str, str], bool] = lambda module, attribute: False


@dataclass(frozen=True)
class _NumpyType:
    code: str


def read_foreign(path: str | Path, words: Words) -> Foreign:
    """Read a raw pickle or a file of `torch.save` with the names that `words` adds, executing nothing.

    Raises:
        ValueError: one sentence that names the file and, where there is one, the global that is not allowed.
    """
    view = map_file(path)
    with naming(path):
        reader = _reader(view, words)
        if bytes(view[:2]) == b"PK":
            container, value = "torch archive", reader.read_zip()
        elif is_legacy(view):
            container, value = "legacy torch file", reader.read_legacy()
        elif view[0] == 0x80:
            container, value = "pickle", reader.read_plain()
        else:
            raise ValueError("it is neither a pickle nor a file of torch.save")
        return Foreign(container, value, tuple(sorted(reader.met)))


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the name of the file in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from None


def named_tensors(record: Record, *, buffers: bool = True) -> dict[str, torch.Tensor]:
    """State dict of a module: parameters, and persistent buffers, by dotted name in the order of PyTorch."""
    result: dict[str, torch.Tensor] = {}
    for prefix, module in _modules(record):
        hidden = module.state.get("_non_persistent_buffers_set", ())
        groups = [("_parameters", ())] + ([("_buffers", hidden)] if buffers else [])
        for group, skipped in groups:
            for name, value in _members(module, group, torch.Tensor):
                if name not in skipped:
                    result[prefix + name] = value
    check_aliasing(result.values())
    return result


def module_classes(record: Record) -> dict[str, str]:
    """Class name of every module by dotted name; the outermost is ''."""
    return {prefix[:-1]: module.class_name for prefix, module in _modules(record)}


def _modules(record: Record) -> Iterator[tuple[str, Record]]:
    """Modules in the order of `nn.Module.named_modules`, each with its prefix for names inside."""
    pending = [("", record)]
    for _ in range(MAX_MODULES):
        if not pending:
            return
        prefix, module = pending.pop()
        yield prefix, module
        children = _members(module, "_modules", Record)
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(children)]
        if len(prefix) > MAX_NAME:
            raise ValueError(f"a module has a name longer than {MAX_NAME} characters")
    raise ValueError(f"the network has more than {MAX_MODULES} modules")


def _members(module: Record, group: str, kind: type) -> list[tuple[str, Any]]:
    """Entries of `_parameters`, `_buffers` or `_modules` that are not None."""
    entries = module.state.get(group, {})
    if type(entries) is not dict:
        raise ValueError(f"{shown(module.class_name)} has no dict {group}")
    for name, value in entries.items():
        if not isinstance(name, str) or not name or "." in name or len(name) > MAX_NAME:
            raise ValueError(f"{shown(module.class_name)} has a part with the impossible name {shown(name)}")
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{shown(name)} in {group} of {shown(module.class_name)} is not a {kind.__name__}")
    return [(name, value) for name, value in entries.items() if value is not None]


# The harmless names of PyTorch and numpy.


def _reader(view: memoryview, words: Words) -> TorchReader:
    reader = TorchReader(view)
    drop_metadata = reader.build

    def build(value: Any, state: Any) -> None:
        if isinstance(value, _NumpyType):
            if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise ValueError("a numpy number has an unknown byte order")
        elif isinstance(value, Record) and type(state) is dict and not value.state:
            reader.budget.spend(len(state))
            value.state.update(state)
        else:
            drop_metadata(value, state)

    reader.build = build

    def counted(call: Callable[[tuple], Any]) -> Callable[[tuple], Any]:
        def made(arguments: tuple) -> Any:
            value = call(arguments)
            reader.budget.spend(len(value.state) if isinstance(value, Record) else 1)
            return value

        return made

    def new_set(arguments: tuple) -> set:
        items = arguments[0] if arguments else []
        if len(arguments) > 1 or type(items) is not list:
            raise ValueError("a set is not described by a list")
        reader.budget.spend(len(items))
        return {plain_key(item) for item in items}

    reader.calls |= {
        "torch.storage._load_from_bytes": reader.load_from_bytes,
        "numpy.dtype": _numpy_type,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "_codecs.encode": reader.latin1,
        "builtins.set": new_set,
        "__builtin__.set": new_set,
        "torch.Size": _size,
        "torch.device": _device,
        "torch.nn.parameter.Parameter": _new_parameter,
        **{name: counted(call) for name, call in words.calls.items()},
    }
    reader.classes |= {name: lambda cls=cls: Record(cls, {}) for name, cls in _TORCH_MODULES.items()}
    reader.classes |= words.classes
    reader.other_class, reader.inert = words.other_class, words.inert
    reader.values |= {str(dtype): dtype for dtype in DTYPES.values()}
    return reader


def _numpy_type(arguments: tuple) -> _NumpyType:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or len(code) > 3 or code.lstrip("<|=") not in _SCALARS:
        raise ValueError(f"a numpy number has the element type {shown(code)}: only plain numbers are read")
    return _NumpyType(code.lstrip("<|="))


def _numpy_scalar(arguments: tuple) -> bool | int | float:
    if len(arguments) != 2 or not isinstance(arguments[0], _NumpyType):
        raise ValueError("a numpy number is not described by its type and its bytes")
    layout = struct.Struct("<" + _SCALARS[arguments[0].code])
    raw = arguments[1]
    if not isinstance(raw, bytes | memoryview) or len(raw) != layout.size:
        raise ValueError(f"a numpy number does not have the {layout.size} bytes of its type")
    return layout.unpack(raw)[0]


def _size(arguments: tuple) -> tuple:
    sizes = arguments[0] if len(arguments) == 1 else None
    if type(sizes) is not tuple or len(sizes) > 8 or not all(type(n) is int for n in sizes):
        raise ValueError("a torch.Size is not described by integers")
    return sizes


def _device(arguments: tuple) -> str:
    if not arguments or not isinstance(arguments[0], str):
        raise ValueError("a torch.device is not described by text")
    return arguments[0]


def _new_parameter(arguments: tuple) -> torch.Tensor:
    if not arguments or not isinstance(arguments[0], torch.Tensor):
        raise ValueError("a parameter is not described by a tensor")
    return arguments[0]
