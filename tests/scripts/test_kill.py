"""Runs that are killed or told to stop anywhere and started again end with the bits of one that never was."""

import random
import signal

import pytest
import torch
from exact_runs import OPTIONS, assert_same, drive, joint_options, make_data, only_run, outcome

KILL = -signal.SIGKILL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "toy")


def kills(count, last_event, world=1, seed=0):
    rng = random.Random(seed)
    return [{"signal": "KILL", "event": rng.randint(1, last_event), "rank": rng.randrange(world)} for _ in range(count)]


def check_kills(tmp_path, data, kimg, actions, world=1, **method):
    drive(tmp_path, data, tmp_path / "straight", kimg, [{}], world, **method)
    results, _ = drive(tmp_path, data, tmp_path / "killed", kimg, [*actions, {}], world, **method)
    for action, processes in zip(actions, results, strict=False):
        assert processes[action["rank"]][0] == KILL
    assert [status for status, _ in results[-1]] == [0] * world
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "straight"))
    return [processes[action["rank"]][1][-1] for action, processes in zip(actions, results, strict=False)]


def test_killed_at_random_points(tmp_path, data):
    points = check_kills(tmp_path, data, 2, kills(32, 28))
    # The points cover steps, the middle of steps, half-written files, and both sides of a rename.
    assert {"step", "_update", "half", "fsync", "replace"} <= set(points)


@pytest.mark.slow
def test_killed_at_many_points(tmp_path, data):
    check_kills(tmp_path, data, 5, kills(150, 30, seed=1))


def test_killed_with_two_processes(tmp_path, data):
    check_kills(tmp_path, data, 1, kills(3, 20, world=2), world=2)


@pytest.mark.slow
def test_killed_at_many_points_with_two_processes(tmp_path, data):
    check_kills(tmp_path, data, 6, kills(40, 16, world=2, seed=1), world=2)


@pytest.mark.parametrize("world", [1, 2])
def test_joint_training_is_killed(tmp_path, data, world):
    """The encoder, its average and its share of the optimiser are part of the state."""
    method = {"method": "curvature", "options": joint_options(tmp_path)}
    check_kills(tmp_path, data, 1, kills(4, 24, world=world, seed=world), world=world, **method)
    tensors, _ = outcome(tmp_path / "killed")
    assert any("/loop.averages.encoder." in name for name in tensors), list(tensors)[:50]


def test_joint_training_by_two_processes_is_that_of_one(tmp_path, data):
    method = {"method": "curvature", "options": joint_options(tmp_path)}
    for world in (1, 2):
        drive(tmp_path, data, tmp_path / f"by{world}", 1, [{}], world, **method)
    (one, curves), (two, other) = (outcome(tmp_path / f"by{world}") for world in (1, 2))
    for a, b in zip(curves["Loss/loss"], other["Loss/loss"], strict=True):
        assert (a["num"], a["mean"]) == (b["num"], pytest.approx(b["mean"], rel=1e-4))
    weights = [name for name in one if "/loop.modules." in name]
    assert any("encoder" in name for name in weights)
    for name in weights:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=1e-3)


def test_asked_to_stop(tmp_path, data):
    """The step is finished, the state written, the exit status names the signal; no step is ever repeated."""
    drive(tmp_path, data, tmp_path / "straight", 1, [{}])
    rng = random.Random(0)
    stops = [{"signal": s, "event": rng.randint(4, 24), "rank": 0} for s in ("TERM", "INT", "HUP", "TERM")]
    results, _ = drive(tmp_path, data, tmp_path / "stopped", 1, [*stops, {}])
    assert [processes[0][0] for processes in results] == [143, 130, 129, 143, 0]
    assert sum(processes[0][1].count("step") for processes in results) == 32
    assert all(processes[0][1].count("step") for processes in results)
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "straight"))
    log = (only_run(tmp_path / "stopped") / "log.txt").read_text()
    assert log.count("state written at") == len(stops)
    assert "SIGINT: state written" in log


EVERYTHING = "--batch-gpu=8 --fid-every=1 --fid-features=pixels --fid-num=8 --fid-steps=2"
STATUS = {"KILL": KILL, "TERM": 143, "HUP": 129, "INT": 130}


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ended_by_any_signal_with_everything_on(tmp_path, data, world):
    """Dropout, accumulation, power-function averages and FID, ended anywhere: also while starting or measuring.

    Every third step is the last chance of a signal, after a tick with all its files: eight signals come before the end
    of 32 steps, whichever process counts its events. A run that was finished would be followed by another one.
    """
    options = f"{OPTIONS} {EVERYTHING}"
    drive(tmp_path, data, tmp_path / "straight", 1, [{}], world, options=options)
    rng = random.Random(5)
    actions = [
        {"signal": s, "event": rng.randint(1, 40), "step": 3, "rank": rng.randrange(world)}
        for s in rng.sample([*STATUS] * 2, 8)
    ]
    results, _ = drive(tmp_path, data, tmp_path / "ended", 1, [*actions, {}], world, options=options)
    for action, processes in zip(actions, results, strict=False):
        assert processes[action["rank"]][0] == STATUS[action["signal"]], (action, processes)
    assert [status for status, _ in results[-1]] == [0] * world
    assert_same(outcome(tmp_path / "ended"), outcome(tmp_path / "straight"))
    assert len(outcome(tmp_path / "ended")[1]["Metrics/fid"]) > 3


def test_full_disk(tmp_path, data):
    """One sentence, exit status 1, and what was written before is what the same command continues from."""
    drive(tmp_path, data, tmp_path / "straight", 1, [{}])
    rng = random.Random(0)
    full = [{"signal": "FULL", "event": rng.randint(1, 25), "rank": 0} for _ in range(6)]
    results, errors = drive(tmp_path, data, tmp_path / "full", 1, [*full, {}])
    assert [processes[0][0] for processes in results] == [1] * len(full) + [0]
    sentences = errors.strip().splitlines()
    assert len(sentences) == len(full), errors
    assert all(s.startswith("Error: ") and "No space left on device" in s for s in sentences)
    assert_same(outcome(tmp_path / "full"), outcome(tmp_path / "straight"))


def test_another_number_of_processes_keeps_batch_and_order(tmp_path, data):
    drive(tmp_path, data, tmp_path / "straight", 1, [{}])
    runs = [{"world": 2, "signal": "TERM", "event": 36, "rank": 1}, {"world": 1}]
    results, _ = drive(tmp_path, data, tmp_path / "moved", 1, runs)
    assert [[status for status, _ in processes] for processes in results] == [[143, 143], [0]]
    assert 0 < results[0][0][1].count("step") < 32
    (moved, curves), (straight, expected) = outcome(tmp_path / "moved"), outcome(tmp_path / "straight")
    assert moved.keys() == straight.keys()
    for name, value in straight.items():
        if "/loop.data." in name or name.endswith("nimg"):
            assert torch.equal(torch.as_tensor(moved[name]), torch.as_tensor(value)), name
    # Noise, augmentation and dropout are the same numbers: only sums are rounded in another order.
    for a, b in zip(curves["Loss/loss"], expected["Loss/loss"], strict=True):
        assert (a["num"], a["mean"]) == (b["num"], pytest.approx(b["mean"], rel=1e-4))
