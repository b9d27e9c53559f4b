"""Files of EDM and MAC: networks that carry their own source text, read without running any of it.

In these files (Karras et al. 2022, arXiv 2206.00364) every layer is a call of `_reconstruct_persistent_obj` on
`{type, version, module_src, class_name, state}`, and the original loader executes `module_src`. Here the call becomes a
`Record` of class name and attributes, and `module_src` is dropped unread. The network is then built from our own
classes by name. Files of MAC (Lee et al. 2024, arXiv 2404.14161) hold the generator as a live object instead: its
classes are pickled by name, without source. Those names, in any module of the project, become Records too.

    read_edm_pickle(path)      {"ema": Record, "loss_fn": Record, "augment_pipe": Record | None, "dataset_kwargs": dict}
                               or {"G_ema": Record}
    read_training_state(path)  {"net": Record, "optimizer_state": Adam's state dict}
    to_network_spec(record)    class name, constructor arguments, state dict
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_utils.pickles.foreign import MAX_NAME, Words, named_tensors, read_foreign
from torch_utils.pickles.machine import Record, shown

__all__ = ["ATTRIBUTES", "EDM", "read_edm_pickle", "read_training_state", "to_network_spec"]

PERSISTENCE_VERSION = 6
_FIELDS = {"type", "version", "module_src", "class_name", "state"}

# Constructor arguments that these classes also keep as attributes: the attribute is what the network ran with.
_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
ATTRIBUTES = {
    "EDMPrecond": (*_COMMON, "sigma_min", "sigma_max", "sigma_data"),
    "VEPrecond": (*_COMMON, "sigma_min", "sigma_max"),
    "VPPrecond": (*_COMMON, "beta_d", "beta_min", "M", "epsilon_t"),
    "iDDPMPrecond": (*_COMMON, "C_1", "C_2", "M"),
}

# Classes of EDM and MAC that are pickled as plain objects: their names alone count, their modules differ between files.
_PROJECT_CLASSES = {
    "Generator", "CoefficientGenerator", "SinusoidalMacCalculator", "SongUNetModified", "DhariwalUNetModified",
    "SongUNet", "DhariwalUNet", "UNetBlock", "Linear", "Conv2d", "GroupNorm", "PositionalEmbedding", "FourierEmbedding",
}  # fmt: skip
_NO_PROJECT = sys.stdlib_module_names | {"__builtin__", "copy_reg", "dill", "cloudpickle", "joblib", "numpy", "torch"}


def read_edm_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary of an EDM-style network pickle; it holds a `Record` under "ema", or under "G_ema" (MAC).

    Raises:
        ValueError: see `read_foreign`, or the file is something else.
    """
    value = read_foreign(path, EDM).value
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
    value = read_foreign(path, EDM).value
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


# The names that these files may use.
EDM = Words(
    calls={"torch_utils.persistence._reconstruct_persistent_obj": _persistent_object},
    classes={"dnnlib.util.EasyDict": dict, "dnnlib.EasyDict": dict},
    other_class=_project_class,
)
