"""Layers shared by the U-Nets: linear, convolution with resampling, group norm, noise embeddings, attention.

Parameters are float32 and cast to the dtype of the input at call time, so that one set of weights serves float32,
float16 and bfloat16. State-dict keys, shapes and the order of random draws are those of the EDM checkpoints (Karras et
al. 2022, arXiv 2206.00364). Every layer is differentiable to any order in float32.

N batch, C channels, H x W pixels, L = H * W positions, c channels of one attention head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.convolution import convolve
from torch_utils.products import linear

# mode -> (uniform or normal, numerator, whether fan_out counts): scale = sqrt(numerator / fans).
_INIT_MODES = {
    "xavier_uniform": (True, 6, True),
    "xavier_normal": (False, 2, True),
    "kaiming_uniform": (True, 3, False),
    "kaiming_normal": (False, 1, False),
}


@dataclass(frozen=True)
class Init:
    """How a layer draws its parameters: scale(mode, fans) * U(-1, 1) or N(0, 1), times a gain.

    The random numbers are drawn even where the gain is 0: a seed then gives the same network as the original code.

    Attributes:
        mode: xavier_uniform, xavier_normal, kaiming_uniform or kaiming_normal.
        weight: gain of the weight.
        bias: gain of the bias, which has the same mode and fans.
    """

    mode: str = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in _INIT_MODES:
            raise ValueError(f"unknown initialisation '{self.mode}': choose one of {', '.join(_INIT_MODES)}")

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        """Float32 values from torch's global generator."""
        uniform, numerator, both = _INIT_MODES[self.mode]
        scale = math.sqrt(numerator / (fan_in + fan_out if both else fan_in))
        shape = tuple(shape)
        unit = torch.rand(shape) if uniform else torch.randn(shape)
        return times(unit * 2 - 1 if uniform and not unit.is_meta else unit, scale, gain)


def times(x: Tensor, *factors: float) -> Tensor:
    """The product; `x` itself on the meta device, where arithmetic imports torch's compiler: a second of each start."""
    return x if x.is_meta else functools.reduce(torch.mul, factors, x)


_DEFAULT_INIT = Init()
TORCH_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))  # PyTorch's own
ZERO_INIT = Init("kaiming_uniform", weight=0, bias=0)


def _parameters(shape: Sequence[int], fan_in: int, bias: bool, init: Init) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight of `shape` [out, in, ...] and bias [out], drawn in this order."""
    fan_out = shape[0] * math.prod(shape[2:])
    weight = nn.Parameter(init.draw(shape, fan_in, fan_out, init.weight))
    return weight, nn.Parameter(init.draw(shape[:1], fan_in, fan_out, init.bias)) if bias else None


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class Linear(nn.Module):
    """y = x W^T + b. Keys: weight [out, in], bias [out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: Init = _DEFAULT_INIT) -> None:
        super().__init__()
        self.weight, self.bias = _parameters((out_features, in_features), in_features, bias, init)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), _like(self.bias, x))


