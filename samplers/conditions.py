"""Conditions for samples: drawn per sample, as the data of a model has them.

Classes are drawn at equal rates. Vectors and multi-hot labels cannot be made up, so they are drawn from labels of data,
`Facts.conditions`, which whoever samples hands over as the model's attribute `conditions`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.field import Facts
from torch_utils.rng import PerSampleRNG


def check_class(facts: Facts, class_idx: int | None) -> None:
    """Refuse a class that the model does not have, and a model whose conditions cannot be drawn; ValueError."""
    if facts.begins == "frame":
        raise ValueError(
            "this model goes on from the last frame of a series, which cannot be drawn: use `analyze.py forecast`, "
            "without a search or calibration"
        )
    label_dim = facts.label_dim or 0
    if class_idx is not None and not label_dim:
        raise ValueError(f"class {class_idx} was asked for, but the network is unconditional: leave the class out")
    if class_idx is not None and facts.conditioning in ("multi-hot", "vector"):
        raise ValueError(
            f"class {class_idx} was asked for, but the network takes {facts.conditioning} labels: leave it out"
        )
    if class_idx is not None and not 0 <= class_idx < label_dim:
        raise ValueError(f"class {class_idx} does not exist: the network has classes 0 to {label_dim - 1}")
    if label_dim and facts.conditions is None and facts.conditioning in ("multi-hot", "vector"):
        raise ValueError(
            f"the network was trained on {facts.conditioning} labels of {label_dim} numbers, which cannot be made up: "
            "take them from its data set or a file, with --labels=DATA or --labels=FILE.npy where there is that option"
        )


def draw_conditions(facts: Facts, rng: PerSampleRNG, count: int, class_idx: int | None = None) -> Tensor | None:
    """Conditions float32 `[count, label_dim]` where the random numbers are; None for an unconditional model.

    Every sample takes one random number, whatever `class_idx` says.
    """
    if not facts.label_dim:
        return None
    if facts.conditions is not None:
        index = rng.randint(len(facts.conditions), [count])
        return facts.conditions.to(index.device)[index].float()
    index = rng.randint(facts.label_dim, [count])
    index = index if class_idx is None else torch.full_like(index, class_idx)
    return torch.nn.functional.one_hot(index, facts.label_dim).to(torch.float32)
