"""Restricted reader of EDM-style pickles: networks that carry their own source text, read without running any of it.

In these files (Karras et al. 2022, arXiv 2206.00364) every layer is a call of `_reconstruct_persistent_obj` on
`{type, version, module_src, class_name, state}`, and the original loader executes `module_src`. Here the call becomes a
`Record` of class name and attributes, `module_src` is dropped unread, tensors are views of checked storages, and any
name outside the list below stops the reading. The network is then built from our own classes by name.

Files of MAC (Lee et al. 2024, arXiv 2404.14161) hold the generator as a live object instead: its classes are pickled by
name, without source. Those names, in whatever module of the project they are, become Records as well. Classes pickled
by value (dill) would have to be run to exist, and are refused.

    read_edm_pickle(path)      {"ema": Record, "loss_fn": Record, "augment_pipe": Record | None, "dataset_kwargs": dict}
                               or {"G_ema": Record}
    read_training_state(path)  {"net": Record, "optimizer_state": Adam's state dict}
    to_network_spec(record)    class name, constructor arguments, state dict
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_utils.files import map_file
from torch_utils.pickles.machine import Record, plain_key, shown
from torch_utils.pickles.torch_files import DTYPES, TorchReader, check_aliasing, is_legacy

__all__ = [
    "Foreign",
    "Record",
    "module_classes",
    "named_tensors",
    "read_edm_pickle",
    "read_foreign",
    "read_training_state",
    "to_network_spec",
]

PERSISTENCE_VERSION = 6
MAX_MODULES = 20_000
MAX_NAME = 512
_FIELDS = {"type", "version", "module_src", "class_name", "state"}

# Constructor arguments that these classes also keep as attributes: the attribute is what the network ran with.
_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
ATTRIBUTES = {
    "EDMPrecond": (*_COMMON, "sigma_min", "sigma_max", "sigma_data"),
    "VEPrecond": (*_COMMON, "sigma_min", "sigma_max"),
    "VPPrecond": (*_COMMON, "beta_d", "beta_min", "M", "epsilon_t"),
    "iDDPMPrecond": (*_COMMON, "C_1", "C_2", "M"),
}

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

# Classes of EDM and MAC that are pickled as plain objects: their names alone count, their modules differ between files.
_PROJECT_CLASSES = {
    "Generator", "CoefficientGenerator", "SinusoidalMacCalculator", "SongUNetModified", "DhariwalUNetModified",
    "SongUNet", "DhariwalUNet", "UNetBlock", "Linear", "Conv2d", "GroupNorm", "PositionalEmbedding", "FourierEmbedding",
}  # fmt: skip
_NO_PROJECT = sys.stdlib_module_names | {"__builtin__", "copy_reg", "dill", "cloudpickle", "joblib", "numpy", "torch"}

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
class _NumpyType:
    code: str


def read_foreign(path: str | Path) -> Foreign:
    """Read a raw pickle or a file of `torch.save`, executing nothing.

    Raises:
        ValueError: one sentence that names the file and, where there is one, the global that is not allowed.
    """
    view = map_file(path)
    with naming(path):
        reader = _edm_reader(view)
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


def read_edm_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary of an EDM-style network pickle; it holds a `Record` under "ema", or under "G_ema" (MAC).

    Raises:
        ValueError: see `read_foreign`, or the file is something else.
    """
    value = read_foreign(path).value
    if not isinstance(value, dict) or not any(isinstance(value.get(key), Record) for key in ("ema", "G_ema")):
        raise ValueError(f"{path} holds no network under 'ema' or 'G_ema': it is not an EDM-style network pickle")
    return value


