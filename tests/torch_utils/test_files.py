"""Atomic writes and retention."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from torch_utils import files
from torch_utils.files import atomic_write, check_target, retain, write_json


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_no_file_in_the_place_of_a_device(tmp_path):
    """As root, a rename would put a file where /dev/null is, for every program."""
    pipe, standard, link = tmp_path / "pipe", tmp_path / "stdout", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    standard.symlink_to("/proc/self/fd/1")  # as /dev/stdout is, whatever it is open on
    for path in (pipe, link, standard):
        before = os.lstat(path)
        for write in (lambda path=path: write_json(path, 1), lambda path=path: check_target(path)):
            with pytest.raises(ValueError, match="is a device or a pipe"):
                write()
        assert os.path.samestat(before, os.lstat(path))
    assert len(list(tmp_path.iterdir())) == 3


def test_targets_are_refused_before_the_work(tmp_path):
    (tmp_path / "net.pkl").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("net.pkl")
    for target in ("net.pkl", "link", "../" + tmp_path.name + "/net.pkl"):
        with pytest.raises(ValueError, match="is read, and would be replaced"):
            check_target(tmp_path / target, "https://a", None, "\0", 3, str(tmp_path / "net.pkl"))
    with pytest.raises(ValueError, match="is a folder"):
        check_target(tmp_path)
    check_target(tmp_path / "net.pkl", str(tmp_path), "other.pkl")
    check_target(tmp_path / "missing" / "x.json", "")


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
