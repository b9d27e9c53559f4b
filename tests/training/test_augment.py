"""Augmentation: golden batches, closed forms, both padding strategies, no read-back, bad input."""

import math

import pytest
import torch
from golden_cases import cases

from torch_utils.rng import BatchRNG
from training import augment
from training.augment import AugmentPipe, edm_preset


@pytest.mark.parametrize("case", cases("edm", "augment"))
def test_golden(case):
    images = case.shared(case.spec["input"])[:, case.spec["input_channels"]]
    pipe = AugmentPipe(**case.spec["kwargs"])
    torch.manual_seed(case.spec["torch_seed"])
    out, labels = pipe(images)
    assert out.dtype == images.dtype
    assert labels.dtype == torch.float32
    assert pipe.num_labels == case.spec["num_labels"]
    case.expect("images", out)
    case.expect("labels", labels)


def everything(p: float) -> AugmentPipe:
    return AugmentPipe(p=p, **dict.fromkeys(augment.LABELS, 1))


def test_preset_has_nine_labels_and_a_fair_mirror():
    pipe = edm_preset(0.12)
    torch.manual_seed(0)
    images = torch.rand(512, 1, 4, 4)
    labels = pipe(images)[1]
    assert pipe.num_labels == labels.shape[1] == 9
    assert abs(labels[:, 0].mean() - 0.5) < 0.1
    # The other labels are drawn from continuous laws: non-zero exactly where the gate of probability p opened.
    assert abs((labels[:, 2] != 0).float().mean() - 0.12) < 0.06


def test_closed_gates_leave_the_image():
    torch.manual_seed(1)
    images = torch.randn(5, 3, 12, 20)
    pipe = AugmentPipe(p=0, scale=1, rotate_frac=1, aniso=1, translate_frac=1, hue=1, saturation=1)
    out, labels = pipe(images)
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)
    assert labels.abs().max() == 0


def test_whole_pixel_shift_by_the_affine_path():
    """A shift by whole pixels is exact up to the filters; inside the borders it equals moving the pixels."""
    torch.manual_seed(2)
    images = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 36, 36), 5, stride=1)  # smooth: 32 x 32
    matrix = torch.eye(2).expand(2, 2, 2)
    offset = torch.tensor([[3.0, -2.0], [0.0, 5.0]])
    out = augment._resample(images, matrix, offset, static=False)
    torch.testing.assert_close(out[0, 0, 2:, :-3], images[0, 0, :-2, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1, 0, :-5], images[1, 0, 5:], atol=1e-4, rtol=0)


def test_half_turn_mirrors_both_axes():
    torch.manual_seed(3)
    images = torch.randn(1, 2, 10, 10)
    matrix = augment._rotation(torch.tensor([math.pi]))
    smooth = torch.nn.functional.interpolate(images, scale_factor=4, mode="bicubic")
    out = augment._resample(smooth, matrix, torch.zeros(1, 2), static=False)
    # sym6 is not symmetric, so mirrored content is not reproduced to rounding; the tolerance sees a shift of 0.1 pixel.
    assert (out - smooth.flip(2, 3)).abs().max() < 0.1 * smooth.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (17, 32)])
@pytest.mark.parametrize("zoom", [0.2, 1.5])
def test_masked_padding_equals_exact_padding(monkeypatch, size, zoom):
    """The shapes used on a GPU give the numbers of the CPU, also where the margins cut off what is read."""
    pipe = AugmentPipe(scale=1, rotate_frac=1, aniso=1, translate_frac=1, scale_std=zoom)
    # Coordinates are rounded to 2^-24 of some 100 pixels, so images change slowly, by half their size a pixel, which
    # gives an error of 3e-6; what is read from the wrong place is still seen.
    height, width = (torch.arange(n, dtype=torch.float32) for n in size)
    images = (0.5 * height).cos()[:, None] + (0.3 * width).cos() + torch.tensor([1.0, -0.5]).reshape(2, 1, 1)
    images = images + torch.arange(3).reshape(3, 1, 1, 1)
    resample, results = augment._resample, {}
    for static in (False, True):
        monkeypatch.setattr(augment, "_resample", lambda *args, static, s=static: resample(*args, static=s))
        torch.manual_seed(5)
        results[static] = pipe(images)[0]
    torch.testing.assert_close(results[True], results[False], atol=3e-5, rtol=0)


def test_nothing_is_read_back_from_the_device():
    """Tensors of the meta device have no values: any read-back or shape that depends on data raises."""
    pipe = everything(0.5)
    out, labels = pipe(torch.empty(4, 3, 16, 16, device="meta"))
    assert out.shape == (4, 3, 16, 16)
    assert labels.shape == (4, pipe.num_labels)


def test_draws_do_not_depend_on_how_a_batch_is_shared():
    images = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    pipe = AugmentPipe(p=0.5, **{name: 1 for name in augment.LABELS if name not in augment.AFFINE})
    whole, labels = pipe(images, rng=BatchRNG(1, 0, 0, 70))
    parts = [pipe(images[a:b], rng=BatchRNG(1, 0, a, b)) for a, b in ((0, 30), (30, 70))]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([x for _, x in parts]), labels, atol=1e-6, rtol=0)
    # Affine maps share one padding per batch, which moves the result by rounding only.
    whole, labels = everything(0.5)(images, rng=BatchRNG(1, 0, 0, 70))
    parts = [everything(0.5)(images[a:b], rng=BatchRNG(1, 0, a, b)) for a, b in ((0, 30), (30, 70))]
    torch.testing.assert_close(torch.cat([x for _, x in parts]), labels, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), whole, atol=1e-3, rtol=1e-4)


def test_colour_maps_keep_what_they_should():
    torch.manual_seed(7)
    images = torch.randn(6, 3, 4, 4)
    grey, saturation = images.mean(1), torch.randn(6, 3, 4, 4)
    for pipe in (AugmentPipe(hue=1), AugmentPipe(saturation=1), AugmentPipe(hue=1, saturation=1)):
        torch.testing.assert_close(pipe(images)[0].mean(1), grey, atol=1e-5, rtol=0)
    out = AugmentPipe(hue=1)(saturation)[0]  # a rotation about the grey axis keeps lengths
    torch.testing.assert_close(out.norm(dim=1), saturation.norm(dim=1), atol=1e-5, rtol=1e-5)
    out, w = AugmentPipe(lumaflip=1e8)(images)
    torch.testing.assert_close(out.mean(1), grey * (1 - 2 * w[:, 0, None, None]), atol=1e-5, rtol=0)


def test_other_precisions_come_back_in_their_type():
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(8)
        out, labels = everything(1)(torch.randn(2, 3, 8, 8).to(dtype))
        assert out.dtype == dtype
        assert labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "shape", "dtype", "words"),
    [
        ({"xflip": 1}, (2, 3, 8), torch.float32, "N, C, H, W"),
        ({"xflip": 1}, (2, 3, 8, 8), torch.uint8, "floating-point"),
        ({"hue": 1}, (2, 4, 8, 8), torch.float32, "1 or 3 channels, got 4"),
        ({"rotate_int": 1}, (2, 3, 8, 6), torch.float32, "square images, got 8x6"),
    ],
)
def test_bad_input(kwargs, shape, dtype, words):
    with pytest.raises(ValueError, match=words):
        AugmentPipe(**kwargs)(torch.zeros(shape, dtype=dtype))
