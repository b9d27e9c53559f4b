"""Trackers without an account or a network: figures and pictures arrive, and the same run goes on."""

import importlib.util
import json
import sys
import time
import types

import click
import pytest
import wandb
from click.testing import CliRunner
from patience import HUNG
from PIL import Image
from run_locks import release_locks

import train
from torch_utils.trackers import TRACKERS, TrackerList


@pytest.fixture
def picture(tmp_path):
    Image.new("L", (8, 8), 200).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"


def test_wandb_offline_keeps_its_id_and_its_figures(tmp_path, monkeypatch, picture):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = TRACKERS["wandb"](tmp_path, {"lr": 1}, None)
    first.log({"Loss/loss": 0.5}, 64, {"Samples/grid": picture})
    first.close()
    assert wandb.run is None
    (record,) = tmp_path.rglob(f"run-{first.run_id}.wandb")
    deadline = time.monotonic() + HUNG / 10
    while b"Loss/loss" not in record.read_bytes() and time.monotonic() < deadline:  # a service of wandb's own writes it
        time.sleep(0.05)
    assert b"Loss/loss" in record.read_bytes()
    again = TRACKERS["wandb"](tmp_path, {"lr": 1}, first.run_id)
    assert again.run_id == first.run_id
    again.close()


@pytest.mark.parametrize("key", ["secret", None])
def test_wandb_knows_the_variables_of_published_programs(tmp_path, monkeypatch, key):
    called = {}
    fake = types.SimpleNamespace(
        api=types.SimpleNamespace(api_key=None), login=lambda **given: called.update(given),
        init=lambda **given: called.update(given) or types.SimpleNamespace(id="x"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for name, value in (("ENTITY", "us"), ("PROJECT", "ours"), *([("WANDB_KEY", key)] if key else [])):
        monkeypatch.setenv(name, value)
    TRACKERS["wandb"](tmp_path, {}, None)
    assert called["project"] == ("ours" if key else "fewstep")
    assert (called.get("key"), called.get("entity")) == ((key, "us") if key else (None, None))


def test_tensorboard_hides_what_came_after_the_state_that_is_continued(tmp_path, picture):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TRACKERS["tensorboard"](tmp_path, {"lr": 1}, None)
    for step in (64, 128, 192):
        first.log({"Loss/loss": step / 64}, step, {"Samples/grid": picture})
    first.close()
    again = TRACKERS["tensorboard"](tmp_path, {"lr": 1}, first.run_id)
    again.log({"Loss/loss": 20.0}, 128, {})
    again.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("Loss/loss")] == [(64, 1.0), (128, 20.0)]
    (image,) = found.Images("Samples/grid")
    assert (image.step, image.width, image.height) == (64, 8, 8)


class _Trackio(types.ModuleType):
    """The part of trackio's interface that is used: runs are known by project and name."""

    def __init__(self):
        super().__init__("trackio")
        self.runs = {}

    def init(self, project, name=None, config=None, resume="never", embed=True):
        assert resume == "allow"
        assert not embed
        logged = self.runs.setdefault((project, name), [])
        return types.SimpleNamespace(log=lambda values, step=None: logged.append((step, values)), finish=lambda: None)

    def Image(self, path):  # noqa: N802  # their name
        return path


def test_trackio_continues_the_run_of_a_name(tmp_path, monkeypatch, picture):
    trackio = _Trackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    first = TRACKERS["trackio"](tmp_path, {"lr": 1}, None)
    first.log({"Loss/loss": 0.5}, 64, {"Samples/grid": picture})
    first.close()
    again = TRACKERS["trackio"](tmp_path, {"lr": 1}, first.run_id)
    again.log({"Loss/loss": 0.25}, 128, {})
    other = TRACKERS["trackio"](tmp_path, {"lr": 1}, None)  # another run whose directory has the same name
    assert first.run_id == again.run_id != other.run_id
    assert trackio.runs["fewstep", first.run_id] == [
        (64, {"Loss/loss": 0.5, "Samples/grid": str(picture)}),
        (128, {"Loss/loss": 0.25}),
    ]


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    kind = TrackerList()
    assert kind.convert("wandb, wandb", None, None) == ("wandb",)
    with pytest.raises(click.BadParameter, match="'mlflow' is not a tracker: choose from wandb, trackio, tensorboard"):
        kind.convert("wandb,mlflow", None, None)
    monkeypatch.setattr("torch_utils.trackers.find_spec", lambda name: None)
    with pytest.raises(click.BadParameter, match="the tracker trackio needs a package of that name: pip install"):
        kind.convert("trackio", None, None)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_a_run_logs_to_several_trackers_and_goes_on_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    command = (
        f"edm --outdir={run} --nosubdir --data=toy:moons:size=256 --seed=0 --device=cpu --cbase=16 "
        "--batch=32 --tick=0.5 --snap=1 --dump=1 --track=wandb,tensorboard"
    ).split()
    for more in ("--duration=0.001", f"--duration=0.002 --resume={run}"):
        result = CliRunner().invoke(train.main, [*command, *more.split()])
        release_locks()
        assert result.exit_code == 0, result.output
    assert len({p.name.split("-")[-1] for p in run.rglob("run-*.wandb")}) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    expected = {round(s["Progress/kimg"]["mean"] * 1000): s["Loss/loss"]["mean"] for s in stats}
    assert max(expected) > 1000
    tracked = {e.step: e.value for e in found.Scalars("Loss/loss")}
    assert tracked == {step: pytest.approx(loss, rel=1e-6) for step, loss in expected.items()}
    assert [e.step for e in found.Images("Samples/grid")] == list(expected)
