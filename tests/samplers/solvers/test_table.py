"""Every solver against golden solves and against each other; network evaluations are those announced."""

import itertools

import numpy as np
import pytest
import torch
from gaussian_mixture import denoiser_of
from golden_cases import cases
from solver_variants import VARIANTS, counted, curved

from samplers import SOLVERS, Field, get_schedule, sample
from samplers.solvers.weights import ipndm_v_weights
from torch_utils.rng import PerSampleRNG

# ----------------------------------------------------------------------------------------------------------------------
# Golden data


def grid_cells(case):
    """(index, {axis: value}, t_steps) of every cell of a solver grid that was run."""
    axes = case.file["axes"]
    values = [range(len(case.file["schedules"])), *(case.file[axis] for axis in axes[1:])]
    for index in itertools.product(*(range(len(v)) for v in values)):
        cell = {axis: v[i] for axis, v, i in zip(axes, values, index, strict=True)}
        if case["nfe"][index] >= 0 and not any(o.items() <= cell.items() for o in case.spec["optional_cells"]):
            yield index, cell, case.tensor(case.file["t_steps"][index[0]][index[1]])


def run_grid(case, tolerance, options):
    denoise = counted(denoiser_of(case))
    latents = case.tensor(case.file["latents"])
    assert latents.dtype == getattr(torch, case.file["dtype"])
    solver, atol = case.spec["solver"], tolerance["final"]["atol"]
    traced = 0
    for index, cell, t_steps in grid_cells(case):
        denoise.calls, steps = 0, []
        plain = {"afs": cell["afs"], "denoise_to_zero": cell["denoise_to_zero"]}
        final = sample(denoise, latents, t_steps, solver=solver, trace=steps.append, **plain, **options)
        assert final.dtype == latents.dtype
        np.testing.assert_allclose(
            final, case["final"][index], atol=atol, rtol=tolerance["final"]["rtol"], err_msg=str(cell)
        )
        assert denoise.calls == case["nfe"][index], cell
        assert SOLVERS[solver].nfe(cell["num_steps"], **plain, **options) == denoise.calls
        if cell == case.file["traj_cell"]:
            traced += 1
            states = [s.x for s in steps] + [final]
            case.expect("traj_x", torch.stack(states), tolerance["traj_x"])
            if case.has("traj_eps"):
                case.expect(
                    "traj_eps", torch.stack([s.drift for s in steps[: len(t_steps) - 1]]), tolerance["traj_eps"]
                )
    assert traced == case.has("traj_x")


@pytest.mark.parametrize("case", cases("solvers", "solver_grid"))
def test_golden_grid(case):
    options = dict(case.spec["options"])
    options.pop("deis_quadrature_points", None)  # exact quadrature
    run_grid(case, case.spec["tolerance"], options)


@pytest.mark.parametrize(
    "case", [c for c in cases("solvers", "solver_grid") if "tolerance_reference_quadrature" in c.values[0].spec]
)
def test_golden_grid_with_the_published_quadrature(case):
    tolerance = {**case.spec["tolerance"], **case.spec["tolerance_reference_quadrature"]}
    run_grid(case, tolerance, case.spec["options"])


# ----------------------------------------------------------------------------------------------------------------------
# Evaluations, and levels that end at 0


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_calls_are_known_before(solver, options):
    x = torch.randn(2, 5, dtype=torch.float64)
    ways = [{}, {"denoise_to_zero": True}]
    if SOLVERS[solver].takes_first:
        ways += [{"afs": True}, {"afs": True, "denoise_to_zero": True}]
    for num_steps, way in itertools.product((2, 3, 4, 6), ways):
        denoise, steps = counted(curved), []
        sample(denoise, x, get_schedule(num_steps), solver=solver, trace=steps.append, **way, **options)
        assert denoise.calls == SOLVERS[solver].nfe(num_steps, **way, **options), (num_steps, way)
        assert [s.i for s in steps] == list(range(num_steps - 1 + ("denoise_to_zero" in way)))
        if "denoise_to_zero" not in way:
            denoise.calls = 0
            sample(denoise, x, [*(80.0 / (i + 1) for i in range(num_steps - 1)), 0], solver=solver, **way, **options)
            assert denoise.calls == SOLVERS[solver].nfe(num_steps, ends_at_zero=True, **way, **options), (
                num_steps,
                way,
            )


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_point_mass_is_reached_at_level_zero(solver, options):
    point = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64).expand(3, 6)
    seen = []

    def denoise(x, sigma, class_labels=None):
        seen.append(float(sigma))
        return point

    out = sample(
        denoise, torch.randn(3, 6, dtype=torch.float64), [*get_schedule(6).tolist(), 0.0], solver=solver, **options
    )
    torch.testing.assert_close(out, point, rtol=0, atol=1e-12)
    assert min(seen) > 0


def test_heun_over_levels_that_end_at_zero_is_the_edm_sampler():
    t = [*get_schedule(8).tolist(), 0.0]
    z = torch.randn(4, 3, dtype=torch.float64)
    x = z * t[0]
    for a, b in itertools.pairwise(t):
        d = (x - curved(x, a)) / a
        y = x + (b - a) * d
        x = y if b == 0 else x + (b - a) * (d + (y - curved(y, b)) / b) / 2
    torch.testing.assert_close(sample(curved, z, t, solver="heun"), x, rtol=0, atol=1e-12)


def test_denoise_to_zero_is_a_first_order_step_to_zero():
    t, z = get_schedule(6), torch.randn(4, 3, dtype=torch.float64)
    steps = []
    out = sample(curved, z, t, solver="ipndm", denoise_to_zero=True, trace=steps.append)
    torch.testing.assert_close(out, sample(curved, z, [*t.tolist(), 0.0], solver="ipndm"), rtol=0, atol=1e-13)
    torch.testing.assert_close(steps[-1].x, sample(curved, z, t, solver="ipndm"), rtol=0, atol=0)


