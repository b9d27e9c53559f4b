"""Whether any process must stop, agreed by all of them without making the host wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils import distributed as dist


class Watch:
    """The flags 'a gradient is not finite' and 'asked to stop', agreed by all processes.

    On a GPU they are read one step late: the host is never more than a step ahead and never waits. A fused optimiser
    skips the update of a flagged step on the device itself.

    Attributes:
        delay: steps between `post` and the call that returns its flags.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.delay = 1 if device.type == "cuda" else 0
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def post(self, nonfinite: Tensor, stop: bool) -> tuple[bool, bool]:
        """Publish this step's flags; return those known now (on a GPU: of the step before)."""
        flags = torch.stack([nonfinite.float(), torch.full_like(nonfinite, stop, dtype=torch.float32)])
        dist.all_reduce_sum(flags)
        if self.device.type != "cuda":
            bad, stopped = flags.tolist()
            return bad > 0, stopped > 0
        previous = self.flush()
        host = torch.empty(2, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (host, event)
        return previous

    def flush(self) -> tuple[bool, bool]:
        """Wait for the flags still under way."""
        if self._pending is None:
            return False, False
        host, event = self._pending
        self._pending = None
        event.synchronize()
        return bool(host[0] > 0), bool(host[1] > 0)
