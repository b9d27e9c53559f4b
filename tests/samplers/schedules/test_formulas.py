"""Schedules: golden numbers, published lists, exact ends, schedule names and bad input."""

import math

import numpy as np
import pytest
import torch
from golden_cases import cases

from samplers import SCHEDULES, Field, get_schedule, validate_t_steps
from samplers.schedules.formulas import FORMULAS
from samplers.schedules.published import PUBLISHED
from torch_utils.noise_table import NoiseTable, scaled_linear_alphas


def table_of(case):
    return NoiseTable(case.tensor(case.file["latent_model"]["alphas_cumprod"]))


@pytest.mark.parametrize("case", cases("solvers", "schedule"))
def test_golden_schedules(case):
    spec = case.spec
    rho = {} if spec["rho"] is None else {"schedule_rho": spec["rho"]}
    own = get_schedule(spec["num_steps"], spec["sigma_min"], spec["sigma_max"], spec["type"], **rho)
    assert own.dtype == torch.float64
    case.expect("out", own)


@pytest.mark.parametrize("case", cases("solvers", "alphas_table"))
def test_golden_alphas(case):
    betas = case.file["latent_model"]["betas"]
    assert betas["type"] == "scaled_linear"
    case.expect("acp", scaled_linear_alphas(betas["start"], betas["end"], betas["num"]))


@pytest.mark.parametrize("case", cases("solvers", "table_maps"))
def test_golden_noise_table(case):
    table = table_of(case)
    case.expect("sigma_of_t", table.sigma(case.tensor("t")))
    case.expect("t_of_sigma", table.sigma_inv(case.tensor("s")))
    case.expect("sigma_minmax", np.array([table.sigma_min, table.sigma_max]).reshape(case["sigma_minmax"].shape))


@pytest.mark.parametrize("case", cases("solvers", "schedule_discrete"))
def test_golden_discrete_schedules(case):
    ends = case.spec["sigma_min"], case.spec["sigma_max"]
    case.expect("out", get_schedule(case.spec["num_steps"], *ends, "discrete", case.spec["rho"], net=table_of(case)))


@pytest.mark.parametrize("case", cases("solvers", "published_schedules"))
def test_golden_published_lists(case):
    tolerance = case.spec["tolerance"]["lists"]
    for steps, expected in case.spec["lists"].items():
        own = get_schedule(int(steps) + 1, schedule_type=f"gits_sd15_{case.spec['coeff']:.2f}")
        np.testing.assert_allclose(own, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])
        assert len(own) == len(expected)


def test_noise_table_inverts_itself():
    table = NoiseTable(scaled_linear_alphas())
    t = torch.linspace(-0.0005, 1.01, 333, dtype=torch.float64)  # beyond both ends of the table
    inside = t[t > 0]
    torch.testing.assert_close(table.sigma_inv(table.sigma(inside)), inside, rtol=1e-9, atol=1e-12)
    assert table.sigma_min == pytest.approx(0.02916753, abs=1e-8)
    assert table.sigma_max == pytest.approx(14.61464119, abs=1e-6)


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("num_steps", [2, 3, 11, 121])
def test_ends_and_order(kind, num_steps):
    table = NoiseTable(scaled_linear_alphas())
    low, high = (table.sigma_min, table.sigma_max) if kind == "discrete" else (0.002, 80.0)
    levels = get_schedule(num_steps, low, high, kind, 2, net=table if kind == "discrete" else None)
    assert levels[[0, -1]].tolist() == pytest.approx([high, low], rel=1e-11)
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists_are_schedules(name):
    entry = PUBLISHED[name]
    lists = entry.lists() if callable(entry.lists) else entry.lists
    lengths = [steps + 1 for steps in lists] + ([entry.stretch_to + 1, 40] if entry.stretch_from else [])
    for num_steps in lengths:
        levels = get_schedule(num_steps, schedule_type=name)
        assert len(validate_t_steps(levels)) == num_steps
        longest = lists[max(lists)]
        assert (levels[0], levels[-1]) == (longest[0], longest[-1])


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("gits_cifar10", {"num_steps": 61}),
        ("ld3_gits_sd15_ipndm", {"num_steps": 61, "schedule_type": "discrete", "schedule_rho": 1}),
        ("ld3_gits_sd15_dpmpp", {"num_steps": 61, "schedule_type": "discrete", "schedule_rho": 1}),
    ],
)
def test_published_lists_lie_on_their_grid(name, grid):
    net = NoiseTable(scaled_linear_alphas()) if "schedule_type" in grid else None
    full = get_schedule(**grid, net=net)
    for levels in PUBLISHED[name].lists.values():
        off = (full[None, :] - torch.tensor(levels, dtype=torch.float64)[:, None]).abs().min(dim=1).values
        assert (off <= 5.01e-5 + 5e-4 * torch.tensor(levels)).all(), levels


