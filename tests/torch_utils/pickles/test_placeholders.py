"""`describe` of files of other programs: tensors are listed, everything else is an empty placeholder, nothing runs."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid

import hostile
import numpy as np
import pytest
import torch
from hostile.containers import torch_zip

from networks.describe import describe

NET = torch.nn.Linear(2, 3).state_dict()


class Colour(enum.Enum):
    RED = 1


class Config(argparse.Namespace):
    pass


class Special(dict):
    pass


FOREIGN = {
    "namespace": argparse.Namespace(lr=1e-4, sizes=[1, 2]),
    "class of the program": Config(depth=3),
    "subclass of a dict": Special(a=1),
    "enum": Colour.RED,
    "path": pathlib.PurePosixPath("/data/x"),
    "windows path": pathlib.PureWindowsPath("C:/x"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "simple namespace": types.SimpleNamespace(a=1),
    "defaultdict": collections.defaultdict(dict, a={}),
    "counter": collections.Counter("abc"),
    "deque": collections.deque([1, 2], maxlen=3),
    "complex": 1 + 2j,
    "slice": slice(1, 2),
    "bytearray": bytearray(b"abc"),
    "range": range(3),
    "frozenset": frozenset({1}),
    "numpy array": np.zeros((2, 3)),
    "numpy text": np.array(["a", "bc"]),
    "numpy records": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "numpy objects": np.array([None, {}], dtype=object),
    "numpy scalar": np.float16(1),
    "numpy type": np.float32,
    "numpy random state": np.random.get_state(),
    "numpy generator": np.random.default_rng(0),
    "torch size": torch.Size([1, 2]),
    "torch device": torch.device("cuda:1"),
    "torch type": torch.bfloat16,
    "torch generator state": torch.get_rng_state(),
    "optimizer": torch.optim.Adam(torch.nn.Linear(2, 2).parameters()),
    "module": torch.nn.Linear(2, 2),
    "sparse tensor": torch.eye(3).to_sparse(),
    "complex tensor": torch.zeros(2, dtype=torch.complex64),
    "parameter": torch.nn.Parameter(torch.zeros(2)),
    **{f"float8 {name}": torch.zeros(4).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")},
    **{f"integers {name}": torch.zeros(4, dtype=getattr(torch, name)) for name in ("uint16", "uint32", "uint64")},
}
LAYOUTS = {"zip": True, "legacy": False}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FOREIGN)
def test_tensors_of_foreign_files_are_listed(tmp_path, name, layout):
    content = {"ema": NET, "other": FOREIGN[name], "after": [torch.ones(5)]}
    if name == "module" and layout == "legacy":
        pytest.skip("holds the module's source as text beside it, which is refused")
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=LAYOUTS[layout])
    with hostile.watched(), hostile.bounded(2.0):
        page = describe(tmp_path / "x.pt")
    for row in ("ema.weight", "[3, 2]", "ema.bias", "after.0", "[5]"):
        assert row in page
    if isinstance(FOREIGN[name], torch.Tensor) and not FOREIGN[name].is_sparse:
        row = next(line.split() for line in page.splitlines() if line.startswith("other "))
        assert row[1:] == [str(FOREIGN[name].dtype).removeprefix("torch."), str(list(FOREIGN[name].shape))]


def test_float8_has_its_values(tmp_path):
    from torch_utils.pickles.foreign import Words, read_foreign

    x = torch.tensor([1.0, -0.5, 448.0, 0.0]).to(torch.float8_e4m3fn)
    torch.save({"x": x[1:], "y": x}, tmp_path / "x.pt")
    value = read_foreign(tmp_path / "x.pt", Words()).value
    assert torch.equal(value["y"].float(), x.float())
    assert torch.equal(value["x"].float(), x[1:].float())


# Calls that no checkpoint makes, whatever the file says around them.
NEVER = [
    "os system", "posix system", "subprocess Popen", "builtins eval", "builtins getattr", "importlib import_module",
    "runpy run_path", "pip main", "operator attrgetter", "functools partial", "shutil rmtree", "pickle loads",
    "dill loads", "torch load", "torch.hub load", "torch.serialization load", "numpy load", "ctypes CDLL",
    "socket create_connection", "webbrowser open", "sys exit", "builtins __import__", "codecs decode", "types CodeType",
    "pathlib os.system", "collections abc.sys", "torch.utils.cpp_extension load", "numpy.f2py compile",
]  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_what_no_checkpoint_asks_for_is_refused_by_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, attribute = name.split()
    stream = f"\x80\x02c{module}\n{attribute}\n".encode("latin1") + b"X\x0c\x00\x00\x00touch harmed\x85R."
    for number, data in enumerate((stream, torch_zip(stream))):
        (tmp_path / f"{number}.pt").write_bytes(data)
        with hostile.watched(), pytest.raises(ValueError, match="asks for") as caught:
            describe(tmp_path / f"{number}.pt")
        assert f"{module}.{attribute}" in str(caught.value)
    assert not (tmp_path / "harmed").exists()


def test_no_module_is_imported(tmp_path):
    stream = b"\x80\x02cantigravity_of_somebody\nFly\n)R."
    (tmp_path / "x.pkl").write_bytes(stream)
    with pytest.raises(ValueError, match="asks for"):
        describe(tmp_path / "x.pkl")
    assert "antigravity_of_somebody" not in sys.modules
