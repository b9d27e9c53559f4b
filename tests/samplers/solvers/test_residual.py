"""SA-Solver against the scheduler of diffusers where both do the same: order 1, with and without noise."""

import math

import pytest
import torch

from samplers import sample
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate
from torch_utils.noise_table import NoiseTable, scaled_linear_alphas

diffusers = pytest.importorskip("diffusers")
TABLE = NoiseTable(scaled_linear_alphas())


def denoise(x, sigma, class_labels=None):
    return 0.25 * x / (0.25 + sigma**2) + 0.3 * torch.sin(x / (1 + sigma**2))


class Drawn:
    """Hands out the same draws twice."""

    def __init__(self):
        self.draws = iter(torch.randn(20, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0)))

    def randn(self, shape, dtype=torch.float32, **more):
        return next(self.draws).to(dtype)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_order_one_is_the_librarys(tau, monkeypatch):
    from diffusers.schedulers import scheduling_sasolver

    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", Drawn().randn)
    scheduler = diffusers.SASolverScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, predictor_order=1, corrector_order=1,
        tau_func=lambda t: tau, prediction_type="sample", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(12)
    levels = [float(TABLE.sigma((t.double() + 1) / 1000)) for t in scheduler.timesteps]
    start = x = torch.full([1, 1, 1, 1], 0.7)
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        data = denoise((x * math.hypot(1, level)).double(), torch.tensor(level, dtype=torch.float64))
        x = scheduler.step(data.float(), t, x).prev_sample
    noise = start.double() * math.hypot(1, levels[0]) / levels[0]
    own = sample(
        denoise, noise, [*levels, float(scheduler.sigmas[-1])], solver="sa", rng=Drawn(), max_order=1,
        corrector_order=1, tau=tau, tau_min=0.0, tau_max=100.0,
    )  # fmt: skip
    scale = math.hypot(1, float(scheduler.sigmas[-1]))  # its state is variance preserving
    torch.testing.assert_close(own / scale, x.double(), rtol=2e-5, atol=2e-5)


class Net(torch.nn.Module):
    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 1, 2, 0, 0.0, math.inf

    def forward(self, x, sigma, class_labels=None):
        return denoise(x, torch.as_tensor(sigma, dtype=x.dtype))


def test_noise_belongs_to_the_seed():
    def images(batch, **options):
        plan = build_plan(Net(), SamplerOptions(solver="sa", num_steps=6, **options))
        made = torch.cat([b.images for b in generate(Net(), range(4), plan, batch=batch)])
        return made, plan.stochastic

    together, adds = images(4)
    assert adds
    torch.testing.assert_close(images(1)[0], together)
    assert not images(4, tau=0.0)[1]
    assert not torch.allclose(images(4, tau=0.0)[0], together)
