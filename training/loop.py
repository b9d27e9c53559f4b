"""The one training loop: phases, accumulation, gradient averaging, EMA, ticks, snapshots, exact resume.

Objective (Karras et al. 2022, arXiv 2206.00364): loss summed over each image, averaged over the global batch. Every
random number is a function of (seed, image counter, position in the global batch), the data order of (seed, image
counter), so a run continues bit for bit from its state and does not depend on the number of processes (dropout masks
excepted: they are keyed by process).

Nothing between ticks waits for the device: statistics stay there, and the stop / non-finite flag is read one step late.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from torch_utils.rng import BatchRNG, fold_seed
from torch_utils.stats import Collector
from training.ema import update_ema
from training.method import Batch, Method, Phase
from training.step import nonfinite_count, sanitize_gradients, set_lr

__all__ = ["Loop", "NonFiniteError", "Settings"]


class NonFiniteError(ValueError):
    """A gradient was NaN or infinite; the weights of the last good step are untouched."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loop needs besides the method."""

    seed: int
    batch_size: int
    batch_gpu: int | None = None
    loss_scaling: float = 1.0
    nonfinite: str = "stop"  # or "zero": replace non-finite gradients as the published EDM code does
    grad_clip: float | None = None

    def rounds(self, world: int) -> int:
        """Accumulation rounds per step; ValueError when the batch cannot be split that way."""
        if self.batch_size % world:
            raise ValueError(
                f"--batch={self.batch_size} is not divisible by the {world} processes: choose a multiple of {world}"
            )
        per_process = self.batch_size // world
        per_round = min(self.batch_gpu or per_process, per_process)
        if per_process % per_round:
            raise ValueError(
                f"--batch-gpu={per_round} does not divide the {per_process} images each process handles per step: "
                "choose a divisor"
            )
        return per_process // per_round


