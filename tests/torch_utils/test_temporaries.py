"""What a dead process leaves half-written vanishes with the next write; what a living one writes stays."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from torch_utils import temporaries
from torch_utils.files import atomic_write
from torch_utils.temporaries import temporary_beside

ROOT = os.path.dirname(os.path.dirname(temporaries.__file__))
WRITER = """
import sys, time
from pathlib import Path
from torch_utils.temporaries import temporary_beside
with temporary_beside(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as path:
    if path.is_dir():
        (path / "part").write_bytes(b"half")
    print(path, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(request, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "data", request.param],
        env=os.environ | {"PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.path = process.stdout.readline().strip()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("writer", ["file", "folder"], indirect=True)
def test_only_what_the_dead_left_is_removed(writer, tmp_path):
    with atomic_write(tmp_path / "data.json") as file:
        file.write(b"{}")
    assert os.path.exists(writer.path), "its process lives"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert os.path.exists(writer.path)
    time.sleep(0.05)  # a folder is not searched again at once
    with atomic_write(tmp_path / "data.json") as file:
        file.write(b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]


def test_temporaries_of_other_machines_stay(tmp_path):
    node, boot = temporaries._host()
    hosts = {node + boot: True, node + "0" * 6: True, "0" * 6 + boot: True, "0" * 12: False}
    names = {f".data.{host}.0123456789ab.tmp": ours for host, ours in hosts.items()}
    others = [".data.0123456789ab.tmp", "data.tmp", f"data.{node}{boot}.0123456789ab.tmp"]
    for name in [*names, *others]:
        (tmp_path / name).touch()
    temporaries.remove_abandoned(tmp_path)
    stays = [name for name, ours in names.items() if not ours] + others
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(stays)


def test_a_living_temporary_of_this_process_stays(tmp_path):
    with temporary_beside(tmp_path / "a") as path:
        temporaries._enough.clear()
        temporaries.remove_abandoned(tmp_path)
        assert path.exists()
        path.rename(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_large_folder_is_not_searched_at_every_write(tmp_path, monkeypatch):
    searched = []
    scandir = os.scandir

    def slow(folder):
        searched.append(folder)
        time.sleep(0.05)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", slow)
    for i in range(20):
        with atomic_write(tmp_path / str(i)):
            pass
    assert len(searched) < 10


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_just_being_made_is_never_lost(folder, tmp_path):
    """Many threads write and look for the abandoned at once, with nothing to slow them down."""

    def write(i):
        for k in range(40):
            temporaries._enough.clear()
            with temporary_beside(tmp_path / f"{i}-{k}", folder=folder) as path:
                (path / "part" if folder else path).write_bytes(b"whole")
                path.rename(tmp_path / f"{i}-{k}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(list(tmp_path.iterdir())) == 8 * 40
