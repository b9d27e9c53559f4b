"""Where a calibration begins: places in the grid, and fields on which the search alone loses."""

import pytest
import torch
from gaussian_mixture import mixture

import samplers.calibration.calibrate as calibrate_module
from samplers.calibration.calibrate import calibrate
from samplers.calibration.starts import start_indices
from samplers.field import Field
from samplers.schedules.formulas import get_schedule
from torch_utils.noise_table import NoiseTable, scaled_linear_alphas

SMALL = {"img_shape": (2, 2, 2), "num_steps_tea": 41, "num_warmup": 64, "num_heldout": 64}


def two_points(scale, std):
    """Two narrow Gaussians in 8 dimensions."""
    mu = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    denoise = mixture(torch.full((2,), 0.5).double(), mu, torch.full((2, 1), std).double())
    return lambda x, sigma, class_labels=None: denoise(x, sigma).to(x.dtype)


@pytest.mark.parametrize(("scale", "std"), [(0.5, 0.02), (5.0, 1.0)])
def test_where_the_search_alone_loses(scale, std):
    field = two_points(scale, std)
    alone = calibrate(field, 4, starts=("gits",), **SMALL).students[0]
    best = calibrate(field, 4, **SMALL).students[0]
    assert best.errors["held_out"] < 0.3 * alone.errors["held_out"]  # measured: 0.21 and 0.05
    assert best.provenance["start"] != "gits"
    assert set(best.provenance["starts"]) == {"gits", "polynomial", "logsnr", "time_uniform"}


def test_another_start_must_be_twice_as_near(monkeypatch):
    """Few samples judge fits badly: one that is a little nearer than the search's is not taken."""
    field = two_points(0.5, 0.5)
    students = []
    for share in (1, 0.5):
        monkeypatch.setattr(calibrate_module, "_FAVOUR", share)
        students.append(calibrate(field, 3, iterations=0, starts=("polynomial", "gits"), **SMALL).students[0])
    fits = students[0].provenance["starts"]
    assert 0.5 * fits["gits"] < fits["polynomial"] < fits["gits"]
    assert [s.provenance["start"] for s in students] == ["polynomial", "gits"]


@pytest.mark.parametrize("steps", [1, 2, 5, 11])
@pytest.mark.parametrize("name", ["polynomial", "logsnr", "time_uniform"])
def test_places_are_those_nearest(name, steps):
    grid = get_schedule(13)
    at = start_indices(name, steps, Field(two_points(1, 1)), grid, torch.zeros(13, 13), 1.15)
    assert (at[0], at[-1], len(at)) == (0, 12, steps + 1)
    assert at == sorted(set(at))
    if name == "polynomial" and steps in (1, 2):
        assert at == [0, 6, 12][:: 3 - steps]


class OnTable(NoiseTable):
    """A model with a table of noise levels of its own."""

    path, predicts = "ve", "data"

    def __call__(self, x, sigma, labels=None):
        return two_points(0.5, 0.5)(x, sigma)


def test_a_table_of_the_model_is_a_start():
    table = OnTable(scaled_linear_alphas())
    found = calibrate(table, 3, iterations=0, **{**SMALL, "sigma_min": None, "sigma_max": None}).students[0]
    assert set(found.provenance["starts"]) == {"gits", "polynomial", "logsnr", "time_uniform", "discrete"}
    grid = get_schedule(201, None, None, net=table)
    at = start_indices("discrete", 4, Field(table), grid, torch.zeros(201, 201), 1.15)
    wanted = get_schedule(5, None, None, "discrete", 1, net=table)
    assert (grid[at] / wanted).log().abs().max() < 0.02


def test_published_list_as_a_start():
    found = calibrate(two_points(0.5, 0.5), 6, starts=("gits", "gits_cifar10"), **SMALL).students[0]
    assert set(found.provenance["starts"]) == {"gits", "gits_cifar10"}


@pytest.mark.parametrize("starts", [(), ("nowhere",), ("gits", "cosine")])
def test_no_such_start(starts):
    with pytest.raises(ValueError, match=r"there is no start .*choose from gits, polynomial"):
        calibrate(two_points(0.5, 0.5), 3, starts=starts, **SMALL)
