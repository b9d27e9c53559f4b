"""Parts of the guided-diffusion U-Nets under their published state-dict keys: residual blocks, attention, resampling.

    h = conv(silu(norm(x)));  h = norm(h) (1 + scale(emb)) + shift(emb);  x = skip(x) + conv(dropout(silu(h)))
    x = x + proj_out(attention(qkv(norm(x))))

Dhariwal and Nichol 2021 (arXiv 2105.05233). `Blocks` says once how all blocks of a network are made; the U-Net, its
variant with cross-attention and the classifier are lists of what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import TORCH_INIT, ZERO_INIT, Conv2d, GroupNorm, Init, Linear
from networks.trunks.spatial_transformer import SpatialTransformer
from torch_utils.dropout import Dropout

_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How the blocks of one network are made.

    Attributes:
        model_channels: base width; the embedding has four times as many features.
        num_res_blocks: residual blocks per level.
        attention_resolutions: levels with attention, as down-sampling factors.
        dropout: probability inside the residual blocks.
        conv_resample: convolve where the resolution changes; else pool and repeat.
        num_heads: attention heads; num_head_channels: channels per head instead, -1: num_heads counts.
        num_heads_upsample: heads on the way up; -1: as on the way down.
        use_scale_shift_norm: the embedding scales and shifts; else it is added.
        resblock_updown: change the resolution inside residual blocks.
        use_new_attention_order: channels of qkv are all q, all k, all v; else grouped by head.
        attention_axes: 1 or 2, of the 1x1 kernels in attention: weights [C, C, 1] or [C, C, 1, 1].
        context_dim: features of the tokens that are attended to by transformers in the place of attention; 0: none.
        transformer_depth: blocks of each of these transformers.
    """

    model_channels: int
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    dropout: float
    conv_resample: bool
    num_heads: int
    num_head_channels: int
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool
    resblock_updown: bool
    use_new_attention_order: bool
    attention_axes: int = 1
    context_dim: int = 0
    transformer_depth: int = 1

    def res(self, cin: int, cout: int, resample: str = "") -> ResBlock:
        return ResBlock(cin, cout, 4 * self.model_channels, self.dropout, self.use_scale_shift_norm, resample)

    def attention(self, channels: int, up: bool = False) -> nn.Module:
        heads = self.num_heads_upsample if up and self.num_heads_upsample != -1 else self.num_heads
        if self.num_head_channels != -1:
            heads = channels // self.num_head_channels if self.num_head_channels > 0 else 0
        check_heads(channels, heads)
        if self.context_dim:
            return SpatialTransformer(channels, heads, self.context_dim, self.transformer_depth)
        return Attention(channels, heads, self.use_new_attention_order, self.attention_axes)

    def level(self, cin: int, cout: int, factor: int, up: bool = False) -> list[nn.Module]:
        """A residual block, and attention where this level has it."""
        attends = factor in self.attention_resolutions
        return [self.res(cin, cout), *([self.attention(cout, up)] if attends else [])]

    def change(self, channels: int, to: str) -> nn.Module:
        """What halves ("down") or doubles ("up") the resolution."""
        if self.resblock_updown:
            return self.res(channels, channels, to)
        return (Downsample if to == "down" else Upsample)(channels, self.conv_resample)

    def encoder(self, in_channels: int, widths: Sequence[int]) -> tuple[nn.ModuleList, list[int]]:
        """Stages from the image down to the narrowest level, and how many channels each has."""
        stages, channels = [Stage(Conv2d(in_channels, widths[0], kernel=3, init=TORCH_INIT))], [widths[0]]
        for i, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                stages.append(Stage(*self.level(channels[-1], width, 2**i)))
                channels.append(width)
            if i < len(widths) - 1:
                stages.append(Stage(self.change(width, "down")))
                channels.append(width)
        return nn.ModuleList(stages), channels

    def middle(self, channels: int) -> Stage:
        return Stage(self.res(channels, channels), self.attention(channels), self.res(channels, channels))


def time_mlp(model_channels: int) -> nn.Sequential:
    """Keys 0 and 2: from the embedded time to four times as many features."""
    width = 4 * model_channels
    return nn.Sequential(
        Linear(model_channels, width, init=TORCH_INIT), nn.SiLU(), Linear(width, width, init=TORCH_INIT)
    )


