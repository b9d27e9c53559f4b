"""Comparison of solvers: orders on a Gaussian, what a cell costs, which contestants exist, and the tables."""

import dataclasses
import functools
import math

import pytest
import torch

from networks.features.table import load_features
from samplers import SOLVERS, get_schedule, sample
from samplers.analysis.compare import HELD_OUT, Measure, compare, tables
from samplers.analysis.contestants import parse_contestant, plan_cells
from samplers.analysis.figures import solver_styles
from samplers.recipe import Entry, ScheduleFile
from samplers.solvers.native import sample_native, uniform_times
from torch_utils.frechet import Moments
from torch_utils.report.plot import colour


class Gaussian:
    """Exact denoiser of N(mean, diag(std^2)) over 1x4x4 images; counts the images it is given."""

    img_channels, img_resolution, label_dim = 1, 4, 0

    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.mean = 0.3 * torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=g)
        self.std = 0.1 + 0.5 * torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=g)
        self.images = 0

    def __call__(self, x, sigma, class_labels=None):
        self.images += len(x)
        v = self.std**2
        return (v * x + sigma**2 * self.mean) / (v + sigma**2)


def contestants(*texts):
    return [parse_contestant(text) for text in texts]


def run(net, texts, nfes, **measure):
    return compare(net, plan_cells(contestants(*texts), nfes, net), Measure(**measure))


def by_cell(report, key="rmse"):
    return {(r["solver"], r["nfe"]): r.get(key) for r in report["results"]}


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("euler", 1),
        ("heun", 2),
        ("dpm", 2),
        ("ab:2", 2),
        ("ab:3", 3),
        ("deis:3", 3),
        ("dpmpp:2:thresholding=none", 2),
        ("unipc:2:thresholding=none", 3),
    ],
)
def test_error_falls_with_the_order_of_the_solver(text, order):
    net = Gaussian()
    coarse, fine = 96, 192
    report = run(net, [text], [coarse, fine], num=4, teacher_solver="ab", teacher_steps=1500)
    errors = by_cell(report)
    slope = math.log2(errors[text, coarse] / errors[text, fine])
    assert slope == pytest.approx(order, abs=0.35)


def test_error_is_the_distance_of_end_points_from_the_same_noise():
    net = Gaussian()
    report = run(net, ["ipndm:2"], [5], num=3, seed=11, teacher_solver="dpm", teacher_steps=20, batch=2)
    noise = torch.stack([torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (11, 12, 13)])
    solve = functools.partial(sample, net, noise.double())
    ours = solve(get_schedule(6, None, None), solver="ipndm", max_order=2)
    teacher = solve(get_schedule(21, None, None), solver="dpm")
    assert by_cell(report)["ipndm:2", 5] == pytest.approx((ours - teacher).square().mean().sqrt().item(), rel=1e-9)
    assert report["seeds"] == "11-13"
    assert report["teacher"] == {"solver": "dpm", "steps": 20, "nfe": 40}


def test_edm_is_compared_with_the_clean_end():
    net = Gaussian()
    net.std = torch.zeros(())  # one image: every solver is exact, and the state at level 0.002 is 0.002 off
    errors = by_cell(run(net, ["edm", "euler"], [5], num=4, teacher_steps=10))
    assert errors["edm", 5] < 1e-12
    assert errors["euler", 5] < 1e-12


def test_nfe_is_what_is_spent():
    net = Gaussian()
    texts, nfes = ("euler", "heun", "dpm", "ipndm", "edm", "unipc:2"), range(2, 8)
    measure = Measure(num=3, num_fid=None, teacher_steps=10)
    cells = plan_cells(contestants(*texts), nfes, net)
    spent = []
    compare(net, cells, measure, progress=spent.append)
    assert sum(spent) == net.images == measure.work(cells)
    possible = {(c.solver, c.nfe): c.plan is not None for c in cells}
    for nfe in nfes:
        assert possible["euler", nfe]
        assert possible["heun", nfe] == possible["dpm", nfe] == (nfe % 2 == 0)
        assert possible["edm", nfe] == (nfe % 2 == 1)


class Coupled:
    """Velocity of data N(0, 0.5^2) and noise z = 0.8 x + 0.7 eps, which starts from the deviations of z."""

    img_channels, img_resolution, label_dim = 1, 4, 0
    path, predicts, start, gaussian_noise = "linear", "velocity", "exact", False
    calls = 0

    def start_noise(self, noise, prior=None):
        return noise * math.hypot(0.8 * 0.5, 0.7)

    def __call__(self, x, t, class_labels=None):
        self.calls += 1
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)
        mix = 1 - t + 0.8 * t
        return x * (mix * -0.2 * 0.25 + t * 0.49) / (mix**2 * 0.25 + t**2 * 0.49)


