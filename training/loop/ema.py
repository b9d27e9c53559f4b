"""Averages of a network's parameters during training, and averages of any length found afterwards.

`update_ema` is one step of a running average. Its factor is `halflife_beta` (Karras et al. 2022, arXiv 2206.00364,
appendix F) or `power_beta`; both are functions of the images seen before the step and the batch size.

Power-function averages (Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C): the average at time t weights
the parameters at time u with the profile p(u) = (gamma + 1) u^gamma / t^(gamma + 1), 0 < u <= t. Its width relative to
the run so far is sigma_rel = std(p) / t. Averages stored during training are known weightings of one trajectory, so a
weighting with another gamma or end is their least-squares combination: `reconstruct(states, weights)` with weights from
`solve_posthoc_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def halflife_beta(nimg: int, batch_size: int, halflife: float, rampup_ratio: float | None = None) -> float:
    """Factor with which a weight's share in the average halves every `halflife` images.

    The half-life is at most `rampup_ratio * nimg`, so that a young average forgets its random start; None: no ramp.
    """
    if rampup_ratio is not None:
        halflife = min(halflife, nimg * rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


def power_beta(nimg: int, batch_size: int, gamma: float) -> float:
    """Factor of the power-function average: (1 - batch_size / t)^(gamma + 1) at t = nimg + batch_size.

    The share of each step in the average is then exactly the integral of the profile over that step's images, also when
    the batch size changes during training.
    """
    return (nimg / (nimg + batch_size)) ** (gamma + 1)


@torch.no_grad()
def update_ema(average: nn.Module, net: nn.Module, beta: float) -> None:
    """`average = net + beta (average - net)` for every parameter, in place; buffers are left alone.

    Both must be bare modules of one architecture (no DDP or compile wrapper around one of them).
    """
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - beta)


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the profile u^gamma of relative width (standard deviation) `sigma_rel`.

    Root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2; there is one with gamma >= 0 up to 12^-1/2 = 0.2887,
    the width of the plain mean (gamma = 0).

    Raises:
        ValueError: sigma_rel outside (0, 12^-1/2].
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(
            f"the relative EMA width must lie in (0, 0.2886], got {sigma_rel:g}: common values are 0.05, 0.1"
        )
    s = sigma_rel**-2.0
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return max(float(roots.real.max()), 0.0)


def _inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integral of p_a(u) p_b(u) over u > 0 for profiles given as rows (t, gamma): `[A, 2], [B, 2] -> [A, B]`."""
    ta, ga = a[:, None, 0], a[:, None, 1]
    tb, gb = b[None, :, 0], b[None, :, 1]
    ratio = np.where(ta < tb, (ta / tb) ** gb, (tb / ta) ** ga)  # powers of numbers <= 1: no overflow for long runs
    return (ga + 1) * (gb + 1) * ratio / ((ga + gb + 1) * np.maximum(ta, tb))


def _profiles(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    profiles = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if len(profiles) == 0:
        raise ValueError("no stored averages to combine: give at least one (t, gamma)")
    if not (np.isfinite(profiles).all() and (profiles[:, 0] > 0).all() and (profiles[:, 1] >= 0).all()):
        raise ValueError(f"an EMA profile is (t > 0 images, gamma >= 0), got {[tuple(p) for p in profiles.tolist()]}")
    return profiles


def solve_posthoc_weights(stored: Sequence[tuple[float, float]], target: tuple[float, float]) -> np.ndarray:
    """Weights of stored averages that best match another average of the same run.

    Args:
        stored: (t, gamma) of each: t = images seen when it was stored, gamma = its exponent. Two exponents and a few
            dozen evenly spaced times reach any target between them closely; duplicates are harmless.
        target: (t, gamma) wanted.

    Returns:
        `[len(stored)]` float64, minimising the integral of (sum_i weight_i p_i - p_target)^2. They sum to about one.

    Raises:
        ValueError: nothing stored, t <= 0, gamma < 0, or a target later than everything stored.
    """
    have, want = _profiles(stored), _profiles([target])
    if want[0, 0] > have[:, 0].max():
        raise ValueError(
            f"the average asked for ends at image {want[0, 0]:g}, the last stored one at {have[:, 0].max():g}: "
            "choose an earlier end or train on"
        )
    scale = want[0, 0]  # inner products have the unit 1/t
    gram, overlap = _inner_products(have, have) * scale, _inner_products(have, want)[:, 0] * scale
    return np.linalg.lstsq(gram, overlap, rcond=None)[0]


def posthoc_error(
    stored: Sequence[tuple[float, float]], weights: Sequence[float], target: tuple[float, float]
) -> float:
    """How far `sum_i weights_i p_i` is from the profile wanted: L2 norm of the difference over that of the profile."""
    have, want = _profiles(stored), _profiles([target])
    weights = np.asarray(weights, dtype=np.float64)
    norm = _inner_products(want, want)[0, 0]
    squared = norm - 2 * weights @ _inner_products(have, want)[:, 0] + weights @ _inner_products(have, have) @ weights
    return float(np.sqrt(max(squared / norm, 0.0)))


@torch.no_grad()
def reconstruct(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The state dict `sum_i weights_i states_i`, summed in float64, in the dtypes of the last one.

    Entries equal in all states (constant buffers) and those that are not floating point are those of the last state.

    Raises:
        ValueError: another number of weights than states, or states with different keys.
    """
    if len(states) != len(weights) or not states:
        raise ValueError(f"{len(states)} stored averages need as many weights, got {len(weights)}")
    last = states[-1]
    if any(state.keys() != last.keys() for state in states):
        raise ValueError("the stored averages belong to different networks: their state dicts have different keys")
    return {key: _combine([state[key] for state in states], weights) for key in last}


def _combine(entries: list[Tensor], weights: Sequence[float]) -> Tensor:
    last = entries[-1]
    if not last.is_floating_point() or all(torch.equal(e, last) for e in entries):
        return last.clone()
    total = torch.zeros_like(last, dtype=torch.float64)
    for entry, weight in zip(entries, weights, strict=True):
        total.add_(entry.to(total.device), alpha=float(weight))
    return total.to(last.dtype)
