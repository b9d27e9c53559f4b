"""The calibrated solver: its closed forms, the fit, the refinement, and the whole calibration on small models."""

import math

import pytest
import torch
from gaussian_mixture import mixture

from samplers import SOLVERS, Field, get_schedule, sample
from samplers.calibration.calibrate import calibrate
from samplers.calibration.fitting import fit_coefficients
from samplers.calibration.refine import CORRECTIONS, FREE, IN_TURN, _huber, end_errors, refine
from samplers.calibration.student import gram
from samplers.gits.teacher import run_teacher, warmup_chunks
from samplers.guidance import cfg
from samplers.recipe import ScheduleFile
from samplers.solvers.weights import EQUAL_STEPS
from samplers.start import Chunk

SHAPE = (2, 3, 3)


def two_modes(x, sigma, class_labels=None):
    """Two Gaussians in 18 dimensions; labels shift them."""
    mu = torch.linspace(-0.6, 0.7, 18, dtype=x.dtype)
    pi, std = torch.tensor([0.4, 0.6], dtype=x.dtype), torch.tensor([[0.2], [0.3]], dtype=x.dtype)
    shift = 0 if class_labels is None else class_labels[:, :1].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return mixture(pi, torch.stack([mu, -mu.flip(0)]), std)(x - 0.2 * shift, sigma) + 0.2 * shift


def gaussian(x, sigma, class_labels=None):
    """Data N(0, 0.3^2): every trajectory is x(s) = x(s0) sqrt((v + s^2) / (v + s0^2))."""
    return x * 0.09 / (0.09 + sigma**2)


def warmup(net, n, seed=0, batch=64, dtype=torch.float64):
    return list(warmup_chunks(Field(net), n, SHAPE, seed=seed, batch=batch, dtype=dtype))


def teacher_of(chunks, grid):
    return [run_teacher(chunk, grid).states for chunk in chunks]


GRID = get_schedule(41)
KNOTS = [0, 18, 24, 30, 40]


@pytest.fixture(scope="module")
def problem():
    """Warm-up samples with their teacher, and held-out ones."""
    chunks, heldout = warmup(two_modes, 48, batch=32), warmup(two_modes, 64, seed=1)
    return chunks, teacher_of(chunks, GRID), heldout, teacher_of(heldout, GRID)


def rms(chunks, teacher, sigmas, coefficients, afs=False):
    ends = [sample(c.field, c.noise, sigmas, solver="calibrated", coefficients=coefficients, afs=afs) for c in chunks]
    return float(end_errors(ends, [x[-1] for x in teacher]).mean().sqrt())


def knots(teacher, indices=KNOTS):
    return [x[indices] for x in teacher]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("ends", [{}, {"afs": True}, {"denoise_to_zero": True}])
def test_weights_of_equal_steps_are_ipndm(order, ends):
    noise, sigmas = torch.randn(3, *SHAPE, dtype=torch.float64), get_schedule(8)
    rows = [EQUAL_STEPS[min(i + 1, order) - 1] for i in range(7)]
    own = sample(two_modes, noise, sigmas, solver="calibrated", coefficients=rows, max_order=order, **ends)
    torch.testing.assert_close(own, sample(two_modes, noise, sigmas, solver="ipndm", max_order=order, **ends))


def test_short_rows_and_a_step_to_zero():
    noise, sigmas = torch.randn(3, *SHAPE, dtype=torch.float64), [*get_schedule(4).tolist(), 0.0]
    own = sample(two_modes, noise, sigmas, solver="calibrated", coefficients=[[1.0]] * 4)
    torch.testing.assert_close(own, sample(two_modes, noise, sigmas, solver="euler"))


def test_evaluations():
    assert SOLVERS["calibrated"].nfe(num_steps=6) == 5
    assert SOLVERS["calibrated"].nfe(num_steps=6, afs=True, denoise_to_zero=True) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs coefficients"),
        ({"coefficients": [[1.0]]}, "for 1 steps and the schedule has 3"),
        ({"coefficients": [[1.0, 0.0]] * 3}, "step 0 has 2"),
        ({"coefficients": [[1.0], [1.0], [1.0, 0.0, 0.0]], "max_order": 2}, "step 2 has 3"),
        ({"coefficients": [[1.0], [], [1.0]]}, "step 1 has 0"),
        ({"max_order": 5}, "max_order=5"),
    ],
)
def test_bad_coefficients_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample(two_modes, torch.randn(2, 3), get_schedule(4), solver="calibrated", **options)


