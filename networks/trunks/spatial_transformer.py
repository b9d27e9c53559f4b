"""SpatialTransformer: pixels attend to each other and to tokens of a condition (Rombach et al. 2022, arXiv 2112.10752).

    x = attn1(LN(x)) + x;   x = attn2(LN(x), context) + x;   x = ff(LN(x)) + x

between two 1x1 convolutions, around all of which lies a residual connection. Keys are those of the published latent
diffusion checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import TORCH_INIT, ZERO_INIT, Conv2d, GroupNorm, Linear


class SpatialTransformer(nn.Module):
    """Keys: norm, proj_in, transformer_blocks.j, proj_out.

    Args:
        channels: of the image, shared equally by `heads`.
        context_dim: features of a token of the condition.
        depth: transformer blocks.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int = 1) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, 32, min_channels_per_group=1, eps=1e-6)
        self.proj_in = Conv2d(channels, channels, kernel=1, init=TORCH_INIT)
        self.transformer_blocks = nn.ModuleList(_Block(channels, heads, context_dim) for _ in range(depth))
        self.proj_out = Conv2d(channels, channels, kernel=1, init=ZERO_INIT)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """`[N, C, H, W]`, `[N, T, context_dim]` -> `[N, C, H, W]`; without context the pixels attend to themselves."""
        h = self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Block(nn.Module):
    """Keys: norm1, attn1, norm2, attn2, norm3, ff.net.0.proj, ff.net.2."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = _CrossAttention(channels, channels, heads)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(_GatedGELU(channels, 4 * channels), nn.Identity(), _linear(4 * channels, channels))
        self.attn2 = _CrossAttention(channels, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = (_LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = self.attn1(h, h) + x
        h = self.norm2(x)
        x = self.attn2(h, h if context is None else context.to(h.dtype)) + x
        return self.ff.net(self.norm3(x)) + x


class _CrossAttention(nn.Module):
    """Keys: to_q, to_k, to_v, to_out.0; heads lie side by side in the channels."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = _linear(channels, channels, bias=False)
        self.to_k = _linear(context_dim, channels, bias=False)
        self.to_v = _linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(_linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`[N, L, C]`, `[N or 1, T, context_dim]` -> `[N, L, C]`."""
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = (
            f(context).unflatten(2, (self.heads, -1)).transpose(1, 2).expand(len(x), -1, -1, -1)
            for f in (self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _GatedGELU(nn.Module):
    """value * gelu(gate). Key: proj."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = _linear(channels, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _LayerNorm(nn.LayerNorm):
    """Layer norm with float32 parameters for any dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _linear(cin: int, cout: int, bias: bool = True) -> Linear:
    return Linear(cin, cout, bias, init=TORCH_INIT)
