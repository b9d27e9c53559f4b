"""Programs against the solvers that they write down, whole and in part; and files made of modules."""

import ast
import itertools
import sys
import types

import pytest
import torch
from solver_variants import curved, variants
from test_imports import imports

from samplers import SOLVERS, Field, sample
from samplers.export.bundle import bundle
from samplers.export.core import FORMULAS, Run, program
from samplers.export.lookup import fold, schedule_program, steps_of
from torch_utils.rng import TorchRNG

LEVELS = [14.6, 5.0, 2.2, 0.9, 0.3, 0.05]
MORE = [(name, {}) for name in ("midpoint", "heun2", "heun3", "ssprk3", "rk4")]
ROWS = [[1.0], [1.4, -0.3], [1.8, -1.1, 0.3], [1.1, -0.1], [2.2, -2.1, 1.2, -0.3]]


def run(lines, start, denoise, **how):
    going = Run(lines, **how)
    x = going.begin(start)
    while going.line.level is not None:
        x = going.feed(x, denoise(x, going.line.level))
    return x


def noise(seed=0):
    return torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("afs", "end"), [*itertools.product((False, True), ((), (0.0,)))])
def test_programs_are_the_solvers(afs, end):
    x, levels = noise(), [*LEVELS, *end]
    tried = set()
    for name, options in [*variants(), *MORE, ("dpm", {"r": 0.3}), ("calibrated", {})]:
        if afs and not SOLVERS[name].takes_first:
            continue
        off = {"thresholding": "none"} if name in ("dpmpp", "unipc") else {}
        if name == "calibrated":
            options = {"coefficients": [*ROWS, [1.0]][: len(levels) - 1]}
        expected = sample(curved, x, levels, solver=name, afs=afs, **options, **off)
        got = run(program(name, levels, afs, **options), x * levels[0], curved)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        tried.add(name)
    tried.add("renoise")  # which is nothing without its noise: see below
    assert afs or tried == set(FORMULAS) == {name for name, solver in SOLVERS.items() if not solver.adaptive}


def rng():
    return TorchRNG("cpu", torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("name", "options"), [
    ("heun_churn", {"S_churn": 20, "S_min": 0.2, "S_noise": 1.01}),
    ("sa", {}),
    ("renoise", {}),
    ("sa", {"tau": 0.6, "corrector_order": 0}),
])  # fmt: skip
def test_stochastic_solvers_draw_as_often(name, options):
    x = noise()
    expected = sample(curved, x, LEVELS, solver=name, rng=rng(), **options)
    own = rng()
    got = run(program(name, LEVELS, **options), x * LEVELS[0], curved, noise=lambda: own.randn(x.shape, dtype=x.dtype))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_thresholding():
    def wide(x, sigma, class_labels=None):
        return 2 * curved(x, sigma)

    expected = sample(wide, noise(), LEVELS, solver="dpmpp", thresholding="dynamic")
    assert not torch.allclose(expected, sample(wide, noise(), LEVELS, solver="dpmpp", thresholding="none"))
    torch.testing.assert_close(run(program("dpmpp", LEVELS), noise() * LEVELS[0], wide, threshold=True), expected)


def test_from_the_end_of_a_path():
    def velocity(x, t, class_labels=None):
        return torch.tanh(x + t)

    field = Field(velocity, "linear", "velocity")
    expected = sample(field, noise(), LEVELS, solver="ab", start="exact")
    one = torch.ones((), dtype=torch.float64)

    def denoise(x, level):
        return (
            field.data(x, one)
            if level == float("inf")
            else field.ve().data(x, torch.tensor(level, dtype=torch.float64))
        )

    got = run(program("ab", [float("inf"), *LEVELS]), noise(), denoise)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_little_is_held():
    """Of an Adams method of order 4 four drifts are states and estimates; nothing else stays."""
    levels = torch.linspace(10, 0.1, 30).tolist()
    going = Run(program("ab", levels))
    x = going.begin(noise())
    while going.line.level is not None:
        x = going.feed(x, curved(x, going.line.level))
        assert len(going.held) <= 9


def calibrated(**more):
    entries = [{"sigmas": LEVELS, "coefficients": ROWS, **more}]
    return {"solver": "calibrated", "options": {"max_order": 4}, "path": "ve", "entries": entries}


def test_coefficients_are_looked_up_by_level():
    assert steps_of(LEVELS, LEVELS) == [0, 1, 2, 3, 4]
    near = torch.tensor(LEVELS[2:], dtype=torch.float32).tolist()
    assert steps_of(LEVELS, [*near, 0.0]) == [2, 3, 4, -1]
    assert steps_of(LEVELS, [14.6, 2.2]) is None
    assert steps_of(LEVELS, [5.0, 2.3]) is None
    part = schedule_program(calibrated(), near)
    rows = [fold(row, n + 1) for n, row in enumerate(ROWS[2:])]
    assert [sum(row) for row in rows] == pytest.approx([sum(row) for row in ROWS[2:]])
    assert part == program("calibrated", LEVELS[2:], coefficients=rows)
    first = schedule_program(calibrated(), LEVELS[:3])
    assert first == program("calibrated", LEVELS[:3], coefficients=ROWS[:2])
    to_zero = schedule_program(calibrated(), [*LEVELS, 0.0])
    assert to_zero == program("calibrated", [*LEVELS, 0.0], coefficients=[*ROWS, [1.0]])


def test_the_first_step_is_analytical_at_the_top_alone():
    whole, part = (schedule_program(calibrated(afs=True), levels) for levels in (LEVELS, LEVELS[1:]))
    assert sum(line.level is not None for line in whole) == 4
    assert sum(line.level is not None for line in part) == 4


def test_levels_that_the_file_does_not_know():
    said = []
    lines = schedule_program(calibrated(), [10.0, 3.0, 0.5], said.append)
    assert lines == program("ipndm", [10.0, 3.0, 0.5])
    (line,) = said
    assert "ipndm" in line
    assert "\n" not in line
    plain = {"solver": "dpmpp", "options": {"thresholding": "none"}, "path": "ve", "entries": [{"sigmas": LEVELS}]}
    assert schedule_program(plain, [10.0, 3.0], said.append) == program("dpmpp", [10.0, 3.0])
    assert len(said) == 1


@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0], [1.0, -1.0]])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="falling numbers"):
        program("euler", levels)


@pytest.mark.parametrize("name", ["core", "kdiffusion", "scheduler"])
def test_a_bundle_imports_none_of_our_modules(name, monkeypatch):
    text = bundle(f"samplers.export.{name}")
    imported = {module.split(".")[0] for module, _ in imports(ast.parse(text))}
    assert not imported & {"samplers", "torch_utils", "networks", "training"}
    if name == "core":
        module = types.ModuleType("alone")
        monkeypatch.setitem(sys.modules, "alone", module)
        exec(text, module.__dict__)
        assert module.program("deis", LEVELS)[-1].mix == program("deis", LEVELS)[-1].mix


def test_bundles_refuse_two_things_of_one_name(tmp_path, monkeypatch):
    import samplers.export.bundle as made

    monkeypatch.setattr(made, "_ROOT", tmp_path)
    (tmp_path / "samplers").mkdir()
    for name, text in {
        "a": "from samplers.b import f\nfrom samplers.c import g\nx = f, g\n",
        "b": "def h():\n    pass\ndef f():\n    h()\n",
        "c": "def h():\n    return 1\ndef g():\n    h()\n",
    }.items():
        (tmp_path / f"samplers/{name}.py").write_text(f'"""Text."""\n{text}')
    with pytest.raises(ValueError, match="both define h"):
        made.bundle("samplers.a")
