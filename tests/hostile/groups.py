"""GROUPS: the 28 kinds of attack, by number: what they are, and shapes of each.

A shape is a pickle stream, or `Raw` bytes that are no stream: a zip, a .safetensors file, YAML, something cut off.
Files of one group differ by container, see `tests/scripts/test_hostile_table.py`.
"""

import json
import pickle

import numpy as np

from hostile.assemble import CODE, COMMAND, call, items, legacy, module_state, p2, persistent, storage_id, tensor, text
from hostile.containers import ARCHIVES, OTHERS, SAFETENSORS, ZIPS
from hostile.pickles import BODIES, TENSORS, networks


class Raw(bytes):
    """Content of a file as it is."""


def bodies(names):
    return [BODIES[name][0] for name in names.split(", ")]


def zips(names):
    return [Raw(ZIPS[name][0]) for name in names.split(", ")]


NETWORKS = networks()
PAYLOAD = p2(call("os system", text(COMMAND)))
GOOD = pickle.dumps({"a": np.arange(3).tolist()}, 2)
YAMLS = {
    "object": b"!!python/object/apply:os.system ['touch hostile-was-here']\n",
    "new": b"model: !!python/object/new:os.system [touch hostile-was-here]\n",
    "name": b"model: !!python/name:os.system\n",
    "alias bomb": b"a: &a [1,1]\n" + b"".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 40}]\n".encode() for i in range(9)
    ),
    "target": json.dumps({"model": {"target": "os.system", "params": {"command": COMMAND}}}).encode(),
    "deep": b"[" * 100_000,
    "not UTF-8": b"model: \xff\xfe",
}  # fmt: skip

LEGACY_TENSORS = [
    Raw(legacy(p2(tensor(storage_id(4, view=b"N"), **how)), ["0"], b"\4" + b"\0" * 23)) for how, _ in TENSORS.values()
]

# number -> (what it is, shapes); the first of each is tried in every run of the tests
GROUPS = {
    1: ("GLOBAL posix system and REDUCE", bodies("posix system")),
    2: ("os.system by STACK_GLOBAL, nt system", bodies("protocol 4 os system, nt system, os system")),
    3: ("subprocess", bodies("subprocess Popen, subprocess check_output")),
    4: (
        "eval, exec, compile, import, open",
        bodies("builtins eval, builtins open, builtins exec, builtins compile, builtins __import__, __builtin__ eval"),
    ),
    5: ("a chain of getattr", bodies("builtins getattr")),
    6: (
        "a name with dots in an allowed module",
        bodies("torch.serialization os.system, protocol 4 torch.serialization os.system"),
    ),
    7: (
        "importlib, runpy, pip, code",
        bodies("importlib import_module, runpy _run_code, runpy run_path, pip main, "
               "code InteractiveInterpreter.runcode"),
    ),
    8: (
        "operator, functools, itertools",
        bodies("operator attrgetter, functools partial, operator methodcaller, functools reduce, itertools starmap, "
               "builtins map"),
    ),
    9: (
        "PyTorch's own loaders",
        bodies("torch load, storage with os.system inside, torch.hub load, torch.jit load, "
               "storage with os.system as object"),
    ),
    10: ("numpy's", bodies("numpy load, numpy.f2py.capi_maps eval")),
    11: (
        "pickles in a pickle",
        bodies("pickle loads, dill code, _pickle Unpickler, dill loads, cloudpickle loads, joblib load"),
    ),
    12: ("INST", bodies("INST")),
    13: ("OBJ", bodies("OBJ os.system, OBJ")),
    14: ("NEWOBJ of a real class", bodies("NEWOBJ real class, NEWOBJ_EX")),
    15: ("EXT codes", bodies("EXT1, EXT4, EXT2")),
    16: (
        "BUILD on what is no object",
        bodies("BUILD on a function, BUILD slot state on an object, BUILD slot state on a function, BUILD on a class"),
    ),
    17: ("memo", bodies("payload by memo, GET of an unset index")),
    18: ("a payload behind the end", [Raw(GOOD + PAYLOAD), *zips("payload after STOP"), Raw(GOOD + GOOD)]),
    19: (
        "persistent ids",
        [*bodies("PERSID"), p2(text("os.system") + b"Q"), p2(b"(" + text("module") + text("x") + text(CODE) + b"tQ")],
    ),
    20: (
        "persistent objects with source text",
        [p2(items(ema=persistent(module_src=text(CODE), state=module_state()))), *bodies("record function")],
    ),
    21: (
        "records that are not well-formed",
        [
            NETWORKS["deep modules"], *bodies("deep tuples, cyclic dict, record version 7, record without state"),
            *(NETWORKS[n] for n in ("module name 1 MB", "dunder class", "parameter name path")),
        ],
    ),
    22: (
        "lengths that lie",
        bodies("text length inside limits, BINBYTES8, text length, LONG4, FRAME"),
    ),
    23: ("billion laughs", bodies("billion laughs, wide repetition, million laughs")),
    24: (
        "zips",
        [
            Raw(ARCHIVES["up"][0]),
            *zips("bomb, duplicate data.pkl"),
            *zips("parent path, absolute path, link, encrypted, local name differs, nested zip, TorchScript code"),
            *(Raw(ARCHIVES[n][0]) for n in ("absolute", "link", "encrypted", "twice", "an archive again")),
            Raw(ZIPS["200,000 members"][0]), Raw(ARCHIVES["declares too much"][0]),
        ],
    ),
    25: (
        "tensors",
        [
            *zips("zip tensor stride 0"), *bodies("tensor product overflow"), *LEGACY_TENSORS,
            *(Raw(ZIPS[f"zip {name}"][0]) for name in TENSORS), *bodies(", ".join(TENSORS)),
            *bodies(", ".join(f"torch._utils _rebuild_{n}" for n in (
                "sparse_tensor", "qtensor", "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass",
            ))),
        ],
    ),
    26: (".safetensors", [Raw(content) for content in SAFETENSORS.values()]),
    27: ("YAML", [*map(Raw, YAMLS.values()), Raw(OTHERS["yaml"])]),
}  # fmt: skip