class _PhaseModule(nn.Module):
    """The modules one phase trains, behind a forward that returns its loss: what DDP wraps."""

    def __init__(self, phase: Phase, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({name: modules[name] for name in phase.trains})
        self._loss = phase.loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        out = self._loss(batch)
        return out.loss, dict(out.terms)


class _Watch:
    """The flags 'a gradient is not finite' and 'asked to stop', agreed by all processes.

    On a GPU they are read one step late: the host is never more than a step ahead and never waits. A fused optimiser
    skips the update of a flagged step on the device itself.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
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


class Loop:
    """Method + data + counters. `step()` trains on one global batch; `state_dict()` is all that resuming needs."""

    def __init__(self, method: Method, batches: Any, settings: Settings, device: torch.device) -> None:
        self.method, self.batches, self.settings, self.device = method, batches, settings, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.rounds = settings.rounds(self.world)
        self.nimg = 0
        self.stats = Collector(device)
        self.averaged = {
            name: copy.deepcopy(method.modules[average.module]).eval().requires_grad_(False)
            for name, average in method.averages.items()
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._phases: list[tuple[Phase, nn.Module, list[nn.Parameter]]] = []
        for phase in method.phases:
            module = _PhaseModule(phase, method.modules).requires_grad_(True)
            parameters = list(module.parameters())
            self.optimizers[phase.name] = phase.optimizer(parameters)
            wrapped = module
            if self.world > 1:  # broadcasts rank 0's weights and buffers once, averages gradients while they are made
                wrapped = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
            self._phases.append((phase, wrapped, parameters))
        self._watch = _Watch(device)
        self._sync_averages()

    def _sync_averages(self) -> None:
        """Start every average at the (now rank-0) weights."""
        with torch.no_grad():
            for name, average in self.method.averages.items():
                self.averaged[name].load_state_dict(self.method.modules[average.module].state_dict())

    def step(self, stop: bool = False) -> bool:
        """One step of every phase; True when some process asked to stop.

        Raises:
            NonFiniteError: a gradient is not finite (the update was not made).
        """
        settings = self.settings
        # Dropout and other draws from torch's global generator: keyed, so that nothing needs saving.
        torch.manual_seed(fold_seed(settings.seed, self.nimg, self.rank))
        images, labels = self.batches.next()
        data = from_uint8(images) if images.dtype == torch.uint8 else images
        nonfinite = torch.zeros((), device=self.device)
        for index, (phase, module, parameters) in enumerate(self._phases):
            self._freeze_all_but(parameters)
            self._accumulate(index, phase, module, data, labels)
            nonfinite = nonfinite + self._update(phase, parameters)
        for name, average in self.method.averages.items():
            beta = average.beta(self.nimg, settings.batch_size)
            update_ema(self.averaged[name], self.method.modules[average.module], beta)
        at = self.nimg
        self.nimg += settings.batch_size
        bad, stopped = self._watch.post(nonfinite, stop)
        if bad:
            raise NonFiniteError(self._describe_nonfinite(at))
        return stopped

    def _freeze_all_but(self, parameters: list[nn.Parameter]) -> None:
        if len(self._phases) > 1:
            for _, _, others in self._phases:
                for p in others:
                    p.requires_grad_(False)
            for p in parameters:
                p.requires_grad_(True)

    def _accumulate(self, index: int, phase: Phase, module: nn.Module, data: Tensor, labels: Tensor) -> None:
        """Gradients of the whole batch; processes exchange them in the last round only."""
        settings, per_process = self.settings, data.shape[0]
        self.optimizers[phase.name].zero_grad(set_to_none=True)
        size = per_process // self.rounds
        for r in range(self.rounds):
            rows = slice(r * size, (r + 1) * size)
            start = self.rank * per_process + rows.start
            rng = BatchRNG(settings.seed, self.nimg, start, start + size, self.device, stream=index)
            last = r == self.rounds - 1
            with module.no_sync() if self.world > 1 and not last else nullcontext():
                loss, terms = module(Batch(data[rows], labels[rows], rng, self.nimg))
                (loss.sum() * (settings.loss_scaling / per_process)).backward()
            for name, term in terms.items():
                self.stats.report(name, term)

    def _update(self, phase: Phase, parameters: list[nn.Parameter]) -> Tensor:
        """Optimiser step; returns a flag on the device, 1 when a gradient was not finite (then nothing changed)."""
        settings, optimizer = self.settings, self.optimizers[phase.name]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if settings.nonfinite == "zero":
            self.stats.report(f"Grad/{phase.name}_nonfinite", nonfinite_count(parameters))
            sanitize_gradients(parameters)
        norm = nn.utils.get_total_norm(gradients)
        if settings.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, settings.grad_clip, norm)
        nonfinite = (~torch.isfinite(norm)).float()
        self.stats.report(f"Grad/{phase.name}_norm", norm)
        set_lr(optimizer, phase.lr(self.nimg))
        if self.device.type == "cuda":
            optimizer.found_inf = nonfinite  # the fused kernel skips its update where this is 1
            optimizer.step()
        elif not bool(nonfinite):
            optimizer.step()
        return nonfinite

    def _describe_nonfinite(self, nimg: int) -> str:
        names = [
            f"{module_name}.{name}"
            for module_name, module in self.method.modules.items()
            for name, p in module.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        where = f", first in {names[0]} ({len(names)} parameters affected)" if names else ""
        return (
            f"a gradient became NaN or infinite at image {nimg}{where}; training stopped before the update. "
            "Lower --lr, use --precision=bf16 or fp32 instead of fp16, or pass --nonfinite=zero to go on with such "
            "entries set to zero"
        )

    def finish_step(self) -> None:
        """Wait for flags still under way, so that what is written next is known to be finite."""
        bad, _ = self._watch.flush()
        if bad:
            raise NonFiniteError(self._describe_nonfinite(self.nimg - self.settings.batch_size))

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs, as plain containers and tensors; all processes must call it."""
        return {
            "nimg": self.nimg,
            "seed": self.settings.seed,
            "modules": {name: module.state_dict() for name, module in self.method.modules.items()},
            "averages": {name: module.state_dict() for name, module in self.averaged.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "data": self.batches.state_dict(),
            "stats": dist.all_gather_object(self.stats.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, module in self.method.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, module in self.averaged.items():
            module.load_state_dict(state["averages"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            _match_layout(optimizer)
        self.nimg = int(state["nimg"])
        self.batches.load_state_dict(state["data"])
        stats = state["stats"]
        if len(stats) == self.world:
            self.stats.load_state_dict(stats[self.rank])
        elif self.rank == 0:  # another number of processes: the totals are what counts
            names = {name for part in stats for name in part}
            self.stats.load_state_dict({n: sum(part[n] for part in stats if n in part) for n in names})

    def check_replicas(self) -> None:
        """Every process must hold rank 0's weights; RuntimeError names the first tensor that differs."""
        if self.world == 1:
            return
        named = [
            (f"{module_name}.{name}", tensor)
            for module_name, module in {**self.method.modules, **self.averaged}.items()
            for name, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        ]
        own = torch.stack([t.nan_to_num(0).double().sum() for _, t in named])
        reference = own.clone()
        torch.distributed.broadcast(reference, src=0)
        differs = (own != reference).nonzero().flatten().tolist()
        if differs:
            raise RuntimeError(f"process {self.rank} holds other weights than process 0: {named[differs[0]][0]}")


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory layout of their parameters: fused kernels pair elements by address."""
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                slots[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
