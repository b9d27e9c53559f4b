"""A page of text about a checkpoint file of any supported format: kind, description, tensors, SHA-256.

Reads through the restricted readers only, and prints text of the file in ASCII: a terminal obeys control characters.

    python -m networks.describe FILE
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from networks.published.diffusers import PREFIX, read_index
from networks.published.edm import EDM
from networks.published.families import summary
from torch_utils.checkpoint import FORMAT, from_value, is_safetensors, load_safetensors, named, tensor_hash
from torch_utils.cli import Command
from torch_utils.files import map_file
from torch_utils.pickles.archives import is_distribution, opened
from torch_utils.pickles.foreign import Foreign, module_classes, named_tensors, naming, read_foreign
from torch_utils.pickles.machine import Record, shown
from torch_utils.pickles.placeholders import ANYTHING

_HIDDEN = ("_init_args", "_init_kwargs")


def describe(path: str | Path, *, tensors: bool = True) -> str:
    """What the file holds, for a person.

    Raises:
        ValueError: not a readable checkpoint; one sentence that names the file.
    """
    if str(path).startswith(PREFIX):
        return _folder(Path(str(path).removeprefix(PREFIX)), tensors)
    view = map_file(path)
    size = len(view)
    if is_safetensors(view) or Path(path).suffix == ".safetensors":
        contents = load_safetensors(path)
        head = {"format": "safetensors", **_ours(contents.kind, contents.info, contents.libraries)}
        head |= {} if contents.info else summary(contents.payload)
        table, sha256 = contents.payload, contents.sha256
    else:
        foreign = _read(path)
        value = foreign.value
        with naming(path):
            if isinstance(value, dict) and value.get("format") == FORMAT:
                contents = from_value(value)
                head = {
                    "format": f"Fewstep {contents.kind}, version {value['version']}",
                    **_ours(contents.kind, contents.info, contents.libraries),
                    "payload": _outline(contents.payload),
                }
                table, sha256 = named(contents.payload), contents.sha256
            else:
                head = {**_foreign(foreign), **summary(value)}
                table = _foreign_tensors(value)
                sha256 = tensor_hash(table)
    parameters = sum(t.numel() for t in table.values())
    lines = [f"file: {ascii(str(path))[1:-1]} ({size:,} bytes)"]
    lines += [f"{key}: {_text(item)}" for key, item in head.items() if item not in ({}, None)]
    lines += [f"tensors: {len(table):,}", f"parameters: {parameters:,}", f"sha256: {sha256}"]
    return "\n".join(lines + (_table(table) if tensors else []))


def _folder(folder: Path, tensors: bool) -> str:
    """Parts of a folder of diffusers, and the tensors of its .safetensors files."""
    index = read_index(folder)
    parts = {k: v[1] for k, v in index.items() if isinstance(v, list) and len(v) == 2 and isinstance(v[1], str)}
    table: dict[str, torch.Tensor] = {}
    for name in parts:
        for file in sorted((folder / name).glob("*.safetensors")) if name.isidentifier() else ():
            table |= {f"{name}.{key}": value for key, value in load_safetensors(file).payload.items()}
    head = {"format": "folder of diffusers", **{shown(k): shown(v) for k, v in parts.items()}}
    lines = [f"folder: {ascii(str(folder))[1:-1]}", *(f"{key}: {_text(item)}" for key, item in head.items())]
    lines += [f"tensors: {len(table):,}", f"parameters: {sum(t.numel() for t in table.values()):,}"]
    return "\n".join(lines + (_table(table) if tensors else []))


def _read(path: str | Path) -> Foreign:
    """A pickle or archive; where it names what networks have no need of, that is left empty."""
    if is_distribution(path):
        with opened(path) as file:
            inner = read_foreign(file, ANYTHING)
        return replace(inner, container=f"{inner.container} inside a zip archive")
    try:
        return read_foreign(path, EDM)
    except ValueError as error:
        if not any(words in str(error) for words in ("asks for", "a numpy number")):
            raise
        foreign = read_foreign(path, ANYTHING)
        if _is_dict(foreign.value) and _foreign_tensors(foreign.value):
            return foreign
        raise  # no checkpoint of any program


def _ours(kind: str, info: dict[str, Any], libraries: dict[str, str]) -> dict[str, Any]:
    return {"kind": kind, "info": info, "libraries": libraries}


def _foreign(foreign: Foreign) -> dict[str, Any]:
    records = {k: v for k, v in foreign.value.items() if isinstance(v, Record)} if _is_dict(foreign.value) else {}
    networks = [r for r in records.values() if "_modules" in r.state]
    rest = {k: v for k, v in foreign.value.items() if k not in records} if _is_dict(foreign.value) else foreign.value
    return {
        "format": f"EDM-style {foreign.container}" if records else foreign.container,
        "kind": "network" if networks else "data",
        "info": {
            **{str(k): _record(r) for k, r in records.items()},
            **({str(k): _outline(v) for k, v in rest.items()} if _is_dict(rest) else {"value": _outline(rest)}),
        },
        "globals (none was called)": ", ".join(foreign.globals) or "none",
    }


def _record(record: Record) -> dict[str, Any]:
    """Class, constructor arguments and plain attributes; for a network also how many modules of which class it has."""
    state = record.state
    plain = {k: v for k, v in state.items() if isinstance(v, str | int | float) and k[:1] != "_"}
    classes = list(module_classes(record).values())
    counts = {name: classes.count(name) for name in sorted(set(classes))} if "_modules" in state else {}
    arguments = {k.strip("_"): _outline(state[k]) for k in _HIDDEN if state.get(k)}
    return {"class": record.class_name, **arguments, "attributes": plain} | ({"modules": counts} if counts else {})


def _foreign_tensors(value: Any) -> dict[str, torch.Tensor]:
    """Tensors by dotted name; the parts of a network are named as in its state dict."""
    if isinstance(value, Record):
        return named_tensors(value)
    if not _is_dict(value):
        return named(value)
    table: dict[str, torch.Tensor] = {}
    for key, part in value.items():
        inner = named_tensors(part) if isinstance(part, Record) else named(part)
        table |= {f"{key}.{name}" if name else str(key): tensor for name, tensor in inner.items()}
    return table


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _outline(value: Any, depth: int = 0) -> Any:
    """JSON-able summary: long or deep containers and tensors become a word."""
    if isinstance(value, torch.Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, Record):
        return f"object of class {shown(value.class_name)}"
    if isinstance(value, dict | list | tuple | set):
        if len(value) > 24 or depth > 2:
            return f"{type(value).__name__} of {len(value)}"
        if isinstance(value, dict):
            return {str(k): _outline(v, depth + 1) for k, v in value.items()}
        return [_outline(v, depth + 1) for v in value]
    if isinstance(value, str):
        return value[:400]
    return value if isinstance(value, int | float | None) else shown(value)


def _text(item: Any) -> str:
    return ascii(item)[1:-1] if isinstance(item, str) else json.dumps(item, indent=2)


def _table(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    rows = [(ascii(name)[1:-1], str(list(t.shape)), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]
    width = min(max((len(row[0]) for row in rows), default=0), 100)
    return ["", *(f"{name:<{width}}  {dtype:<8}  {shape}" for name, shape, dtype in rows)]


@click.command(cls=Command)
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--tensors/--no-tensors", default=True, show_default=True, help="Print the table of tensors.")
def main(file: str, tensors: bool) -> None:
    """Print what FILE holds: kind, description, tensors, number of parameters, SHA-256.

    FILE is a snapshot or state of this project, a .safetensors file, an EDM-style pickle, a file of torch.save, or
    diffusers:DIR.
    Nothing in it is executed.

    \b
    python -m networks.describe runs/00000/network-snapshot-001000.pkl
    """
    click.echo(describe(file, tensors=tensors))


if __name__ == "__main__":
    main()
