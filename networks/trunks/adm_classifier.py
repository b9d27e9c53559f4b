"""ADMClassifier: the class of a noisy image by the encoder half of the guided-diffusion U-Net.

Dhariwal and Nichol 2021 (arXiv 2105.05233), for classifier guidance. State-dict keys are those of the published files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.adm_blocks import Blocks, Pointwise, attend, norm, spatial_mean, time_mlp, widths_of
from networks.trunks.layers import TORCH_INIT, ZERO_INIT, Conv2d, Init, Linear, PositionalEmbedding

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
_HIDDEN = 2048  # features inside the heads "spatial" and "spatial_v2"


class ADMClassifier(nn.Module):
    """Logits of noisy images.

    Args:
        img_resolution: pixels along one side.
        in_channels: of the images; out_channels: classes.
        pool: how positions become one prediction: attention from their mean, "adaptive" mean before the last layer,
            "spatial" or "spatial_v2" means of every stage before two layers.
        others: as of `ADMUNet`.

    Raises:
        ValueError: an unknown pool, or sizes that do not fit.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (8, 16, 32),
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        use_new_attention_order: bool = False,
        pool: str = "attention",
    ) -> None:
        if pool not in POOLS:
            raise ValueError(f"there is no pool '{pool}': choose from {', '.join(POOLS)}")
        widths = widths_of(img_resolution, model_channels, channel_mult)
        super().__init__()
        self.pool, self.num_classes = pool, out_channels
        self.map_time = PositionalEmbedding(model_channels)
        self.time_embed = time_mlp(model_channels)
        blocks = Blocks(
            model_channels=model_channels, num_res_blocks=num_res_blocks, attention_resolutions=attention_resolutions,
            dropout=dropout, conv_resample=conv_resample, num_heads=num_heads, num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm, resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
        )  # fmt: skip
        self.input_blocks, channels = blocks.encoder(in_channels, widths)
        self.middle_block = blocks.middle(widths[-1])
        side = img_resolution >> (len(widths) - 1)
        self.out = _head(pool, [*channels, widths[-1]], out_channels, side, num_head_channels)

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """`[N, in_channels, H, W]`, time `[N or 1]` -> logits `[N, out_channels]`."""
        emb = F.silu(self.time_embed(self.map_time(noise_labels)))
        means = []
        for stage in (*self.input_blocks, self.middle_block):
            x = stage(x, emb)
            if self.pool.startswith("spatial"):
                means.append(spatial_mean(x))
        return self.out(torch.cat(means, dim=1) if means else x)


def _head(pool: str, channels: Sequence[int], classes: int, side: int, head_channels: int) -> nn.Sequential:
    last = channels[-1]
    if pool == "attention":
        return nn.Sequential(norm(last), nn.SiLU(), _AttentionPool(last, classes, side, head_channels))
    if pool == "adaptive":
        mean = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(norm(last), nn.SiLU(), mean, Conv2d(last, classes, kernel=1, init=ZERO_INIT), nn.Flatten())
    first, second = Linear(sum(channels), _HIDDEN, init=TORCH_INIT), Linear(_HIDDEN, classes, init=TORCH_INIT)
    return nn.Sequential(first, nn.ReLU(), second) if pool == "spatial" else nn.Sequential(
        first, norm(_HIDDEN), nn.SiLU(), second
    )  # fmt: skip


class _AttentionPool(nn.Module):
    """Attention from the mean over positions. Keys: positional_embedding [C, L + 1], qkv_proj, c_proj."""

    def __init__(self, channels: int, classes: int, side: int, head_channels: int) -> None:
        if head_channels < 1 or channels % head_channels:
            raise ValueError(
                f"the pool of a classifier shares {channels} channels between heads of num_head_channels="
                f"{head_channels}: give a divisor"
            )
        super().__init__()
        self.heads = channels // head_channels
        init = Init("kaiming_normal", weight=1.0)
        self.positional_embedding = nn.Parameter(init.draw((channels, side**2 + 1), channels, channels))
        self.qkv_proj = Pointwise(channels, 3 * channels, TORCH_INIT)
        self.c_proj = Pointwise(channels, classes, TORCH_INIT)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2) + self.positional_embedding.to(x.dtype)
        mixed = attend(self.qkv_proj(tokens.transpose(1, 2)), self.heads, new_order=True)
        return self.c_proj(mixed[:, 0])
