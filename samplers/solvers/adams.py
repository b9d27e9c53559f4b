"""Adams-Bashforth solvers: one loop with three rules for its weights (`samplers.solvers.weights`).

`ipndm` has the weights of equal steps, `ipndm_v` the published ones of variable steps, `ab` the exact ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.scalar import Scalar
from samplers.solvers.weights import Rule, ab_weights, ipndm_v_weights, ipndm_weights

__all__ = ["ab", "ipndm", "ipndm_v"]


def _adams_bashforth(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    rule: Rule,
    max_order: int = 4,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Orders 1 to 4, one evaluation per step; lower orders while the history grows."""

    def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, Sequence[Scalar]]:
        return 1, rule(s, i, min(max_order, i + 1))

    return linear_multistep(field, x, levels, weights, history=max_order, first=first, trace=trace)


ipndm = functools.partial(_adams_bashforth, rule=ipndm_weights)
ipndm_v = functools.partial(_adams_bashforth, rule=ipndm_v_weights)
ab = functools.partial(_adams_bashforth, rule=ab_weights)
