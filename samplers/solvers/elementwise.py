"""Sampling along element-wise noise levels that a network chooses (MAC; Lee et al. 2024, arXiv 2404.14161).

The nominal levels sigma_i become maps gamma(sigma_i; c) with c predicted once from the starting noise; any solver then
steps along the maps. Published is Euler to level 0,

    x' = x + (gamma_{i+1} - gamma_i) (x - D(x; gamma_i)) / gamma_i.

The same step serves families of coefficients that end in pure noise (`networks.models.coefficient_families`): with
y = gamma0 x the blend y' = gamma0' D + gamma1' noise of the two estimates is this one at the levels gamma1 / gamma0.
There the first level is infinite, and the first step starts from the noise itself.

Added noise ("churn", Karras et al. 2022, arXiv 2206.00364, algorithm 2) raises the nominal level to
sigma_hat = sigma (1 + min(S_churn / N, sqrt(2) - 1)) and the state by the noise between the maps of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.solvers.base import Step
from samplers.solvers.noise import Churn, churned
from samplers.solvers.table import SOLVERS, sample
from samplers.start import exact_start
from torch_utils.misc import expand_to
from torch_utils.profile import forward_cost
from torch_utils.rng import TorchRNG

__all__ = ["ONE_STEP", "coefficient_cost", "nominal_level", "sample_mac"]

ONE_STEP = ("euler", "heun", "dpm")  # solvers between whose steps noise can be added


def coefficient_cost(net: Any) -> tuple[float, float]:
    """FLOPs per image of one evaluation of the denoiser `net.V` and of the coefficient network `net.C`."""
    shape = (1, net.img_channels, net.img_resolution, net.img_resolution)

    def on_meta(twin: torch.nn.Module, *more: Tensor) -> Tensor:
        labels = torch.zeros(1, net.label_dim, device="meta") if net.label_dim else None
        return twin(torch.zeros(shape, device="meta"), *more, labels)

    v = forward_cost(net.V, lambda twin: on_meta(twin, torch.ones(1, device="meta")))
    return v.flops, forward_cost(net.C, on_meta).flops


def sample_mac(
    net: Any,
    noise: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    solver: str = "euler",
    class_labels: Tensor | None = None,
    coefficients: Tensor | None = None,
    rng: TorchRNG | None = None,
    trace: Callable[[Step], Any] | None = None,
    **options: Any,
) -> Tensor:
    """Sample from unit noise along the levels that `net` chooses.

    Args:
        net: an adaptive network or a field of one.
        noise: `[B, C, H, W]`, unit variance; its dtype is that of the state.
        sigmas: nominal levels, noisy to clean; the last may be 0. Of a family that ends in pure noise they begin at
            infinity; where that is left out it is added.
        solver, class_labels, trace, options: those of `samplers.sample`; and those of `Churn`, for added noise, whose
            range is of nominal levels.
        coefficients: c `[B or 1, 2 C M, H, W]` to use instead of the network's; zeros give the ordinary path.
        rng: source of added noise.

    Returns:
        `[B, C, H, W]` at the last level.

    Raises:
        ValueError: a network that is not adaptive, added noise with a multi-step solver, what `sample` refuses.
    """
    field = as_field(net)
    field = field if class_labels is None else field.bind(class_labels)
    facts, chooser = field.facts, field.facts.model
    if not facts.chooses_levels:
        raise ValueError(f"a {type(chooser).__name__} does not choose its noise levels: use samplers.sample")
    churn = Churn(**{f.name: options.pop(f.name) for f in fields(Churn) if f.name in options})
    times = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    family = chooser.family
    c = chooser.coefficients(noise, field.class_labels) if coefficients is None else coefficients
    c = c.expand(len(noise), -1, -1, -1)
    exact = facts.start == "exact"
    times = [t for t in times if t < math.inf] if exact else times
    maps = [family.gamma(torch.tensor(t, dtype=torch.float64), c) if t else torch.zeros((), device=c.device)
            for t in times]  # fmt: skip
    if facts.takes_gamma:
        field = replace(field, net=_Told(field.net, times, maps))
    if churn.S_churn and exact:
        raise ValueError("noise can be added along the family edm only: leave S_churn out")
    if exact and len(maps) == 1:
        return exact_start(field.ve(), noise, maps[0].to(noise.device))
    if not churn.S_churn:
        start = "exact" if exact else "scaled"
        return sample(field, noise, maps, solver=solver, start=start, trace=trace, **options)
    field = field.ve()
    return _with_noise(
        field, noise, times, maps, lambda t: family.gamma(t, c), solver, churn, rng or TorchRNG(noise.device), trace,
        options,
    )  # fmt: skip


def _with_noise(
    field: Field,
    noise: Tensor,
    times: list[float],
    maps: list[Tensor],
    gamma: Callable[[Tensor], Tensor],
    solver: str,
    churn: Churn,
    rng: TorchRNG,
    trace: Callable[[Step], Any] | None,
    options: dict[str, Any],
) -> Tensor:
    """One-step solvers with noise added before each step."""
    if solver not in ONE_STEP:
        raise ValueError(f"noise cannot be added between the steps of solver '{solver}': use {', '.join(ONE_STEP)}")
    nominal = torch.tensor(times[:-1], dtype=torch.float64)
    starts, added = list(maps[:-1]), [0.0] * len(nominal)
    for i, sigma in enumerate(churn.raised(nominal)):
        if sigma > nominal[i]:
            # Not every element's level rises with the nominal one: where it would fall, the state stays as it is.
            starts[i] = torch.maximum(gamma(sigma), maps[i])
            more = (starts[i].square() - maps[i].square()).clamp(min=0).sqrt()
            added[i] = churn.S_noise * more.to(noise.dtype)
    fn, how = SOLVERS[solver].fn, SOLVERS[solver].resolve(options)

    def step(i: int, x: Tensor) -> Tensor:
        note = None if trace is None else lambda step: trace(step._replace(i=i))
        return fn(field, x, [starts[i], maps[i + 1]], trace=note, **how)

    return churned(noise * maps[0].to(noise.dtype), added, step, rng)


class _Told:
    """A network that takes (x, nominal level, labels, gamma=map), called with the map alone."""

    def __init__(self, net: Any, times: Sequence[float], maps: Sequence[Tensor]) -> None:
        known = [(t, m.detach()) for t, m in zip(times, maps, strict=True) if t > 0]
        self.net, self.times, self.maps = net, [t for t, _ in known], [m for _, m in known]

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        gamma = expand_to(level, x)
        return self.net(x, nominal_level(gamma.detach(), self.times, self.maps), class_labels, gamma=gamma, **cond)


def nominal_level(gamma: Tensor, times: Sequence[float], maps: Sequence[Tensor]) -> Tensor:
    """The nominal level of maps: that of the nearest point on the polyline through the known ones, in logarithms.

    Exact at the known maps; between two of them, where solvers with intermediate stages evaluate, geometric.

    Args:
        gamma: `[B, C, H, W]`. times, maps: nominal levels and their maps, at least one.

    Returns:
        `[B]` float64.
    """
    log_t = torch.tensor(times, dtype=torch.float64, device=gamma.device).log()
    knots = torch.stack([m.double().expand_as(gamma) for m in maps]).log()  # [N, B, ...]
    distance = (gamma.double().log() - knots).abs().flatten(2).mean(2)  # [N, B]
    if len(times) == 1:
        return log_t.exp().expand(len(gamma))
    length = (knots[1:] - knots[:-1]).abs().flatten(2).mean(2)
    before, after = distance[:-1], distance[1:]
    i = (before + after - length).argmin(0, keepdim=True)  # the segment with the smallest detour
    before, after = before.gather(0, i)[0], after.gather(0, i)[0]
    share = before / (before + after).clamp(min=1e-300)
    return torch.lerp(log_t[i[0]], log_t[i[0] + 1], share).exp()
