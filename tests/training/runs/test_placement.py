"""Where a command trains: new, continued, or branched off a state."""

import json
import shutil

import pytest
from run_locks import release_locks

from torch_utils import checkpoint
from training.methods.edm import EDMOptions
from training.runs import run_dir as runs
from training.runs.placement import find_place


def place(outdir, **options):
    release_locks()
    given = EDMOptions(outdir=str(outdir), data="toy", **options)
    found = find_place(given, given.seed, "toy", 1)
    found.write_options()
    return found


def add_state(run_dir, kimg, seed=5):
    path = run_dir / f"training-state-{kimg:06d}.pt"
    checkpoint.save(path, "state", {}, {"loop": {"nimg": kimg * 1000, "seed": seed}})
    return path


def test_new_then_continued(tmp_path):
    first = place(tmp_path, seed=5)
    assert (first.state, first.seed) == (None, 5)
    assert json.loads((first.run_dir / runs.OPTIONS).read_text())["seed"] == 5
    assert place(tmp_path, seed=5) == first  # killed before the first state
    state = add_state(first.run_dir, 1)
    assert place(tmp_path, seed=5) == first._replace(state=state)
    runs.mark_finished(first.run_dir)
    assert place(tmp_path, seed=5).run_dir != first.run_dir


def test_a_drawn_seed_is_kept(tmp_path):
    first = place(tmp_path)
    assert place(tmp_path) == first
    add_state(first.run_dir, 1, seed=first.seed)
    assert place(tmp_path / "elsewhere", resume=str(first.run_dir)).seed == first.seed


def test_new_run_is_new_once_also_when_torchrun_starts_it_again(tmp_path, monkeypatch):
    old = place(tmp_path, seed=5)
    new = place(tmp_path, seed=5, new_run=True)
    assert new.run_dir != old.run_dir
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert place(tmp_path, seed=5, new_run=True) == new


@pytest.mark.parametrize("nosubdir", [False, True])
def test_a_job_that_is_started_again_knows_the_run_it_finished(tmp_path, monkeypatch, nosubdir):
    def ran(job, restarts):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    left = [] if nosubdir else [place(tmp_path, seed=5).run_dir]  # an unfinished run of the same options
    ran("a", 0)
    first = place(tmp_path, seed=5, nosubdir=nosubdir, new_run=True)
    runs.mark_finished(first.run_dir)
    ran("a", 1)
    again = place(tmp_path, seed=5, nosubdir=nosubdir, new_run=True)
    assert (again.run_dir, again.finished) == (first.run_dir, True)
    assert not place(tmp_path, seed=5, lr=0.5).finished
    for job, restarts in (("a", 0), ("b", 1), ("none", 1)):
        ran(job, restarts)
        if nosubdir:
            with pytest.raises(ValueError, match="already holds a run"):
                place(tmp_path, seed=5, nosubdir=True)
        else:
            found = place(tmp_path, seed=5)
            assert (found.run_dir, found.finished) == (left[0], False)


def test_resume_directory_or_newest_file_continues_in_place(tmp_path):
    run = place(tmp_path, seed=5).run_dir
    older, newest = add_state(run, 1), add_state(run, 2)
    assert place(tmp_path, seed=5, resume=str(run))[:3] == (run, newest, 5)
    assert place(tmp_path / "elsewhere", lr=1.0, resume=str(newest))[:3] == (run, newest, 5)
    # The very command again, when retention has taken that file and a newer one is there.
    newer = add_state(run, 3)
    newest.unlink()
    assert place(tmp_path / "elsewhere", lr=1.0, resume=str(newest))[:3] == (run, newer, 5)
    assert older.exists()


def test_resume_from_an_older_state_branches_off(tmp_path):
    run = place(tmp_path, seed=5).run_dir
    older, _ = add_state(run, 1), add_state(run, 2)
    branch = place(tmp_path, resume=str(older))
    assert branch.run_dir != run
    assert (branch.state, branch.seed) == (older, 5)
    own = add_state(branch.run_dir, 2)
    assert place(tmp_path, resume=str(older))[:3] == (branch.run_dir, own, 5)  # the command again continues the branch
    assert place(tmp_path, seed=5).run_dir == run  # and the command without --resume the old run


def test_a_state_outside_of_a_run_starts_a_new_one(tmp_path):
    run = place(tmp_path / "runs", seed=5).run_dir
    copy = shutil.copy(add_state(run, 1), tmp_path / "copy.pt")
    branch = place(tmp_path / "runs", resume=str(copy))
    assert branch.run_dir.parent == tmp_path / "runs"
    assert (branch.state, branch.seed) == (copy, 5)


def test_nosubdir_does_not_mix_two_runs(tmp_path):
    first = place(tmp_path, seed=5, nosubdir=True)
    assert first.run_dir == tmp_path
    assert place(tmp_path, seed=5, nosubdir=True) == first
    with pytest.raises(ValueError, match="already holds a run"):
        place(tmp_path, seed=6, nosubdir=True)
    runs.mark_finished(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        place(tmp_path, seed=5, nosubdir=True)


def test_a_directory_in_use(tmp_path):
    run = place(tmp_path, seed=5).run_dir
    add_state(run, 1)
    with pytest.raises(ValueError, match="another process"):
        find_place(EDMOptions(outdir=str(tmp_path), data="toy", resume=str(run)), None, "toy", 1)


@pytest.mark.parametrize("name", ["nothing", "empty", "notes.txt"])
def test_nothing_to_resume_from(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no state")
    with pytest.raises(ValueError, match=name):
        place(tmp_path, resume=str(tmp_path / name))
