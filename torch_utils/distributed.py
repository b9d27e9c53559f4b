"""Processes started by torchrun: initialisation, rank 0 printing, and the few collectives the project needs.

Without torchrun everything works as world size 1 and no process group exists. gloo on CPU, nccl on GPU.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from torch_utils.signals import SignalExit

JOIN_TIMEOUT = timedelta(minutes=10)
THREADS_END = 0.2  # seconds; what they have left to do takes microseconds

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Gloo", "gloo")


def _meet() -> dist.Store | None:
    """The store that the processes of this attempt share; None with one process, or where the group exists already."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        return None
    store, rank, world = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    return fresh_store(store, rank, world)


def _device(name: str) -> torch.device:
    """The device of this process; ValueError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device={name} is not known here: use auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device={name} was asked for, but PyTorch sees no CUDA device: use --device=cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    resolved = torch.device(name if name != "cuda" else f"cuda:{local_rank}")
    if resolved.type == "cuda":
        if resolved.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(resolved)
    return resolved


def _join(store: dist.Store, device: torch.device) -> None:
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        device_id=device if device.type == "cuda" else None,
    )


def fresh_store(store: dist.Store, rank: int, world: int) -> dist.Store:
    """A part of `store` that only the processes of this attempt know; all of them must call it.

    When torchrun starts dead workers again, the new ones meet in the store of the old ones, full of addresses where
    nobody listens any more (with PyTorch 2.13.0 about half of all restarts hung or failed). So rank 0 makes up a name
    and hands it out: every process asks under a word of its own, and only an answer to that very word counts.
    """
    word = secrets.token_hex(8)
    if rank:
        store.set(f"fewstep/ask/{rank}", word)
        store.wait([f"fewstep/answer/{word}"], JOIN_TIMEOUT)
        name = store.get(f"fewstep/answer/{word}").decode()
        store.set(f"fewstep/{name}/{rank}", "here")
        return dist.PrefixStore(name, store)
    missing, deadline = set(range(1, world)), time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"fewstep/{word}/{other}"]):
                missing.discard(other)
            elif store.check([f"fewstep/ask/{other}"]):  # perhaps still the question of one that is dead: no harm done
                store.set(f"fewstep/answer/{store.get(f'fewstep/ask/{other}').decode()}", word)
        if missing and time.monotonic() > deadline:
            raise OSError(f"processes {sorted(missing)} did not join within {JOIN_TIMEOUT}")
        time.sleep(0.01)
    return dist.PrefixStore(word, store)


def shutdown() -> None:
    """Leave the process group, and let its threads end first.

    A thread of gloo takes the interpreter's lock to drop the tensors of its last collective; one that still waits for
    it when the interpreter ends aborts a process whose work was done (PyTorch 2.13.0: "terminate called without an
    active exception"), and torchrun then starts everything again.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(THREADS_END)  # asleep, this thread holds no lock


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the process group that torchrun describes (if any); gives this process's device.

    An error ends all processes, and one of them says it: what a process says that failed later, or because it lost the
    connection to one that failed, would bury the reason.

    Args:
        device: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N".
    """
    store = _meet()
    try:
        resolved = _device(device)
        if store is not None:
            _join(store, resolved)
        yield resolved
    except BaseException as error:
        if store is None:
            raise
        _one_voice(store, error)
        raise
    finally:
        shutdown()


def _one_voice(store: dist.Store, error: BaseException) -> None:
    """Return where this process may say what went wrong; leave the program without a word where another did."""
    if isinstance(error, SystemExit) and not isinstance(error, SignalExit):
        return  # of `from_rank0`: rank 0 has the word
    lost = isinstance(error, RuntimeError) and any(key in str(error) for key in _LOST)
    own = 0 if lost else 1
    try:  # told before connections break, so that those who lose one find it
        first = store.add("failed", own) == own
    except RuntimeError:  # the store went down with its process
        first = True
    if isinstance(error, SignalExit):
        error.said = error.said or not first
    elif isinstance(error, KeyboardInterrupt) and not first:
        raise SignalExit(signal.SIGINT, said=True) from error
    elif not first and isinstance(error, Exception):
        raise SystemExit(1) from error
    elif lost:
        raise ValueError("the connection to another process is lost: it was killed, or its machine is gone") from error


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


def from_rank0(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on every rank. Where it fails, rank 0 alone says why; the others just exit."""
    if get_world_size() == 1:
        return function()
    value, error = None, None
    if get_rank() == 0:
        try:
            value = function()
        except (ValueError, OSError) as raised:
            error = raised
    value, failed = broadcast_object((value, error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(1)
    return value


def rank0_first(function: Callable[[], Any]) -> Any:
    """`function()` on every rank, on rank 0 before the others: what it downloads, they find in the cache."""
    own: list[Any] = []
    from_rank0(lambda: own.append(function()))
    return own[0] if own else function()


def all_gather_object(value: Any) -> list[Any]:
    """Every process's plain Python value, in rank order, on every process."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: torch.Tensor, positions: Sequence[int]) -> torch.Tensor | None:
    """Rows `[n, ...]` of all processes in the order of their positions, on rank 0; None on the others."""
    parts = [(rows, list(positions))]
    if get_world_size() > 1:
        parts = [None] * get_world_size() if get_rank() == 0 else None
        dist.gather_object((rows, list(positions)), parts, dst=0)
    if parts is None:
        return None
    found, order = (torch.cat([part for part, _ in parts]), torch.tensor([p for _, own in parts for p in own]))
    return found if bool((order.diff() > 0).all()) else found[order.argsort()]
