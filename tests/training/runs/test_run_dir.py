"""Which directory a command uses: numbering, locks, continuing."""

import fcntl
import json

import pytest
from run_locks import release_locks

from torch_utils.options import may_change
from training.options import CommonOptions
from training.runs import run_dir as runs


def start(outdir, **options):
    path = runs.create(outdir, "toy")
    (path / runs.OPTIONS).write_text(json.dumps(options))
    release_locks()
    return path


def find(outdir, **options):
    found = runs.find_unfinished(outdir, options, "toy", may_change(CommonOptions))
    release_locks()
    return found


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
    assert find(tmp_path, lr=1, seed=None) == newest


def test_a_given_seed_must_match(tmp_path):
    first = start(tmp_path, lr=1, seed=5)
    start(tmp_path, lr=1, seed=6)
    assert find(tmp_path, lr=1, seed=5) == first
    assert find(tmp_path, lr=1, seed=9) is None


def test_where_to_write_does_not_matter_what_to_compute_does(tmp_path):
    run = start(tmp_path, lr=1, seed=5, workers=1)
    assert find(tmp_path, lr=1.5, seed=None, workers=1) is None
    assert find(tmp_path, lr=1, seed=None, workers=8) == run


def test_a_running_directory_is_left_alone(tmp_path):
    run = start(tmp_path, lr=1, seed=5)
    with open(run / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not runs.claim(run)
        assert find(tmp_path, lr=1, seed=None) is None
    assert runs.claim(run)


def test_a_new_directory_is_claimed_at_once(tmp_path):
    run = runs.create(tmp_path, "toy")
    with open(run / ".lock", "w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_without_options_is_used_again(tmp_path):
    """Its process was killed between making it and writing the options."""
    run = runs.create(tmp_path, "toy")
    other = runs.create(tmp_path, "other")
    assert find(tmp_path, lr=1) is None  # both are claimed
    release_locks()
    (other / "notes.txt").touch()
    assert find(tmp_path, lr=1) == run
    (run / "notes.txt").touch()
    assert find(tmp_path, lr=1) is None  # somebody's files


def test_half_written_files_vanish_with_the_next_claim(tmp_path):
    run = start(tmp_path, lr=1)
    left = [run / ".training-state-000001.pt.0123456789ab.tmp", run / ".stats.jsonl.ba9876543210.tmp"]
    kept = [run / "notes.tmp", run / ".hidden", run / ".x.tmp"]
    for path in (*left, *kept):
        path.touch()
    assert runs.claim(run)
    assert not any(p.exists() for p in left)
    assert all(p.exists() for p in kept)


def test_states_that_cannot_be_read_do_not_mean_a_fresh_start(tmp_path):
    run = start(tmp_path, lr=1)
    assert runs.newest_state(run) is None
    (run / "training-state-000001.pt").write_bytes(b"PK damaged")
    with pytest.warns(UserWarning, match="damaged|refused"), pytest.raises(ValueError, match="restore one"):
        runs.newest_state(run)
