"""UNetBlock: the residual block of the DDPM++, NCSN++ and ADM networks, and what their constructors check alike.

    h = conv0(silu(norm0(x)))                                 # resamples first where the block changes resolution
    h = silu(norm1(h) * (1 + scale(emb)) + shift(emb))        # adaptive (ADM); else silu(norm1(h + shift(emb)))
    x = (conv1(dropout(h)) + skip(x)) * skip_scale
    x = (proj(attention(qkv(norm2(x)))) + x) * skip_scale     # where the block attends

The embedding and its affine map stay in float32, the rest runs in the dtype of x. Source: Karras et al. 2022,
arXiv 2206.00364, appendix F.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import Conv2d, GroupNorm, Init, Linear, attention
from torch_utils.dropout import dropout, rand_rows

_INIT = Init()
_INIT_ZERO = Init(weight=0.0)


class UNetBlock(nn.Module):
    """One residual block, [N, in_channels, H, W] -> [N, out_channels, H', W'] with H' = 2H, H/2 or H.

    Args:
        emb_channels: width of the embedding `emb [N or 1, emb_channels]`.
        attention: attend over pixels after the convolutions.
        num_heads: attention heads; None: out_channels // channels_per_head. That count may be 0 in narrow blocks, which
            then have no attention, as in the published layout; `heads` says how many there are.
        resample_proj: in blocks that change resolution but not channels, give the skip path a 1x1 convolution too.
        adaptive_scale: the embedding scales and shifts; else it is added.
        init, init_zero, init_attn: initialisation of the layers, of the last layer of each branch, and of qkv
            (None: init).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0,
        skip_scale: float = 1,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init = _INIT,
        init_zero: Init = _INIT_ZERO,
        init_attn: Init | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        self.heads = 0
        if attention:
            self.heads = out_channels // channels_per_head if num_heads is None else num_heads
        if self.heads and out_channels % self.heads:
            raise ValueError(
                f"{out_channels} channels cannot be shared equally by {self.heads} attention heads: "
                f"choose channel counts that are multiples of {channels_per_head}, or another number of heads"
            )

        resample = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, init=init, **resample)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, init=init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel=kernel, init=init, **resample)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, init=init_attn or init)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, init=init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        p = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            h = F.silu(shift + self.norm1(h) * (scale + 1))
        else:
            h = F.silu(self.norm1(h + p))
        h = self.conv1(dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            x = (self.proj(attention(self.qkv(self.norm2(x)), self.heads)) + x) * self.skip_scale
        return x


def level_resolutions(img_resolution: int, num_levels: int) -> list[int]:
    """[32, 16, 8] for (32, 3).

    Raises:
        ValueError: no level at all, or a resolution that cannot be halved that often.
    """
    if num_levels < 1:
        raise ValueError("channel_mult is empty: give one multiplier per resolution, for example 1,2,2,2")
    halvings = num_levels - 1
    if img_resolution < 1 or img_resolution % 2**halvings:
        raise ValueError(
            f"resolution {img_resolution} cannot be halved {halvings} times for the {num_levels} levels of "
            f"channel_mult: give fewer multipliers or a resolution that is a multiple of {2**halvings}"
        )
    return [img_resolution >> level for level in range(num_levels)]


def condition_labels(labels: Tensor | None, x: Tensor, label_dim: int, dropout: float, training: bool) -> Tensor:
    """Float32 labels [N or 1, label_dim]: zeros where there are none; in training, whole rows dropped at random."""
    if labels is None:
        labels = torch.zeros(1, label_dim, device=x.device)
    if training and dropout:
        labels = labels * (rand_rows(x) >= dropout).to(labels.dtype)
    return labels.to(torch.float32)
