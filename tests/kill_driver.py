"""Runs train.py many times from one process and kills it at chosen events; see tests/scripts/test_kill.py.

    python kill_driver.py PLAN.json

PLAN: {"command": [...], "world": n, "runs": [{"signal": "KILL", "event": k, "rank": r}, {}, ...]}; `{}` runs to the
end, and "world" of a run overrides that of the plan. With "step": s the signal comes when the s-th step of this process
begins, unless event k comes first. torch is imported once and every process of a run is a fork, so that dozens of
kills cost seconds. An event is a step, the middle of one, a half-written file, or a call that makes a
file durable, visible or gone, counted per process. FULL is no signal: from that event on, the disk is full. Prints one
JSON list per run: for each process its exit status (negative: killed by that signal) and its events.
"""

import errno
import io
import itertools
import json
import os
import pathlib
import signal
import socket
import sys
import time
import traceback

import click
import torch
import torch._dynamo  # optimisers import it on first use: seconds that every fork would spend again

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from PIL import Image

import train
import training.launch
import training.loop.loop
import training.methods.curvature
import training.methods.edm
from torch_utils import checkpoint
from torch_utils.profile import Cost


def arm(action, report):
    """Count events of this process, each written to the file `report`, and send the signal at the chosen one."""
    counter, steps = itertools.count(1), itertools.count(1)

    def event(name):
        nonlocal action
        number, step = next(counter), next(steps) if name == "step" else 0
        os.write(report, f"{name}\n".encode())
        if action and action["signal"] == "FULL":
            if number >= action["event"] and name in ("half", "fsync", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif action and (number == action["event"] or step == action.get("step")):
            name, action = action["signal"], None
            os.kill(os.getpid(), getattr(signal, "SIG" + name))

    def before(module, name):
        original = getattr(module, name)

        def patched(*args, **kwargs):
            event(name)
            return original(*args, **kwargs)

        setattr(module, name, patched)

    for name in ("replace", "fsync", "unlink", "mkdir"):
        before(os, name)
    before(training.loop.loop.Loop, "step")
    before(training.loop.loop.Loop, "_update")
    before(training.loop.loop.Loop, "load_state_dict")
    save = torch.save

    def save_in_halves(value, file, **pickling):
        if pickling:  # a tensor on its way to another process, not a checkpoint
            return save(value, file, **pickling)
        buffer = io.BytesIO()
        save(value, buffer)
        data = buffer.getvalue()
        file.write(data[: len(data) // 2])
        file.flush()
        event("half")
        file.write(data[len(data) // 2 :])

    checkpoint.torch.save = save_in_halves
    # The slowest parts of so small a run: of the picture only its file matters here, and the count of FLOPs not at all.
    training.methods.edm.sample_grid = lambda net: torch.zeros(net.img_channels, 8, 8, dtype=torch.uint8)
    training.methods.edm._training_cost = lambda net: Cost(0, 0)
    training.methods.curvature._training_cost = lambda net, encoder: Cost(0, 0)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command, world, rank, port, action):
    """Fork one process of a run; its process id and the reading end of its list of events."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        if world > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            os.dup2(quiet, 2)  # the survivor of a kill complains about the lost connection
        arm(action if action.get("rank") == rank else None, write)
        train.main(command, standalone_mode=False)
        code = 0
    except click.ClickException as error:
        error.show()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def drain(descriptor):
    with os.fdopen(descriptor) as file:
        return file.read().split()


def wait_all(processes):
    """Exit statuses; once one process has failed, the others get what torchrun gives them: SIGTERM, then SIGKILL."""
    statuses = [None] * len(processes)
    failed_at = None
    while None in statuses:
        for rank, (pid, _) in enumerate(processes):
            if statuses[rank] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
                    if statuses[rank] != 0 and statuses[rank] < 128 and failed_at is None:
                        failed_at = time.monotonic()
                elif failed_at is not None and time.monotonic() > failed_at + 1:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return statuses


def main():
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    Image.init()
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for action in plan["runs"]:
        port = free_port()
        world = action.get("world", plan["world"])
        processes = [start(plan["command"], world, rank, port, action) for rank in range(world)]
        statuses = wait_all(processes)
        print(json.dumps([[s, drain(read)] for s, (_, read) in zip(statuses, processes, strict=True)]), flush=True)


main()
