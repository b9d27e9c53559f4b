"""torchrun as a user gives it: two nodes that meet by rendezvous, and workers that die and are started again."""

import json
import os
import socket
import subprocess
import sys

import pytest
from exact_runs import OPTIONS, TESTS, assert_same, drive, make_data, only_run, outcome
from patience import HUNG


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    """What two processes give that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    drive(folder, data, folder / "runs", 1, [{}], world=2)
    return outcome(folder / "runs")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(*arguments):
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(processes):
    outputs = [p.communicate(timeout=HUNG)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), "\n".join(outputs)[-4000:]
    return outputs


def arguments(data, outdir):
    return [f"--outdir={outdir}", f"--data={data}", "--duration=0.001", *OPTIONS.split()]


def test_two_nodes_one_of_which_loses_its_worker(tmp_path, data, straight):
    """Two agents on loopback; rank 1 is killed in the middle of a step, and both start again without help."""
    endpoint = f"127.0.0.1:{free_port()}"
    outputs = finish(
        [
            torchrun(
                "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=test",
                f"--rdzv-endpoint={endpoint}", f"--local-addr=127.0.0.{node}",
                TESTS / "killed_once.py", 1, 9, *arguments(data, tmp_path / "runs"),
            )
            for node in (1, 2)
        ]
    )  # fmt: skip
    assert any("Continuing from" in text for text in outputs)
    assert_same(outcome(tmp_path / "runs"), straight)
    stats = [json.loads(line) for line in (only_run(tmp_path / "runs") / "stats.jsonl").read_text().splitlines()]
    for s in stats:
        assert 0 <= s["Timing/allreduce_share"]["mean"] < 1
        slow, fast = (s[f"Timing/rank_img_per_sec_{end}"]["mean"] for end in ("min", "max"))
        assert 0 < slow <= fast
    assert any("allreduce" in text and "img/s per process" in text for text in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_node_that_loses_a_worker(tmp_path, data, straight, rank):
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    finish([torchrun(*options, TESTS / "killed_once.py", rank, 20, *arguments(data, tmp_path / "runs"))])
    assert_same(outcome(tmp_path / "runs"), straight)


@pytest.mark.slow
def test_a_worker_that_dies_after_the_end(tmp_path, data):
    """torchrun starts all again; they find the run finished, and begin no other."""
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    (text,) = finish([torchrun(*options, TESTS / "killed_once.py", 0, "end", *arguments(data, tmp_path / "runs"))])
    assert text.count("nothing is left to do") == 1
    assert json.loads((only_run(tmp_path / "runs") / "training_options.json").read_text())["finished"]


def test_a_mistake_is_told_once(tmp_path, data):
    """Rank 0 says what is wrong with the run directory; the other process leaves without a word."""
    resume = f"--resume={tmp_path / 'nothing'}"
    options = ["--standalone", "--nproc-per-node=2"]
    process = torchrun(*options, TESTS.parent / "train.py", *arguments(data, tmp_path / "runs"), resume)
    text = process.communicate(timeout=HUNG)[0]
    assert process.returncode != 0
    assert text.count("no such file or directory") == 1
    assert 'training/runs/placement.py", line' not in text