def test_gits_cifar10_indices():
    grid = get_schedule(61)
    torch.testing.assert_close(
        grid[[0, 19, 27, 33, 39, 45, 60]], get_schedule(7, schedule_type="gits_cifar10"), rtol=0, atol=5.1e-5
    )


def test_stretching_keeps_the_published_levels():
    ten = get_schedule(11, schedule_type="ays_sd15")
    torch.testing.assert_close(get_schedule(21, schedule_type="ays_sd15")[::2], ten, rtol=1e-14, atol=0)
    middle = get_schedule(21, schedule_type="ays_sd15")[1::2]
    torch.testing.assert_close(middle, (ten[1:] * ten[:-1]).sqrt(), rtol=1e-14, atol=0)


class Net:
    sigma_min, sigma_max = 0.03, 14.6


@pytest.mark.parametrize("net", [Net(), Field(Net())])
def test_the_range_of_the_network_wins(net):
    assert get_schedule(5, net=net)[[0, -1]].tolist() == pytest.approx([14.6, 0.03])
    assert get_schedule(5, None, None, net=net)[[0, -1]].tolist() == pytest.approx([14.6, 0.03])
    assert get_schedule(5, 0.1, 10, net=net)[[0, -1]].tolist() == pytest.approx([10, 0.1])


def test_open_range_of_a_network():
    net = type("Open", (), {"sigma_min": 0.0, "sigma_max": math.inf})()
    assert get_schedule(5, None, None, net=net)[[0, -1]].tolist() == pytest.approx([80, 0.002])


def test_every_name_is_described():
    assert {"polynomial", "logsnr", "time_uniform", "discrete", *PUBLISHED} == set(SCHEDULES)
    assert all(SCHEDULES.values())


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_steps": 1}, "num_steps=1 leaves no step"),
        ({"schedule_type": "karras"}, "no schedule 'karras'.*polynomial"),
        ({"schedule_type": "discrete"}, "this model has none"),
        ({"schedule_rho": 0}, "schedule_rho=0"),
        ({"sigma_min": 80, "sigma_max": 0.002}, "sigma_min=80 to sigma_max=0.002 is empty"),
        ({"sigma_min": 0}, "sigma_min=0"),
        ({"sigma_min": 20, "net": Net()}, "within 0.03 to 14.6, the range of the network"),
        ({"schedule_type": "gits_cifar10", "num_steps": 8}, "no list of 8 levels.*take 7"),
        ({"schedule_type": "ld3_gits_sd15_ipndm", "num_steps": 20}, "take 4, 5, 6"),
        ({"schedule_type": "gits_sd15", "num_steps": 2}, "take 3, 4, .* or more"),
        ({"schedule_type": "gits_cifar10", "net": Net()}, "made for another model"),
    ],
)
def test_bad_input_is_one_sentence(kwargs, words):
    with pytest.raises(ValueError, match=words):
        get_schedule(**{"num_steps": 7, **kwargs})


def test_zero_ends_a_list_only_where_allowed():
    assert validate_t_steps([2.0, 0.0], zero_end=True).tolist() == [2, 0]
    with pytest.raises(ValueError, match="0 is not possible"):
        validate_t_steps([2.0, 0.0])
    with pytest.raises(ValueError, match=r"shape \[2, 2\]"):
        validate_t_steps(torch.ones(2, 2))


def test_a_noise_table_is_a_list():
    with pytest.raises(ValueError, match=r"got shape \[1\]"):
        NoiseTable(torch.ones(1))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("ays_sd15", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("ays_sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
)
def test_align_your_steps_are_time_steps_of_the_table(name, steps):
    table = NoiseTable(scaled_linear_alphas())
    levels = table.sigma((torch.tensor(steps, dtype=torch.float64) + 1) / 1000)
    torch.testing.assert_close(get_schedule(11, schedule_type=name)[:-1], levels, rtol=3e-3, atol=1e-3)


class Model:
    def __init__(self, path, sigma_max, sigma_min=0.0):
        self.path, self.sigma_max, self.sigma_min = path, sigma_max, sigma_min


@pytest.mark.parametrize("name", ["ays_sd15", "ays_sdxl", "gits_sd15", "ld3_gits_sd15_ipndm"])
def test_lists_of_one_table_are_for_models_on_it(name):
    assert len(get_schedule(11, schedule_type=name, net=Model("ve", 14.6146, 0.0292))) == 11
    for other in (Model("ve", 80.0), Model("linear", math.inf), Model("ve", 10.0)):
        with pytest.raises(ValueError, match="was made for another model"):
            get_schedule(11, schedule_type=name, net=other)
