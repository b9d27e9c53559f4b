"""Checkpoints of this project: tensors and JSON in one file, nothing that could be executed.

A file is one `torch.save` archive of plain containers: format name, version, kind ("snapshot" to share, "state" to
resume), `info` as JSON text, library versions, SHA-256 of the tensors, and the payload. `torch.load(weights_only=True)`
loads it, `load` by a stricter reader. `.safetensors` holds the same tensors and JSON without any pickle.

    python -m networks.describe FILE       what a file holds, ours or foreign, without running anything in it
"""

from __future__ import annotations

import hashlib
import json
import platform
import runpy
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils.files import atomic_write, map_file, numbered
from torch_utils.pickles.foreign import naming
from torch_utils.pickles.machine import MAX_OPERATIONS, MAX_TEXT, plain_key, shown
from torch_utils.pickles.torch_files import DTYPES, TorchReader, check_aliasing
from torch_utils.pickles.tree import check_tree

FORMAT = "fewstep"
VERSION = 1
KINDS = ("snapshot", "state")
MAX_DEPTH = 50
MAX_HEADER = 32 << 20
MAX_NAME = 2048


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        info: JSON-able description (network, method, data, options, progress).
        payload: nested containers of tensors and plain values.
        kind: "snapshot" or "state".
        libraries: versions of Python, PyTorch and numpy that wrote it.
        sha256: hash of the tensors (`tensor_hash`).
    """

    info: dict[str, Any]
    payload: Any
    kind: str = "snapshot"
    libraries: dict[str, str] = field(default_factory=dict)
    sha256: str = ""


def save(path: str | Path, kind: str, info: dict[str, Any], payload: Any) -> str:
    """Write a checkpoint atomically; returns the SHA-256 of its tensors.

    Args:
        kind: "snapshot" or "state".
        info: what `json.dumps` accepts.
        payload: nested dicts (keys: text or integers), lists and tuples of tensors, numbers, text, None.

    Raises:
        ValueError: unknown kind, or a value that a file of data can not hold (its place is named).
        OSError: the file cannot be written; one of that name is as it was.
    """
    if kind not in KINDS:
        raise ValueError(f"a checkpoint is a {' or a '.join(KINDS)}, not '{kind}'")
    plain = _plain(payload, "payload", 0)
    if _operations(plain) > MAX_OPERATIONS:
        raise ValueError("the payload has too many single values for one file: put them into tensors")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "info": _json(info),
        "libraries": _libraries(),
        "sha256": tensor_hash(named(plain)),
        "payload": plain,
    }
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's writer hides the error of the file behind its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return content["sha256"]


def load(
    path: str | Path, kind: str | None = None, map_location: str | torch.device = "cpu", verify: bool = True
) -> Contents:
    """Read a checkpoint.

    Args:
        kind: what it must be; None: either.
        map_location: device of the tensors.
        verify: compare the SHA-256 of the tensors.

    Raises:
        ValueError: missing, truncated, damaged, of another kind, of a newer version, or not ours; names the file.
    """
    view = map_file(path)
    with naming(path):
        if bytes(view[:2]) != b"PK":
            raise ValueError("it is not a checkpoint of this project, or its beginning is damaged")
        contents = from_value(TorchReader(view, crc=not verify).read_zip(), verify=verify)
    if kind is not None and contents.kind != kind:
        raise ValueError(f"{path} is a {contents.kind}, but a {kind} is needed here")
    if torch.device(map_location).type == "cpu":
        return contents
    return Contents(**{**vars(contents), "payload": _moved(contents.payload, torch.device(map_location))})


def from_value(value: Any, *, verify: bool = True) -> Contents:
    """Interpret the value of an archive as a checkpoint; ValueError if it is none, or damaged."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError("it is a PyTorch archive, but not a checkpoint of this project")
    version = value.get("version")
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"it has format version {shown(version)}, and this program reads versions up to {VERSION}: "
            "use a newer release of Fewstep"
        )
    expected = {"format": str, "kind": str, "info": str, "libraries": dict, "sha256": str}
    wrong = [key for key, kind in expected.items() if type(value.get(key)) is not kind]
    if wrong or "payload" not in value or value["kind"] not in KINDS:
        raise ValueError(f"its header is damaged at {(wrong or ['kind'])[0]}")
    if verify and tensor_hash(named(value["payload"])) != value["sha256"]:
        raise ValueError("its tensors do not have the SHA-256 written beside them: the file is damaged")
    info = _info(value["info"])
    return Contents(info, value["payload"], value["kind"], value["libraries"], value["sha256"])


def newest(directory: str | Path, pattern: str) -> Path | None:
    """The newest complete checkpoint that matches `pattern`, or None; damaged newer ones are skipped with a warning."""
    for path in reversed(numbered(directory, pattern)):
        try:
            load(path)
        except ValueError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
        else:
            return path
    return None


def tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over name, element type, shape and bytes of every tensor, in the order of the names."""
    check_aliasing(tensors.values())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def named(payload: Any) -> dict[str, torch.Tensor]:
    """The tensors in nested containers by dotted name."""
    return dict(_walk(payload, ""))


def _walk(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor has a name longer than {MAX_NAME} characters")
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(child, f"{name}.{key}" if name else str(key))


def _plain(value: Any, where: str, depth: int) -> Any:
    """A copy of exact built-in types around compact CPU tensors, refusing what `load` would refuse."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, torch.Tensor):
        return _compact(value, where)
    if isinstance(value, dict):
        items = ((_plain(plain_key(k), f"a key of {where}", depth), k, v) for k, v in value.items())
        return {key: _plain(v, f"{where}[{k!r}]", depth + 1) for key, k, v in items}
    if isinstance(value, list | tuple):
        parts = [_plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    value = value.item() if isinstance(value, np.generic) else value
    if (isinstance(value, str) and len(value) > MAX_TEXT // 4) or (
        isinstance(value, int) and value.bit_length() > 2000
    ):
        raise ValueError(f"{where} is too large for a single {type(value).__name__}: put it into a tensor")
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise ValueError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, text and containers")


def _operations(value: Any) -> int:
    """An upper bound of the pickle operations that describe a plain value."""
    if isinstance(value, torch.Tensor):
        return 60
    if isinstance(value, dict):
        return 4 + sum(2 + _operations(v) for v in value.values())
    return 4 + sum(map(_operations, value)) if isinstance(value, list | tuple) else 2


def _compact(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """Plain contiguous CPU tensor whose storage is no larger than itself: PyTorch saves whole storages."""
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values() or tensor.is_meta:
        raise ValueError(f"{where} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: not supported")
    plain = tensor.detach().as_subclass(torch.Tensor).cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(v, device) for key, v in value.items()}
    return type(value)(_moved(v, device) for v in value) if isinstance(value, list | tuple) else value


def _json(info: dict[str, Any]) -> str:
    try:
        text = json.dumps(info)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the description of a checkpoint must be JSON: {error}") from error
    if len(text) > MAX_TEXT:
        raise ValueError(f"the description of a checkpoint has {len(text)} characters, more than {MAX_TEXT}")
    return text


def _info(text: str) -> dict[str, Any]:
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise ValueError("its description is damaged: it is not a JSON object")
    check_tree(info)
    return info


def _libraries() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


# The same tensors and description as .safetensors.


def save_safetensors(path: str | Path, info: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Write named tensors and `info` as a .safetensors file, atomically; returns the SHA-256 of the tensors."""
    from safetensors.torch import save as to_bytes

    plain = {name: _compact(tensor, name) for name, tensor in tensors.items()}
    addresses: set[int] = set()
    for name, tensor in plain.items():  # tied weights: the format has no aliases
        if tensor.numel() and tensor.data_ptr() in addresses:
            plain[name] = tensor.clone()
        addresses.add(tensor.data_ptr())
    header = {"version": VERSION, "info": info, "libraries": _libraries(), "sha256": tensor_hash(plain)}
    data = to_bytes(plain, metadata={"format": "pt", FORMAT: _json(header)})
    with atomic_write(path) as file:
        file.write(data)
    return header["sha256"]


def is_safetensors(view: memoryview) -> bool:
    """Whether a file begins with a header length below 4 GiB and a JSON object."""
    return bytes(view[4:9]) == b"\0\0\0\0{"


def load_safetensors(path: str | Path) -> Contents:
    """Read a .safetensors file; `info` is empty when it is not one of ours. ValueError as `load`."""
    from safetensors import SafetensorError, safe_open

    view = map_file(path)
    with naming(path):
        length = struct.unpack_from("<Q", view)[0] if len(view) >= 8 else 0
        if not 2 <= length <= min(len(view) - 8, MAX_HEADER):
            raise ValueError("it is not a .safetensors file, or its beginning is damaged")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (SafetensorError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"it is not a valid .safetensors file ({shown(str(error))})") from None
        if FORMAT not in metadata:
            return Contents({}, tensors, sha256=tensor_hash(tensors))
        header = _info(metadata[FORMAT])
        if type(header.get("version")) is not int or header["version"] > VERSION:
            raise ValueError(f"it has format version {shown(header.get('version'))}: use a newer release of Fewstep")
        info, libraries, sha256 = (header.get(key) for key in ("info", "libraries", "sha256"))
        if type(info) is not dict or type(libraries) is not dict or type(sha256) is not str:
            raise ValueError("its description is damaged")
        return Contents(info, _as_saved(path, tensors, sha256), "snapshot", libraries, sha256)


def _as_saved(path: str | Path, tensors: dict[str, torch.Tensor], sha256: str) -> dict[str, torch.Tensor]:
    """The tensors that have this hash: those given, by other names perhaps; unproven only where all were re-cast.

    Other programs keep the description of a .safetensors file when they rename or convert its tensors.
    """
    if tensor_hash(tensors) == sha256:
        return tensors
    plain = unwrapped(path, tensors)
    if plain is not tensors and tensor_hash(plain) == sha256:
        return plain
    kinds = {t.dtype for t in plain.values() if t.is_floating_point()}
    if len(kinds) == 1 and torch.float32 not in kinds:
        kind = str(kinds.pop()).removeprefix("torch.")
        warnings.warn(f"{path}: another program converted its tensors to {kind}; no hash can prove them", stacklevel=4)
        return plain
    raise ValueError("its tensors do not have the SHA-256 written beside them: the file is damaged")


def unwrapped(path: str | Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without `module.` or `_orig_mod.` in front of every name, which wrappers of networks leave; said."""
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            warnings.warn(f"{path}: all names begin with '{prefix}', which is left out", stacklevel=3)
            return unwrapped(path, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


if __name__ == "__main__":  # `python -m torch_utils.checkpoint show FILE` is `python -m networks.describe FILE`
    sys.argv[1:2] = [] if sys.argv[1:2] == ["show"] else sys.argv[1:2]
    runpy.run_module("networks.describe", run_name="__main__")
