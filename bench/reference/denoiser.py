"""A DDPM++ denoiser, its loss, one training step and Heun's sampler as a paper's appendix reads, without any tuning.

Karras et al. 2022, arXiv 2206.00364: appendix F.2 (network, with the parameters' published names, so that weights of
ours load), table 1 (preconditioning, loss), algorithm 1 (sampler). Channels first, attention by two products and a
softmax, one operation per formula; PyTorch's Adam as it comes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Denoiser", "UNet", "heun", "training_step"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class _Conv(nn.Conv2d):
    """A convolution after doubling or halving the resolution by a 2x2 box."""

    def __init__(self, channels: int, out: int, kernel: int, up: bool = False, down: bool = False) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2)
        self.up, self.down = up, down
        if up or down:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        if self.up or self.down:
            box = self.resample_filter.tile(x.shape[1], 1, 1, 1)
            resample = F.conv_transpose2d if self.up else F.conv2d
            x = resample(x, 4 * box if self.up else box, stride=2, groups=x.shape[1])
        return super().forward(x)


class _Block(nn.Module):
    def __init__(
        self, channels: int, out: int, emb: int, dropout: float, attend: bool = False, up: bool = False,
        down: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout = dropout
        self.norm0, self.conv0 = _norm(channels), _Conv(channels, out, 3, up, down)
        self.affine = nn.Linear(emb, out)
        self.norm1, self.conv1 = _norm(out), _Conv(out, out, 3)
        self.skip = _Conv(channels, out, 1, up, down) if channels != out or up or down else None
        self.attend = attend
        if attend:
            self.norm2, self.qkv, self.proj = _norm(out), _Conv(out, 3 * out, 1), _Conv(out, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        if self.attend:
            n, c, height, width = x.shape
            q, k, v = self.qkv(self.norm2(x)).reshape(n, c, 3, height * width).unbind(2)
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c)).softmax(2)
            mixed = torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width)
            x = (self.proj(mixed) + x) * math.sqrt(0.5)
        return x


class UNet(nn.Module):
    """Images, noise labels `[N]` and one-hot classes -> `out_channels` (default: as many as came in)."""

    def __init__(
        self, resolution: int, channels: int, classes: int, width: int, multipliers: list[int], blocks: int,
        attend: list[int], dropout: float, out_channels: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.classes = width, classes
        emb = 4 * width
        self.map_label = nn.Linear(classes, width) if classes else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, emb), nn.Linear(emb, emb)
        self.enc, self.dec, skips, now = nn.ModuleDict(), nn.ModuleDict(), [], width
        for level, multiplier in enumerate(multipliers):
            size = resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = _Conv(channels, width, 3)
            else:
                self.enc[f"{size}x{size}_down"] = _Block(now, now, emb, dropout, down=True)
            skips.append(now)
            for i in range(blocks):
                out = width * multiplier
                self.enc[f"{size}x{size}_block{i}"] = _Block(now, out, emb, dropout, size in attend)
                skips.append(now := out)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            size = resolution >> level
            if level == len(multipliers) - 1:
                self.dec[f"{size}x{size}_in0"] = _Block(now, now, emb, dropout, True)
                self.dec[f"{size}x{size}_in1"] = _Block(now, now, emb, dropout)
            else:
                self.dec[f"{size}x{size}_up"] = _Block(now, now, emb, dropout, up=True)
            for i in range(blocks + 1):
                out, last = width * multiplier, i == blocks and size in attend
                self.dec[f"{size}x{size}_block{i}"] = _Block(now + skips.pop(), out, emb, dropout, last)
                now = out
        self.dec[f"{resolution}x{resolution}_aux_norm"] = _norm(now)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = _Conv(now, out_channels or channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        half = self.width // 2
        phase = noise[:, None] * 10000 ** (-torch.arange(half) / (half - 1))
        emb = torch.cat([phase.sin(), phase.cos()], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.classes))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, _Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if not isinstance(layer, _Block):
                x = F.silu(layer(x)) if isinstance(layer, nn.GroupNorm) else layer(x)
                continue
            if x.shape[1] != layer.norm0.num_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        return x


class Denoiser(nn.Module):
    """D(x; sigma) of table 1, sigma_data = 0.5: `[N, C, H, W], [N] or [] -> [N, C, H, W]`."""

    def __init__(self, **network: object) -> None:
        super().__init__()
        self.model = UNet(**network)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        c_in = 1 / (0.25 + sigma**2).sqrt()
        return c_skip * x + c_out * self.model(c_in * x, (sigma.log() / 4).flatten(), labels)


def training_step(net: Denoiser, images: Tensor, labels: Tensor | None, lr: float = 1e-3) -> Callable[[], None]:
    """One step on uint8 images `[N, C, H, W]`: EDM's loss, gradients without NaN, Adam, the average of the weights."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)
    average = copy.deepcopy(net).eval().requires_grad_(False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        data = images.to(torch.float32) / 127.5 - 1
        sigma = (torch.randn(len(data), 1, 1, 1) * 1.2 - 1.2).exp()
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        denoised = net(data + torch.randn_like(data) * sigma, sigma, labels)
        (weight * (denoised - data) ** 2).sum().mul(1 / len(data)).backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
                ours.copy_(theirs.detach().lerp(ours, 0.999))

    return step


@torch.no_grad()
def heun(net: Denoiser, noise: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    """Algorithm 1 without added noise: `[N, C, H, W]` unit noise -> images, in float64 between the evaluations."""
    i = torch.arange(steps, dtype=torch.float64)
    levels = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = torch.cat([levels, torch.zeros(1)])
    x = noise.to(torch.float64) * levels[0]
    for now, then in itertools.pairwise(levels):
        slope = (x - net(x, now, labels).to(torch.float64)) / now
        euler = x + (then - now) * slope
        if then > 0:
            end = (euler - net(euler, then, labels).to(torch.float64)) / then
            x = x + (then - now) * (slope + end) / 2
        else:
            x = euler
    return x