def read_training_state(path: str | Path) -> dict[str, Any]:
    """`{"net": Record, "optimizer_state": {"state": {i: {...}}, "param_groups": [...]}}` of an EDM training run.

    The network is the one in training, not its average. Entry i of the optimiser belongs to parameter i of `net` in
    module order: `list(named_tensors(net, buffers=False))[i]`.

    Raises:
        ValueError: see `read_foreign`, or the file is something else.
    """
    value = read_foreign(path).value
    optimizer = value.get("optimizer_state") if isinstance(value, dict) else None
    if not isinstance(optimizer, dict) or not isinstance(value.get("net"), Record):
        raise ValueError(f"{path} holds no 'net' and 'optimizer_state': it is not an EDM-style training state")
    if not isinstance(optimizer.get("state"), dict) or not isinstance(optimizer.get("param_groups"), list):
        raise ValueError(f"{path} holds an optimizer state that is not one of PyTorch's Adam")
    return value


def to_network_spec(record: Record) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Class name, constructor arguments and state dict of a network.

    Arguments are those the network was constructed with; attributes of the same name win, because they are what it ran
    with and because they carry the defaults of the version that wrote the file.

    Raises:
        ValueError: not one of the published preconditioner classes, or damaged contents.
    """
    known = ATTRIBUTES.get(record.class_name)
    if known is None:
        raise ValueError(
            f"a network of class {shown(record.class_name)} is not known here: known are {', '.join(ATTRIBUTES)}"
        )
    args, kwargs = record.state.get("_init_args", ()), record.state.get("_init_kwargs", {})
    if type(args) is not tuple or type(kwargs) is not dict or len(args) > len(_COMMON):
        raise ValueError("the constructor arguments of the network cannot be read")
    arguments = {**dict(zip(_COMMON, args, strict=False)), **kwargs}
    arguments |= {name: record.state[name] for name in known if name in record.state}
    return record.class_name, arguments, named_tensors(record)


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


# The list of harmless names.


def _edm_reader(view: memoryview) -> TorchReader:
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

    def persistent_object(arguments: tuple) -> Record:
        record = _persistent_object(arguments)
        reader.budget.spend(len(record.state))
        return record

    def new_set(arguments: tuple) -> set:
        items = arguments[0] if arguments else []
        if len(arguments) > 1 or type(items) is not list:
            raise ValueError("a set is not described by a list")
        reader.budget.spend(len(items))
        return {plain_key(item) for item in items}

    reader.calls |= {
        "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
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
    }
    reader.classes |= {name: lambda cls=cls: Record(cls, {}) for name, cls in _TORCH_MODULES.items()}
    reader.classes |= {"dnnlib.util.EasyDict": dict, "dnnlib.EasyDict": dict}
    reader.other_class = _project_class
    reader.values |= {str(dtype): dtype for dtype in DTYPES.values()}
    return reader


def _project_class(name: str) -> Callable[[], Record] | None:
    """Classes of the project that wrote the file; those of Python, torch and numpy are none, whatever their name."""
    module, _, cls = name.rpartition(".")
    parts = module.split(".")
    if cls not in _PROJECT_CLASSES or parts[0] in _NO_PROJECT or not all(p.isidentifier() for p in parts):
        return None
    return lambda: Record(cls)


def _persistent_object(arguments: tuple) -> Record:
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is not dict or set(meta) != _FIELDS:
        raise ValueError(f"a persistent object does not have exactly the fields {', '.join(sorted(_FIELDS))}")
    if meta["type"] != "class":
        raise ValueError(f"a persistent object is a {shown(meta['type'])}, only a class is read")
    if type(meta["version"]) is not int or meta["version"] != PERSISTENCE_VERSION:
        raise ValueError(
            f"a persistent object has version {shown(meta['version'])}, only version {PERSISTENCE_VERSION} is read"
        )
    name, state = meta["class_name"], meta["state"]
    if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_NAME:
        raise ValueError(f"a persistent object has the impossible class name {shown(name)}")
    if type(state) is not dict or not all(isinstance(key, str) for key in state):
        raise ValueError(f"the state of {shown(name)} is not a dict of attributes")
    return Record(name, state)


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
