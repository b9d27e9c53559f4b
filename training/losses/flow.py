"""Flow matching on a coupling of data and noise that may be learned, with a pull towards a Gaussian prior.

    loss = mean |target - v(x_t, t)|^2 + beta * KL(q(z | x) || prior) / D,  target = d x_t / dt,  x_t = path(x, z, t)

with z ~ q(z | x) from an encoder, or z from the prior and no KL (Lee, Kim, Ye 2023, arXiv 2301.12003, eq. 10; on the
linear path the target is z - x). The gradient reaches the encoder through z, in x_t and in the target. Both terms are
means over the D dimensions of a sample. Draws: eps, then the times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from networks.models.encoder import Encoded
from samplers.path import Linear, Path
from torch_utils.misc import expand_to
from torch_utils.rng import TorchRNG
from training.couplings import independent

T_EPS = 1e-5  # times are drawn from [T_EPS, 1)


class FlowLoss(NamedTuple):
    """Per sample, `[B]`: `total = flow_matching + beta * kl`; kl is 0 without an encoder."""

    total: Tensor
    flow_matching: Tensor
    kl: Tensor


def gaussian_kl(mu: Tensor, logvar: Tensor, variance: Tensor | float = 1.0, mean: Tensor | float = 0.0) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(mean, variance)) per sample and dimension: `[B, ...]` -> `[B]`.

    mean, variance: of the prior, broadcast against `mu`.
    """
    variance = torch.as_tensor(variance, dtype=mu.dtype, device=mu.device)
    terms = (variance.log() - logvar - 1) + ((mu - mean).square() + logvar.exp()) / variance
    return 0.5 * terms.flatten(1).mean(1)


def flow_loss(
    net: Callable[..., Tensor],
    encoder: Callable[[Tensor, Tensor], Encoded] | None,
    data: Tensor,
    *,
    beta: float,
    rng: TorchRNG,
    class_labels: Tensor | None = None,
    path: Path | None = None,
    prior_std: Tensor | float = 1.0,
    t_eps: float = T_EPS,
    coupling: Callable[[Tensor, Tensor], Tensor] = independent,
) -> FlowLoss:
    """The loss of a batch.

    Args:
        net: velocity `net(x_t, t, class_labels)`, t `[B]`.
        encoder: `encoder(data, eps) -> Encoded`; None: noise independent of the data.
        data: `[B, ...]`.
        beta: weight of the KL term.
        rng: source of eps and of the times.
        path: default linear.
        prior_std: deviations of the prior, broadcast against the data.
        coupling: without an encoder, (data, noise) -> the noise in the order of its data.
    """
    path = Linear() if path is None else path
    eps = rng.randn_like(data)
    if encoder is None:
        z, kl = coupling(data, prior_std * eps), torch.zeros(len(data), device=data.device)
    else:
        z, mu, logvar = encoder(data, eps)
        kl = gaussian_kl(mu, logvar, torch.as_tensor(prior_std) ** 2)
    u = rng.rand([len(data), 1])
    t = (u * (1 - t_eps) + t_eps).flatten()
    x_t = path.mix(data, z, t)
    error = path.target(data, z, expand_to(t, data), "velocity") - net(x_t, t, class_labels)
    matching = error.square().flatten(1).mean(1)
    return FlowLoss(matching + beta * kl, matching, kl)
