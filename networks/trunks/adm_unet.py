"""ADMUNet: the guided-diffusion network of Dhariwal and Nichol 2021 (arXiv 2105.05233) with its own state-dict keys.

    h = conv(silu(norm(x)));  h = norm(h) (1 + scale(emb)) + shift(emb);  x = skip(x) + conv(dropout(silu(h)))
    x = x + proj_out(attention(qkv(norm(x))))

DhariwalUNet is the same idea in the layout of EDM. Here the keys are those of checkpoints outside of EDM:
`input_blocks.i.j`, `middle_block.i`, `output_blocks.i.j`, `time_embed.{0,2}`, `out.{0,2}`. The time enters as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import Conv2d, GroupNorm, Init, Linear, PositionalEmbedding

__all__ = ["ADMUNet"]

_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))  # PyTorch's own
_ZERO = Init("kaiming_uniform", weight=0, bias=0)
_GROUPS = 32


class ADMUNet(nn.Module):
    """U-Net with 32-group norms and multi-head attention on flattened pixels.

    Args:
        img_resolution: pixels along one side; a multiple of 2^(len(channel_mult) - 1).
        in_channels, out_channels: image channels.
        model_channels: base width; level i has model_channels * channel_mult[i] channels, multiples of 32.
        num_res_blocks: residual blocks per level; one more on the way up.
        attention_resolutions: levels with attention, as down-sampling factors (1 is the top level), not resolutions.
        dropout: probability inside the blocks.
        conv_resample: convolve where the resolution changes; else pool and repeat.
        num_heads: attention heads; num_head_channels: channels per head instead, -1: num_heads counts.
        use_scale_shift_norm: the embedding scales and shifts; else it is added.
        resblock_updown: change the resolution inside residual blocks.
        use_new_attention_order: channels of qkv are all q, all k, all v; else grouped by head.
        no_time: feed ones instead of the time.

    Raises:
        ValueError: sizes that do not fit, in one sentence.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int = 3,
        attention_resolutions: Sequence[int] = (4, 8),
        dropout: float = 0,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        conv_resample: bool = True,
        num_heads: int = 4,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        no_time: bool = False,
    ) -> None:
        halvings = len(channel_mult) - 1
        if halvings < 0 or img_resolution % 2**halvings:
            raise ValueError(
                f"resolution {img_resolution} cannot be halved {halvings} times for channel_mult of length "
                f"{halvings + 1}: give fewer multipliers, at least one, or a multiple of {2 ** max(halvings, 0)}"
            )
        super().__init__()
        self.no_time = no_time
        emb_channels = 4 * model_channels
        self.map_time = PositionalEmbedding(model_channels)
        self.time_embed = nn.Sequential(
            Linear(model_channels, emb_channels, init=_INIT),
            nn.SiLU(),
            Linear(emb_channels, emb_channels, init=_INIT),
        )

        def res(cin: int, cout: int, resample: str = "") -> _ResBlock:
            return _ResBlock(cin, cout, emb_channels, dropout, use_scale_shift_norm, resample)

        def block(cin: int, cout: int, factor: int) -> list[nn.Module]:
            attends = factor in attention_resolutions
            return [res(cin, cout), *([attend(cout)] if attends else [])]

        def attend(channels: int) -> _Attention:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            return _Attention(channels, heads, use_new_attention_order)

        def change(channels: int, to: str) -> nn.Module:
            if resblock_updown:
                return res(channels, channels, to)
            return (_Downsample if to == "down" else _Upsample)(channels, conv_resample)

        channels = model_channels * channel_mult[0]
        entries: list[list[nn.Module]] = [[Conv2d(in_channels, channels, kernel=3, init=_INIT)]]
        skips = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                entries.append(block(channels, model_channels * mult, 2**level))
                channels = model_channels * mult
                skips.append(channels)
            if level < halvings:
                entries.append([change(channels, "down")])
                skips.append(channels)
        self.input_blocks = nn.ModuleList(_Stage(*e) for e in entries)
        self.middle_block = _Stage(res(channels, channels), attend(channels), res(channels, channels))

        entries = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                entries.append(block(channels + skips.pop(), model_channels * mult, 2**level))
                channels = model_channels * mult
                if level and i == num_res_blocks:
                    entries[-1].append(change(channels, "up"))
        self.output_blocks = nn.ModuleList(_Stage(*e) for e in entries)
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), Conv2d(channels, out_channels, kernel=3, init=_ZERO))

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """[N, in_channels, H, W], [N or 1] -> [N, out_channels, H, W]."""
        t = torch.ones_like(noise_labels) if self.no_time else noise_labels
        emb = F.silu(self.time_embed(self.map_time(t)))
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


