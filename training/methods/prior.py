"""Moments of encoded data: the Gaussian that sampling of a learned coupling should start from.

The flow maps the aggregated q(z) = E_x q(z | x) to the data, and at every finite weight of the KL term q(z) is narrower
than the prior it is pulled towards (for Gaussian data of deviation 1/2 its variance is about 1 - 0.75 / beta). A
Gaussian with the measured deviation of every element, and with the variances along some directions where they differ
most, is a better start at no cost. Cov z = Cov mu + E diag exp(logvar), so eps is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

import networks

EXACT = 2048  # dimensions up to which all eigenvectors are computed
MAX_ELEMENTS = 1 << 26  # of mu kept for the directions: 256 MiB


@torch.no_grad()
def measure_prior(encoder: nn.Module, batches: Iterable[Tensor], rank: int = 0) -> dict[str, Tensor]:
    """Buffers of `networks.models.velocity.NoisePrior` for the encoded data.

    Args:
        encoder: in eval mode.
        batches: data `[b, C, H, W]` on its device; at least two samples in all.
        rank: directions; as many as dimensions: the full covariance.

    Raises:
        ValueError: fewer than two samples.
    """
    mus, variance, count = [], 0.0, 0
    for x in batches:
        _, mu, logvar = encoder(x, torch.zeros_like(x))
        mus.append(mu.flatten(1).float().cpu())
        variance = variance + logvar.double().exp().sum(0)
        count, shape = count + len(x), x.shape[1:]
        if count * shape.numel() > MAX_ELEMENTS:
            break
    if count < 2:
        raise ValueError(f"the start distribution cannot be measured on {count} sample: give 2 or more")
    mu = torch.cat(mus).double()
    mean = mu.mean(0)
    inner = variance.flatten().cpu() / count  # E exp(logvar)
    std = (mu.var(0, correction=0) + inner).sqrt()
    moments = {"std": std.reshape(shape)} | _directions((mu - mean) / std, inner / std.square(), min(rank, mu.shape[1]))
    return {name: value.float() for name, value in moments.items()}


def _directions(mu: Tensor, inner: Tensor, rank: int) -> dict[str, Tensor]:
    """Directions whose variance is least like 1, of standardised z with means `mu [n, D]` and inner variances `[D]`.

    `rest` is the deviation along all others, so that the total variance D is kept.
    """
    n, d = mu.shape
    if rank == 0:
        return {"directions": mu.new_zeros(0, d), "gains": mu.new_ones(0), "rest": mu.new_ones(())}
    if d <= EXACT:
        values, vectors = torch.linalg.eigh(mu.T @ mu / n + inner.diag())
        chosen = values.log().abs().argsort(descending=True)[:rank]
        values, vectors = values[chosen], vectors[:, chosen]
    else:
        with torch.random.fork_rng(devices=[]):  # the random projection is no part of the run's randomness
            torch.manual_seed(0)
            vectors = torch.svd_lowrank(mu.float(), q=min(rank + 8, n, d), niter=4)[2][:, :rank].double()
        values = (mu @ vectors).square().mean(0) + inner @ vectors.square()
    rest = ((d - values.sum()) / (d - rank)).clamp(min=0) if rank < d else values.new_ones(())
    return {"directions": vectors.T.contiguous(), "gains": values.sqrt(), "rest": rest.sqrt()}


def with_prior(net: nn.Module, moments: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a velocity network that carries measured moments: on its device, in its precision and mode.

    What it was told of its conditions and latents since it was built, the copy knows as well.
    """
    copy = networks.build(**{**net.config, "prior_rank": len(moments["gains"])})
    vars(copy).update({name: value for name, value in vars(net).items() if not hasattr(copy, name)})
    state = {**net.state_dict(), **{f"prior.{name}": value for name, value in moments.items()}}
    copy.load_state_dict(state)
    copy.compute_dtype = net.compute_dtype
    return copy.to(next(net.parameters()).device).train(net.training)
