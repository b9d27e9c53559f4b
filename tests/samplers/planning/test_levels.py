"""Where noise levels come from, above all schedule files, which bring solver and options with them."""

import pytest
import torch

from samplers import Field, get_schedule, sample
from samplers.calibration.calibrate import calibrate
from samplers.gits.search import search_schedule
from samplers.planning.levels import choose_levels, schedule_file
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.recipe import Entry, ScheduleFile

NOISE = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE4 = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def denoiser(x, sigma, class_labels=None):
    return x / (1 + sigma**2)


@pytest.fixture
def path(tmp_path):
    """A search's file: two lengths, two coefficients, one for the analytical first step."""
    entries = (
        Entry(sigmas=(80.0, 3.0, 0.1), coeff=1.1),
        Entry(sigmas=(80.0, 2.0, 0.1), coeff=1.2),
        Entry(sigmas=(80.0, 5.0, 1.0, 0.1), coeff=1.1, afs=True),
    )
    ScheduleFile(solver="ipndm", entries=entries, options={"max_order": 3}).save(tmp_path / "found.json")
    return str(tmp_path / "found.json")


@pytest.mark.parametrize(
    ("asked", "sigmas", "how"),
    [
        ({"num_steps": 3, "coeff": (1.2,)}, (80.0, 2.0, 0.1), {"solver": "ipndm", "max_order": 3}),
        ({"num_steps": 4}, (80.0, 5.0, 1.0, 0.1), {"solver": "ipndm", "max_order": 3, "afs": True}),
        ({"num_steps": 4, "max_order": 1}, (80.0, 5.0, 1.0, 0.1), {"solver": "ipndm", "max_order": 1, "afs": True}),
        ({"num_steps": 3, "coeff": (1.1,), "solver": "euler"}, (80.0, 3.0, 0.1), {"solver": "euler"}),
    ],
)
def test_a_file_brings_levels_solver_and_options(path, asked, sigmas, how):
    plan = build_plan(denoiser, SamplerOptions(schedule=path, **asked))
    assert plan.sigmas.tolist() == list(sigmas)
    torch.testing.assert_close(plan(denoiser, NOISE), sample(denoiser, NOISE, list(sigmas), **how), rtol=0, atol=0)
    assert f"from {path}" in str(plan)


def test_the_first_step_is_saved_where_the_file_says_so(path):
    assert build_plan(denoiser, SamplerOptions(schedule=path, num_steps=4)).nfe == 2
    assert build_plan(denoiser, SamplerOptions(schedule=path, num_steps=3, coeff=(1.1,))).nfe == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "ask for one of"),
        ({"num_steps": 3}, "2 of the file's schedules"),
        ({"num_steps": 3, "coeff": (1.1, 1.2)}, "one number as --coeff"),
        ({"num_steps": 9}, "none of the file's schedules"),
        ({"num_steps": 4, "sigma_min": 0.1}, "does not use --sigma-min"),
        ({"num_steps": 4, "schedule_type": "logsnr"}, "leave one of them out"),
        ({"num_steps": 4, "solver": "euler", "max_order": 2}, "no option max_order"),
    ],
)
def test_what_a_file_cannot_answer(path, asked, message):
    with pytest.raises(ValueError, match=message):
        build_plan(denoiser, SamplerOptions(schedule=path, **asked))


class Net(torch.nn.Module):
    """The optimal denoiser of a two-point distribution: its trajectories bend."""

    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 1, 2, 0, 0, float("inf")

    def __init__(self, point=1.0):
        super().__init__()
        self.point = torch.nn.Parameter(torch.full([4], point))

    def forward(self, x, sigma, class_labels=None):
        flat, point = x.flatten(1), self.point.to(x)
        return ((flat @ point / sigma**2).tanh()[:, None] * point).reshape(x.shape)


SEARCH = {"dp": True, "num_steps": 5, "num_steps_tea": 13, "num_warmup": 6, "coeff": (1.1, 1.3)}


@pytest.mark.parametrize(
    ("asked", "search"),
    [
        ({}, {}),
        ({"solver": "euler", "metric": "l2", "solver_tea": "heun"}, {"metric": "l2", "solver_tea": "heun"}),
        ({"max_order": 2, "search_seed": 5}, {"max_order": 2, "seed": 5}),
        ({"schedule_type": "logsnr", "sigma_max": 40.0}, {"schedule_type": "logsnr", "sigma_max": 40}),
        ({"afs": True}, {"afs": True}),
    ],
)
def test_search_is_that_of_gits(asked, search):
    net = Net()
    plan = build_plan(net, SamplerOptions(**SEARCH, **asked), batch=4)
    same = {"num_steps_tea": 13, "num_warmup": 6, "coeff": (1.1, 1.3), "batch": 4, "solver": plan.solver}
    found = search_schedule(net, 5, **{**same, **search})
    torch.testing.assert_close(plan.sigmas, found.sigmas, rtol=0, atol=0)
    assert len(plan.sigmas) == 5 + bool(asked.get("afs"))
    assert plan.nfe == 4
    assert "searched, " in str(plan)


def test_progress_of_a_search_counts_its_samples():
    done = []
    build_plan(Net(), SamplerOptions(**SEARCH), batch=4, progress=done.append)
    assert done == [4, 2]


