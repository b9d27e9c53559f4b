"""Exponential Adams solvers: clean data are interpolated in lambda = -log sigma, the exponential integrated exactly.

- `res`: orders 1 to 3, deterministic (Zhang, Song, Chen 2023, arXiv 2308.02157, multistep). Unlike DPM-Solver++ of
  order 3, whose last term has half of the weight that it needs, it converges with the order it names.
- `sa`: SA-Solver, a stochastic predictor and corrector (Xue et al. 2023, arXiv 2309.05019, Algorithm 1): the noise of
  a step enters the prediction and the correction alike. Its strength is tau over a range of levels, see `Tau`.

One evaluation per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from samplers.field import Field
from samplers.solvers.base import Step, read_levels, require_ve
from samplers.solvers.exponential import exponential_weights, sa_weights
from samplers.solvers.multistep import linear_multistep
from samplers.solvers.noise import Tau
from samplers.solvers.scalar import Scalar
from samplers.solvers.unipc import predictor_corrector
from samplers.start import refuse_score
from torch_utils.rng import TorchRNG

__all__ = ["res", "sa"]


def res(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float | Tensor],
    *,
    max_order: int = 2,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """Orders 1 to 3; lower orders while the history grows."""
    require_ve(field, "res")

    def weights(s: Sequence[Scalar], i: int) -> tuple[Scalar, list[Scalar]]:
        return exponential_weights(s, i, min(max_order, i + 1))

    return linear_multistep(
        field, x, levels, weights, history=max_order, quantity="data", first=first, trace=trace
    )  # fmt: skip


def sa(
    field: Field,
    x: Tensor,
    levels: Tensor | Sequence[float],
    *,
    rng: TorchRNG | None = None,
    max_order: int = 3,
    corrector_order: int = 3,
    tau: float = 1.0,
    tau_min: float = 0.05,
    tau_max: float = 1.0,
    first: Tensor | None = None,
    trace: Callable[[Step], Any] | None = None,
) -> Tensor:
    """SA-Solver; the values traced belong to the predicted states.

    Args:
        rng: source of one normal draw like `x` for each step that adds noise; None: torch's global generator.
        max_order: values that the predictor interpolates.
        corrector_order: values that the corrector interpolates, with the one at the end of the step; 0: no corrector.
        tau, tau_min, tau_max: see `Tau`.

    Raises:
        ValueError: levels that are maps, or noise asked of a model that has no score.
    """
    require_ve(field, "sa")
    grid, strength = read_levels(levels, x), Tau(tau=tau, tau_min=tau_min, tau_max=tau_max)
    if grid.is_map:
        raise ValueError("solver 'sa' needs levels that are one number for the whole batch: use solver 'res' with maps")
    if tau > 0:
        refuse_score(field, "added noise (tau)")
    source = TorchRNG(x.device) if rng is None else rng

    def noise(i: int) -> Tensor | None:
        added = strength.added(grid.s[i], grid.s[i + 1])
        return added * source.randn(x.shape, dtype=x.dtype).to(x.device) if added else None

    return predictor_corrector(
        field, x, grid, lambda s, i: sa_weights(s, i, max_order, corrector_order, strength.at(s[i])),
        history=max(max_order, corrector_order - 1), noise=noise, first=first, trace=trace,
    )  # fmt: skip
