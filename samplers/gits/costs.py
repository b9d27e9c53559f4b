"""GITS arithmetic without a network: cost of Euler jumps along a trajectory, and the cheapest path of jumps.

A jump from teacher state i to level j lands at xh_ij = x_i + (s_j - s_i) e_i. Its cost is a mean over the batch of

    l1, l2   |xh_ij - x_j|                                in that norm over all elements of a sample
    dev      dev(xh_ij) - dev(x_j)                        dev = distance from the chord x_0 -> x_end; may be negative

and a schedule of K jumps minimises sum_m coeff^m C[i_m, i_m+1] (Chen et al., ICML 2024, arXiv 2405.11326, section 4).
Nothing here loops over pairs: dev and l2 follow from inner products, l1 goes row by row. Float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_WORKSPACE = {"cpu": 4 << 20, "cuda": 512 << 20}  # bytes one chunk of samples may take; on a CPU, about its cache


def _dev_sums(x: Tensor, e: Tensor, s: Tensor) -> Tensor:
    """Signed deviation of jumps.

    With p_i and q_i the components of x_end - x_i and e_i orthogonal to the chord,
    dev(xh_ij)^2 = |p_i|^2 - 2 d <p_i, q_i> + d^2 |q_i|^2 with d = s_j - s_i: three scalars per state, O(T D) work.
    """
    T = len(s)
    chord = x[:, -1] - x[:, 0]
    unit = chord / chord.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(chord.dtype).tiny)
    p = torch.sub(x[:, -1:].clone(), x, out=x)[:, :T]
    for v in (p, e):
        v.baddbmm_(v @ unit[..., None], unit[:, None], alpha=-1)
    pp, qq = (torch.linalg.vector_norm(v, dim=-1).square() for v in (p, e))
    pq = e.mul_(p[:, :-1]).sum(-1)
    d = s - s[:-1, None]  # [T-1, T]
    jump = pp[:, :-1, None] - 2 * d * pq[..., None] + d**2 * qq[..., None]
    own = pp.sqrt()
    cost = jump.clamp(min=0).sqrt() - own[:, None, :]
    return torch.nn.functional.pad(cost.sum(0), (0, 0, 0, 1))


def _without_noise(x: Tensor, e: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """States and drifts less the straight line s_i * (x_0 / s_0) they share, in place.

    Every jump's error xh_ij - x_j is unchanged, and the numbers left are of the size of the data, not of the noise: the
    inner products below then keep their digits.
    """
    noise = x[:, :1] / s[0]
    return x[:, : len(s)].addcmul_(s[:, None], noise, value=-1), e.sub_(noise)


def _l2_sums(x: Tensor, e: Tensor, s: Tensor) -> Tensor:
    """|xh_ij - x_j|_2 from two batched Gram products: <y_i, y_j> and <f_i, y_j>.

    The single steps j = i + 1, whose errors are the smallest and often exactly 0, are worked out directly.
    """
    y, f = _without_noise(x, e, s)
    yy, fy = y @ y.mT, f @ y.mT  # [b, T, T], [b, T-1, T]
    n = yy.diagonal(dim1=-2, dim2=-1)
    own = fy.diagonal(dim1=-2, dim2=-1)[..., None]
    d = s - s[:-1, None]
    square = n[:, :-1, None] + n[:, None, :] - 2 * yy[:, :-1] + 2 * d * (own - fy)
    square = square + d**2 * torch.linalg.vector_norm(f, dim=-1).square()[..., None]
    cost = torch.nn.functional.pad(square.clamp(min=0).sqrt().sum(0), (0, 0, 0, 1))
    single = torch.linalg.vector_norm((y[:, :-1] - y[:, 1:]).addcmul_(s.diff()[:, None], f), dim=-1).sum(0)
    return cost.diagonal_scatter(single, offset=1)


def _l1_sums(x: Tensor, e: Tensor, s: Tensor, dtype: torch.dtype) -> Tensor:
    """|xh_ij - x_j|_1 in the dtype of the trajectory, one row i at a time: all jumps from one state in three passes."""
    y, f = (v.to(dtype) for v in _without_noise(x, e, s))
    T = len(s)
    d, jumps = (s - s[:, None]).to(dtype)[..., None].unbind(), torch.empty_like(y)
    sums = []
    for i, (start, drift) in enumerate(zip(y.split(1, dim=1), f.split(1, dim=1), strict=False)):
        later = (i + 1, T - i - 1)
        row = torch.addcmul(start, d[i].narrow(0, *later), drift, out=jumps.narrow(1, *later))
        sums.append(row.sub_(y.narrow(1, *later)).abs_().sum(-1))
    pairs = torch.triu_indices(T, T, 1, device=s.device)
    return s.new_zeros(T, T).index_put_(tuple(pairs), torch.cat(sums, 1).sum(0, dtype=s.dtype))


# (x [b, T(+1), D], e [b, T-1, D], s [T]) -> sum over the samples [T, T]; x and e are float64 copies to write to
METRICS: dict[str, Callable[..., Tensor]] = {"dev": _dev_sums, "l1": _l1_sums, "l2": _l2_sums}


def cost_sums(trajectory: Tensor, directions: Tensor, sigmas: Tensor, metric: str = "dev") -> Tensor:
    """Cost matrix summed, not averaged, over the batch: add up chunks and processes, then divide by their samples.

    Args:
        trajectory: `[T, B, ...]` states from noisy to clean; `[T+1, B, ...]` if one more state follows the schedule
            (denoise_to_zero): it ends the chord of `dev`, and no jump leads to it.
        directions: `[T-1, B, ...]` the drift first used in each step.
        sigmas: `[T]` their levels.
        metric: "dev", "l1" or "l2".

    Returns:
        `[T, T]` float64 on the trajectory's device, row = from, column = to, zero for j <= i.

    Raises:
        ValueError: unknown metric, or shapes that do not belong together.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}': choose one of {', '.join(METRICS)}")
    T = len(sigmas)
    if T < 2 or len(trajectory) not in (T, T + 1) or len(directions) != T - 1:
        raise ValueError(
            f"{T} levels come with {T} states (or {T + 1}) and {T - 1} directions, at least 2 levels: "
            f"got {len(trajectory)} states and {len(directions)} directions"
        )
    s = torch.as_tensor(sigmas).to(trajectory.device, torch.float64)
    total = torch.zeros(T, T, dtype=torch.float64, device=trajectory.device)
    B, D = trajectory.shape[1], trajectory[0, 0].numel() if trajectory.shape[1] else 1
    chunk = max(1, _WORKSPACE[trajectory.device.type] // (8 * 4 * T * max(D, T)))
    copies = [torch.empty(min(chunk, B), len(v), D, dtype=s.dtype, device=s.device) for v in (trajectory, directions)]
    how = {"dtype": trajectory.dtype} if metric == "l1" else {}
    for a in range(0, B, chunk):
        parts = (v[:, a : a + chunk].flatten(2).transpose(0, 1) for v in (trajectory, directions))
        x, e = (copy[: part.shape[0]].copy_(part) for copy, part in zip(copies, parts, strict=True))
        total += METRICS[metric](x, e, s, **how)
    return total.triu(1)


def cost_matrix(trajectory: Tensor, directions: Tensor, sigmas: Tensor, metric: str = "dev") -> Tensor:
    """Mean cost of every jump over the batch; arguments and errors as in `cost_sums`."""
    return cost_sums(trajectory, directions, sigmas, metric) / trajectory.shape[1]


def read_coefficients(coeff: float | Sequence[float]) -> list[float]:
    """One factor or several, as a list without repetitions.

    Raises:
        ValueError: none, or one that is not positive.
    """
    coeffs = [float(coeff)] if isinstance(coeff, int | float) else list(dict.fromkeys(float(g) for g in coeff))
    if not coeffs or not all(g > 0 for g in coeffs):
        raise ValueError(f"coeff={coeff} is not possible: give one or more positive factors, 1.15 is usual")
    return coeffs


def path_table(cost: Tensor, max_steps: int, coeff: float) -> dict[int, list[int]]:
    """The cheapest schedule with 2 to `max_steps` levels, from one dynamic programme.

    V_1[j] = C[j, T-1]; V_k[j] = min_{j < i <= T-2} C[j, i] + coeff V_{k-1}[i]; the first minimiser in ascending i wins.

    Args:
        cost: `[T, T]`, only the part above the diagonal is read.
        max_steps: levels of the longest schedule, 2 to T.
        coeff: factor on every later jump; above 1 it makes the jumps at low noise dearer and moves levels there.

    Returns:
        {number of levels: indices into the grid, from 0 to T-1}.

    Raises:
        ValueError: more levels than the grid has, fewer than 2, or a factor that is not positive.
    """
    c = torch.as_tensor(cost).detach().cpu().double().numpy().copy()
    T = len(c)
    if not 2 <= max_steps <= T:
        raise ValueError(
            f"a schedule of {max_steps} noise levels was asked for on a teacher grid of {T}: "
            f"give 2 to {T}, or a finer teacher (num_steps_tea)"
        )
    if not coeff > 0:
        raise ValueError(f"coeff is {coeff:g}: give a positive factor, 1.15 is usual")
    c[np.tril_indices(T)] = np.inf
    value, inner, choices = c[:, -1].copy(), c[:, :-1], []
    table = {2: [0, T - 1]}
    for steps in range(3, max_steps + 1):
        total = inner + coeff * value[:-1]
        choices.append(total.argmin(axis=1))
        value = total.min(axis=1)
        path = [0]
        for choice in reversed(choices):
            path.append(int(choice[path[-1]]))
        table[steps] = [*path, T - 1]
    return table


def shortest_path(cost: Tensor, num_steps: int, coeff: float) -> list[int]:
    """Indices of the cheapest schedule with `num_steps` levels; see `path_table`."""
    return path_table(cost, num_steps, coeff)[num_steps]


def path_cost(cost: Tensor, indices: list[int], coeff: float) -> float:
    """sum_m coeff^m C[i_m, i_m+1]: what `shortest_path` minimises."""
    return sum(coeff**m * float(cost[i, j]) for m, (i, j) in enumerate(pairwise(indices)))
