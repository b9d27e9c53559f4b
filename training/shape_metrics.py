"""Generated shapes against those of a data set: rules kept, and distances between points on their surfaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_utils.frechet import frechet_distance
from torch_utils.point_clouds import set_distances, surface_points
from training.data.boxes import FAMILIES, RULES, TOLERANCE, rules
from training.data.shapes import Shapes

__all__ = ["compare_shapes", "has_rules"]

WIDE = 0.1  # a second tolerance: how far off shapes are that break the rules


def has_rules(shapes: Shapes) -> bool:
    """Whether the rules of `training/data/boxes.py` are those of this data set: it has their families."""
    return shapes.class_names == list(FAMILIES)


@torch.inference_mode()
def compare_shapes(
    generated: Shapes,
    reference: Shapes,
    *,
    ruled: bool,
    points: int = 256,
    tolerance: float = TOLERANCE,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Numbers by name; None where a question does not apply.

    Args:
        ruled: shapes are furniture of boxes, with rules.
        points: on the surface of each shape.
        tolerance: of the rules, in the units of the data.
        features: points `[N, P, 3]` -> `[N, D]`, for the Fréchet distance.
        seed: of the points.

    Raises:
        ValueError: parts of other numbers, or no shape with a surface.
    """
    if generated.parts.shape[2] != reference.parts.shape[2] or generated.groups != reference.groups:
        raise ValueError(
            f"generated parts have {generated.parts.shape[2]} numbers in groups {list(generated.groups)}, those of the "
            f"data {reference.parts.shape[2]} in {list(reference.groups)}: compare shapes of one kind"
        )
    count = generated.parts[..., 0].sum(1)
    solid = ((generated.parts[..., 0] > 0.5) & (generated.parts[..., 4:7] > 0).all(-1)).any(1)
    if int(solid.sum()) < 2:
        raise ValueError("fewer than two generated shapes have a part of any size: there is nothing to compare")
    clouds = [surface_points(p, points, seed) for p in (generated.parts[solid], reference.parts)]
    result: dict[str, Any] = {
        "num": len(generated.parts),
        "num_reference": len(reference.parts),
        "without_parts": len(solid) - int(solid.sum()),
        "parts": count.mean().item(),
        "parts_reference": reference.parts[..., 0].sum(1).mean().item(),
        **set_distances(*clouds),
        "fpd": None if features is None else _frechet(*(features(c) for c in clouds)),
        "valid": None, "valid_wide": None, "rules": None, "right_class": None,
    }  # fmt: skip
    if ruled:
        kept = rules(generated.parts, tolerance)
        family = kept.pop("family")
        result["valid"] = kept["valid"].double().mean().item()
        result["valid_wide"] = rules(generated.parts, max(WIDE, tolerance))["valid"].double().mean().item()
        result["rules"] = {name: kept[name].double().mean().item() for name in RULES}
        if generated.labels is not None:
            result["right_class"] = (family == generated.labels).double().mean().item()
    return result


def _frechet(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
