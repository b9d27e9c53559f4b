"""A command that a signal ends cleans up and says so by its exit status."""

import os
import signal
import subprocess
import sys

import pytest

from torch_utils import signals

ROOT = os.path.dirname(os.path.dirname(signals.__file__))
COMMAND = """
import signal, sys, time, click
from torch_utils.cli import Command
from torch_utils.files import atomic_write
signal.signal(signal.SIGINT, signal.default_int_handler)
@click.command(cls=Command)
def main():
    try:
        with atomic_write("result") as file:
            print("writing", flush=True)
            time.sleep(30)
    finally:
        print("cleaning", flush=True)
        sys.stdin.readline()
        time.sleep(0.01)
        print("clean", flush=True)
main()
"""


def start(folder, **options):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=folder, env=os.environ | {"PYTHONPATH": ROOT}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_cleans_up_and_exits_with_the_signal(tmp_path, name, status):
    process = start(tmp_path)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)  # torchrun and batch systems send more than one
    out, err = process.communicate("go\n", timeout=30)
    assert (process.returncode, out) == (status, "clean\n")
    assert err == ("Stopped by Ctrl-C\n" if name == "SIGINT" else f"Stopped by {name}\n")
    assert list(tmp_path.iterdir()) == []


def test_nohup_stays_nohup(tmp_path):
    process = start(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate("go\n", timeout=30)
    assert process.returncode == 143


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.ending_as_exit():
        assert signal.getsignal(signal.SIGTERM) is not before
        with pytest.raises(signals.SignalExit) as end:
            signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


LOSING = """
import signal, sys, time, click
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from torch_utils import process
process.begin()
from torch_utils.cli import Command
def wait():
    try:  # as C++ code does that clears what an import raises
        print("importing", flush=True)
        sys.stdin.readline()
    except BaseException:
        print("lost", flush=True)
        sys.stdin.readline()
@click.command(cls=Command)
def main():
    IMPORTS
main()
"""


def start_losing(how):
    return subprocess.Popen(
        [sys.executable, "-c", LOSING.replace("IMPORTS", how)], env=os.environ | {"PYTHONPATH": ROOT}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_imports_cannot_lose_a_signal(name, status):
    process = start_losing("with process.late_imports(): wait()")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(getattr(signal, name))
    out, err = process.communicate("go\ngo\n", timeout=30)
    assert (process.returncode, out) == (status, "")
    assert err == ("Stopped by Ctrl-C\n" if name == "SIGINT" else f"Stopped by {name}\n")


def test_a_second_signal_ends_what_lost_the_first():
    process = start_losing("wait(); wait()")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "lost\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate("go\ngo\n", timeout=30)[0] == "lost\n"
