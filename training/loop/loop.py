"""The one training loop: phases, accumulation, gradient averaging, EMA, ticks, snapshots, exact resume.

Objective (Karras et al. 2022, arXiv 2206.00364): loss summed over each image, averaged over the global batch. Every
random number is a function of (seed, image counter, position in the global batch), the data order of (seed, image
counter), so a run continues bit for bit from its state, and which numbers it draws does not depend on the number of
processes or accumulation rounds.

Nothing between ticks waits for the device: statistics stay there, and the stop / non-finite flag is read one step late.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_utils import distributed as dist
from torch_utils.dropout import keyed
from torch_utils.images import from_uint8
from torch_utils.provenance import differences
from torch_utils.rng import BatchRNG, fold_seed, seed_global
from torch_utils.stats import Collector
from training.loop.ema import update_ema
from training.loop.settings import LoopOptions
from training.loop.step import nonfinite_count, sanitize_gradients, set_lr
from training.loop.sync_timer import SyncTimer
from training.loop.watch import Watch
from training.method import Batch, Method, Phase

_LEARNING = ("use_fp16", "gaussian_noise", "compensated")  # arguments of networks that say how they are trained
_DROPOUT, _DRAWS = 1 << 16, 1 << 17  # streams of dropout masks and of data that is drawn, besides those of the phases


class NonFiniteError(ValueError):
    """The loss or a gradient was NaN or infinite; the weights of the last good step are untouched."""


class _PhaseModule(nn.Module):
    """The modules one phase trains, behind a forward that returns its loss: what DDP wraps."""

    def __init__(self, phase: Phase, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({name.replace(".", "_"): _part(modules, name) for name in phase.trains})
        self._loss = phase.loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        out = self._loss(batch)
        return out.loss, dict(out.terms)


def _of_function(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network without those that may change while it learns."""
    return {
        name: _of_function(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _LEARNING and not name.endswith("dropout")
    }


def _part(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    """A module by name, or "net.V": a part of one."""
    first, _, rest = name.partition(".")
    return modules[first].get_submodule(rest)


class Loop:
    """Method + data + counters. `step()` trains on one global batch; `state_dict()` is all that resuming needs."""

    def __init__(self, method: Method, batches: Any, options: LoopOptions, device: torch.device) -> None:
        self.method, self.batches, self.options, self.device = method, batches, options, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.rounds = options.rounds(self.world)
        self._draw = getattr(batches, "draw", None)
        self._own_batches = {p.name: batches.twin(p.batch_size) for p in method.phases if p.batch_size is not None}
        self.nimg = 0
        self.stats = Collector(device)
        self.timer = SyncTimer(device) if self.world > 1 else None
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
                wrapped.register_comm_hook(None, self.timer.hook)
            self._phases.append((phase, wrapped, parameters))
        self._watch = Watch(device)
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
        options = self.options
        if self.timer is not None:
            self.timer.begin()
        # What still draws from torch's global generator is keyed, so that nothing needs saving.
        seed_global(fold_seed(options.seed, self.nimg, self.rank), self.device)
        data, labels = _floats(*self.batches.next())
        nonfinite = torch.zeros((), device=self.device)
        for index, (phase, module, parameters) in enumerate(self._phases):
            self._freeze_all_but(parameters)
            own = self._own_batches.get(phase.name)
            self._accumulate(index, phase, module, *((data, labels) if own is None else _floats(*own.next())))
            nonfinite = nonfinite + self._update(phase, parameters)
        for name, average in self.method.averages.items():
            beta = average.beta(self.nimg, options.batch)
            update_ema(self.averaged[name], self.method.modules[average.module], beta)
        if self.timer is not None:
            self.timer.end(data.shape[0])
        self.nimg += options.batch
        bad, stopped = self._watch.post(nonfinite, stop)
        if bad:
            raise NonFiniteError(self._describe_nonfinite(self.nimg - (1 + self._watch.delay) * options.batch))
        return stopped

    def _freeze_all_but(self, parameters: list[nn.Parameter]) -> None:
        if len(self._phases) > 1:
            for _, _, others in self._phases:
                for p in others:
                    p.requires_grad_(False)
            for p in parameters:
                p.requires_grad_(True)

    def _accumulate(self, index: int, phase: Phase, module: nn.Module, data: Tensor, labels: Tensor) -> None:
        """Gradients of the whole batch; processes exchange them in the last round only.

        Every round starts from the same buffers, as processes do: power iterations advance once a step, not once a
        round, and a batch in rounds is the batch of as many processes.
        """
        options, per_process = self.options, data.shape[0]
        self.optimizers[phase.name].zero_grad(set_to_none=True)
        rounds = self.rounds if phase.batch_size is None else options.rounds(self.world, phase.batch_size)
        size = per_process // rounds
        buffers = [b for part in self.method.modules.values() for b in part.buffers()] if rounds > 1 else []
        saved = [b.clone() for b in buffers]
        for r in range(rounds):
            if r and buffers:
                torch._foreach_copy_(buffers, saved)
            rows = slice(r * size, (r + 1) * size)
            start = self.rank * per_process + rows.start
            rng = BatchRNG(options.seed, self.nimg, start, start + size, self.device, stream=index)
            drops = BatchRNG(options.seed, self.nimg, start, start + size, self.device, stream=_DROPOUT + index)
            part = data[rows]
            if self._draw is not None:
                own = BatchRNG(options.seed, self.nimg, start, start + size, self.device, stream=_DRAWS + index)
                part = self._draw(part, own)
            last = r == rounds - 1
            with module.no_sync() if self.world > 1 and not last else nullcontext():
                with keyed(drops, size):
                    loss, terms = module(Batch(part, labels[rows], rng, self.nimg))
                self._backward(loss.sum(), options.ls / per_process)
            if last and self.timer is not None:
                self.timer.synchronised()
            for name, term in terms.items():
                self.stats.report(name, term)

    def _backward(self, loss: Tensor, scale: float) -> None:
        """Gradients of `scale * loss`; a loss that is not finite makes them NaN, and so stops every process."""
        seed = torch.full_like(loss, scale)
        if self.options.nonfinite == "stop":
            seed = torch.where(torch.isfinite(loss.detach()), seed, torch.nan)
        loss.backward(seed)

    def _update(self, phase: Phase, parameters: list[nn.Parameter]) -> Tensor:
        """Optimiser step; returns a flag on the device, 1 when a gradient was not finite (then nothing changed)."""
        options, optimizer = self.options, self.optimizers[phase.name]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if options.nonfinite == "zero":
            self.stats.report(f"Grad/{phase.name}_nonfinite", nonfinite_count(parameters))
            sanitize_gradients(parameters)
        norm = nn.utils.get_total_norm(gradients)
        if options.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, options.grad_clip, norm)
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
        losses = [name for name in self.stats.names("Loss/") if not math.isfinite(self.stats.peek(name))]
        what = f"the loss ({losses[0]})" if losses else "a gradient"
        return (
            f"{what} became NaN or infinite at image {nimg}{where}; training stopped before the update. "
            "Lower --lr, use --precision=bf16 or fp32 instead of fp16, or pass --nonfinite=zero to go on with such "
            "entries set to zero"
        )

    def finish_step(self) -> None:
        """Wait for flags still under way, so that what is written next is known to be finite."""
        bad, _ = self._watch.flush()
        if bad:
            raise NonFiniteError(self._describe_nonfinite(self.nimg - self.options.batch))

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs, as plain containers and tensors; all processes must call it."""
        return {
            "nimg": self.nimg,
            "seed": self.options.seed,
            "configs": self._configs(),
            "modules": {name: module.state_dict() for name, module in self.method.modules.items()},
            "averages": {name: module.state_dict() for name, module in self.averaged.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "data": self.batches.state_dict(),
            "phase_data": {name: own.state_dict() for name, own in self._own_batches.items()},
            "stats": dist.all_gather_object(self.stats.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; another number of processes is fine.

        Raises:
            ValueError: the state belongs to another network, method or data set; the loop may be half loaded.
        """
        owned = {"modules": self.method.modules, "averages": self.averaged, "optimizers": self.optimizers}
        for part, own in owned.items():
            if state[part].keys() != own.keys():
                raise ValueError(
                    f"the state holds the {part} {', '.join(state[part])}, the options ask for {', '.join(own)}: "
                    "continue with the options the run was started with"
                )
        if other := differences(state["configs"], self._configs()) if "configs" in state else []:
            raise ValueError(
                f"the state belongs to another network (other {', '.join(other)}): continue with the options the run "
                "was started with"
            )
        try:
            self._load_tensors(state)
        except RuntimeError as error:  # a missing tensor, or one of another shape
            raise ValueError(
                f"the state belongs to another network ({str(error).strip().splitlines()[-1].strip()}): continue with "
                "the options the run was started with"
            ) from error
        self.nimg = int(state["nimg"])
        self.batches.load_state_dict(state["data"])
        for name, own in self._own_batches.items():
            own.load_state_dict(state["phase_data"][name])
        stats = state["stats"]
        if len(stats) == self.world:
            self.stats.load_state_dict(stats[self.rank])
        elif self.rank == 0:  # another number of processes: the totals are what counts
            names = {name for part in stats for name in part}
            self.stats.load_state_dict({n: sum(part[n] for part in stats if n in part) for n in names})

    def _configs(self) -> dict[str, Any]:
        """What the networks are made of, where weights fit others too; not what only training reads."""
        configs = {name: getattr(module, "config", {}) for name, module in self.method.modules.items()}
        return {name: _of_function(config) for name, config in configs.items()}

    def _load_tensors(self, state: Mapping[str, Any]) -> None:
        for name, module in self.method.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, module in self.averaged.items():
            module.load_state_dict(state["averages"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            _match_layout(optimizer)

    def check_replicas(self) -> None:
        """Every process must hold rank 0's weights; RuntimeError names the first tensor that differs."""
        if self.world == 1:
            return
        named = [
            (f"{module_name}.{name}", tensor)
            for module_name, module in {**self.method.modules, **self.averaged}.items()
            for name, tensor in module.state_dict().items()
            # statistics that batch norm keeps of each process's own images may differ; training never reads them
            if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
        ]
        own = torch.stack([t.nan_to_num(0).double().sum() for _, t in named])
        reference = own.clone()
        torch.distributed.broadcast(reference, src=0)
        differs = (own != reference).nonzero().flatten().tolist()
        if differs:
            raise RuntimeError(f"process {self.rank} holds other weights than process 0: {named[differs[0]][0]}")


def _floats(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (from_uint8(images) if images.dtype == torch.uint8 else images), labels


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory layout of their parameters: fused kernels pair elements by address."""
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                slots[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
