"""Solvers written down plainly: `solver(net, x, levels) -> x`, `net(x, level)` the clean estimate, levels a tensor.

Formulas: euler (Song et al. 2021, arXiv 2010.02502), heun (Karras et al. 2022, arXiv 2206.00364), ipndm and deis (Zhang
and Chen 2023, arXiv 2204.13902), dpmpp (Lu et al. 2022, arXiv 2211.01095), unipc (Zhao et al. 2023, arXiv 2302.04867).
The state keeps the dtype it comes in, every operation makes a new tensor, histories are lists, coefficients are tensors
on the device, worked out as they are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["deis", "dpmpp", "euler", "heun", "ipndm", "unipc"]

Net = Callable[[Tensor, Tensor], Tensor]


def euler(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    for s, s_next in itertools.pairwise(levels):
        d = (x - net(x, s)) / s
        x = x + (s_next - s) * d
    return x


def heun(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    for s, s_next in itertools.pairwise(levels):
        d = (x - net(x, s)) / s
        y = x + (s_next - s) * d
        d_next = (y - net(y, s_next)) / s_next
        x = x + (s_next - s) * (0.5 * d + 0.5 * d_next)
    return x


def ipndm(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    past: list[Tensor] = []  # oldest first, at most three
    for s, s_next in itertools.pairwise(levels):
        h = s_next - s
        d = (x - net(x, s)) / s
        if len(past) == 0:
            x = x + h * d
        elif len(past) == 1:
            x = x + h * (3 * d - past[-1]) / 2
        elif len(past) == 2:
            x = x + h * (23 * d - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            x = x + h * (55 * d - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past = [*past[-2:], d]
    return x


def deis(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    """The mode "tab" of order 4: nodes in the time of a VP process between 0.002 and 80, 10,000 points a step."""
    low, high, eps = math.log1p(0.002**2), math.log1p(80.0**2), 1e-3
    beta_d = 2 * (low / eps - high) / (eps - 1)
    beta_min = high - beta_d / 2
    tau = ((beta_min**2 + 2 * beta_d * torch.log1p(levels.double() ** 2)).sqrt() - beta_min) / beta_d
    coefficients = []
    for i in range(len(levels) - 1):
        order = min(i + 1, 4)
        points = torch.linspace(float(tau[i]), float(tau[i + 1]), 10_000, dtype=torch.float64)
        alpha = torch.exp(-0.5 * beta_d * points**2 - beta_min * points)
        slope = (beta_d * points + beta_min) / (2 * (alpha * (1 - alpha)).sqrt())
        row = []
        for k in range(order):
            basis = torch.ones_like(points)
            for j in range(order):
                if j != k:
                    basis = basis * (points - tau[i - j]) / (tau[i - k] - tau[i - j])
            row.append((slope * basis).sum() * (tau[i + 1] - tau[i]) / len(points))
        coefficients.append([levels[1] - levels[0]] if i == 0 else row)
    past: list[Tensor] = []
    for i, s in enumerate(levels[:-1]):
        past = [(x - net(x, s)) / s, *past[:3]]
        for c, d in zip(coefficients[i], past, strict=True):
            x = x + c.to(x.dtype) * d
    return x


def _threshold(data: Tensor) -> Tensor:
    flat = data.reshape(len(data), -1)
    limit = torch.quantile(flat.abs(), 0.995, dim=1).clamp(min=1)[:, None]
    return (flat.clamp(-limit, limit) / limit).reshape(data.shape)


def dpmpp(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    """Order 3, clean data with dynamic thresholding, lower orders at the end."""
    lam, n = -levels.log(), len(levels) - 1
    past: list[Tensor] = []  # newest first
    for i in range(n):
        past = [_threshold(net(x, levels[i])), *past[:2]]
        order = i + 1 if i + 1 < 3 else min(3, n - i)
        h = lam[i + 1] - lam[i]
        phi_1 = torch.expm1(-h)
        y = levels[i + 1] / levels[i] * x - phi_1 * past[0]
        if order >= 2:
            r0 = (lam[i] - lam[i - 1]) / h
            d0 = (past[0] - past[1]) / r0
        if order == 2:
            y = y - 0.5 * phi_1 * d0
        elif order == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            d1 = (past[1] - past[2]) / r1
            first = d0 + r0 / (r0 + r1) * (d0 - d1)
            second = (d0 - d1) / (r0 + r1)
            phi_2 = phi_1 / h + 1
            phi_3 = phi_2 / h - 0.5
            y = y + phi_2 * first - phi_3 * second
        x = y
    return x


def unipc(net: Net, x: Tensor, levels: Tensor) -> Tensor:
    """Order 3, variant bh2, clean data with dynamic thresholding, lower orders at the end."""
    lam, n = -levels.log(), len(levels) - 1
    past = [_threshold(net(x, levels[0]))]  # newest first
    for i in range(n):
        order = i + 1 if i + 1 < 3 else min(3, n - i)
        h = lam[i + 1] - lam[i]
        phi = torch.expm1(-h)
        ratios = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
        slopes = [(past[k] - past[0]) / ratios[k - 1] for k in range(1, order)]
        r = torch.stack([*ratios, torch.ones_like(h)])
        psi, b = phi / -h - 1, []
        for j in range(1, order + 1):
            b.append(math.factorial(j) * psi / phi)
            psi = psi / -h - 1 / math.factorial(j + 1)
        b = torch.stack(b)
        matrix = torch.stack([r**j for j in range(order)])
        base = levels[i + 1] / levels[i] * x - phi * past[0]
        weights = (
            [b.new_tensor(0.5)] if order == 2 else torch.linalg.solve(matrix[:-1, :-1], b[:-1]) if order > 2 else []
        )
        y = base
        for w, slope in zip(weights, slopes, strict=True):
            y = y - phi * w * slope
        if i == n - 1:
            return y
        new = _threshold(net(y, levels[i + 1]))
        weights = torch.linalg.solve(matrix, b) if order > 1 else [b.new_tensor(0.5)]
        x = base - phi * weights[-1] * (new - past[0])
        for w, slope in zip(weights, slopes, strict=False):
            x = x - phi * w * slope
        past = [new, *past[:2]]
    return x
