"""Which noise of a batch goes with which data: as drawn, or by the assignment of least squared distance.

Minibatch optimal transport (Pooladian et al. 2023, arXiv 2304.14772; Tong et al. 2023, arXiv 2302.00482) draws both
ends independently and permutes the noise of the batch: each end keeps its distribution, trajectories cross less. The
batch is what one process sees in one pass: with more processes or accumulation the assignment is over fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["COUPLINGS", "independent", "minibatch_ot"]


def independent(data: Tensor, noise: Tensor) -> Tensor:
    """The noise as it is."""
    return noise


@torch.no_grad()
def minibatch_ot(data: Tensor, noise: Tensor) -> Tensor:
    """`noise [B, ...]` in the order that minimises the sum of |data_i - noise_i|^2; `data [B, ...]` keeps its own."""
    cost = torch.cdist(data.flatten(1).double(), noise.flatten(1).double()).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.from_numpy(order).to(noise.device)]


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"independent": independent, "ot": minibatch_ot}
