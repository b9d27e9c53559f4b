"""Dynamic thresholding of a clean estimate: pixel values beyond the usual range are pulled back into [-1, 1].

Per sample, c = max(q, 1) with q the 0.995-quantile of |D| over all elements, and T(D) = clamp(D, -c, c) / c (Saharia et
al. 2022, arXiv 2205.11487, section 2.3). Solvers that extrapolate clean data (DPM-Solver++, UniPC) use it for images in
pixel space; it would distort latents and vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.field import Field
from samplers.start import refuse_score

__all__ = ["QUANTILE", "dynamic_threshold", "resolve_thresholding"]

QUANTILE = 0.995


def dynamic_threshold(data: Tensor) -> Tensor:
    """T(D) for `data: [B, ...]`. The quantile equals `torch.quantile`, from the largest 0.5 % instead of a sort."""
    flat = data.flatten(1).abs()
    n = flat.shape[1]
    # In the dtype of the data, as torch.quantile does.
    rank = float(torch.tensor(QUANTILE, dtype=data.dtype) * (n - 1))
    below = math.floor(rank)
    top = flat.topk(n - below, dim=1).values  # [B, k], descending
    q = torch.lerp(top[:, -1], top[:, max(n - below - 2, 0)], rank - below)
    c = q.clamp(min=1).reshape(-1, *[1] * (data.ndim - 1))
    return data.clamp(-c, c) / c


def resolve_thresholding(
    thresholding: str | None, predict_x0: bool, field: Field, x: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """The function to apply to clean estimates, or None.

    Args:
        thresholding: "dynamic", "none", or None: dynamic where clean data are predicted and are images in pixel space,
            that is `x` is `[B, C, H, W]` and the facts say `pixels`; and never for a model of a learned coupling.

    Raises:
        ValueError: "dynamic" asked for where no clean data are predicted, or of a model of a learned coupling.
    """
    if thresholding == "dynamic":
        refuse_score(field, "dynamic thresholding")
    if thresholding is None and not field.facts.gaussian_noise:
        thresholding = "none"
    if thresholding is None:
        thresholding = "dynamic" if predict_x0 and x.ndim == 4 and field.facts.pixels else "none"
    if thresholding == "dynamic" and not predict_x0:
        raise ValueError("thresholding='dynamic' acts on clean data: use it with predict_x0=True or leave it out")
    return dynamic_threshold if thresholding == "dynamic" else None
