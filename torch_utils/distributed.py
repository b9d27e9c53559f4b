"""Processes started by torchrun: initialisation, rank 0 printing, and the few collectives the project needs.

Without torchrun everything works as world size 1 and no process group exists. gloo on CPU, nccl on GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "all_gather_object",
    "all_reduce_sum",
    "barrier",
    "broadcast_object",
    "get_rank",
    "get_world_size",
    "init",
    "print0",
    "process_group",
    "shutdown",
]


def init(device: str = "auto") -> torch.device:
    """Join the process group torchrun describes (if any) and return this process's device.

    Args:
        device: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device={device} is not known here: use auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device={device} was asked for, but PyTorch sees no CUDA device: use --device=cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    resolved = torch.device(device if device != "cuda" else f"cuda:{local_rank}")
    if resolved.type == "cuda":
        if resolved.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(resolved)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if resolved.type == "cuda" else "gloo", device_id=resolved if resolved.type == "cuda" else None
        )
    return resolved


def shutdown() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """`init` on entry, `shutdown` on exit."""
    resolved = init(device)
    try:
        yield resolved
    finally:
        shutdown()


def get_rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    if get_world_size() > 1:
        dist.barrier()


def print0(*args: Any, **kwargs: Any) -> None:
    """Print on rank 0 only, flushed."""
    if get_rank() == 0:
        print(*args, flush=True, **kwargs)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, in place; the tensor itself with one process."""
    if get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value: Any) -> Any:
    """Rank 0's plain Python value on every rank."""
    if get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: Any) -> list[Any]:
    """Every process's plain Python value, in rank order, on every process."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values
