"""Blocks over tokens that times and labels modulate: what transformers of patches and of parts are made of.

    h = h + gate1 * attention(norm(h) * (1 + scale1) + shift1)        # shift, scale and gate: a linear map of silu(c)
    h = h + gate2 * mlp(norm(h) * (1 + scale2) + shift2)

Peebles and Xie 2023 (arXiv 2212.09748). c is one vector a sample or, of times that differ between tokens, a token (Xie
et al. 2024, arXiv 2405.13729). N batch, D width, T tokens. Keys are those of the published files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.trunks.layers import Init, Linear
from networks.trunks.unet_block import condition_labels

XAVIER = Init("xavier_uniform")
_ZERO = Init(weight=0)
_FREQUENCIES = 256
CODE = 4  # numbers that code the time of one element


def time_features(t: Tensor, dim: int = _FREQUENCIES, max_period: float = 10_000) -> Tensor:
    """Times of any shape -> `[..., dim]`: cos(t f_k), then sin(t f_k), f_k = max_period^(-k / (dim // 2)).

    Float32, or float64 of times in float64. A last 0 where dim is odd.
    """
    phase = _phases(t, dim // 2, max_period)
    return F.pad(torch.cat([phase.cos(), phase.sin()], dim=-1), (0, dim % 2))


def _phases(t: Tensor, half: int, max_period: float = 10_000) -> Tensor:
    t = t if t.dtype == torch.float64 else t.to(torch.float32)
    k = torch.arange(half, dtype=t.dtype, device=t.device)
    return t[..., None] * torch.exp(-math.log(max_period) * k / half)


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


class ElementCode(nn.Sequential):
    """Times of any shape -> the CODE numbers that code each. Keys: {0, 2}.{weight, bias}."""

    def __init__(self) -> None:
        super().__init__(_small_linear(_FREQUENCIES, CODE), nn.SiLU(), _small_linear(CODE, CODE))

    def forward(self, t: Tensor) -> Tensor:
        """`[...]` -> `[..., CODE]`; the first map takes `time_features`, half by half as they are not joined."""
        first, activation, last = self
        phase = _phases(t, _FREQUENCIES // 2)
        cosine, sine = first.weight.to(phase.dtype).chunk(2, dim=1)
        h = F.linear(phase.cos(), cosine, first.bias.to(phase.dtype)) + F.linear(phase.sin(), sine)
        return last(activation(h))


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


class _ScaledRows(torch.autograd.Function):
    """base + factor * x, the first and the last rows of x with bases and factors of their own, without a copy of them.

    Bases and factors are `[n, T or 1, D]`; one base of all rows is possible.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *pieces: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, *pieces[-2:])
        ctx.shapes = [base.shape for base in pieces[:-2]]
        rows = [len(factor) for factor in pieces[-2:]]
        bases, out = pieces[:-2] if len(pieces) == 4 else pieces[0].split(rows), torch.empty_like(x)
        for part, base, v, factor in zip(out.split(rows), bases, x.split(rows), pieces[-2:], strict=True):
            torch.addcmul(base, v, factor, out=part)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN001
        x, *factors = ctx.saved_tensors
        rows = [len(factor) for factor in factors]
        grads = grad.split(rows)
        of_bases = (
            [grad] if len(ctx.shapes) == 1 else [g.sum_to_size(s) for g, s in zip(grads, ctx.shapes, strict=True)]
        )
        of_factors = [(g * v).sum_to_size(f.shape) for g, v, f in zip(grads, x.split(rows), factors, strict=True)]
        if torch.is_grad_enabled():  # to be differentiated again
            of_x = torch.cat([g * f for g, f in zip(grads, factors, strict=True)])
        else:
            of_x = torch.empty_like(x)
            for part, g, f in zip(of_x.split(rows), grads, factors, strict=True):
                torch.mul(g, f, out=part)
        return of_x, *of_bases, *of_factors


def _scaled(bases: Sequence[Tensor], x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    return torch.addcmul(bases[0], x, factors[0]) if len(factors) == 1 else _ScaledRows.apply(x, *bases, *factors)


def _modulated(h: Tensor, shift: Sequence[Tensor], scale: Sequence[Tensor]) -> Tensor:
    return _scaled(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), scale)


class _Modulation(nn.Sequential):
    """c -> shift, scale and more, 1 added to scales. Keys: 1.{weight, bias}, which begin at 0."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), Linear(width, parts * width, init=_ZERO))
        self.parts = parts

    def forward(self, c: Sequence[Tensor], h: Tensor) -> list[Sequence[Tensor]]:
        """The `parts` for tokens `h [N, T, D]`, each as tensors `[n, T or 1, D]`, one an element of `c`.

        `c` holds one condition `[n, T or 1, D]` for all rows of h, or one each for its first and its last rows.
        """
        # in one product, so that its weights have one gradient
        rows = c[0] if len(c) == 1 else torch.cat([part.flatten(0, 1) for part in c])[None]
        values = super().forward(rows).to(h.dtype).unflatten(-1, (self.parts, -1)).unbind(-2)
        values = [1 + v if k % 3 == 1 else v for k, v in enumerate(values)]
        if len(c) == 1:
            return [[v] for v in values]
        sizes = [part.shape[0] * part.shape[1] for part in c]
        return [
            [piece.unflatten(0, part.shape[:2]) for piece, part in zip(v[0].split(sizes), c, strict=True)]
            for v in values
        ]


class _Attention(nn.Module):
    """Self-attention over tokens. Keys: qkv.{weight, bias}, proj.{weight, bias}; q, k, v each split by heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = Linear(width, 3 * width, init=XAVIER), Linear(width, width, init=XAVIER)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    """Keys: fc1.{weight, bias}, fc2.{weight, bias}."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden, init=XAVIER), Linear(hidden, width, init=XAVIER)

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
        h = _scaled([h], self.attn(_modulated(h, shift1, scale1)), gate1)
        return _scaled([h], self.mlp(_modulated(h, shift2, scale2)), gate2)


class _Final(nn.Module):
    """Keys: linear.{weight, bias}, which begin at 0, adaLN_modulation."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = Linear(width, outputs, init=_ZERO), _Modulation(width, 2)

    def forward(self, h: Tensor, c: list[Tensor]) -> Tensor:
        return self.linear(_modulated(h, *self.adaLN_modulation(c, h)))


class TokenTransformer(nn.Module):
    """Blocks over tokens that are modulated by times and labels: what transformers of patches and of parts share.

    Args:
        t_embedder: times -> `[N or 1, T or 1, D]`.
        token_axes: axes of the times along which tokens differ.
        outputs: numbers made of a token.
        label_dim, label_dropout, width, depth, num_heads, mlp_ratio: as of `Transformer`.

    Attributes:
        checkpointing: recompute the blocks in the backward pass: less memory, a third more arithmetic.

    Raises:
        ValueError: a width that heads do not divide.
    """

    def __init__(
        self, t_embedder: nn.Module, token_axes: tuple[int, ...], outputs: int, label_dim: int, label_dropout: float,
        width: int, depth: int, num_heads: int, mlp_ratio: float,
    ) -> None:  # fmt: skip
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width {width} cannot be split over {num_heads} heads: choose a divisor of the width")
        super().__init__()
        self.label_dim, self.label_dropout, self.token_axes = label_dim, label_dropout, token_axes
        self.checkpointing = False
        self.t_embedder = t_embedder
        self.y_embedder = LabelEmbedder(label_dim, width, label_dropout) if label_dim else None
        self.blocks = nn.ModuleList(_Block(width, num_heads, int(width * mlp_ratio)) for _ in range(depth))
        self.final_layer = _Final(width, outputs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile block by block: all share one graph, so that a deep network compiles as fast as a shallow one."""
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def varies(self, t: Tensor) -> bool:
        """Whether times differ between the tokens of a sample, as far as their shape says."""
        return any(t.shape[axis] > 1 for axis in self.token_axes)

    def condition(self, t: Tensor, labels: Tensor | None, x: Tensor, synchronous: int) -> list[Tensor]:
        """c for all rows, or for the first rows and the `synchronous` last ones, whose tokens share their times."""
        parts = [t]
        if synchronous and self.varies(t) and len(t) == len(x):
            rows = len(x) - synchronous
            last = t[rows:]
            for axis in self.token_axes:
                last = last.narrow(axis, 0, 1)
            parts = [part for part in (t[:rows], last) if len(part)]
        c = [self.t_embedder(part) for part in parts]
        if self.y_embedder is None:
            return c
        labels = condition_labels(labels, x, self.label_dim, self.label_dropout, self.training)
        y = self.y_embedder(labels.to(c[0].dtype))[:, None]
        if len(y) == 1 or len(c) == 1:
            return [part + y for part in c]
        return [c[0] + y[: len(c[0])], c[1] + y[len(c[0]) :]]

    def through_blocks(self, h: Tensor, c: list[Tensor]) -> Tensor:
        """Tokens `[N, T, D]` and conditions -> `[N, T, outputs]`."""
        for block in self.blocks:
            h = _recomputed(block, h, c) if self.checkpointing and torch.is_grad_enabled() else block(h, c)
        return self.final_layer(h, c)


def _recomputed(block: Callable[..., Tensor], h: Tensor, c: list[Tensor]) -> Tensor:
    return checkpoint(block, h, c, use_reentrant=False)
