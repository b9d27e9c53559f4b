"""Command lines run by two processes as torchrun starts them; see tests/scripts/test_one_voice.py.

    python two_processes.py [[SCRIPT, ARGUMENT, ...], ...]

torch is imported once and every process is a fork. Prints one JSON list per command line: for each process its exit
status, and what both wrote to stderr.
"""

import importlib
import json
import os
import pathlib
import socket
import sys
import tempfile
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

LIMIT = 60  # seconds until a process counts as hanging


def start(script, arguments, rank, port, output):
    pid = os.fork()
    if pid:
        return pid
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    sys.argv = [script, *arguments]
    try:
        importlib.import_module(script).main()
    except SystemExit as end:
        os._exit(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def wait(pid):
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


def main():
    torch.set_num_threads(1)
    for script in ("train", "generate", "fid", "analyze"):
        importlib.import_module(script)
    for script, *arguments in json.loads(sys.argv[1]):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        agent = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # torchrun's own
        with tempfile.TemporaryFile() as output:
            pids = [start(script, arguments, rank, port, output.fileno()) for rank in range(2)]
            statuses = [wait(pid) for pid in pids]
            output.seek(0)
            print(json.dumps([statuses, output.read().decode()]), flush=True)
        del agent


main()
