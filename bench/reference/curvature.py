"""A step of training straight flows on a learned coupling, as the paper's appendix reads, without any tuning.

Lee, Kim, Ye 2023, arXiv 2301.12003: encoder and velocity network are DDPM++ U-Nets without preconditioning, trained
together by PyTorch's Adam as it comes; both are averaged.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.reference.denoiser import UNet

__all__ = ["training_step"]


def training_step(net: UNet, encoder: UNet, images: Tensor, beta: float, lr: float = 2e-4) -> Callable[[], None]:
    """A step on uint8 images `[N, C, H, W]`: flow matching on the encoder's noise, and its distance from N(0, I)."""
    networks = [encoder, net]
    parameters = list(itertools.chain.from_iterable(network.parameters() for network in networks))
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    averages = [p for n in copy.deepcopy(networks) for p in n.requires_grad_(False).parameters()]

    def step() -> None:
        optimizer.zero_grad()
        data = (images.to(torch.float32) / 255 - 0.5) / 0.5
        mu, logvar = encoder(data, torch.ones(len(data)), None).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        kl = 0.5 * torch.sum(-1 - logvar + mu**2 + torch.exp(logvar), dim=(1, 2, 3)).mean() / data[0].numel()
        t = torch.rand(len(data)) * (1 - 1e-5) + 1e-5
        mixed = t[:, None, None, None]
        matching = torch.mean((z - data - net(mixed * z + (1 - mixed) * data, t, None)) ** 2)
        (matching + beta * kl).backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(averages, parameters, strict=True):
                average.copy_(0.9999 * average + 0.0001 * parameter)

    return step
