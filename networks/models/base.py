"""Model: what every model has besides its trunk, and `make_trunk`, which makes one by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def make_trunk(trunks: Mapping[str, type[nn.Module]], model_type: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A trunk of the table; ValueError for a name that is not in it."""
    if model_type not in trunks:
        raise ValueError(f"model_type '{model_type}' is unknown: choose one of {', '.join(trunks)}")
    return trunks[model_type](*args, **kwargs)


class Model(nn.Module):
    """A trunk, `self.model`, bound to what it predicts.

    Attributes:
        img_resolution, img_channels, label_dim: of the images and one-hot labels; None where samples are no images.
        sigma_min, sigma_max: range of noise levels; every one where a class says nothing else.
        compute_dtype: dtype of the trunk in a call. float16 counts on CUDA only, bfloat16 everywhere. A matter of the
            moment, not of the weights: set it at any time.
    """

    model: nn.Module
    sigma_min = 0.0
    sigma_max = math.inf

    def __init__(self, img_resolution: int | None, img_channels: int | None, label_dim: int = 0) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.compute_dtype = torch.float32

    @property
    def label_dropout(self) -> float:
        """Share of the labels left out in training; above 0, the network also knows the empty label (zeros)."""
        return getattr(self.model, "label_dropout", 0.0)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network supports: every one."""
        return torch.as_tensor(sigma)

    def trunk_dtype(self, x: Tensor, force_fp32: bool = False) -> torch.dtype:
        """The trunk's dtype in a call."""
        half = self.compute_dtype == torch.float16 and x.device.type != "cuda"
        return torch.float32 if force_fp32 or half else self.compute_dtype
