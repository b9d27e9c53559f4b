"""Reading files of any program for their tensors: whatever else is in them becomes an empty placeholder.

No name is ever looked up, so a placeholder can do nothing. Names of Python's own library, of installers and of other
readers of pickles are refused all the same unless they are known to be data: a file that asks for `os.system` is no
checkpoint, and the reader says so.
"""

from __future__ import annotations

import sys

from torch_utils.pickles.foreign import Words
from torch_utils.pickles.machine import Record

_BUILTIN = {
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set",
    "slice", "str", "tuple", "type", "Ellipsis", "long", "unicode", "xrange",
}  # fmt: skip

# Of the standard library: modules that hold data types alone, and single names.
_DATA_MODULES = {
    "argparse", "collections", "datetime", "decimal", "enum", "fractions", "numbers", "pathlib", "typing", "uuid",
    "zoneinfo",
}  # fmt: skip
_DATA_NAMES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTIN),
    "copyreg._reconstructor", "copy_reg._reconstructor", "types.SimpleNamespace", "_io.BytesIO",
    "logging.Logger", "logging.getLogger", "random.Random",
}  # fmt: skip
_NEVER = {"IPython", "cloudpickle", "dill", "distutils", "joblib", "nt", "pip", "setuptools"}

# PyTorch and numpy: classes are data, functions may load, compile or run things, but for those that build arrays.
_LIBRARIES = {"torch", "numpy"}
_BUILDERS = (
    "torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.serialization._get_layout",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray.", "numeric._frombuffer")),
    "numpy.random._pickle.__", "numpy.random.bit_generator.__pyx_unpickle_",
    "numpy.float", "numpy.int", "numpy.uint", "numpy.bool", "numpy.str",
)  # fmt: skip
_TYPES = {"torch.device", "torch.dtype", "torch.layout", "numpy.dtype", "numpy.ndarray"}


def _placeholder(module: str, attribute: str) -> bool:
    """Whether a name may stand for an empty object."""
    name, root = f"{module}.{attribute}", module.split(".")[0]
    if not all(part.isidentifier() for part in name.split(".")) or root in _NEVER:
        return False
    if name in _DATA_NAMES:
        return True
    if root in sys.stdlib_module_names or root == "__builtin__":
        return root in _DATA_MODULES and "." not in attribute
    if root in _LIBRARIES:
        return attribute[:1].isupper() or name in _TYPES or name.startswith(_BUILDERS)
    return True


def _empty(name: str) -> Record:
    return Record(name, {}, inert=True)


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

ANYTHING = Words(calls={name: lambda _, name=name: _empty(name) for name in _NUMPY}, inert=_placeholder)
