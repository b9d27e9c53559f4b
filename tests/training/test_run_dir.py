"""Which directory a command uses: numbering, locks, continuing."""

import fcntl
import json

import pytest

from training import run_dir as runs


@pytest.fixture(autouse=True)
def release_locks():
    yield
    for file in runs._locks:
        file.close()
    runs._locks.clear()


def start(outdir, **options):
    path = runs.create(outdir, "toy")
    (path / runs.OPTIONS).write_text(json.dumps(options))
    return path


def test_numbers_count_up(tmp_path):
    (tmp_path / "00007-old").mkdir()
    assert runs.create(tmp_path, "a").name == "00008-a"
    assert runs.create(tmp_path, "a").name == "00009-a"


def test_same_options_continue_the_newest_unfinished_run(tmp_path):
    start(tmp_path, lr=1, seed=5)
    newest = start(tmp_path, lr=1, seed=6)
    start(tmp_path, lr=2, seed=5)
    finished = start(tmp_path, lr=1, seed=7)
    runs.mark_finished(finished)
    assert runs.find_unfinished(tmp_path, {"lr": 1, "seed": None}) == newest


def test_a_given_seed_must_match(tmp_path):
    first = start(tmp_path, lr=1, seed=5)
    start(tmp_path, lr=1, seed=6)
    assert runs.find_unfinished(tmp_path, {"lr": 1, "seed": 5}) == first
    assert runs.find_unfinished(tmp_path, {"lr": 1, "seed": 9}) is None


def test_where_to_write_does_not_matter_what_to_compute_does(tmp_path):
    run = start(tmp_path, lr=1, seed=5, workers=1)
    assert runs.find_unfinished(tmp_path, {"lr": 1.5, "seed": None, "workers": 1}) is None
    assert runs.find_unfinished(tmp_path, {"lr": 1, "seed": None, "workers": 8}) == run


def test_a_running_directory_is_left_alone(tmp_path):
    run = start(tmp_path, lr=1, seed=5)
    with open(run / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not runs.claim(run)
        assert runs.find_unfinished(tmp_path, {"lr": 1, "seed": None}) is None
    assert runs.claim(run)
