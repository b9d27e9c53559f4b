"""DhariwalUNet: the ADM network of Dhariwal and Nichol 2021 (arXiv 2105.05233) as set up by Karras et al. 2022
(arXiv 2206.00364, appendix F).

It differs from SongUNet by scale-and-shift conditioning, 64 channels per attention head, pure resampling on the skip
path and a label embedding that enters after the noise embedding. What input and output mean is the preconditioner's
affair.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import TORCH_INIT, ZERO_INIT, Conv2d, GroupNorm, Init, Linear, PositionalEmbedding
from networks.trunks.unet_block import UNetBlock, condition_labels, level_resolutions


class DhariwalUNet(nn.Module):
    """U-Net with adaptive group norm and multi-head attention.

    Args: as SongUNet; level i has model_channels * channel_mult[i] channels, and every decoder block at a resolution in
    attn_resolutions attends. Blocks narrower than 64 channels have no attention head: the layout of the published
    networks, so a warning says it once.

    Raises:
        ValueError: sizes that do not fit, in one sentence.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        emb_channels = model_channels * channel_mult_emb
        levels = list(zip(level_resolutions(img_resolution, len(channel_mult)), channel_mult, strict=True))
        last = len(levels) - 1
        block = partial(UNetBlock, emb_channels=emb_channels, dropout=dropout, init=TORCH_INIT, init_zero=ZERO_INIT)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=ZERO_INIT) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=TORCH_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=TORCH_INIT)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))  # entries of unit variance
        self.map_label = Linear(label_dim, emb_channels, bias=False, init=init_label) if label_dim else None

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        headless: list[str] = []  # blocks that should attend and are too narrow for one head
        channels = in_channels
        for i, (res, mult) in enumerate(levels):
            name, wide, attend = f"{res}x{res}", model_channels * mult, res in attn_resolutions
            if i == 0:
                self.enc[f"{name}_conv"] = Conv2d(in_channels, wide, kernel=3, init=TORCH_INIT)
                channels = wide
            else:
                self.enc[f"{name}_down"] = block(channels, channels, down=True)
            skips.append(channels)
            for j in range(num_blocks):
                self.enc[f"{name}_block{j}"] = layer = block(channels, wide, attention=attend)
                headless += [f"enc.{name}_block{j}"] * (attend and layer.heads == 0)
                channels = wide
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for i, (res, mult) in reversed(list(enumerate(levels))):
            name, wide, attend = f"{res}x{res}", model_channels * mult, res in attn_resolutions
            if i == last:
                self.dec[f"{name}_in0"] = layer = block(channels, channels, attention=True)
                headless += [f"dec.{name}_in0"] * (layer.heads == 0)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, up=True)
            for j in range(num_blocks + 1):
                self.dec[f"{name}_block{j}"] = layer = block(channels + skips.pop(), wide, attention=attend)
                headless += [f"dec.{name}_block{j}"] * (attend and layer.heads == 0)
                channels = wide
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, kernel=3, init=ZERO_INIT)
        if headless:
            warnings.warn(
                f"no attention in {', '.join(headless)}: a head takes 64 channels and these blocks have fewer; "
                "raise model_channels to have it",
                stacklevel=2,
            )

    def embed(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embedding of noise level and labels, `[N or 1, emb_channels]`; `x` supplies batch size and device only."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            labels = condition_labels(class_labels, x, self.label_dim, self.label_dropout, self.training)
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """[N, in_channels, H, W], [N or 1], [N or 1, label_dim], [N, augment_dim] -> [N, out_channels, H, W]."""
        emb = self.embed(x, noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
