"""Atomic writes and retention."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from torch_utils import files
from torch_utils.files import atomic_write, retain, write_json


def test_atomic_write_replaces_or_leaves(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with suppress(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.json"]


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "x.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


def test_killed_while_writing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    program = (
        "from torch_utils.files import atomic_write; import os\n"
        "with atomic_write('file') as f: f.write(b'new'); f.flush(); os._exit(9)"
    )
    root = os.path.dirname(os.path.dirname(files.__file__))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 9
    assert (tmp_path / "file").read_bytes() == b"old"
    (tmp_path / "network-snapshot-000001.pkl").touch()
    assert files.numbered(tmp_path, "network-snapshot-*.pkl") == [tmp_path / "network-snapshot-000001.pkl"]


def test_retain_keeps_the_newest(tmp_path):
    for n in (999_999, 1_000_000, 5, 70, 3):
        (tmp_path / f"state-{n:06d}.pt").touch()
    (tmp_path / "other-000001.pt").touch()
    gone = retain(tmp_path, "state-*.pt", 2)
    assert sorted(p.name for p in gone) == ["state-000003.pt", "state-000005.pt", "state-000070.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "other-000001.pt", "state-1000000.pt", "state-999999.pt",
    ]  # fmt: skip
    assert retain(tmp_path, "state-*.pt", 7) == []
    with pytest.raises(ValueError, match="at least one"):
        retain(tmp_path, "state-*.pt", 0)