def _norm(channels: int) -> GroupNorm:
    if channels % _GROUPS:
        raise ValueError(
            f"the ADM network norms {_GROUPS} groups of channels and {channels} channels cannot be split so: "
            f"choose model_channels and channel_mult that give multiples of {_GROUPS}"
        )
    return GroupNorm(channels, _GROUPS, min_channels_per_group=1, eps=1e-5)


class _Stage(nn.Sequential):
    """Layers in a row, of which residual blocks also see the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, _ResBlock) else layer(x)
        return x


class _ResBlock(nn.Module):
    """Keys: in_layers.{0,2}, emb_layers.1, out_layers.{0,3}, skip_connection."""

    def __init__(
        self, cin: int, cout: int, emb_channels: int, dropout: float, scale_shift: bool, resample: str
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(_norm(cin), nn.SiLU(), Conv2d(cin, cout, kernel=3, init=_INIT))
        self.resample = {"up": _repeat, "down": _pool, "": nn.Identity()}[resample]
        # the embedding arrives activated: one SiLU for all blocks
        self.emb_layers = nn.Sequential(
            nn.Identity(), Linear(emb_channels, cout * (2 if scale_shift else 1), init=_INIT)
        )
        self.out_layers = nn.Sequential(
            _norm(cout), nn.SiLU(), nn.Dropout(dropout), Conv2d(cout, cout, kernel=3, init=_ZERO)
        )
        self.skip_connection = Conv2d(cin, cout, kernel=1, init=_INIT) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        x = self.resample(x)
        e = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        norm, activation, dropout, conv = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        return self.skip_connection(x) + conv(dropout(activation(h)))


class _Attention(nn.Module):
    """Keys: norm, qkv [3C, C, 1], proj_out [C, C, 1]. Softmax in float32."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        if heads < 1 or channels % heads:
            raise ValueError(
                f"{channels} channels cannot be shared equally by {heads} attention heads: choose another num_heads "
                "or num_head_channels"
            )
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = _norm(channels)
        self.qkv = _Conv1d(channels, 3 * channels, _INIT)
        self.proj_out = _Conv1d(channels, channels, _ZERO)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        qkv = self.qkv(self.norm(x).flatten(2))  # [N, 3C, L]
        groups = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = qkv.reshape(n, *groups, c // self.heads, -1)
        q, k, v = qkv.movedim(1 if self.new_order else 2, 0).transpose(-1, -2)  # each [N, heads, L, c]
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, -1)
        return x + self.proj_out(h).reshape(x.shape)


class _Conv1d(nn.Module):
    """Convolution of length 1 over [N, C, L]. Keys: weight [out, in, 1], bias [out]."""

    def __init__(self, cin: int, cout: int, init: Init) -> None:
        super().__init__()
        self.weight = nn.Parameter(init.draw((cout, cin, 1), cin, cout) * init.weight)
        self.bias = nn.Parameter(init.draw((cout,), cin, cout) * init.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class _Downsample(nn.Module):
    """Key: op, where it convolves."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.op = _Strided(channels) if convolve else None

    def forward(self, x: Tensor) -> Tensor:
        return _pool(x) if self.op is None else self.op(x)


class _Strided(Conv2d):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel=3, init=_INIT)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), stride=2, padding=1)


class _Upsample(nn.Module):
    """Key: conv, where it convolves."""

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel=3, init=_INIT) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_repeat(x))


def _repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)