class Conv2d(nn.Module):
    """Convolution, optionally with x2 up- or down-sampling by a separable filter.

    The filter f = outer(r, r) / sum(r)^2 acts by a depthwise convolution of stride 2, transposed and with gain 4
    upwards: [1, 1] is nearest-neighbour up and 2x2 mean down. The depthwise form is also the fastest of these two on a
    CPU: 2 to 9 times faster than pooling and interpolation in contiguous layout, no slower in channels_last.
    Filters of even length double or halve the size exactly; odd ones give 2H - 1 upwards.

    Args:
        kernel: odd kernel size; 0 resamples only and has no parameters.
        fused_resample: downwards, convolve before the filter instead of after it; upwards, trim the filter's margin by
            the convolution.

    Keys: weight [out, in, k, k], bias [out], resample_filter [1, 1, len(r), len(r)] (buffer, only with up or down).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init: Init = _DEFAULT_INIT,
    ) -> None:
        if up and down:
            raise ValueError("a convolution cannot sample up and down at once: give up or down, not both")
        super().__init__()
        self.up, self.down = up, down
        self.conv_first = fused_resample and down and kernel > 0
        self.weight, self.bias = None, None
        if kernel > 0:
            shape = (out_channels, in_channels, kernel, kernel)
            self.weight, self.bias = _parameters(shape, in_channels * kernel**2, bias, init)
        area, r = sum(resample_filter) ** 2, resample_filter
        f = torch.tensor([[[[a * b / area for b in r] for a in r]]], dtype=torch.float32) if up or down else None
        self.register_buffer("resample_filter", f)

        w_pad, f_pad = kernel // 2, (len(resample_filter) - 1) // 2
        self.weight_pad, self.filter_pad = w_pad, f_pad
        if self.conv_first:
            self.weight_pad, self.filter_pad = w_pad + f_pad, 0
        elif fused_resample and up and kernel > 0:
            self.weight_pad, self.filter_pad = max(w_pad - f_pad, 0), max(f_pad - w_pad, 0)

    def _resample(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        f = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, f * 4, groups=channels, stride=2, padding=self.filter_pad)
        return F.conv2d(x, f, groups=channels, stride=2, padding=self.filter_pad)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        if self.conv_first:
            x = self._resample(convolve(x, weight, padding=self.weight_pad))
            return x if bias is None else x + bias[:, None, None]
        if self.up or self.down:
            x = self._resample(x)
        return x if weight is None else convolve(x, weight, bias, self.weight_pad)


class GroupNorm(nn.Module):
    """Group normalisation over min(num_groups, C // min_channels_per_group) groups. Keys: weight [C], bias [C]."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5
    ) -> None:
        groups = min(num_groups, num_channels // min_channels_per_group)
        if groups == 0 or num_channels % groups:
            raise ValueError(
                f"group norm cannot split {num_channels} channels into {groups} equal groups: "
                "choose channel counts that are multiples of 32 (or of 4 below 128)"
            )
        super().__init__()
        self.num_groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """concat[cos(x f), sin(x f)], f_i = max_positions^(-i / (C/2 - endpoint)); x: [N] any real -> [N, C]. No keys."""

    def __init__(self, num_channels: int, max_positions: int = 10000, endpoint: bool = False) -> None:
        if num_channels % 2 or num_channels < 4:
            raise ValueError(f"a positional embedding needs an even number of channels, at least 4, not {num_channels}")
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, max_positions, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=x.device) / (half - self.endpoint)
        phase = x[:, None] * ((1 / self.max_positions) ** exponent).to(x.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """concat[cos(2 pi x freqs), sin(2 pi x freqs)]; x: [N] -> [N, C].

    Key: freqs [C/2], a random buffer drawn as scale * N(0, 1): part of the trained network.
    """

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        if num_channels % 2:
            raise ValueError(f"a Fourier embedding needs an even number of channels, not {num_channels}")
        super().__init__()
        self.register_buffer("freqs", times(torch.randn(num_channels // 2), scale))

    def forward(self, x: Tensor) -> Tensor:
        phase = x[:, None] * (2 * math.pi * self.freqs).to(x.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Multi-head self-attention over pixels, softmax in float32, scale 1 / sqrt(c).

    torch's fused kernels never hold the L x L weights; they have a first derivative only. For second derivatives, wrap
    the call in `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        qkv: `[N, 3C, H, W]`; channel ((head * c) + i) * 3 + {0: q, 1: k, 2: v}.

    Returns:
        `[N, C, H, W]`.
    """
    n, c3, height, width = qkv.shape
    c = c3 // (3 * num_heads)
    pixels = qkv.permute(0, 2, 3, 1)
    if pixels.is_contiguous():  # channels_last stays so: what is added to the result has that layout
        q, k, v = pixels.view(n, height * width, num_heads, c, 3).permute(4, 0, 2, 1, 3).contiguous()
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return out.reshape(n, height, width, c3 // 3).permute(0, 3, 1, 2)
    heads = qkv.reshape(n, num_heads, c, 3, height * width)  # [N, heads, c, 3, L]
    q, k, v = heads.permute(3, 0, 1, 4, 2).contiguous()  # fused kernels want c innermost
    out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
    return out.reshape(
        n, c3 // 3, height, width
    ).contiguous()  # of one head, the reshape alone is a view: channels_last
