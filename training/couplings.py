"""Which noise of a batch goes with which data: as drawn, or by the assignment of least squared distance.

Minibatch optimal transport (Pooladian et al. 2023, arXiv 2304.14772; Tong et al. 2023, arXiv 2302.00482) draws both
ends independently and permutes the noise of the batch: each end keeps its distribution, trajectories cross less, and
labels stay with their data. The batch is what one process sees in one pass: with more processes or accumulation the
assignment is over fewer rows.

Plans other than a permutation (entropic, unbalanced, partial; by POT, Flamary et al. 2021, JMLR 22(78)) say how much of
each noise goes to each data. `Coupling` draws from one: a noise for each data, or, as published programs do, pairs with
replacement, where some rows come twice and others not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.errors import importing
from torch_utils.rng import TorchRNG

Array = np.ndarray[Any, Any]


def independent(data: Tensor, noise: Tensor) -> Tensor:
    """The noise as it is."""
    return noise


def squared_distances(data: Tensor, noise: Tensor) -> Tensor:
    """|data_i - noise_j|^2 of whole samples, `[B, B]` float64."""
    return torch.cdist(data.flatten(1).double(), noise.flatten(1).double()).square()


@torch.no_grad()
def minibatch_ot(data: Tensor, noise: Tensor) -> Tensor:
    """`noise [B, ...]` in the order that minimises the sum of |data_i - noise_i|^2; `data [B, ...]` keeps its own.

    Raises:
        ValueError: a batch of one, which leaves nothing to choose.
    """
    _refuse_one(data)
    return noise[_assignment(squared_distances(data, noise))]


def _refuse_one(data: Tensor) -> None:
    if len(data) < 2:
        raise ValueError(
            "optimal transport pairs the samples of a batch, and this batch has one: use a larger batch (per process "
            "and pass, see --batch-gpu), or the independent coupling"
        )


def _assignment(cost: Tensor) -> Tensor:
    """The column for each row of `cost [B, B]` float64 at the least total; infinite entries are not chosen."""
    from scipy.optimize import linear_sum_assignment  # late: a third of a second that only this coupling needs

    rows = linear_sum_assignment(_reduced(cost.T).cpu().numpy())[1]
    return torch.from_numpy(rows).argsort().to(cost.device)


def _reduced(cost: Tensor) -> Tensor:
    """A number taken off each row and each column of `cost`, so that the best entries come near zero.

    Every permutation loses the same, the best one stays the best. The search for it, which begins with shortest paths
    at zero potentials, takes a third of the time at the potentials of a few rounds of Sinkhorn's (Cuturi 2013,
    arXiv 1306.0895).
    """
    cost = cost - cost.amin(1, keepdim=True)
    scale = (0.05 * cost[cost.isfinite()].mean()).clamp(min=1e-300)
    kernel = (-cost / scale).exp()
    columns = torch.ones_like(cost[0])
    for _ in range(20):
        columns = 1 / ((1 / (kernel @ columns)) @ kernel + 1e-100)
    return cost - scale * columns.log()


@torch.no_grad()
def same_label_ot(data: Tensor, noise: Tensor, source_labels: Tensor, labels: Tensor) -> Tensor:
    """Couple as `minibatch_ot`, among rows of equal labels: for noise with labels, as the frames of series have.

    Args:
        source_labels, labels: `[B]` or `[B, label_dim]` of noise and data, each label as often in both.

    Raises:
        ValueError: labels that do not match up.
    """
    _refuse_one(data)
    own, target = (v.reshape(len(v), -1) for v in (source_labels, labels))
    equal, alike = ((target[:, None] == v[None]).all(2) for v in (own, target))
    if not torch.equal(equal.sum(1), alike.sum(1)):
        raise ValueError(
            "the labels of the noise and of the data do not match up: a coupling among equal labels needs each label "
            "as often on both ends"
        )
    return noise[_assignment(squared_distances(data, noise).masked_fill(~equal, math.inf))]


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"independent": independent, "ot": minibatch_ot}


def _pot() -> ModuleType:
    with importing("transport plans other than the assignment need the package POT: pip install POT"):
        import ot
    return ot


# method -> (uniform weights a, b, cost, reg, reg_m) -> plan
PLANS: dict[str, Callable[..., Array]] = {
    "exact": lambda a, b, cost, reg, reg_m: _pot().emd(a, b, cost),
    "sinkhorn": lambda a, b, cost, reg, reg_m: _pot().sinkhorn(a, b, cost, reg),
    "unbalanced": lambda a, b, cost, reg, reg_m: _pot().unbalanced.sinkhorn_knopp_unbalanced(a, b, cost, reg, reg_m),
    "partial": lambda a, b, cost, reg, reg_m: _pot().partial.entropic_partial_wasserstein(a, b, cost, reg),
}


def transport_plan(
    cost: Array, method: str = "exact", *, reg: float = 0.05, reg_m: float = 1.0, normalize: bool = False
) -> Array:
    """How much of each row goes to each column, `[N, M]` float64, between uniform weights.

    Args:
        cost: `[N, M]`.
        method: key of PLANS.
        reg: entropic regularisation, in units of the cost; of a Schroedinger bridge 2 sigma^2.
        reg_m: of "unbalanced", what leaving out weight costs.
        normalize: divide the cost by its largest value first.

    Raises:
        ValueError: an unknown method, POT missing, or a plan that is empty or not finite.
    """
    if method not in PLANS:
        raise ValueError(f"there is no transport plan '{method}': choose from {', '.join(PLANS)}")
    cost = cost.astype(np.float64)
    a, b = (np.full(n, 1 / n) for n in cost.shape)
    plan = PLANS[method](a, b, cost / cost.max() if normalize else cost, reg, reg_m)
    if not np.isfinite(plan).all() or abs(plan.sum()) < 1e-8:
        raise ValueError(
            f"the {method} plan with reg={reg:g} is empty or not finite: raise reg towards the size of the squared "
            "distances, or use the exact plan"
        )
    return plan


def draw_pairs(plan: Array, size: int, rng: np.random.RandomState, replace: bool = True) -> tuple[Array, Array]:
    """`size` pairs (row, column) of a plan, each with a probability in proportion to its entry."""
    index = rng.choice(plan.size, p=plan.ravel() / plan.sum(), size=size, replace=replace)
    return np.divmod(index, plan.shape[1])


def _pairs_at(plan: Array, u: Array) -> tuple[Array, Array]:
    """The pairs that `draw_pairs` finds with replacement at uniform numbers `u`."""
    share = np.cumsum(plan.ravel())
    return np.divmod(np.searchsorted(share, u * share[-1], side="right").clip(max=plan.size - 1), plan.shape[1])


def _columns_at(plan: Array, u: Array) -> Array:
    """A column for each row, with a probability in proportion to its entry in the row, at uniform numbers `u`."""
    share = np.cumsum(plan, axis=1)
    if not (share[:, -1] > 0).all():
        raise ValueError("the plan leaves out some data of the batch: raise reg, or draw pairs with replacement")
    return (share <= u[:, None] * share[:, -1:]).sum(1).clip(max=plan.shape[1] - 1)


@dataclass(frozen=True)
class Coupling:
    """Which noise goes with which data, and with which labels: `coupling(data, noise, labels, rng)` gives all three.

    Attributes:
        kind: "independent", "ot", or "ot-labels": among samples of one label, so that each label keeps Gaussian noise.
        method: of "ot", key of PLANS.
        reg, reg_m: see `transport_plan`.
        replacement: draw pairs from the plan with replacement, else each data keeps its place and gets a noise.
    """

    kind: str = "independent"
    method: str = "exact"
    reg: float = 0.05
    reg_m: float = 1.0
    replacement: bool = False

    def __call__(
        self, data: Tensor, noise: Tensor, labels: Tensor | None, rng: TorchRNG
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Data, noise `[B, ...]` and labels `[B, label_dim]` as pairs; plans take one uniform number a row of `rng`.

        Raises:
            ValueError: a batch of one, no labels where they are needed, a plan that is none.
        """
        if self.kind == "independent":
            return data, noise, labels
        if self.kind == "ot-labels":
            if labels is None or not labels.shape[1]:
                raise ValueError("the coupling among equal labels needs labels, and there are none")
            return data, same_label_ot(data, noise, labels, labels), labels
        if self.method == "exact" and not self.replacement:
            return data, minibatch_ot(data, noise), labels
        _refuse_one(data)
        plan = transport_plan(squared_distances(data, noise).cpu().numpy(), self.method, reg=self.reg, reg_m=self.reg_m)
        u = rng.rand([len(data)]).double().cpu().numpy()
        if not self.replacement:
            return data, noise[torch.from_numpy(_columns_at(plan, u)).to(noise.device)], labels
        rows, columns = (torch.from_numpy(index).to(data.device) for index in _pairs_at(plan, u))
        return data[rows], noise[columns], None if labels is None else labels[rows]
