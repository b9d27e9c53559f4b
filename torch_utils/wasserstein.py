"""Exact Wasserstein distance between two sets of points: W_p = (min over plans of sum of |x - y|^p)^(1/p).

The optimal plan is found by the network simplex of POT (Flamary et al. 2021, JMLR 22(78)), in float64 on the host:
0.05 s for two sets of 1000 points. Meant for toys; on images the number says little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.errors import importing

MAX_PIVOTS = 10_000_000


def wasserstein(x: Tensor, y: Tensor, power: int = 2) -> float:
    """W_power between the uniform distributions on `x [N, ...]` and `y [M, ...]`, in units of the points.

    Raises:
        ValueError: POT is missing, another power than 1 or 2, points that are not finite or of different dimension.
    """
    if power not in (1, 2):
        raise ValueError(f"power={power} is not possible: choose 1 or 2")
    x, y = (p.detach().cpu().double().flatten(1) for p in (x, y))
    if not len(x) or not len(y) or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"the distance needs two sets of points of one dimension, got shapes {list(x.shape)} and {list(y.shape)}"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("the points hold values that are not finite: the sampler or the network is broken")
    with importing("the Wasserstein distance needs the package POT: pip install POT"):
        import ot
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** power
    total = float(ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost.numpy(), numItermax=MAX_PIVOTS))
    return max(total, 0.0) ** (1 / power)