def test_fit_is_exact_where_one_coefficient_is_enough():
    # Drift and state are parallel here, so one factor per step carries the state exactly to the teacher's.
    s = get_schedule(5)
    chunk = Chunk(Field(gaussian), torch.randn(7, 4, dtype=torch.float64))
    states = s[0] * chunk.noise * ((0.09 + s**2) / (0.09 + s[0] ** 2)).sqrt()[:, None, None]
    fit = fit_coefficients([chunk], [states], s, max_order=1, ridge=0)
    ratio = ((0.09 + s[1:] ** 2) / (0.09 + s[:-1] ** 2)).sqrt()
    exact = (ratio - 1) * (0.09 + s[:-1] ** 2) / (s[:-1] * s.diff())
    torch.testing.assert_close(torch.tensor(fit.coefficients, dtype=torch.float64)[:, 0], exact)
    assert max(fit.errors) < 1e-6


def test_a_strong_ridge_gives_the_weights_of_equal_steps(problem):
    chunks, teacher, *_ = problem
    fit = fit_coefficients(chunks, knots(teacher), GRID[KNOTS], ridge=1e12)
    for i, row in enumerate(fit.coefficients):
        assert row == pytest.approx(list(EQUAL_STEPS[i]), abs=1e-6)


def test_fit_minimises_the_error_of_each_step(problem):
    chunks, teacher, *_ = problem
    sigmas, states = GRID[KNOTS[:4]], knots(teacher, KNOTS[:4])
    fit = fit_coefficients(chunks, states, sigmas, ridge=0)
    assert rms(chunks, states, sigmas, fit.coefficients) == pytest.approx(fit.errors[-1], rel=1e-6)
    for k in range(3):
        for change in (-1e-3, 1e-3):
            rows = [list(row) for row in fit.coefficients]
            rows[-1][k] += change
            assert rms(chunks, states, sigmas, rows) > fit.errors[-1]


def test_fit_does_not_depend_on_the_chunks(problem):
    chunks, teacher, *_ = problem
    one = [Chunk(chunks[0].field, torch.cat([c.noise for c in chunks]))]
    fit = fit_coefficients(chunks, knots(teacher), GRID[KNOTS])
    other = fit_coefficients(one, [torch.cat(knots(teacher), dim=1)], GRID[KNOTS])
    for row, same in zip(fit.coefficients, other.coefficients, strict=True):
        assert row == pytest.approx(same, rel=1e-6)


def test_gram_in_blocks(monkeypatch):
    monkeypatch.setitem(gram.__globals__, "_BLOCK", 5)
    rows = torch.randn(3, 17, dtype=torch.float64)
    torch.testing.assert_close(gram(rows), rows @ rows.T)


@pytest.mark.parametrize("afs", [False, True])
def test_each_stage_is_nearer_to_the_teacher_on_held_out_noise(problem, afs):
    chunks, teacher, heldout, heldout_teacher = problem
    sigmas = GRID[KNOTS]
    adams = rms(heldout, heldout_teacher, sigmas, [EQUAL_STEPS[i] for i in range(4)], afs)
    fit = fit_coefficients(chunks, knots(teacher), sigmas, afs=afs)
    fitted = rms(heldout, heldout_teacher, sigmas, fit.coefficients, afs)
    found = refine(chunks, teacher, sigmas, fit.coefficients, afs=afs)
    refined = rms(heldout, heldout_teacher, found.sigmas, found.coefficients, afs)
    assert refined < fitted < adams
    assert refined < 0.9 * fitted
    assert found.sigmas[0] == pytest.approx(float(sigmas[0]))
    assert found.sigmas[-1] == pytest.approx(float(sigmas[-1]))
    assert found.sigmas == sorted(found.sigmas, reverse=True)


@pytest.mark.parametrize("bases", [FREE, CORRECTIONS, IN_TURN])
def test_levels_that_nearly_meet(problem, bases):
    """Nearer to each other than a difference of the logarithm is wide: derivatives are taken to the other side."""
    chunks, teacher, heldout, heldout_teacher = problem
    sigmas = GRID[KNOTS].tolist()
    sigmas[2] = sigmas[1] * 0.998
    rows = [EQUAL_STEPS[i] for i in range(4)]
    found = refine(chunks, teacher, sigmas, rows, iterations=2, bases=bases)
    assert found.sigmas == sorted(found.sigmas, reverse=True)
    assert rms(heldout, heldout_teacher, found.sigmas, found.coefficients, False) < 0.5 * rms(
        heldout, heldout_teacher, sigmas, rows, False
    )


def test_refinement_counts_its_evaluations(problem):
    chunks, teacher, *_ = problem
    calls = 0

    def counted(x, sigma, class_labels=None):
        nonlocal calls
        calls += len(x)
        return two_modes(x, sigma)

    chunks = [Chunk(Field(counted), c.noise) for c in chunks]
    rows = [EQUAL_STEPS[i] for i in range(4)]
    found = refine(chunks, teacher, GRID[KNOTS], rows, iterations=2)
    assert calls == found.evaluations * sum(len(c.noise) for c in chunks)


