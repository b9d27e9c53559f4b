"""How straight a model's sampling trajectories are: their curvature, with error bars, in total and along the way.

    C = E_z integral_0^1 |(x_1 - x_0) - dx_t/dt|^2 dt

in the coordinates x_t = (1 - t) data + t noise (Lee, Kim, Ye 2023, arXiv 2301.12003, section 3.1), 0 if and only if a
single Euler step is exact. From states x_0 (noise) .. x_N (data), step shares w_i = |dt_i| / |t_N - t_0| and
v_i = dx_i / w_i it is sum_i w_i |v_i - (x_N - x_0)|^2: summed over dimensions in the paper, their mean in the published
code and in tables made with it; both are given. Denoisers in sigma coordinates are measured on the same footing:
t = sigma / (1 + sigma), x_t = (1 - t) (data + sigma noise), from their highest noise level on.

The estimate depends on solver and step count: one Euler step has no curvature. Take 100 steps or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.analysis.compare import HELD_OUT
from samplers.field import Facts, Field, as_field
from samplers.path import Linear
from samplers.run import generate, image_shape
from samplers.solvers.native import sample_native, uniform_times
from samplers.solvers.table import sample
from torch_utils import distributed as dist
from torch_utils.report.page import Table

SIGMA_MAX = 80.0  # where trajectories of a model without an end of its own begin
SOLVERS = ("euler", "heun")  # the estimate needs the states of a solver that goes straight within a step


def _steps(states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """States `[N+1, B, ...]` in float64 and times `[N+1]`; default: equal steps from 1 to 0."""
    x = (states if isinstance(states, Tensor) else torch.stack(list(states))).double()
    if len(x) < 2:
        raise ValueError(f"a trajectory of {len(x)} state has no step: give 2 states or more")
    if times is None:
        return x, torch.linspace(1, 0, len(x), dtype=torch.float64, device=x.device)
    t = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    if t.shape != (len(x),):
        raise ValueError(f"{len(x)} states need as many times, got shape {list(t.shape)}")
    return x, t


def step_deviations(
    states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Shares of the steps `[N]`, and v_i - (x_N - x_0) `[N, B, ...]`; float64, arguments as `trajectory_curvature`."""
    x, t = _steps(states, times)
    share = t.diff() / (t[-1] - t[0])
    return share, x.diff(dim=0) / share.reshape(-1, *[1] * (x.ndim - 1)) - (x[-1] - x[0])


def trajectory_curvature(states: Tensor | Sequence[Tensor], times: Tensor | Sequence[float] | None = None) -> Tensor:
    """Curvature per dimension, `[]` float64.

    Args:
        states: `[N+1, B, ...]` along the way, in native coordinates.
        times: `[N+1]`, falling or rising; None: equal steps.
    """
    share, deviation = step_deviations(states, times)
    return (share.reshape(-1, *[1] * (deviation.ndim - 1)) * deviation.square()).sum(0).mean()


