"""What every optimiser step does besides the optimiser: learning rate, and gradients that are not finite.

All of it runs on lists of tensors at once (`torch._foreach_*`) and leaves results on the device: nothing here waits.
`sanitize_gradients` is the rule of the published EDM training code (Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_CHUNK = 1 << 25  # elements copied at a time by sanitize_gradients: 128 MiB of float32


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None and p.grad.numel() > 0]


def lr_rampup(nimg: int, lr: float, rampup: float) -> float:
    """`lr` after a linear ramp over the first `rampup` images, 0 at image 0 (Karras et al. 2022, appendix F).

    Args:
        nimg: training images seen before the step that uses the rate.
    """
    return lr * min(nimg / max(rampup, 1e-8), 1)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group; rates held as tensors (capturable optimisers) change in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@torch.no_grad()
def nonfinite_count(parameters: Iterable[nn.Parameter]) -> Tensor:
    """How many gradients hold at least one NaN or infinite entry: `[]` int64 on their device, not read back.

    Parameters without a gradient do not count; without any gradient the result is 0 on the CPU.
    """
    gradients = _gradients(parameters)
    if not gradients:
        return torch.zeros((), dtype=torch.int64)
    if gradients[0].device.type == "cpu":  # where the norm below takes 15 times as long
        low, high = (torch.stack(ends) for ends in zip(*map(torch.aminmax, gradients), strict=True))
        return torch.logical_and(low.isfinite(), high.isfinite()).logical_not().sum()
    return torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().logical_not().sum()


@torch.no_grad()
def sanitize_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace in every gradient, in place, NaN by 0, +inf by 1e5, -inf by -1e5; finite entries stay, however large."""
    chunk: list[Tensor] = []
    size = 0
    for gradient in _gradients(parameters):
        if chunk and (size + gradient.numel() > _CHUNK or gradient.dtype != chunk[0].dtype):
            _sanitize(chunk)
            chunk, size = [], 0
        chunk.append(gradient)
        size += gradient.numel()
    if chunk:
        _sanitize(chunk)


def _sanitize(gradients: list[Tensor]) -> None:
    # There is no foreach nan_to_num: one pass over a flat copy costs three kernels instead of one per parameter.
    flat = torch.cat([g.flatten() for g in gradients]).nan_to_num_(nan=0, posinf=1e5, neginf=-1e5)
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