def test_a_saved_search_holds_every_length_and_coefficient(tmp_path):
    net, path = Net(), str(tmp_path / "s.json")
    plan = build_plan(net, SamplerOptions(**SEARCH))
    schedule_file(plan.chosen, net).save(path)
    again = build_plan(net, SamplerOptions(schedule=path, num_steps=5, coeff=(1.1,)))
    assert again.sigmas.tolist() == plan.sigmas.tolist()
    assert build_plan(net, SamplerOptions(schedule=path, num_steps=9, coeff=(1.3,))).nfe == 8
    assert "other weights" not in str(again)
    assert "other weights" in str(build_plan(Net(0.5), SamplerOptions(schedule=path, num_steps=5, coeff=(1.1,))))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"metric": "l1"}, "--metric belongs to the schedule search"),
        ({"coeff": (1.15,)}, "--coeff belongs to the schedule search"),
        ({"t_steps": (2.0, 1.0), "num_warmup": 3}, "--num-warmup belongs"),
        ({"dp": True, "schedule": "gits_cifar10"}, "--schedule and --dp both"),
        ({"dp": True, "steps": 5}, "--steps belongs to EDM's samplers and --dp"),
        ({"dp": True, "solver": "dopri5"}, "leave out --dp"),
        ({"dp": True, "num_steps": 70}, "61"),
        ({"dp": True, "solver_tea": "unipc"}, "cannot be the teacher"),
    ],
)
def test_search_options_that_do_not_fit(asked, message):
    with pytest.raises(ValueError, match=message):
        build_plan(Net(), SamplerOptions(**asked))


FIT = {"num_steps_tea": 13, "num_warmup": 6}


@pytest.mark.parametrize(
    ("asked", "fit"),
    [
        ({"calibrate": (3,)}, {"nfe": 3}),
        ({"calibrate": (), "num_steps": 3}, {"nfe": 2}),
        ({"solver": "calibrated", "dp": True, "num_steps": 4}, {"nfe": 3}),
        ({"calibrate": (3,), "afs": False, "max_order": 2}, {"nfe": 3, "afs": False, "max_order": 2}),
        ({"calibrate": (3,), "afs": True, "coeff": (1.3,)}, {"nfe": 3, "afs": True, "coeff": 1.3}),
    ],
)
def test_calibration_is_that_of_the_library(asked, fit, tmp_path):
    net = Net()
    plan = build_plan(net, SamplerOptions(**FIT, **asked), batch=4)
    calibration = calibrate(net, **{**FIT, **fit}, batch=4)
    (found,) = calibration.students
    assert (plan.solver, plan.nfe, plan.chosen.afs) == ("calibrated", fit["nfe"], found.afs)
    # Two fits agree to rounding: sums of float64 products depend on how tensors are aligned in memory.
    torch.testing.assert_close(plan.sigmas, found.sigmas, rtol=1e-6, atol=0)
    own = plan(net, NOISE4)
    same = {"coefficients": found.coefficients, "afs": found.afs, **calibration.options}
    twin = sample(net, NOISE4, found.sigmas, solver="calibrated", **same)
    torch.testing.assert_close(own, twin, rtol=1e-5, atol=1e-5)
    schedule_file(plan.chosen, net).save(tmp_path / "c.json")
    again = build_plan(net, SamplerOptions(schedule=str(tmp_path / "c.json")))
    torch.testing.assert_close(again(net, NOISE4), own, rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds coefficients of solver 'calibrated'"):
        build_plan(net, SamplerOptions(schedule=str(tmp_path / "c.json"), solver="euler"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"calibrate": (4,), "num_steps": 9}, "different numbers of steps"),
        ({"calibrate": (4,), "solver": "euler"}, "leave out --solver=euler"),
        ({"calibrate": (4,), "dp": True}, "--dp and --calibrate both"),
        ({"calibrate": (4,), "schedule": "gits_cifar10"}, "--schedule and --calibrate both"),
        ({"calibrate": (4,), "steps": 4}, "--steps belongs to EDM's samplers and --calibrate"),
        ({"calibrate": (4,), "variant": "bh1"}, "no option variant"),
        ({"calibrate": (4,), "coeff": (1.1, 1.2)}, "one number as --coeff"),
        ({"calibrate": (100,)}, "61 noise levels"),
        ({"calibrate": (3, 5), "num_steps": 4}, "--calibrate=3,5 and --num-steps=4 are different"),
        ({"nfe": 4}, "--nfe chooses from the schedules of a file"),
        ({"nfe": 4, "solver": "rk45"}, "chooses its steps itself: leave out --nfe"),
        ({"nfe": 4, "steps": 4}, "--steps belongs to EDM's samplers and --nfe"),
        ({"solver": "calibrated"}, "add --calibrate"),
    ],
)
def test_calibration_options_that_do_not_fit(asked, message):
    with pytest.raises(ValueError, match=message):
        build_plan(Net(), SamplerOptions(**asked))


def test_no_search_where_it_was_refused():
    assert build_plan(Net(), SamplerOptions(dp=False, num_steps=4)).chosen.found is None


def test_what_is_saved_comes_back(tmp_path):
    asked = SamplerOptions(solver="dpmpp", num_steps=5, max_order=2, predict_x0=False, afs=True)
    plan = build_plan(denoiser, asked)
    schedule_file(plan.chosen, denoiser).save(tmp_path / "s.json")
    again = build_plan(denoiser, SamplerOptions(schedule=str(tmp_path / "s.json")))
    assert (again.solver, again.nfe) == (plan.solver, plan.nfe)
    torch.testing.assert_close(again(denoiser, NOISE), plan(denoiser, NOISE), rtol=0, atol=0)


def test_explicit_levels_say_what_they_replace():
    given = {"t_steps": (5.0, 1.0), "num_steps": 7, "sigma_max": 80.0, "dp": True, "coeff": (1.15,)}
    chosen = choose_levels(Field(denoiser), given, {})
    assert chosen.sigmas.tolist() == [5, 1]
    assert chosen.about == "as given (instead of --num-steps, --sigma-max, --dp, --coeff)"


def test_defaults():
    chosen = choose_levels(Field(denoiser), {}, {})
    assert chosen.solver == "ipndm"
    assert torch.equal(chosen.sigmas, get_schedule(7))
