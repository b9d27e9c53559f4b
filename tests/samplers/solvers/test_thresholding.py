"""Dynamic thresholding: the quantile, and for which data it is on."""

import pytest
import torch
from solver_variants import curved

from samplers import get_schedule, sample
from samplers.solvers.thresholding import dynamic_threshold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 1), (3, 2), (3, 201), (2, 3, 32, 32), (1, 1, 28, 28)])
def test_threshold_is_the_quantile(dtype, shape):
    x = 2 * torch.randn(shape, dtype=dtype)
    q = torch.quantile(x.flatten(1).abs(), 0.995, dim=1).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    own = dynamic_threshold(x)
    torch.testing.assert_close(
        own, torch.minimum(torch.maximum(x, -q), q) / q, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0
    )
    assert own.abs().max() <= 1
    assert torch.equal(dynamic_threshold(x / 100), x / 100)


class Net:
    """A denoiser that says what its data are, with clean estimates far outside of [-1, 1]."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __call__(self, x, sigma, class_labels=None):
        return 3 * curved(x, sigma)


@pytest.mark.parametrize("solver", ["dpmpp", "unipc"])
@pytest.mark.parametrize(
    ("net", "shape", "default"),
    [
        (Net(img_channels=3), (2, 3, 4, 4), "dynamic"),
        (Net(img_channels=1), (2, 1, 4, 4), "dynamic"),
        (Net(img_channels=4), (2, 4, 4, 4), "none"),
        (Net(img_channels=3, latent=True), (2, 3, 4, 4), "none"),
        (Net(img_channels=1), (2, 16), "none"),
        (Net(), (2, 3, 4, 4), "none"),
    ],
)
def test_thresholding_is_for_pixels(solver, net, shape, default):
    z, t = torch.randn(shape, dtype=torch.float64), get_schedule(6)
    out = {k: sample(net, z, t, solver=solver, thresholding=k) for k in ("none", "dynamic", None)}
    assert torch.equal(out[None], out[default])
    assert not torch.equal(out["none"], out["dynamic"])
    eps = sample(net, z, t, solver=solver, predict_x0=False)
    assert torch.equal(eps, sample(net, z, t, solver=solver, predict_x0=False, thresholding="none"))
