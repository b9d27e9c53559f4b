"""The samplers of EDM: Heun steps with added noise ("churn"), and the general sampler used for its ablations.

Before step i the state at noise level sigma_i is raised to sigma_hat = sigma_i (1 + gamma_i) by adding the missing
noise, then one Euler or second-order step goes from there to sigma_{i+1}; gamma_i = min(S_churn / N, sqrt(2) - 1) where
S_min <= sigma_i <= S_max, else 0. Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364: Algorithm 2 (`edm_sampler`,
`heun_churn`) and Algorithm 1 with any schedule sigma(t) and scaling s(t), Eqs. 4 and 81 (`ablation_sampler`).

Both run through one integrator: with t = sigma and s = 1 the general form is the EDM sampler. All scalars are known
before the first network call and are worked out on the CPU in float64; nothing in the loop waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.choices import SCALINGS, SCHEDULE_FORMS
from samplers.field import Field, as_field
from samplers.path import VP
from samplers.schedules.edm import Coordinates, check_choice, general_levels, general_range
from samplers.solvers.base import Step
from samplers.solvers.noise import Churn, churned
from samplers.start import refuse_score, start_state
from torch_utils.rng import TorchRNG

__all__ = ["ablation_sampler", "edm_sampler", "heun_churn"]


def heun_churn(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rng: TorchRNG | None = None,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    round_sigma: Callable[[Tensor], Tensor] | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Algorithm 2 of EDM over any decreasing noise levels.

    Args:
        field: a model in VE coordinates (`Field.ve`).
        x: `[B, ...]` at noise level `levels[0]`.
        levels: N+1 numbers, noisy to clean; the last may be 0, which is reached by a first-order step.
        rng: source of one normal draw like `x` per step, also where gamma = 0 (the published draw order). None: torch's
            global generator, and no draw at all when `S_churn` is 0.
        S_churn, S_min, S_max, S_noise: see `Churn`.
        round_sigma: the noise levels a network knows; applied to the raised levels.
        trace: called with a `Step` per step: the raised state, the clean estimate and the drift there.

    Returns:
        `[B, ...]` at noise level `levels[-1]`, dtype of `x`.
    """
    if not isinstance(levels, Tensor):
        levels = torch.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in levels])
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"the EDM sampler steps over at least two single noise levels, got shape {list(levels.shape)}")
    levels = levels.detach().to("cpu", torch.float64)
    churn = Churn(S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    raised = (round_sigma or torch.as_tensor)(churn.raised(levels[:-1]))
    source = _source(field, rng, churn, x)
    return _integrate(field, x, levels, raised, Coordinates(), S_noise=S_noise, rng=source, trace=trace)


def edm_sampler(
    net: Field | Callable[..., Tensor],
    noise: Tensor,
    class_labels: Tensor | None = None,
    *,
    rng: TorchRNG | None = None,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    start: str | None = None,
    trace: Callable[[Step], Any] | None = None,
    **churn: float,
) -> Tensor:
    """The EDM sampler: `num_steps` levels from sigma_max to sigma_min, then 0; 2 num_steps - 1 network calls.

    Args:
        net: `Field`, network or plain callable D(x, sigma, class_labels).
        noise: `[B, ...]`, unit variance; the state is float64 whatever its dtype.
        class_labels: `[B, label_dim]` or None.
        num_steps: 1 means the single step sigma_max -> 0.
        sigma_min, sigma_max: narrowed to what the network was trained on.
        rng, trace, churn: see `heun_churn` and `Churn`.
        start: "exact" or "scaled", see `samplers.start`; None: as the network says.

    Returns:
        `[B, ...]` float64.
    """
    field = _ve_field(net, class_labels)
    levels = general_levels(field, num_steps, sigma_min, sigma_max, rho)
    x = start_state(field, noise.to(torch.float64), float(levels[0]), start)
    return heun_churn(field, x, levels, rng=rng, round_sigma=field.facts.round_sigma, trace=trace, **churn)


def ablation_sampler(
    net: Field | Callable[..., Tensor],
    noise: Tensor,
    class_labels: Tensor | None = None,
    *,
    rng: TorchRNG | None = None,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1,
    start: str | None = None,
    trace: Callable[[Step], Any] | None = None,
    **churn: float,
) -> Tensor:
    """The general sampler of EDM: any of its solvers, time steps, schedules and scalings.

    Args:
        net, noise, class_labels: as in `edm_sampler`.
        sigma_min, sigma_max: None: the usual range of `discretization`; then narrowed to the network's.
        solver: "euler" or "heun" (second order with intermediate point `alpha`: 1 Heun, 1/2 midpoint, 2/3 Ralston).
        discretization: which noise levels: "vp", "ve", "iddpm" or "edm".
        schedule: sigma(t): "vp", "ve" (sqrt t) or "linear".
        scaling: s(t): "vp" (1 / sqrt(1 + sigma^2)) or "none".
        epsilon_s: smallest VP time. C_1, C_2, M: clipping, offset and length of the iDDPM table.
        rng, churn: see `heun_churn` and `Churn`.
        start: as in `edm_sampler`.
        trace: called with a `Step` per step, in VE coordinates whatever the schedule and scaling.

    Returns:
        `[B, ...]` float64.
    """
    check_choice("solver", solver, ("euler", "heun"))
    check_choice("schedule", schedule, SCHEDULE_FORMS)
    check_choice("scaling", scaling, SCALINGS)
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha:g}, it places the intermediate point: give a positive number, 1 for Heun")
    field = _ve_field(net, class_labels)
    spread = {"sigma_min": sigma_min, "sigma_max": sigma_max, "discretization": discretization, "epsilon_s": epsilon_s}
    levels = general_levels(field, num_steps, rho=rho, C_1=C_1, C_2=C_2, M=M, **spread)
    coords = Coordinates(schedule, scaling, VP.through(*general_range(field.facts, num_steps, **spread), epsilon_s))
    times = torch.cat([coords.time(levels[:-1]), levels[-1:]])
    levels = torch.cat([coords.sigma(times[:-1]), levels[-1:]])
    added = Churn(**churn)
    raised = coords.time(field.facts.round_sigma(added.raised(levels[:-1])))
    x = start_state(field, noise.to(torch.float64), float(levels[0]), start) * float(coords.scale(times[0]))
    rng = _source(field, rng, added, x)
    options = {"second_order": solver == "heun", "alpha": alpha, "S_noise": added.S_noise}
    return _integrate(field, x, times, raised, coords, rng=rng, trace=trace, **options)


