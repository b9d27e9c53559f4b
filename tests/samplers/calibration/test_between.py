"""Solvers for numbers of evaluations that a file does not hold, made from those it holds."""

import dataclasses
from functools import partial

import pytest
import torch
from gaussian_mixture import mixture

from samplers.calibration.between import between
from samplers.calibration.calibrate import calibrate
from samplers.field import Field
from samplers.path import Linear
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.recipe import Entry, ScheduleFile
from samplers.schedules.formulas import get_schedule
from samplers.solvers.table import SOLVERS, sample

SHAPE = (2, 3, 3)


def field(x, sigma, class_labels=None):
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(8, 18, generator=generator, dtype=torch.float64) / 2
    std = 0.1 + 0.2 * torch.rand(8, 1, generator=generator, dtype=torch.float64)
    return mixture(torch.full((8,), 1 / 8).double(), mu, std)(x, sigma).to(x.dtype)


def nfe_of(entry):
    return entry.num_steps - 1 - entry.afs


@pytest.fixture(scope="module")
def file():
    how = {"img_shape": SHAPE, "num_warmup": 48, "num_heldout": 32, "num_steps_tea": 41, "starts": ("gits",)}
    return calibrate(field, (3, 4, 6, 8, 10), afs=True, **how).schedule_file()


@pytest.fixture(scope="module")
def error():
    noise = torch.randn(256, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = sample(field, noise, get_schedule(81), solver="heun")

    def error(sigmas, **how):
        return float((sample(field, noise, sigmas, **how) - wanted).square().mean().sqrt())

    return error


def test_nearly_as_good_as_calibrated(file, error):
    few = dataclasses.replace(file, entries=tuple(e for e in file.entries if nfe_of(e) in (4, 6, 10)))
    for entry in file.entries:
        n = nfe_of(entry)
        made = between(few, n)
        assert nfe_of(made) == n
        assert SOLVERS["calibrated"].nfe(made.num_steps, afs=made.afs) == n
        own, other = (
            error(e.sigmas, solver="calibrated", coefficients=e.coefficients, afs=e.afs) for e in (entry, made)
        )
        if n in (4, 6, 10):
            assert made.sigmas == pytest.approx(entry.sigmas)
            assert other == pytest.approx(own, rel=1e-6)
        else:
            assert own < other < 0.8 * error(get_schedule(n + 1), solver="ipndm")


@pytest.mark.parametrize("n", range(3, 21))
def test_every_number_from_half_to_twice(file, n):
    few = dataclasses.replace(file, entries=tuple(e for e in file.entries if nfe_of(e) in (4, 6, 10)))
    made = between(few, n)
    assert [len(row) for row in made.coefficients] == [min(i + 1, 4) for i in range(n + 1)]
    assert (made.sigmas[0], made.sigmas[-1]) == pytest.approx((few.entries[0].sigmas[0], few.entries[0].sigmas[-1]))


def test_the_kind_of_which_there_are_more(file):
    plain = Entry(sigmas=(80, 1, 0.1, 0.002), coefficients=[[1.0]] * 3)
    mixed = dataclasses.replace(file, entries=(*file.entries, plain))
    assert between(mixed, 5).afs
    alone = dataclasses.replace(file, entries=(plain, dataclasses.replace(plain, sigmas=(80, 4, 1, 0.1, 0.002),
                                                                          coefficients=[[1.0]] * 4)))  # fmt: skip
    assert not between(alone, 5).afs


@pytest.mark.parametrize(("n", "reach"), [(1, "2 to 20"), (21, "2 to 20")])
def test_out_of_reach(file, n, reach):
    with pytest.raises(ValueError, match=f"nfe={n} is too far .* 3, 4, 6, 8, 10: within reach are {reach}"):
        between(file, n)


def test_one_is_not_enough(file):
    with pytest.raises(ValueError, match=r"two calibrated solvers or more .* all with --afs"):
        between(dataclasses.replace(file, entries=file.entries[:1]), 5)


def test_from_the_command_line(file, tmp_path):
    file.save(tmp_path / "all.json")
    plan = build_plan(Field(field), SamplerOptions(schedule=str(tmp_path / "all.json"), nfe=7))
    assert plan.nfe == 7
    assert "Made for 7 evaluations from those calibrated for 3, 4, 6, 8, 10" in str(plan)
    assert plan.sigmas.tolist() == pytest.approx(between(ScheduleFile.load(tmp_path / "all.json"), 7).sigmas)
    plan = build_plan(Field(field), SamplerOptions(schedule=str(tmp_path / "all.json"), nfe=6))
    assert "Made for" not in str(plan)
    with pytest.raises(ValueError, match=r"path 've', this one is on 'linear'"):
        build_plan(Field(partial(field), path=Linear()), SamplerOptions(schedule=str(tmp_path / "all.json"), nfe=7))


def test_an_exact_start_is_an_evaluation(file, tmp_path):
    """Numbers of evaluations in lines and refusals count it, as the plan does."""
    plain = [dataclasses.replace(e, afs=False) for e in file.entries[1:3]]
    dataclasses.replace(file, path="linear", entries=tuple(plain)).save(tmp_path / "two.json")
    flow = Field(lambda x, t, labels=None: torch.tanh(x + t), "linear", "velocity")
    asked = {"schedule": str(tmp_path / "two.json"), "coordinates": "sigma", "start": "exact"}
    counts = [e.num_steps for e in plain]  # as many steps and the start
    for n in (counts[0], counts[0] + 1, counts[1]):
        plan = build_plan(flow, SamplerOptions(nfe=n, **asked))
        assert plan.nfe == n
        assert (f"Made for {n} evaluations from those calibrated for {counts[0]}, {counts[1]}" in str(plan)) == (
            n not in counts
        )
    with pytest.raises(ValueError, match=f"nfe=30 is too far .* holds, {counts[0]}, {counts[1]}: within"):
        build_plan(flow, SamplerOptions(nfe=30, **asked))