def test_outliers_lose_weight():
    errors = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e4], dtype=torch.float64)
    weights = _huber(errors)
    assert weights[:4].tolist() == [1.0] * 4
    assert weights[4] == pytest.approx(3 * 100**0.2 / 100)


SMALL = {"img_shape": SHAPE, "num_steps_tea": 21, "num_warmup": 40, "num_heldout": 16, "batch": 16}


def student(nfe, field=two_modes, **options):
    return calibrate(field, nfe, **{**SMALL, **options}).students[0]


@pytest.mark.parametrize("afs", [None, False, True])
def test_calibration_beats_gits_with_ipndm(afs):
    found = student(4, afs=afs)
    assert found.errors["held_out"] < 0.7 * found.errors["ipndm"]
    if afs is not None:
        assert found.afs == afs
    assert SOLVERS["calibrated"].nfe(len(found.sigmas), afs=found.afs) == found.nfe == 4


def test_one_file_holds_all_students(tmp_path):
    found = calibrate(two_modes, (2, 4), **SMALL)
    found.schedule_file(model_hash="abc").save(tmp_path / "students.json")
    file = ScheduleFile.load(tmp_path / "students.json")
    assert file.provenance["seed"] == 0
    noise = torch.randn(3, *SHAPE)
    for one, kept in zip(found.students, file.provenance["students"], strict=True):
        assert (kept["nfe"], kept["errors"]) == (one.nfe, one.errors)
        entry = file.choose(nfe=one.nfe)
        stored = sample(
            two_modes, noise, entry.sigmas, solver=file.solver, afs=entry.afs, coefficients=entry.coefficients,
            **file.options,
        )  # fmt: skip
        again = sample(two_modes, noise, one.sigmas, solver="calibrated", afs=one.afs, coefficients=one.coefficients)
        torch.testing.assert_close(stored, again, rtol=0, atol=0)
    # Not to the last bit: sums of float64 products depend on how tensors are aligned in memory.
    assert student(4).errors == pytest.approx(found.students[1].errors, rel=1e-6)
    with pytest.raises(ValueError, match=r"none of the file's schedules fit nfe=3: ask for one of .*nfe=2"):
        file.choose(nfe=3)


def test_calibration_is_seeded_and_does_not_depend_on_the_batch():
    one, other = student(3), student(3, batch=7)
    torch.testing.assert_close(one.sigmas, other.sigmas, rtol=1e-3, atol=0)
    assert one.errors["held_out"] == pytest.approx(other.errors["held_out"], rel=1e-2)
    assert student(3, seed=5).coefficients != one.coefficients


def test_one_evaluation():
    found = student(1)
    assert SOLVERS["calibrated"].nfe(len(found.sigmas), afs=found.afs) == 1


def test_fit_alone():
    found = student(3, iterations=0)
    assert set(found.errors) == {"held_out", "ipndm", "fitted", "fitted, afs"}


class Velocity:
    """A conditional flow model on the linear path: the velocity of `two_modes`."""

    path, predicts, label_dim, img_channels, img_resolution = "linear", "velocity", 2, 2, 3

    def __call__(self, x, t, class_labels=None):
        data = two_modes(x / (1 - t), t / (1 - t), class_labels)
        return (x - data) / t


def test_guided_flow_model():
    field = cfg(Velocity(), rate=2.0)
    found = calibrate(field, 3, **{**SMALL, "img_shape": None}, sigma_max=40)
    assert found.path == "linear"
    assert found.students[0].errors["held_out"] < found.students[0].errors["ipndm"]


def test_memory_limit_is_told(capsys):
    each = 21 * math.prod(SHAPE) * 4 / 2**30
    found = calibrate(two_modes, 2, **SMALL, max_gib=20.5 * each)
    assert found.settings["num_warmup"] == 20
    assert "calibrating on 20 of 40 warm-up samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, "nfe=0"),
        ({"nfe": (3, 0)}, "nfe=0"),
        ({"nfe": (3, 3)}, "nfe=3,3: .* each once"),
        ({"nfe": ()}, "one or more numbers"),
        ({"nfe": 20}, "nfe=20 .* give 1 to 19"),
        ({"metric": "l3"}, "unknown metric 'l3'"),
        ({"solver_tea": "unipc"}, "'unipc' cannot be the teacher"),
        ({"num_warmup": 0}, "num_warmup=0"),
        ({"num_heldout": 0}, "num_heldout=0"),
        ({"max_gib": 1e-9}, "max_gib"),
        ({"max_order": 5}, "max_order=5"),
        ({"coeff": 0}, "coeff=0"),
        ({"class_idx": 0}, "class 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(two_modes, **{"nfe": 3, **SMALL, **options})


def test_negative_ridge(problem):
    chunks, teacher, *_ = problem
    with pytest.raises(ValueError, match="ridge=-1"):
        fit_coefficients(chunks, knots(teacher), GRID[KNOTS], ridge=-1.0)