def test_the_exact_start_is_one_evaluation():
    net = Coupled()
    texts = ("euler", "dpm", "ipndm", "unipc:2", "edm", "euler@native", "heun@native", "ab@native")
    noise, possible = torch.zeros(2, 1, 4, 4), {}
    for cell in plan_cells(contestants(*texts), range(2, 8), net):
        possible[cell.label, cell.nfe] = cell.plan is not None
        if cell.plan is not None:
            net.calls = 0
            cell.plan(net, noise)
            assert net.calls == cell.nfe, cell
    for nfe in range(2, 8):
        assert possible["euler", nfe] == possible["euler@native", nfe] == possible["ab@native", nfe]
        assert possible["dpm", nfe] == possible["heun@native", nfe] == (nfe % 2 == 1)
        assert possible["edm", nfe] == (nfe % 2 == 0)


def test_comparisons_start_where_the_model_does():
    net = Coupled()
    noise = torch.stack([torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (5, 6)]).double()
    z = net.start_noise(noise)
    exact = z * 0.5 / math.hypot(0.8 * 0.5, 0.7)  # the flow maps one Gaussian to the other
    ours = sample_native(net, z, uniform_times(4))
    report = run(net, ["euler@native"], [4], num=2, seed=5, teacher_solver="ab", teacher_steps=400)
    want = (ours - exact).square().mean().sqrt().item()
    assert by_cell(report)["euler@native", 4] == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(
    ("net", "text", "words"),
    [(Gaussian(), "euler@native", "no time of its own"), (Coupled(), "unipc@native", "native time")],
)
def test_native_time_where_there_is_none(net, text, words):
    with pytest.raises(ValueError, match=words):
        plan_cells(contestants(text), [4], net)


def test_impossible_cells_say_why():
    report = run(Gaussian(), ["heun", "edm"], [3, 4], num=2, teacher_steps=4)
    heun = next(r for r in report["results"] if (r["solver"], r["nfe"]) == ("heun", 3))
    assert heun["rmse"] is None
    assert "2 evaluations a step" in heun["why"]
    (table,) = tables(report)
    assert [row[0] for row in table.rows] == ["3", "4"]
    assert table.rows[0][1] == table.rows[1][2] == "-"
    assert table.best == {(0, 2), (1, 1)}


def test_frechet_distance_uses_all_images_and_the_error_the_first():
    net = Gaussian()
    dim = 16
    reference = Moments(torch.zeros(dim), torch.eye(dim, dtype=torch.float64))
    measure = {"reference": reference, "extractor": load_features("pixels"), "num": 5, "teacher_steps": 10, "batch": 4}
    few, many = (run(net, ["euler"], [4], num_fid=n, **measure) for n in (5, 30))
    assert by_cell(few)["euler", 4] == pytest.approx(by_cell(many)["euler", 4], rel=1e-12)
    assert few["frechet"] == {"features": "pixels", "num": 5}
    assert many["frechet"]["num"] == 30
    from torch_utils.images import from_uint8, to_uint8

    noise = torch.stack(
        [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(HELD_OUT + i)) for i in range(30)]
    )
    images = from_uint8(to_uint8(sample(net, noise.double(), get_schedule(5, None, None), solver="euler")))
    x = images.flatten(1).double()
    direct = Moments(x.mean(0), x.T.cov()).distance(reference)
    assert by_cell(many, "frechet")["euler", 4] == pytest.approx(direct, rel=1e-9)
    assert len(tables(many)) == 2


def test_values_that_are_not_finite_are_told(monkeypatch):
    net = Gaussian()
    cells = plan_cells(contestants("euler", "ab"), [4], net)
    broken = dataclasses.replace(cells[0].plan, sampler=lambda field, noise, **_: noise / 0)
    bad = cells[0]._replace(plan=broken)
    report = compare(net, [bad, cells[1]], Measure(num=2, teacher_steps=5))
    assert report["results"][0]["rmse"] is None
    assert "not finite" in report["results"][0]["why"]
    assert report["results"][1]["rmse"] > 0


@pytest.fixture
def schedule_file(tmp_path):
    entries = [
        Entry(sigmas=(80, 5, 0.5, 0.002), coeff=1.0),
        Entry(sigmas=(80, 4, 0.4, 0.002), coeff=1.2),
        Entry(sigmas=(80, 9, 2, 0.3, 0.002), coeff=1.2),
        Entry(sigmas=(80, 12, 4, 1, 0.3, 0.1, 0.002), coeff=1.2, afs=True),
    ]
    path = tmp_path / "found.json"
    ScheduleFile(solver="ipndm", entries=tuple(entries), options={"max_order": 3}).save(path)
    return path


