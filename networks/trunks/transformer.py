"""Diffusion transformers whose blocks are modulated by the time: DiT, SiT and ComboStoc, with their published keys.

    tokens = patches(x) + positions
    h = h + gate1 * attention(norm(h) * (1 + scale1) + shift1)        # shift, scale and gate: a linear map of silu(c)
    h = h + gate2 * mlp(norm(h) * (1 + scale2) + shift2)

- `TimeEmbedder` (Peebles and Xie 2023, arXiv 2212.09748; Ma et al. 2024, arXiv 2401.08740): one time a sample, so that
  c = time + label is one vector a sample.
- `ElementTimeEmbedder` (Xie et al. 2024, arXiv 2405.13729): every element has a time of its own, coded by 4 numbers
  that a patch embedding of their own turns into one vector a token. Times that do not vary over space give every token
  the same vector: then it is worked out once a sample, by the patch kernel summed over its taps, and the modulation of
  every block, a third of all arithmetic, is a map of one vector a sample. Both ways agree to rounding.

N batch, C channels, D width, T tokens, p patch size; D/2 of the positions tell the column, the others the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.trunks.layers import Init, Linear
from networks.trunks.unet_block import condition_labels

__all__ = [
    "SIZES",
    "ElementTimeEmbedder",
    "LabelEmbedder",
    "TimeEmbedder",
    "Transformer",
    "position_table",
    "time_features",
]

# size of a published model -> depth, width, heads
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16),
}  # fmt: skip

_XAVIER = Init("xavier_uniform")
_ZERO = Init(weight=0)
_FREQUENCIES = 256
_CODE = 4  # numbers that code the time of one element


def time_features(t: Tensor, dim: int = _FREQUENCIES, max_period: float = 10_000) -> Tensor:
    """Times of any shape -> `[..., dim]`: cos(t f_k), then sin(t f_k), f_k = max_period^(-k / (dim // 2)).

    Float32, or float64 of times in float64. A last 0 where dim is odd.
    """
    half = dim // 2
    t = t if t.dtype == torch.float64 else t.to(torch.float32)
    k = torch.arange(half, dtype=t.dtype, device=t.device)
    phase = t[..., None] * torch.exp(-math.log(max_period) * k / half)
    return F.pad(torch.cat([phase.cos(), phase.sin()], dim=-1), (0, dim % 2))


def position_table(dim: int, grid: int) -> Tensor:
    """Positions of a square grid, row by row: `[grid^2, dim]` float32, sine and cosine of the column, then of the row.

    Raises:
        ValueError: a width that is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions in the plane need a width that is a multiple of 4, not {dim}")
    omega = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    phase = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * omega
    axis = torch.cat([phase.sin(), phase.cos()], dim=1)  # [grid, dim / 2]
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)
    return torch.cat([column, row], dim=1).to(torch.float32)


class _Patches(nn.Module):
    """A linear map of every p x p patch: `[N, in_channels, H, W]` -> `[N, T, D]`. Keys: proj.{weight, bias}."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        fan_in = in_channels * patch_size**2
        self.proj = nn.Module()
        weight = _XAVIER.draw((width, in_channels, patch_size, patch_size), fan_in, width)
        self.proj.weight, self.proj.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.proj.weight.to(x.dtype), self.proj.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def _small_linear(inputs: int, outputs: int) -> Linear:
    layer = Linear(inputs, outputs, init=_ZERO)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class TimeEmbedder(nn.Module):
    """One time a sample -> one vector a sample. Keys: mlp.{0, 2}.{weight, bias}."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(_small_linear(_FREQUENCIES, width), nn.SiLU(), _small_linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """`t [N or 1, 1, 1, 1]` -> `[N or 1, 1, D]`; of times that vary within a sample, the mean counts."""
        return self.mlp(time_features(t.flatten(1).mean(1)))[:, None]


class ElementTimeEmbedder(nn.Module):
    """A time for every element -> one vector a token. Keys: mlp.{0, 2}.{weight, bias}, patchEmb.proj.{weight, bias}.

    Args:
        patch_size, in_channels, width: of the transformer.
    """

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.mlp = nn.Sequential(_small_linear(_FREQUENCIES, _CODE), nn.SiLU(), _small_linear(_CODE, _CODE))
        self.patchEmb = _Patches(patch_size, _CODE * in_channels, width)

    def forward(self, t: Tensor) -> Tensor:
        """Times `[N or 1, C or 1, H or 1, W or 1]`, H and W both or neither -> `[N or 1, T or 1, D]`.

        What is shared between elements is embedded once.
        """
        code = self.mlp(time_features(t))  # [N, C, H, W, code]
        weight, bias = self.patchEmb.proj.weight.to(code.dtype), self.patchEmb.proj.bias.to(code.dtype)
        weight = weight.unflatten(1, (self.in_channels, _CODE))  # [D, C, code, p, p]
        if t.shape[1] == 1:
            weight = weight.sum(1, keepdim=True)
        if t.shape[2:] == (1, 1):
            return torch.einsum("nck,dck->nd", code[:, :, 0, 0], weight.sum((3, 4)))[:, None] + bias
        code = code.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return F.conv2d(code, weight.flatten(1, 2), bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


class LabelEmbedder(nn.Module):
    """One-hot labels -> one vector a sample. Key: embedding_table.weight `[label_dim + 1, D]`, the last for no label.

    Without label dropout the table has no last row, and a sample without label has the zero vector.
    """

    def __init__(self, label_dim: int, width: int, label_dropout: float) -> None:
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.embedding_table = nn.Module()
        rows = label_dim + (label_dropout > 0)
        self.embedding_table.weight = nn.Parameter(torch.randn(rows, width) * 0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """`[N, label_dim]` -> `[N, D]`; rows of zeros have no label. Rows in between mix, so that gradients exist."""
        if self.label_dropout > 0:
            labels = torch.cat([labels, 1 - labels.sum(1, keepdim=True)], dim=1)
        return labels @ self.embedding_table.weight.to(labels.dtype)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


class _Modulation(nn.Sequential):
    """c -> `parts` vectors each. Keys: 1.{weight, bias}; both begin at 0, so that a block begins as the identity."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), Linear(width, parts * width, init=_ZERO))
        self.parts = parts

    def forward(self, c: list[Tensor], h: Tensor) -> tuple[Tensor, ...]:
        """The `parts` tensors for tokens `h [N, T, D]`, which broadcast against them.

        `c` holds one condition `[n, T or 1, D]` for all rows of h, or one each for its first and its last rows.
        """
        if len(c) == 1:
            return super().forward(c[0]).to(h.dtype).chunk(self.parts, dim=-1)
        # in one product, so that its weights have one gradient
        rows = super().forward(torch.cat([part.flatten(0, 1) for part in c]))
        parts = rows.to(h.dtype).split([part.shape[0] * part.shape[1] for part in c])
        values = [v.unflatten(0, part.shape[:2]).expand(-1, h.shape[1], -1) for v, part in zip(parts, c, strict=True)]
        return torch.cat(values).chunk(self.parts, dim=-1)


class _Attention(nn.Module):
    """Self-attention over tokens. Keys: qkv.{weight, bias}, proj.{weight, bias}; q, k, v each split by heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = Linear(width, 3 * width, init=_XAVIER), Linear(width, width, init=_XAVIER)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    """Keys: fc1.{weight, bias}, fc2.{weight, bias}."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden, init=_XAVIER), Linear(hidden, width, init=_XAVIER)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class _Block(nn.Module):
    """Attention and MLP, each modulated. Keys: attn, mlp, adaLN_modulation."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width, num_heads), _MLP(width, hidden)
        self.adaLN_modulation = _Modulation(width, 6)

    def forward(self, h: Tensor, c: list[Tensor]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c, h)
        h = torch.addcmul(h, gate1, self.attn(_modulated(h, shift1, scale1)))
        return torch.addcmul(h, gate2, self.mlp(_modulated(h, shift2, scale2)))


class _Final(nn.Module):
    """Keys: linear.{weight, bias}, which begin at 0, adaLN_modulation."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = Linear(width, outputs, init=_ZERO), _Modulation(width, 2)

    def forward(self, h: Tensor, c: list[Tensor]) -> Tensor:
        return self.linear(_modulated(h, *self.adaLN_modulation(c, h)))


class Transformer(nn.Module):
    """A transformer over the patches of images or latents, with the keys of the published DiT, SiT and ComboStoc files.

    Args:
        img_resolution, in_channels, out_channels: of the data.
        label_dim: classes; 0 = no label embedding.
        label_dropout: share of the labels left out in training; above 0 the table has a row for no label.
        element_times: every element has a time of its own (ComboStoc); else one a sample (DiT, SiT).
        patch_size: side of a patch; divides img_resolution.
        width, depth, num_heads, mlp_ratio: D, blocks, heads, hidden width of the MLPs in units of D.
        learn_sigma: twice the output channels, as published files have them; the second half is not used.

    Attributes:
        checkpointing: recompute the blocks in the backward pass: less memory, a third more arithmetic.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        label_dropout: float = 0.1,
        element_times: bool = True,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = False,
    ) -> None:
        if patch_size < 1 or img_resolution % patch_size:
            raise ValueError(
                f"patches of {patch_size}x{patch_size} do not tile {img_resolution}x{img_resolution}: "
                "choose a patch size that divides the resolution"
            )
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width {width} cannot be split over {num_heads} heads: choose a divisor of the width")
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.patch_size, self.out_channels, self.element_times = patch_size, out_channels, element_times
        self.grid = img_resolution // patch_size
        self.checkpointing = False
        outputs = out_channels * (1 + learn_sigma)
        self.x_embedder = _Patches(patch_size, in_channels, width)
        self.t_embedder: nn.Module = (
            ElementTimeEmbedder(patch_size, in_channels, width) if element_times else TimeEmbedder(width)
        )
        self.y_embedder = LabelEmbedder(label_dim, width, label_dropout) if label_dim else None
        self.register_buffer("pos_embed", position_table(width, self.grid)[None])  # never trained
        self.blocks = nn.ModuleList(_Block(width, num_heads, int(width * mlp_ratio)) for _ in range(depth))
        self.final_layer = _Final(width, patch_size**2 * outputs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile block by block: all share one graph, so that a deep network compiles as fast as a shallow one."""
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def condition(self, t: Tensor, labels: Tensor | None, x: Tensor, synchronous: int) -> list[Tensor]:
        """c for all rows, or for the first rows and the `synchronous` last ones; see `forward`."""
        parts = [t]
        if synchronous and t.shape[2:] != (1, 1) and len(t) == len(x):
            rows = len(x) - synchronous
            parts = [part for part in (t[:rows], t[rows:, :, :1, :1]) if len(part)]
        c = [self.t_embedder(part) for part in parts]
        if self.y_embedder is None:
            return c
        labels = condition_labels(labels, x, self.label_dim, self.label_dropout, self.training)
        y = self.y_embedder(labels.to(c[0].dtype))[:, None]
        if len(y) == 1 or len(c) == 1:
            return [part + y for part in c]
        return [c[0] + y[: len(c[0])], c[1] + y[len(c[0]) :]]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, synchronous: int = 0) -> Tensor:
        """`x [N, in_channels, H, W]` -> `[N, out_channels, H, W]`.

        Args:
            t: times `[N or 1, C or 1, H or 1, W or 1]` float32, as the file's training had them.
            labels: one-hot `[N or 1, label_dim]` or None.
            synchronous: how many of the last rows have times that do not vary over space. It changes the cost, not the
                result: that could only be seen in `t` itself by waiting for the device.
        """
        n = len(x)
        if t.shape[2:] != (1, 1):
            t = t.expand(-1, -1, *x.shape[2:])
        c = self.condition(t, labels, x, synchronous)
        h = self.x_embedder(x) + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            h = _recomputed(block, h, c) if self.checkpointing and torch.is_grad_enabled() else block(h, c)
        out = self.final_layer(h, c)
        p, g = self.patch_size, self.grid
        out = out.reshape(n, g, g, p, p, -1)[..., : self.out_channels]
        return out.permute(0, 5, 1, 3, 2, 4).reshape(n, self.out_channels, g * p, g * p)


def _recomputed(block: Callable[..., Tensor], h: Tensor, c: list[Tensor]) -> Tensor:
    return checkpoint(block, h, c, use_reentrant=False)