def test_afs_is_the_direction_of_unit_gaussian_data():
    t, z = get_schedule(2), torch.randn(4, 3, dtype=torch.float64)
    x = z * t[0]
    expected = x + (t[1] - t[0]) * x / (1 + t[0] ** 2).sqrt()
    torch.testing.assert_close(sample(curved, z, t, solver="euler", afs=True), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Solvers against each other


def same(first, second, atol=1e-11, num_steps=9, **kwargs):
    z = torch.randn(4, 6, dtype=torch.float64)
    t = get_schedule(num_steps, **kwargs)
    a, b = (sample(curved, z, t, solver=name, **options) for name, options in (first, second))
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ipndm", {}),
        ("ipndm_v", {}),
        ("ab", {}),
        ("deis", {"deis_mode": "tab"}),
        ("deis", {"deis_mode": "rhoab"}),
        ("dpmpp", {"predict_x0": False}),
        ("dpmpp", {"predict_x0": True}),
    ],
)
def test_first_order_is_euler(solver, options):
    same((solver, {"max_order": 1, **options}), ("euler", {}))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_rhoab_is_exact_adams_bashforth(order):
    same(("deis", {"deis_mode": "rhoab", "max_order": order}), ("ab", {"max_order": order}))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equal_steps_make_ipndm_exact(order):
    same(("ipndm", {"max_order": order}), ("ab", {"max_order": order}), schedule_rho=1, sigma_min=1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ipndm_v_is_exact_where_it_should_be(order):
    same(
        ("ipndm_v", {"max_order": order}), ("ab", {"max_order": order}), schedule_rho=7 if order < 3 else 1, sigma_min=1
    )


def test_ipndm_v_of_order_4_is_the_published_one():
    # Equal steps: [57, -65, 43, -11] / 24 instead of [55, -59, 37, -9] / 24.
    assert ipndm_v_weights([5.0, 4.0, 3.0, 2.0, 1.0], 3, 4) == pytest.approx([-57 / 24, 65 / 24, -43 / 24, 11 / 24])


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_samples_do_not_depend_on_their_batch(solver, options):
    z, t = torch.randn(5, 3, 4, 4), get_schedule(6)
    if SOLVERS[solver].options.get("thresholding", 0) is None and options["predict_x0"]:
        options = {**options, "thresholding": "dynamic"}
    whole = sample(curved, z, t, solver=solver, **options)
    parts = [sample(curved, part, t, solver=solver, **options) for part in z.split([1, 4])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


def test_labels_reach_every_call():
    seen = []

    def denoise(x, sigma, class_labels):
        seen.append(class_labels)
        return curved(x, sigma, class_labels)

    labels, z = torch.eye(4, dtype=torch.float64)[:2], torch.randn(2, 3, dtype=torch.float64)
    fixed = {name: s for name, s in SOLVERS.items() if not s.adaptive and name != "calibrated"}
    for solver in fixed:
        sample(denoise, z, get_schedule(5), solver=solver, class_labels=labels, denoise_to_zero=True)
    assert all(s is labels for s in seen)
    assert len(seen) == sum(s.nfe(5, denoise_to_zero=True) for s in fixed.values())


def test_labels_bound_to_the_field_stay():
    labels, z, t = torch.eye(4, dtype=torch.float64)[:2], torch.randn(2, 3, dtype=torch.float64), get_schedule(5)
    bound = sample(Field(curved).bind(labels), z, t)
    assert torch.equal(bound, sample(curved, z, t, class_labels=labels))
    assert not torch.equal(bound, sample(curved, z, t))


def test_stochastic_solver_draws_from_rng():
    z, t = torch.randn(2, 3, dtype=torch.float64), get_schedule(5)

    def run(*seeds):
        return sample(curved, z, t, solver="heun_churn", S_churn=10, rng=PerSampleRNG(seeds))

    assert torch.equal(run(1, 2), run(1, 2))
    assert not torch.equal(run(1, 2), run(1, 3))
    torch.testing.assert_close(sample(curved, z, t, solver="heun_churn"), sample(curved, z, t, solver="heun"))


@pytest.mark.parametrize("path", ["ve", "linear"])
def test_renoise_is_the_clean_estimate_with_fresh_noise(path):
    """One step to level 0 is the estimate; each step before adds what its samples drew, whatever the batch."""
    net = Field(curved, path, "data")
    z, t = torch.randn(3, 4, dtype=torch.float64), [0.9, 0.5, 0.0]

    def run(rows):
        return SOLVERS["renoise"].fn(net, z[rows], t, rng=PerSampleRNG(range(3)[rows]))

    fresh = PerSampleRNG(range(3)).randn([3, 4], dtype=torch.float64)
    middle = net.path.mix(net.data(z, torch.tensor(0.9)), fresh, torch.tensor(0.5))
    torch.testing.assert_close(run(slice(0, 3)), net.data(middle, torch.tensor(0.5)), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([run(slice(0, 1)), run(slice(1, 3))]), run(slice(0, 3)), rtol=0, atol=1e-12)


def test_values_of_files_are_those_that_are_listed():
    """JSON of other programs says 3.0 for 3, and true is no order."""
    found = SOLVERS["ipndm"].resolve({"max_order": 3.0})["max_order"]
    assert (found, type(found)) == (3, int)
    assert SOLVERS["dpmpp"].resolve({"predict_x0": 0})["predict_x0"] is False
    for value in (True, 3.5, float("nan")):
        with pytest.raises(ValueError, match="choose from 1, 2, 3, 4"):
            SOLVERS["ipndm"].resolve({"max_order": value})
