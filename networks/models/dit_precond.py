"""DiTPrecond: a diffusion transformer that predicts noise, as a denoiser (Peebles and Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.noise_precond import NoisePrecond
from networks.trunks.transformer import Transformer


class DiTPrecond(NoisePrecond):
    """D(x; sigma) of a `Transformer` that was trained on the indices of a table of noise levels.

    Args:
        img_resolution, img_channels: of the data or latents.
        network: further arguments of `Transformer`.
        label_dim: classes; rows of zeros are the empty class.
        num_levels: entries of the table.

    Keys: model.*, alphas_cumprod.
    """

    def __init__(
        self, img_resolution: int, img_channels: int, network: Mapping[str, Any], label_dim: int = 0,
        num_levels: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__(
            img_resolution, img_channels, network, label_dim, time_convention="table", num_levels=num_levels,
            clip_denoised=False,
        )  # fmt: skip

    def make_trunk(self, network: Mapping[str, Any]) -> nn.Module:
        size, channels = self.img_resolution, self.img_channels
        return Transformer(size, channels, channels, self.label_dim, **{"element_times": False, **network})

    def evaluate(self, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return self.model(x, time.reshape(-1, 1, 1, 1), condition.get("labels"))

    def condition(self, labels: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """One-hot rows `[B, label_dim]`."""
        if not self.label_dim:
            return {}
        if labels is not None and labels.ndim == 2 and labels.shape[1] == self.label_dim:
            return {"labels": labels.to(torch.float32).expand(len(x), -1)}
        return {"labels": nn.functional.one_hot(self._index(labels, x), self.label_dim).float()}
