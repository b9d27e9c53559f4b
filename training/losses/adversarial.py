"""What a generator and a discriminator tell each other: hinge losses, one value per image.

    generator        -mean D(fake)
    discriminator    mean relu(1 + D(fake)) + mean relu(1 - D(real))

means over the logits of a backbone, summed over backbones (Lim and Ye 2017, arXiv 1705.02894; Sauer et al. 2022,
arXiv 2202.00273). Discriminators return a list of logits `[B, L]`, one per backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def generator_loss(logits: Sequence[Tensor]) -> Tensor:
    """Loss of the generator, `[B]`: minus the logits of what it made, summed over heads."""
    return sum(-x.mean(1) for x in logits)


def fake_loss(logits: Sequence[Tensor]) -> Tensor:
    """Loss of the discriminator on generated images, `[B]`."""
    return sum((1 + x).relu().mean(1) for x in logits)


def real_loss(logits: Sequence[Tensor]) -> Tensor:
    """Loss of the discriminator on real images, `[B]`."""
    return sum((1 - x).relu().mean(1) for x in logits)