def trajectory(
    net: Field | Callable[..., Tensor],
    noise: Tensor,
    evaluations: int,
    *,
    solver: str = "euler",
    class_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """States along sampling trajectories in the coordinates x_t = (1 - t) data + t noise, at equal steps.

    Args:
        net: any model.
        noise: `[B, ...]` as the model starts from; its dtype is that of the solve.
        evaluations: of the network, per sample.
        solver: "euler" or "heun".

    Returns:
        states `[K+1, B, ...]`, noise first, and their times `[K+1]` float64 down to 0.
    """
    if solver not in SOLVERS:
        raise ValueError(f"curvature is measured with {' or '.join(SOLVERS)}, not with '{solver}'")
    field = as_field(net)
    times = uniform_times(evaluations, solver)
    if isinstance(field.path, Linear):
        states: list[Tensor] = []
        end = sample_native(
            field, noise, times, solver=solver, class_labels=class_labels, trace=lambda step: states.append(step.x)
        )
        return torch.stack([*states, end]), times
    top = min(field.facts.sigma_max, SIGMA_MAX)
    times = times * (top / (1 + top))
    states = []
    end = sample(
        field, noise, times / (1 - times), solver=solver, class_labels=class_labels, start="scaled",
        trace=lambda step: states.append(step.x / (1 + step.level)),
    )  # fmt: skip
    return torch.stack([*states, end]), times


def measure_curvature(
    net: torch.nn.Module,
    *,
    evaluations: int = 100,
    solver: str = "euler",
    prior: str | None = None,
    num: int = 256,
    seed: int = HELD_OUT,
    batch: int = 64,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Curvature of `num` trajectories; the same report on every process.

    Args:
        net: network with `img_channels`, `img_resolution` and `label_dim`, on `device`.
        evaluations, solver: as for `trajectory`.
        prior: start distribution of models that have several, see `net.priors`; None: its first.
        seed: of the first trajectory.
        batch: most samples at once on one process.
        progress: called with the samples just done.

    Returns:
        JSON-able: `curvature` (mean over dimensions) and `stderr` over samples, `curvature_sum` and `stderr_sum`
        (summed over the `dimension`), and per step `times` (of its middle), `profile` and `profile_stderr`, the
        integrand of the curvature; how it was measured.
    """
    if num < 2:
        raise ValueError(f"num={num}: error bars need 2 samples or more")
    parts: list[Tensor] = []
    grid: list[Tensor] = []

    def sampler(net: Any, noise: Tensor, class_labels: Tensor | None, *, rng: Any = None) -> Tensor:
        states, times = trajectory(net, noise.double(), evaluations, solver=solver, class_labels=class_labels)
        share, deviation = step_deviations(states, times)
        parts.append(deviation.square().flatten(2).mean(2).cpu())  # [N, B]
        grid[:] = [times, share.cpu()]
        return states[-1]

    if prior is not None and Facts.of(net).start_noise is None:
        raise ValueError(f"--prior={prior} chooses between start distributions, and this model has one: leave it out")
    for samples in generate(net, range(seed, seed + num), sampler, batch=batch, device=device, prior=prior):
        progress(len(samples.images))
    shared = [p for p in dist.all_gather_object((parts, grid)) if p[0]]
    integrand = torch.cat([part for own, _ in shared for part in own], dim=1)
    times, share = shared[0][1]
    total = share @ integrand  # [num]
    dimension = math.prod(image_shape(net))
    curvature, stderr = float(total.mean()), float(total.std() / num**0.5)
    return {
        "solver": solver, "evaluations": evaluations, "steps": len(share), "num": num,
        "seeds": f"{seed}-{seed + num - 1}", "prior": prior, "start_time": float(times[0]),
        "dimension": dimension, "curvature": curvature, "stderr": stderr,
        "curvature_sum": curvature * dimension, "stderr_sum": stderr * dimension,
        "times": ((times[1:] + times[:-1]) / 2).tolist(), "profile": integrand.mean(1).tolist(),
        "profile_stderr": (integrand.std(1) / num**0.5).tolist(),
    }  # fmt: skip


def curvature_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model: reports of `measure_curvature` with a `label`, and `beta` where there is one."""
    rows = []
    for r in reports:
        beta = "-" if r.get("beta") is None else f"{r['beta']:g}"
        mean = f"{r['curvature']:.4g} ± {r['stderr']:.2g}"
        total = f"{r['curvature_sum']:.4g} ± {r['stderr_sum']:.2g}"
        rows.append((r["label"], beta, mean, total, str(r["dimension"])))
    values = [r["curvature"] for r in reports]
    first = reports[0]
    return Table(
        f"Curvature of {first['num']} trajectories ({first['solver']}, {first['evaluations']} evaluations)",
        ("model", "beta", "mean over dimensions", "sum over dimensions", "dimensions"),
        rows,
        frozenset({(values.index(min(values)), 2)}) if len(values) > 1 else frozenset(),
        "± standard error over trajectories. The mean over dimensions is what published code prints.",
    )
