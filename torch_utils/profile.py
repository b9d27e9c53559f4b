"""What a model costs: FLOPs and saved activations counted without computing, peak FLOP/s of known devices.

FLOPs follow torch's FlopCounterMode: two per multiply-add, matrix products and convolutions only. Model FLOP/s
utilisation (MFU) is `flops per image * images per second / peak` (Chowdhery et al. 2022, arXiv 2204.02311, app. B).
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense tensor-core peaks in TFLOP/s (vendor data sheets, no sparsity): name fragment -> (fp32/tf32-off, 16 bit)
_PEAKS = {
    "H200": (67, 989), "H100 PCIe": (51, 756), "H100": (67, 989), "A100": (19.5, 312), "V100": (15.7, 125),
    "L40S": (91.6, 362), "L40": (90.5, 181), "L4": (30.3, 121), "A10G": (31.2, 70), "A10": (31.2, 125),
    "A6000": (38.7, 155), "RTX 4090": (82.6, 165), "RTX 3090": (35.6, 71), "T4": (8.1, 65),
}  # fmt: skip


class Cost(NamedTuple):
    """`flops` per sample of one forward pass, `activation_bytes` kept per sample for the backward pass."""

    flops: float
    activation_bytes: float


def forward_cost(net: nn.Module, call: Callable[[nn.Module], torch.Tensor], batch: int = 1) -> Cost:
    """Count one forward pass of a meta-device copy of `net`: nothing is computed and nothing allocated.

    Args:
        net: any module.
        call: runs the copy on inputs it makes on the meta device, `batch` samples at once.
    """
    twin = copy.deepcopy(net).to("meta").requires_grad_(True).train()
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in twin.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:  # views of weights are no activations
            saved[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # a freed storage's address could be reused and counted as one
        return tensor

    alive: list[torch.Tensor] = []
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(twin)
    return Cost(counter.get_total_flops() / batch, sum(saved.values()) / batch)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a known GPU at this dtype, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for fragment, (single, half) in _PEAKS.items():
        if fragment in name:
            return (half if dtype in (torch.float16, torch.bfloat16) else single) * 1e12
    return None


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several large matrix products: the yardstick where no data sheet is known."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(time_it(lambda: a @ b, device, repeats=8))


def time_it(fn: Callable[[], object], device: torch.device, *, repeats: int, warmup: int = 2) -> list[float]:
    """Seconds of each of `repeats` calls after `warmup` untimed ones, the device idle before and after each."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for i in range(warmup + repeats):
        wait()
        start = time.perf_counter()
        fn()
        wait()
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
    return seconds


def cpu_memory_gib() -> float:
    """Largest resident set of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
