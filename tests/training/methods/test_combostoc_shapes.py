"""Set transformers learn shapes: six splits of time, three predictions, the same on any number of processes."""

import signal

import pytest
import torch
from exact_runs import assert_same, drive, outcome

from bench.presets import SyntheticDataset
from samplers.field import Facts
from torch_utils.rng import BatchRNG
from training.data.shapes import ShapeDataset
from training.losses.interpolant import PART_SPLITS, draw_times, split_shape
from training.method import Batch
from training.methods.combostoc import ComboStocOptions, SiTOptions, build

DATA = "shapes:boxes:size=64:seed=1"
TINY = {"width": 32, "depth": 2, "num_heads": 2, "outdir": "runs", "data": DATA, "cond": True}
OPTIONS = (
    "--cond=1 --width=16 --depth=1 --num-heads=2 --lr=1e-3 --ema=0.0005 --batch=32 --tick=0.064 --snap=20 --dump=1 "
    "--seed=3 --split=att_part"
)
GROUPS = (1, 6, 8)


def method(cls=ComboStocOptions, **more):
    torch.manual_seed(0)
    options = cls(**{**TINY, **more})
    return options, build(options, ShapeDataset(DATA, use_labels=options.cond), torch.device("cpu"))


def batch(rng, start=0, stop=32):
    data = ShapeDataset(DATA, use_labels=True)
    rows = torch.arange(start, stop) % len(data)
    return Batch(data.images()[rows], data.encode_labels(data.targets()[rows]), rng, 0)


@pytest.mark.parametrize(
    ("split", "shape", "distinct"),
    [("none", (9, 1, 1), 1), ("part", (9, 12, 1), 12), ("att", (9, 1, 15), 3), ("att_part", (9, 12, 15), 36),
     ("vec", (9, 1, 15), 15), ("all", (9, 12, 15), 180)],
)  # fmt: skip
def test_which_numbers_share_a_time(split, shape, distinct):
    options = ComboStocOptions(**TINY, combostoc_type=f"UNSYNC_{split.upper()}")
    t, asynchronous = options.times(batch(BatchRNG(0, 0, 0, 9), 0, 9), (1.0, 0.0), GROUPS)
    assert t.shape == shape
    assert asynchronous.all()
    assert all(len(row.unique()) == distinct for row in t)
    if split.startswith("att"):
        assert all(len(group[0, 0].unique()) == 1 for group in t.split(GROUPS, dim=2))
        assert len(split_shape(f"UNSYNC_{split.upper()}", (9, 12, 15), GROUPS)) == 3


def test_times_are_uniform_and_independent():
    """All samples asynchronous, without blend: every time is uniform, and two of a sample have nothing in common."""
    t, _ = draw_times(BatchRNG(0, 0, 0, 4000), (4000, 12, 15), "UNSYNC_ALL", (1, 0), halves=False, blend=False,
                      groups=GROUPS)  # fmt: skip
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)
    assert t.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(torch.stack([t[:, 0, 0], t[:, 3, 7]]))[0, 1].abs() < 0.05
    assert set(PART_SPLITS) >= {"UNSYNC_PART"}


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (ComboStocOptions, {}), (ComboStocOptions, {"combostoc_type": "UNSYNC_PART"}), (SiTOptions, {}),
        (ComboStocOptions, {"prediction": "velocity", "combostoc_type": "UNSYNC_ATT"}),
        (ComboStocOptions, {"prediction": "noise", "path_type": "GVP", "combostoc_type": "UNSYNC_VEC"}),
        (ComboStocOptions, {"halves": True, "blend": True, "cond": False}),
    ],
)  # fmt: skip
def test_losses_fall(cls, more):
    """By a tenth within 40 steps; the times and noise of the first and last ones are the same."""
    options, made = method(cls, **more)
    net, phase = made.modules["net"], made.phases[0]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for step in [0, 1, *range(40), 0, 1]:
        own = batch(BatchRNG(0, 32 * step, 0, 32), 32 * step, 32 * step + 32)
        loss = phase.loss(own).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step() if len(losses) >= 2 else None
        losses.append(loss.item())
    assert all(torch.tensor(losses).isfinite())
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    facts = Facts.of(net)
    assert (facts.shape, facts.parts.groups, facts.predicts) == ((12, 15), GROUPS, options.predicts)
    assert facts.element_times == (cls is ComboStocOptions)
    assert facts.compensated == (options.prediction == "velocity")


@pytest.mark.parametrize("halves", [False, True])
def test_a_batch_in_two_parts_is_the_whole(halves):
    _, made = method(halves=halves)
    net, phase = made.modules["net"].double().eval(), made.phases[0]
    torch.nn.init.normal_(net.model.final_layer.linear.weight, std=0.1)
    whole = phase.loss(batch(BatchRNG(0, 0, 0, 32))).loss
    parts = [phase.loss(batch(BatchRNG(0, 0, a, a + 16), a, a + 16)).loss for a in (0, 16)]
    torch.testing.assert_close(torch.cat(parts).sort().values, whole.sort().values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_and_a_kill_change_nothing(tmp_path):
    run = {"method": "combostoc", "options": OPTIONS}
    for world in (1, 2):
        drive(tmp_path, DATA, tmp_path / f"by{world}", 1, [{}], world, **run)
    (one, curves), (_, other) = (outcome(tmp_path / f"by{world}") for world in (1, 2))
    for a, b in zip(curves["Loss/loss"], other["Loss/loss"], strict=True):
        assert (a["num"], a["mean"]) == (b["num"], pytest.approx(b["mean"], rel=1e-4))
    results, _ = drive(tmp_path, DATA, tmp_path / "killed", 1, [{"signal": "KILL", "event": 5, "rank": 0}, {}], **run)
    assert [processes[0][0] for processes in results] == [-signal.SIGKILL, 0]
    assert_same(outcome(tmp_path / "killed"), (one, curves))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "ComboStoc-S/4"}, "is no transformer of parts"), ({"learn_sigma": True}, "published files"),
        ({"image_size": 12}, "is for images"), ({"num_classes": 3}, "this run has 5 classes"),
        ({"combostoc_type": "UNSYNC_PATCH"}, "no time split 'UNSYNC_PATCH' of parts"),
        ({"compensate": "off"}, "predicts data"), ({"loss_weight": "velocity"}, "the data loss has none"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(more, message):
    with pytest.raises(ValueError, match=message):
        method(**more)


def test_splits_of_parts_are_not_for_images():
    given = TINY | {"data": "digits.zip", "cond": False, "model": "ComboStoc-S/4", "combostoc_type": "UNSYNC_ATT"}
    options = ComboStocOptions(**given)
    with pytest.raises(ValueError, match="no time split 'UNSYNC_ATT' of images"):
        build(options, SyntheticDataset(8, 1, 0), torch.device("cpu"))