class _Slope:
    """dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x / s; sigma) at known times (EDM Eq. 81)."""

    def __init__(self, field: Field, coords: Coordinates, times: Tensor, device: torch.device) -> None:
        sigma, scale = coords.sigma(times), coords.scale(times)
        self.field = field
        self.sigma = sigma.to(device)
        self.scale = scale.tolist()
        self.of_x = (coords.d_sigma(times) / sigma + coords.d_scale(times) / scale).tolist()
        self.of_data = (coords.d_sigma(times) * scale / sigma).tolist()

    def __call__(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, clean estimate and the state in VE coordinates at the i-th time."""
        unscaled = x if self.scale[i] == 1 else x / self.scale[i]
        data = self.field.data(unscaled, self.sigma[i])
        return self.of_x[i] * x - self.of_data[i] * data, data, unscaled


def _integrate(
    field: Field,
    x: Tensor,
    times: Tensor,
    raised: Tensor,
    coords: Coordinates,
    *,
    second_order: bool = True,
    alpha: float = 1,
    S_noise: float = 1,
    rng: TorchRNG | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Integrate from `times[0]` to `times[-1]`, `[N+1]`; step i from `raised[i]`, `[N]`; float64 on the CPU."""
    n = len(raised)
    h = times[1:] - raised
    middle = times[1:] if alpha == 1 else raised + alpha * h  # times[1:] exactly: raised + h loses its last digits
    corrected = [second_order and t > 0 for t in times[1:].tolist()]
    start, level = coords.scale(times[:n]), coords.sigma(times[:n])
    stretch = (coords.scale(raised) / start).tolist()
    added = ((coords.sigma(raised) ** 2 - level**2).clamp(min=0).sqrt() * coords.scale(raised) * S_noise).tolist()
    slope = _Slope(field, coords, raised, x.device)
    corrector = _Slope(field, coords, middle, x.device)
    h = h.tolist()

    def step(i: int, x: Tensor) -> Tensor:
        d, data, unscaled = slope(i, x)
        if trace is not None:
            sigma = slope.sigma[i]
            trace(Step(i, sigma, unscaled, data, field.velocity_of(data, unscaled, sigma)))
        if corrected[i]:
            d_middle, _, _ = corrector(i, x + (alpha * h[i]) * d)
            d = (1 - 0.5 / alpha) * d + (0.5 / alpha) * d_middle
        return x + h[i] * d

    return churned(x, added, step, rng, stretch)


def _source(field: Field, rng: TorchRNG | None, churn: Churn, x: Tensor) -> TorchRNG | None:
    """Where added noise comes from: `rng`, or torch's global generator where there is noise to add."""
    if churn.S_churn > 0:
        refuse_score(field, "added noise (S_churn)")
    return TorchRNG(x.device) if rng is None and churn.S_churn > 0 else rng


def _ve_field(net: Field | Callable[..., Tensor], class_labels: Tensor | None) -> Field:
    field = as_field(net)
    return (field if class_labels is None else field.bind(class_labels=class_labels)).ve()
