"""Points on the surface of boxes, and distances between sets of point clouds.

The Chamfer distance of two clouds is the mean squared distance of the points of each to the nearest of the other, both
directions added (Achlioptas et al. 2018, arXiv 1707.02392). Over two sets of clouds, generated and reference:

- mmd: mean over the references of the distance to the nearest generated one;
- coverage: share of the references that are the nearest to some generated one, higher is better;
- cov_distance: what StructRe and ComboStoc call COV, mean distance of the references to the nearest generated one,
  lower is better: the formula of mmd, under the name of published columns;
- fidelity: mean over the generated ones of the distance to the nearest reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 24  # distances between points at a time


def surface_points(parts: Tensor, count: int, seed: int = 0) -> Tensor:
    """`[N, count, 3]` float32 points, uniform over the surfaces of all boxes of a shape; drawn on the CPU.

    Args:
        parts: `[N, L, V]` in the units of the data: existence, centre, size, ...
        count: points of a shape.
        seed: of the draws, the same for every shape.

    Raises:
        ValueError: a shape without a box of any size.
    """
    parts = parts[..., :7].double().cpu()
    size = parts[..., 4:7].clamp(min=0)
    area = torch.stack([size[..., 1] * size[..., 2], size[..., 0] * size[..., 2], size[..., 0] * size[..., 1]], dim=-1)
    weights = (area * (parts[..., :1] > 0.5)).flatten(1)  # [N, 3 L], pairs of faces
    if not bool((weights.sum(1) > 0).all()):
        raise ValueError("some shape has no box with a surface: leave such shapes out")
    generator = torch.Generator().manual_seed(seed)
    # one draw for all, so that equal shapes have equal points and the noise of sampling is common
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    place = torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5
    side = torch.where(torch.rand(count, generator=generator) < 0.5, -0.5, 0.5).double()
    total = weights.cumsum(1)
    face = torch.searchsorted(total, share * total[:, -1:]).clamp(max=weights.shape[1] - 1)  # [N, count]
    box, axis = face // 3, face % 3
    on_face = torch.where(torch.arange(3) == axis[..., None], side[:, None], place)

    def of_box(values: Tensor) -> Tensor:
        return values.gather(1, box[..., None].expand(-1, -1, 3))

    return (of_box(parts[..., 1:4]) + on_face * of_box(size)).float()


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """`[A, B]` Chamfer distances between clouds `a [A, P, 3]` and `b [B, Q, 3]`."""
    flat, norms = b.flatten(0, 1), b.square().sum(-1).flatten()
    rows = max(CHUNK // max(flat.shape[0] * a.shape[1], 1), 1)
    found = []
    for part in a.split(rows):
        points = part.flatten(0, 1)
        squared = torch.addmm(norms, points, flat.T, alpha=-2) + points.square().sum(-1, keepdim=True)
        squared = squared.reshape(*part.shape[:2], *b.shape[:2]).clamp(min=0)  # [rows, P, B, Q]
        found.append(squared.amin(3).mean(1) + squared.amin(1).mean(2))
    return torch.cat(found) if found else torch.zeros(0, len(b))


def set_distances(generated: Tensor, reference: Tensor) -> dict[str, float]:
    """What the file says of two sets of clouds `[A, P, 3]` and `[B, Q, 3]`, by name."""
    distance = chamfer(generated, reference)
    to_generated = distance.amin(0).mean().item()
    return {
        "mmd": to_generated,
        "coverage": distance.argmin(1).unique().numel() / len(reference),
        "cov_distance": to_generated,
        "fidelity": distance.amin(1).mean().item(),
    }