def widths_of(img_resolution: int, model_channels: int, channel_mult: Sequence[float]) -> list[int]:
    """Channels per level; ValueError where the resolution cannot be halved that often."""
    halvings = len(channel_mult) - 1
    if halvings < 0 or img_resolution % 2**halvings:
        raise ValueError(
            f"resolution {img_resolution} cannot be halved {halvings} times for channel_mult of length "
            f"{halvings + 1}: give fewer multipliers, at least one, or a multiple of {2 ** max(halvings, 0)}"
        )
    return [int(model_channels * mult) for mult in channel_mult]


def norm(channels: int) -> GroupNorm:
    if channels < 1 or channels % _GROUPS:
        raise ValueError(
            f"the ADM network norms {_GROUPS} groups of channels and {channels} channels cannot be split so: "
            f"choose model_channels and channel_mult that give multiples of {_GROUPS}"
        )
    return GroupNorm(channels, _GROUPS, min_channels_per_group=1, eps=1e-5)


def check_heads(channels: int, heads: int) -> None:
    if heads < 1 or channels % heads:
        raise ValueError(
            f"{channels} channels cannot be shared equally by {heads} attention heads: choose another num_heads "
            "or num_head_channels"
        )


def attend(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """Multi-head self-attention, scale 1 / sqrt(c), softmax in float32.

    Args:
        qkv: `[N, L, 3C]`; along the last axis [q|k|v][head][c] in the new order, else [head][q|k|v][c].

    Returns:
        `[N, L, C]`.
    """
    n, length, c3 = qkv.shape
    groups = (3, heads) if new_order else (heads, 3)
    qkv = qkv.reshape(n, length, *groups, c3 // (3 * heads))
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2 if new_order else 3))  # each [N, heads, L, c]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, c3 // 3)


class Stage(nn.Sequential):
    """Layers in a row, of which residual blocks also see the embedding, and transformers the context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class ResBlock(nn.Module):
    """Keys: in_layers.{0,2}, emb_layers.1, out_layers.{0,3}, skip_connection."""

    def __init__(
        self, cin: int, cout: int, emb_channels: int, dropout: float, scale_shift: bool, resample: str
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(norm(cin), nn.SiLU(), Conv2d(cin, cout, kernel=3, init=TORCH_INIT))
        self.resample = {"up": repeat, "down": pool, "": nn.Identity()}[resample]
        # the embedding arrives activated: one SiLU for all blocks
        self.emb_layers = nn.Sequential(
            nn.Identity(), Linear(emb_channels, cout * (2 if scale_shift else 1), init=TORCH_INIT)
        )
        self.out_layers = nn.Sequential(
            norm(cout), nn.SiLU(), Dropout(dropout), Conv2d(cout, cout, kernel=3, init=ZERO_INIT)
        )
        self.skip_connection = Conv2d(cin, cout, kernel=1, init=TORCH_INIT) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        first_norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(first_norm(x))))
        x = self.resample(x)
        e = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        second_norm, activation, dropout, conv = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = second_norm(h) * (1 + scale) + shift
        else:
            h = second_norm(h + e)
        return self.skip_connection(x) + conv(dropout(activation(h)))


class Pointwise(nn.Module):
    """A linear map of the last axis stored as a 1x1 convolution. Keys: weight [out, in, 1] or [out, in, 1, 1], bias."""

    def __init__(self, cin: int, cout: int, init: Init, axes: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(init.draw((cout, cin, *[1] * axes), cin, cout, init.weight))
        self.bias = nn.Parameter(init.draw((cout,), cin, cout, init.bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1).to(x.dtype), self.bias.to(x.dtype))


class Attention(nn.Module):
    """Self-attention of pixels. Keys: norm, qkv, proj_out."""

    def __init__(self, channels: int, heads: int, new_order: bool, axes: int = 1) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = Pointwise(channels, 3 * channels, TORCH_INIT, axes)
        self.proj_out = Pointwise(channels, channels, ZERO_INIT, axes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [N, L, C]: a view in channels_last
        h = self.proj_out(attend(self.qkv(tokens), self.heads, self.new_order))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Key: op, where it convolves."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.op = _Strided(channels) if convolve else None

    def forward(self, x: Tensor) -> Tensor:
        return pool(x) if self.op is None else self.op(x)


class _Strided(Conv2d):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel=3, init=TORCH_INIT)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), stride=2, padding=1)


class Upsample(nn.Module):
    """Key: conv, where it convolves."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel=3, init=TORCH_INIT) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(repeat(x))


def repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def spatial_mean(x: Tensor) -> Tensor:
    return torch.mean(x, dim=(2, 3))
