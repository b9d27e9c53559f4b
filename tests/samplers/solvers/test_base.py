"""The solver contract: levels of every shape, precision, devices, gradients, and what is refused."""

import math

import pytest
import torch
from solver_variants import VARIANTS, curved

from samplers import SOLVERS, Field, get_schedule, sample
from samplers.path import Linear

SCALAR_ONLY = ("unipc", "heun_churn", "sa")
MAPPED = [v for v in VARIANTS if v.values[0] not in SCALAR_ONLY and v.values[1].get("deis_mode") != "tab"]


@pytest.mark.parametrize(("solver", "options"), MAPPED)
@pytest.mark.parametrize("zero", [False, True])
def test_per_sample_levels_are_separate_solves(solver, options, zero):
    z = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    single = [get_schedule(6, sigma_max=m) for m in (80, 40, 20)]
    end = [0.0] if zero else []
    afs = solver != "heun"
    expected = [
        sample(curved, z[i : i + 1], [*t.tolist(), *end], solver=solver, afs=afs, **options)
        for i, t in enumerate(single)
    ]
    levels = [*torch.stack(single, dim=1), *end]  # each [B]
    out = sample(curved, z, levels, solver=solver, afs=afs, **options)
    torch.testing.assert_close(out, torch.cat(expected), rtol=0, atol=1e-11)
    if not zero:
        maps = torch.stack(single, dim=1)[:, :, None, None, None].expand(-1, -1, 2, 2, 2)
        out = sample(curved, z, maps, solver=solver, afs=afs, **options)
        torch.testing.assert_close(out, torch.cat(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "options"), [("unipc", {}), ("sa", {}), ("deis", {"deis_mode": "tab"}), ("heun_churn", {})]
)
def test_levels_a_solver_cannot_take(solver, options):
    with pytest.raises(ValueError, match="level"):
        sample(curved, torch.randn(3, 4), get_schedule(5)[:, None].expand(-1, 3), solver=solver, **options)


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_state_keeps_the_dtype_of_the_noise(solver, options):
    seen = []

    def float32_network(x, sigma, class_labels):
        seen.append((x.dtype, sigma.dtype, sigma.ndim))
        return curved(x.float(), sigma).float()

    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    t = get_schedule(6, 0.1, 8)
    double = sample(float32_network, z, t, solver=solver, **options)
    assert set(seen) == {(torch.float64, torch.float64, 0)}
    assert double.dtype == torch.float64
    single = sample(float32_network, z.float(), t, solver=solver, **options)
    assert single.dtype == torch.float32
    # Every step rounds a state of the size 8 |z|, and what it adds: a few values as large as that.
    atol = 4 * len(t) * float(8 * z.abs().max()) * 2**-24
    torch.testing.assert_close(single.double(), double, rtol=0, atol=atol)


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_nothing_waits_for_the_device(solver, options):
    # Tensors on the meta device have no values: whatever would read one back raises.
    z = torch.empty(2, 3, 4, 4, device="meta")
    ways = [{}] + [{"thresholding": "dynamic"}] * bool(options.get("predict_x0"))
    for way in ways:
        out = sample(curved, z, [*get_schedule(5).tolist(), 0.0], solver=solver, **options, **way)
        assert out.shape == z.shape


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_gradients_flow(solver, options):
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.1, 0.3], dtype=torch.float64, requires_grad=True)

    def run(z, weight):
        def denoise(x, sigma, class_labels):
            return torch.tanh(weight[0] * x / (1 + sigma) + weight[1])

        return sample(denoise, z, get_schedule(5, sigma_max=3, sigma_min=0.1), solver=solver, **options)

    assert torch.autograd.gradcheck(run, (z, weight), atol=1e-6)


