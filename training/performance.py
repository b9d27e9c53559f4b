"""Where and how fast a network computes: device, precision, compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from torch_utils.layout import memory_format
from torch_utils.options import Alias, OptionGroup, opt

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PerformanceOptions:
    """Options of the device and of the arithmetic on it."""

    group: ClassVar = OptionGroup("Performance", "What decides the speed; on a CPU the defaults are best.", rank=5)

    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE", may_change=True)
    precision: str = opt(
        "fp32",
        "Precision of the network's trunk",
        choices=list(DTYPES),
        aliases=(Alias("--fp16", "Same as --precision=fp16", lambda on: "fp16" if on else None, bool, metavar="BOOL"),),
    )
    compile: bool = opt(False, "Compile the network with torch.compile; no gain was seen on a CPU", flag=True)
    bench: bool = opt(True, "Let cuDNN choose its algorithms by timing them", metavar="BOOL")
    tf32: bool = opt(False, "Allow TF32 in fp32 matrix products and convolutions", metavar="BOOL")


def set_backends(options: PerformanceOptions) -> None:
    """Set PyTorch's global switches."""
    torch.backends.cudnn.benchmark = options.bench
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def prepare(net: nn.Module, options: PerformanceOptions, device: torch.device) -> nn.Module:
    """Move a network to the device for training; returns what to call, which `--compile` wraps."""
    net.to(device, memory_format=memory_format(net, device)).train().requires_grad_(True)
    net.compute_dtype = DTYPES[options.precision]
    return torch.compile(net) if options.compile else net
