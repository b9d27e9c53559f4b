"""Settings of the process: made by command lines before torch is imported, never by importing a library."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from torch_utils import process

ROOT = Path(__file__).parents[2]
SETTINGS = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def environment_after(code, **given):
    """What `code` leaves of the settings in a fresh process."""
    env = {k: v for k, v in os.environ.items() if k not in (*SETTINGS, "FEWSTEP_TUNE", "LOCAL_WORLD_SIZE")} | given
    script = f"{code}\nimport os, json; print(json.dumps({{k: os.environ.get(k) for k in {SETTINGS}}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    return json.loads(done.stdout)


TUNE = "from torch_utils import process; process.tune()"


def test_tune_bounds_waiting_and_counts_real_cores():
    found = environment_after(TUNE)
    assert found == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(process.cores()), "OMP_WAIT_POLICY": None}


@pytest.mark.parametrize(
    "given",
    [
        {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"},
        {"OMP_NUM_THREADS": "7", "GOMP_SPINCOUNT": "5"},
    ],
)
def test_what_the_user_set_stays(given):
    assert environment_after(TUNE, **given) == dict.fromkeys(SETTINGS) | given


def test_switched_off():
    assert environment_after(TUNE, FEWSTEP_TUNE="0") == dict.fromkeys(SETTINGS)


@pytest.mark.parametrize(("given", "paused"), [({}, True), ({"FEWSTEP_TUNE": "0"}, False)])
def test_garbage_is_collected_again_when_a_command_runs(given, paused):
    code = """
import gc, click
from torch_utils import process
process.begin(); before = gc.isenabled()
from torch_utils.cli import Command
@click.command(cls=Command)
def main():
    with process.late_imports(): while_importing = gc.isenabled()
    print(before, while_importing, gc.isenabled(), gc.get_freeze_count() > 0)
main()
"""
    env = {k: v for k, v in os.environ.items() if k != "FEWSTEP_TUNE"} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert done.stdout.split() == [str(not paused), str(not paused), "True", str(paused)]


def test_processes_of_one_machine_share_its_cores():
    assert environment_after(TUNE, LOCAL_WORLD_SIZE="1000")["OMP_NUM_THREADS"] == "1"


def test_importing_a_library_or_a_script_changes_nothing():
    assert environment_after("import samplers, networks, training.launch, generate") == dict.fromkeys(SETTINGS)


@pytest.mark.parametrize("script", ["analyze", "dataset_tool", "fid", "generate", "train", "train_trajectory"])
def test_every_command_line_tunes_before_torch(script):
    code = f"import sys, runpy; sys.argv = ['{script}.py', '--help']\n"
    code += "import torch_utils.process as p; seen = []; p.tune = lambda: seen.append('torch' in sys.modules)\n"
    code += f"try: runpy.run_path('{script}.py', run_name='__main__')\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(seen)"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[False]"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_stays():
    code = """
import resource, sys
from torch_utils import process
if int(sys.argv[1]): process.tune()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch(): bytearray(64 << 20)
touch(); before = faults(); touch(); print(faults() - before)
"""
    left, tuned = (
        int(subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, cwd=ROOT).stdout)
        for flag in "01"
    )
    assert tuned < 100 < 10_000 < left  # 64 MiB are 16,384 pages


@pytest.mark.parametrize(
    ("text", "cpus"), [("150000 100000", 2), ("max 100000", sys.maxsize), ("50000 100000", 1), ("junk", sys.maxsize)]
)
def test_quota_of_a_container(tmp_path, text, cpus):
    (tmp_path / "cpu.max").write_text(text)
    assert process._quota(tmp_path) == cpus


def test_quota_of_older_control_groups(tmp_path):
    assert process._quota(tmp_path) == sys.maxsize
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert process._quota(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert process._quota(tmp_path) == sys.maxsize


@pytest.mark.skipif(os.name != "posix", reason="the shell of others closes no stream")
def test_closed_streams_are_nobodys(tmp_path):
    code = "from torch_utils import process; process.begin(); import sys, os; n = os.open('x', os.O_CREAT); "
    code += "sys.stderr.write('y'); sys.exit(n)"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 3
    assert (tmp_path / "x").read_bytes() == b""
