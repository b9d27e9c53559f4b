"""What training methods share: Adam phases, averages, the file of a snapshot, what a step costs.

A method's own file is then what is particular to it: networks and loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import networks
from samplers.run import image_shape
from torch_utils.misc import format_count
from torch_utils.options import OptionGroup, opt
from torch_utils.profile import Cost, forward_cost
from training.loop.ema import halflife_beta
from training.loop.settings import LoopOptions
from training.loop.step import lr_rampup
from training.method import Average, Batch, LossOut, Phase
from training.runs import phema


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Options of the optimiser and of the averages of its weights."""

    group: ClassVar = OptionGroup("Learning", "The optimiser, and the averages that snapshots hold.", rank=4)

    lr: float = opt(1e-3, "Learning rate", metavar="FLOAT", above=0)
    lr_rampup: float = opt(10.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    ema: float = opt(0.5, "EMA half-life in million images", metavar="MIMG", at_least=0)
    ema_rampup: float | None = opt(
        0.05, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )
    phema: tuple[float, ...] | None = opt(
        None, "Also keep power-function averages of these relative widths, e.g. 0.05,0.1 (docs/checkpoints.md)",
        metavar="LIST",
    )  # fmt: skip


def adam_phase(
    loss: Callable[[Batch], LossOut],
    options: LearningOptions,
    *,
    name: str = "net",
    trains: str = "net",
    lr: float | None = None,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    betas: tuple[float, float] = (0.9, 0.999),
    batch_size: int | None = None,
    whole_first_step: bool = False,
) -> Phase:
    """A phase that one Adam (or `kind`) trains, with the rate of `--lr` (or `lr`) after the ramp of `--lr-rampup`.

    At image 0 the rate is 0, as in the published EDM code; with whole_first_step only where there is a ramp.
    """
    rate, rampup = options.lr if lr is None else lr, options.lr_rampup * 1e6
    return Phase(
        name=name,
        trains=(trains,),
        loss=loss,
        optimizer=functools.partial(kind, lr=rate, betas=betas, eps=1e-8, fused=True),
        lr=lambda nimg: rate if whole_first_step and not rampup else lr_rampup(nimg, rate, rampup),
        batch_size=batch_size,
    )


def averages(options: LearningOptions, *, rampup: float = 0) -> dict[str, Average]:
    """The averages of "net": "ema" by `--ema` and `--ema-rampup` (default: `rampup`), and those of `--phema`."""
    halflife, ratio = options.ema * 1e6, rampup if options.ema_rampup is None else options.ema_rampup
    ema = Average("net", lambda nimg, batch: halflife_beta(nimg, batch, halflife, ratio or None))
    return {"ema": ema, **phema.averages(options.phema, "net")}


def save(path: Path, averaged: Mapping[str, nn.Module], info: Mapping[str, Any]) -> None:
    """Write the averaged network as a snapshot."""
    networks.save_network(path, averaged["ema"], dict(info))


def example(net: nn.Module) -> Tensor:
    """One sample of a network's shape, `[1, ...]`, without memory."""
    return torch.zeros(1, *image_shape(net), device="meta")


def training_cost(net: nn.Module) -> Cost:
    """The cost of one forward pass for one sample."""

    def call(twin: nn.Module) -> Tensor:
        label_dim = getattr(twin, "label_dim", 0)
        labels = torch.zeros(1, label_dim, device="meta") if label_dim else None
        return twin(example(twin), torch.ones(1, device="meta"), labels)

    return forward_cost(net, call)


def size(module: nn.Module) -> str:
    """`55.7M parameters`."""
    return f"{format_count(sum(p.numel() for p in module.parameters()))} parameters"


def network(net: nn.Module) -> tuple[str, str]:
    """The line of a summary that says what is trained."""
    return "Network", f"{type(net).__name__} ({type(net.model).__name__}), {size(net)}"


def flops(cost: Cost) -> tuple[str, str]:
    """The line of a summary that says what an image costs."""
    return "FLOPs per image", f"{format_count(cost.flops)} forward, {format_count(3 * cost.flops)} per training step"


def data(dataset: Any, net: nn.Module) -> str:
    """`1797 samples [1, 8, 8], 10 classes`, for the summary."""
    kind = "classes" if dataset.label_kind in (None, "classes") else f"numbers in {dataset.label_kind} labels"
    return f"{len(dataset)} samples {list(dataset.image_shape)}, {net.label_dim} {kind}"


def steps(options: LoopOptions) -> tuple[str, str]:
    """The line of a summary that says how many steps a run makes."""
    return "Steps", f"{-int(-options.total_kimg * 1000 // options.batch)} of {options.batch} images"