def test_schedule_file_gives_levels_options_and_afs(schedule_file):
    net = Gaussian()
    (c,) = contestants(f"ipndm@{schedule_file}#1.2")
    assert c.label == "ipndm@found#1.2"
    cells = {cell.nfe: cell for cell in plan_cells([c], [3, 4, 5, 6], net)}
    assert cells[3].plan.sigmas.tolist() == [80, 4, 0.4, 0.002]
    assert cells[4].plan.sigmas.tolist() == [80, 9, 2, 0.3, 0.002]
    assert len(cells[5].plan.sigmas) == 7
    assert cells[6].plan is None
    noise = torch.randn(2, 1, 4, 4)
    net.images = 0
    x = cells[5].plan(net, noise)
    assert net.images == 2 * 5
    expected = sample(net, noise.double(), cells[5].plan.sigmas, solver="ipndm", max_order=3, afs=True)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_schedule_file_with_several_coefficients_asks_which(schedule_file):
    with pytest.raises(ValueError, match=r"2 schedules of ipndm@found have NFE 3.*#1, .*#1\.2"):
        plan_cells(contestants(f"ipndm@{schedule_file}"), [3], Gaussian())


def test_schedule_of_another_solver_keeps_its_own_options(schedule_file):
    (c,) = contestants(f"heun@{schedule_file}#1.2")
    assert c.options == {}
    assert len(plan_cells([c], [6], Gaussian())[0].plan.sigmas) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("huen", "no solver 'huen'.*edm, euler, heun"),
        ("heun:2", "no option max_order"),
        ("ipndm:9", "max_order=9"),
        ("ipndm:high", "order 'high'"),
        ("unipc:variant=bh3", "variant='bh3'"),
        ("edm:1", "write edm alone"),
        ("edm@logsnr", "write edm alone"),
        ("euler@cosine", "no schedule 'cosine'"),
        ("euler@logsnr#2", "no schedule"),
    ],
)
def test_bad_contestants(text, message):
    with pytest.raises(ValueError, match=message):
        parse_contestant(text)


@pytest.mark.parametrize(
    ("texts", "nfes", "message"),
    [
        (["heun"], [1, 3], "'heun' is not possible with NFE 1, 3"),
        (["euler"], [0], "NFE at least 1"),
        ([], [3], "at least one solver"),
        (["euler"], [], "one NFE"),
        (["euler", "euler"], [3], "listed twice"),
    ],
)
def test_bad_plans(texts, nfes, message):
    with pytest.raises(ValueError, match=message):
        plan_cells(contestants(*texts), nfes, Gaussian())


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"num": 0}, "at least 1 sample"),
        ({"num": 9, "num_fid": 8}, "at most num_fid"),
        ({"teacher_solver": "hern"}, "no solver 'hern'"),
        ({"teacher_steps": 0}, "no step"),
    ],
)
def test_bad_measures(measure, message):
    with pytest.raises(ValueError, match=message):
        run(Gaussian(), ["euler"], [3], **measure)


def test_tables_of_something_else():
    with pytest.raises(ValueError, match="not the JSON of a comparison"):
        tables({"results": [{"fid": 3}]})


def test_every_solver_of_fixed_steps_can_be_compared():
    net = Gaussian()
    fixed = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "calibrated"]
    names = [*fixed, "edm"]  # a calibrated solver comes with a schedule file
    counts = [5, 6, 12]  # one of them is a whole number of every solver's steps
    report = run(net, names, counts, num=2, teacher_steps=15)
    assert all(any(by_cell(report)[s, n] is not None for n in counts) for s in names)


def test_adaptive_solvers_are_refused():
    with pytest.raises(ValueError, match="cannot be compared by NFE"):
        plan_cells(contestants("dopri5"), [5], Gaussian())
    with pytest.raises(ValueError, match="choose a solver of fixed steps"):
        run(Gaussian(), ["euler"], [5], teacher_solver="rk45")


def test_solvers_of_one_picture_have_colours_of_their_own():
    names = ("edm", "euler", "heun", "ipndm", "dpmpp", "unipc", "deis", "calibrated")
    styles = solver_styles({**{name: name for name in names}, "ipndm:2": "ipndm"})
    assert len({colour(hue) for hue, _ in styles.values()}) == len(names)
    assert styles["ipndm:2"] == (styles["ipndm"][0], 1)
