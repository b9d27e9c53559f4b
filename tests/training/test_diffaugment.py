import numpy as np
import pytest
import torch
from golden_cases import cases
from mac_golden import Draws, as_logged, expect, inputs

from torch_utils.rng import BatchRNG, TorchRNG
from training.diffaugment import diff_augment, parse_policy


class Fixed:
    """An rng that hands out given numbers."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def rand(self, shape, batch_dim=0):
        return torch.full(shape, float(self.numbers.pop(0)))

    def randint(self, high, shape, batch_dim=0):
        number = self.numbers.pop(0)
        assert 0 <= number < high
        return torch.full(shape, number)


@pytest.mark.parametrize("case", cases("mac", "diffaugment"))
def test_golden(case):
    rng = Draws(case.spec["draws"]["seed"])
    expect(case, "out", diff_augment(inputs(case)["x"], rng, case.spec["params"]["policy"]))
    assert rng.log == as_logged(case.spec["draws"]["order"])


def test_color_closed_form():
    x = torch.rand(2, 3, 4, 5)
    neutral = diff_augment(x, Fixed(0.5, 0.5, 0.5), "color")
    torch.testing.assert_close(neutral, x)
    torch.testing.assert_close(diff_augment(x, Fixed(0.9, 0.5, 0.5), "color"), x + 0.4)
    grey = diff_augment(x, Fixed(0.5, 0.0, 0.5), "color")
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(diff_augment(x, Fixed(0.5, 0.5, 0.0), "color"), flat + (x - flat) / 2)


def test_translation_is_a_shift_with_zero_fill():
    x = torch.rand(1, 2, 16, 8)  # reach 2 and 1
    out = diff_augment(x, Fixed(4, 0), "translation")  # dy = 2, dx = -1
    assert torch.equal(out[:, :, :14, 1:], x[:, :, 2:, :7])
    assert (out[:, :, 14:] == 0).all()
    assert (out[:, :, :, 0] == 0).all()


@pytest.mark.parametrize(("centre", "rows", "columns"), [((0, 0), (0, 2), (0, 1)), ((8, 5), (6, 10), (4, 6)),
                                                         ((20, 10), (18, 20), (9, 10))])  # fmt: skip
def test_cutout_is_clipped_at_the_border(centre, rows, columns):
    x = torch.ones(1, 1, 20, 10)  # sides 4 and 2, both even: the centre may be one past the end
    out = diff_augment(x, Fixed(*centre), "cutout")
    hole = np.zeros((20, 10), dtype=bool)
    hole[rows[0] : rows[1], columns[0] : columns[1]] = True
    assert np.array_equal(out[0, 0].numpy() == 0, hole)


def test_cutout_reaches_every_pixel_and_stays_inside():
    out = diff_augment(torch.ones(2000, 1, 15, 15), TorchRNG("cpu", torch.Generator().manual_seed(1)), "cutout")
    holes = (out == 0).sum((1, 2, 3))
    assert holes.max() == 9
    assert holes.min() >= 4  # a corner of the 3 x 3 square
    assert ((out == 0).sum(0) > 0).all()


def test_gradients_reach_the_image():
    x = torch.rand(4, 3, 12, 12, requires_grad=True)
    diff_augment(x, TorchRNG("cpu", torch.Generator().manual_seed(0))).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).float().mean() > 0.5


def test_gradient_of_translation_is_exact():
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, Fixed(2, 0), "translation"), x)


def test_images_do_not_depend_on_their_batch():
    x = torch.rand(6, 3, 16, 16)
    whole = diff_augment(x, BatchRNG(3, 0, 0, 6))
    part = diff_augment(x[2:4], BatchRNG(3, 0, 2, 4))
    torch.testing.assert_close(whole[2:4], part, rtol=0, atol=1e-6)
    assert not torch.equal(whole[0], diff_augment(x[:1], BatchRNG(4, 0, 0, 1))[0])


def test_default_source_is_the_global_generator():
    x = torch.rand(2, 3, 8, 8)
    torch.manual_seed(5)
    first = diff_augment(x)
    torch.manual_seed(5)
    assert torch.equal(first, diff_augment(x))
    assert not torch.equal(first, diff_augment(x))


def test_policy_is_a_list_of_known_parts():
    assert parse_policy(" color, cutout") == ["color", "cutout"]
    with pytest.raises(ValueError, match=r"'colour' is none of color, translation, cutout"):
        diff_augment(torch.zeros(1, 3, 8, 8), policy="colour,cutout")
    with pytest.raises(ValueError, match="none of color"):
        parse_policy("")