@pytest.mark.parametrize(("solver", "options"), MAPPED)
@pytest.mark.parametrize("shape", [(), (2,), (2, 4)])
def test_gradients_reach_the_levels(solver, options, shape):
    z = torch.randn(2, 4, dtype=torch.float64)
    t = get_schedule(5, sigma_max=3, sigma_min=0.1).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    t = (t * (1 + 0.01 * torch.rand(t.shape, dtype=torch.float64))).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: sample(curved, z, t, solver=solver, **options), (t,), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"solver": "rk9"}, "no solver 'rk9'.*euler, heun"),
        ({"solver": "srid2"}, "chosen by --field: leave it out"),
        ({"solver": "euler", "max_order": 2}, "'euler' has no option max_order: it takes none"),
        ({"solver": "ipndm", "variant": "bh1"}, "'ipndm' has no option variant: it takes max_order"),
        ({"solver": "ipndm", "max_order": 5}, "max_order=5.*'ipndm'.*1, 2, 3, 4"),
        ({"solver": "dpmpp", "max_order": 4}, "max_order=4.*'dpmpp'.*1, 2, 3"),
        ({"solver": "unipc", "max_order": 0}, "max_order=0.*'unipc'"),
        ({"solver": "unipc", "variant": "bh3"}, "variant='bh3'.*bh1, bh2"),
        ({"solver": "deis", "deis_mode": "rho"}, "deis_mode='rho'.*tab, rhoab"),
        ({"solver": "deis", "deis_quadrature_points": 1}, "deis_quadrature_points=1"),
        ({"solver": "dpmpp", "thresholding": "static"}, "thresholding='static'"),
        ({"solver": "dpmpp", "thresholding": "dynamic", "predict_x0": False}, "predict_x0=True"),
        ({"solver": "dpm", "r": 0}, "r=0"),
        ({"solver": "dpm", "r": 1.5}, "r=1.5"),
        ({"solver": "heun_churn", "afs": True}, "leave out afs"),
        ({"sigmas": [80.0]}, "two or more"),
        ({"sigmas": []}, "two or more"),
        ({"sigmas": torch.tensor(80.0)}, "two or more"),
        ({"sigmas": [1.0, 2.0]}, "1 is followed by 2"),
        ({"sigmas": [2.0, 2.0, 1.0]}, "2 is followed by 2"),
        ({"sigmas": [2.0, 0.0, 0.0]}, "0 is not possible"),
        ({"sigmas": [2.0, -1.0]}, "-1 is not possible"),
        ({"sigmas": [math.nan, 1.0]}, "nan is not possible"),
        ({"sigmas": [math.inf, 1.0]}, "inf is not possible"),
        ({"sigmas": [2.0, 0.0], "denoise_to_zero": True}, "end at 0 already"),
        ({"sigmas": torch.ones(1, 2)}, "2 or more"),
        ({"sigmas": torch.ones(3, 5)}, "does not fit x of shape"),
    ],
)
def test_bad_input_is_one_sentence(kwargs, words):
    kwargs = {"sigmas": [2.0, 1.0], **kwargs}
    with pytest.raises(ValueError, match=words):
        sample(curved, torch.randn(2, 3), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "words"), [({"num_steps": 1}, "num_steps=1"), ({"num_steps": 4, "max_order": 9}, "max_order=9")]
)
def test_evaluations_of_bad_settings(kwargs, words):
    with pytest.raises(ValueError, match=words):
        SOLVERS["ipndm"].nfe(**kwargs)


@pytest.mark.parametrize("solver", ["dpm", "deis", "dpmpp", "unipc"])
def test_ve_solvers_refuse_other_coordinates(solver):
    with pytest.raises(ValueError, match=r"not on the path Linear: pass field.ve\(\)"):
        SOLVERS[solver].fn(Field(curved, Linear()), torch.randn(2, 3), [0.9, 0.1])


def test_registry_is_complete():
    assert {"euler", "heun", "dpm", "dpmpp", "ipndm", "ipndm_v", "ab", "deis", "unipc"} <= set(SOLVERS)
    orders = {
        name: SOLVERS[name].max_order for name in ("euler", "heun", "dpm", "ipndm", "ab", "deis", "dpmpp", "unipc")
    }
    assert orders == {"euler": 1, "heun": 2, "dpm": 2, "ipndm": 4, "ab": 4, "deis": 4, "dpmpp": 3, "unipc": 3}


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
@pytest.mark.parametrize("answer", [torch.float32, torch.float64])
def test_memory_that_others_hold_is_never_written_to(solver, options, answer):
    held = []

    def hold(*tensors):
        held.extend((t, t.clone()) for t in tensors)

    def network(x, sigma, class_labels=None):
        data = curved(x, sigma).to(answer)
        hold(x, data)
        return data

    z = torch.randn(2, 3, dtype=torch.float64)
    hold(z)
    with torch.no_grad():
        plain = sample(network, z, get_schedule(9), solver=solver, **options)
        traced = sample(
            network, z, get_schedule(9), solver=solver, trace=lambda s: hold(s.x, s.data, s.drift), **options
        )
    assert all(torch.equal(t, before) for t, before in held)
    assert torch.equal(plain, traced)  # looking changes nothing
