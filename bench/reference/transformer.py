"""A ComboStoc transformer and its training step as the papers read, without any tuning.

Xie et al. 2024 (arXiv 2405.13729), after Ma et al. 2024 (2401.08740) and Peebles and Xie 2023 (2212.09748): every
sample has a time for every element, every token a modulation of its own, every block is computed again in the backward
pass. Parameters have the published names, so that weights of ours load.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["ComboStoc", "training_step"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=2)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](h), approximate="tanh"))


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=2)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class ComboStoc(nn.Module):
    """`x [N, C, S, S], t [N, C, S, S], y [N]` class indices -> velocity towards the data; time 1 is the data."""

    def __init__(self, size: int, channels: int, classes: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.channels, self.patch, self.grid = channels, patch, size // patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.t_embedder = nn.ModuleDict({
            "mlp": nn.Sequential(nn.Linear(256, 4), nn.SiLU(), nn.Linear(4, 4)),
            "patchEmb": nn.ModuleDict({"proj": nn.Conv2d(4 * channels, width, patch, patch)}),
        })  # fmt: skip
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.register_buffer("pos_embed", torch.zeros(1, self.grid**2, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = _Final(width, patch * patch * 2 * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[..., None] * frequencies
        code = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))
        code = code.permute(0, 1, 4, 2, 3).reshape(n, 4 * channels, height, width)
        c = self.t_embedder["patchEmb"]["proj"](code).flatten(2).transpose(1, 2)
        c = c + self.y_embedder["embedding_table"](y)[:, None]
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = checkpoint(block, h, c, use_reentrant=False)
        h = self.final_layer(h, c).reshape(n, self.grid, self.grid, self.patch, self.patch, 2 * channels)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(n, 2 * channels, height, width)[:, :channels]


def training_step(net: ComboStoc, images: Tensor, y: Tensor, classes: int, lr: float = 1e-4) -> Callable[[], None]:
    """One step on uint8 images `[N, C, S, S]`: half of them at times of elements, compensated; AdamW, the average."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0)
    average = copy.deepcopy(net).eval().requires_grad_(False)

    def step() -> None:
        x1 = images.to(torch.float32) / 127.5 - 1
        x0, half = torch.randn_like(x1), len(x1) // 2
        one, own, p = torch.rand(len(x1), 1, 1, 1), torch.rand_like(x1), torch.rand(1)
        t = one.expand_as(x1).clone()
        t[:half] = own[:half]
        t = (1 - p) * one + p * t
        x_t, u = t * x1 + (1 - t) * x0, x1 - x0
        d = x1 - x_t
        share = (d * u).sum((1, 2, 3), keepdim=True) / (u * u).sum((1, 2, 3), keepdim=True)
        target = torch.cat([(u + d - share * u)[:half], u[half:]])
        labels = torch.where(torch.rand(len(y)) < 0.1, classes, y)
        loss = ((net(x_t, t, labels) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
                ours.mul_(0.9999).add_(theirs, alpha=1 - 0.9999)

    return step
