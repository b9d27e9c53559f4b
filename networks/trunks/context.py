"""ContextTrunk: a trunk that sees frames of a series beside the sample, as further channels.

They come with the label: `[frames before, flattened; the rest]`, of which the rest (a one-hot month) is the label of
the trunk inside. So every preconditioner, loss and sampler that knows labels works on series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.adm_unet import ADMUNet
from networks.trunks.dhariwal_unet import DhariwalUNet
from networks.trunks.mlp import SELUMLP, FourierMLP
from networks.trunks.song_unet import SongUNet

_INSIDE: dict[str, type[nn.Module]] = {
    "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "FourierMLP": FourierMLP, "ADMUNet": ADMUNet,
    "SELUMLP": SELUMLP,
}  # fmt: skip


class ContextTrunk(nn.Module):
    """Another trunk with the context as channels.

    Args:
        img_resolution, in_channels, out_channels: of the sample.
        context: channels of the context, maps of img_resolution.
        trunk: model_type and further arguments of the trunk inside.
        label_dim: length of the whole label; what is beyond the context is the label inside.
        pad: rows and columns added around before the trunk and cut off after it, for U-Nets, which halve.
        wrap: opposite borders touch, so that maps are continued around; else their borders are repeated.

    Raises:
        ValueError: a label shorter than the context, an unknown trunk, a pad that is wider than the maps.
    """

    label_dropout = 0.0  # there is no empty context

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        context: int,
        trunk: Mapping[str, Any],
        label_dim: int = 0,
        pad: int = 0,
        wrap: bool = False,
    ) -> None:
        inside = dict(trunk)
        kind = inside.pop("model_type", None)
        rest = label_dim - context * img_resolution**2
        if kind not in _INSIDE:
            raise ValueError(f"a trunk with context around '{kind}' is unknown: choose one of {', '.join(_INSIDE)}")
        if rest < 0:
            raise ValueError(
                f"labels of {label_dim} numbers do not hold {context} maps of {img_resolution}x{img_resolution}"
            )
        if not 0 <= pad <= img_resolution:
            raise ValueError(f"pad={pad}: give 0 to {img_resolution}")
        super().__init__()
        self.context, self.size, self.pad, self.wrap, self.rest = context, img_resolution, pad, wrap, rest
        self.model = _INSIDE[kind](img_resolution + pad, in_channels + context, out_channels, label_dim=rest, **inside)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`[N, in_channels, H, W]`, times [N or 1], labels [N or 1, label_dim] -> `[N, out_channels, H, W]`.

        Raises:
            ValueError: no labels.
        """
        if class_labels is None:
            raise ValueError("this network continues a series, and what came before was not given: pass class_labels")
        labels = class_labels.to(x.dtype).expand(len(x), -1)
        before, rest = labels.split([labels.shape[1] - self.rest, self.rest], dim=1)
        x = torch.cat([x, before.reshape(len(x), self.context, self.size, self.size)], dim=1)
        near, far = self.pad // 2, self.pad - self.pad // 2
        if self.pad:
            x = F.pad(x, (near, far, near, far), mode="circular" if self.wrap else "replicate")
        out = self.model(x, noise_labels, *((rest,) if self.rest else ()))
        return out[:, :, near : near + self.size, near : near + self.size]
