"""ComboStoc and SiT: interpolant transformers, with a time for every element or one for the whole sample.

Xie et al. 2024 (arXiv 2405.13729) and Ma et al. 2024 (arXiv 2401.08740). The loss is in
`training/losses/interpolant.py`, the networks are in `networks/models/interpolant.py`. Both commands train the same
transformers of the same sizes; `sit` draws one uniform time a sample, whatever it is given to split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import networks
from networks.models.interpolant import transformer_config
from samplers.path import PATHS
from samplers.solvers.interpolant import time_interval
from torch_utils.dropout import reordered
from torch_utils.misc import format_count
from torch_utils.options import OptionGroup, opt
from training.data.batches import ImageDataset
from training.losses.interpolant import COMPENSATION, PREDICTIONS, SPLITS, WEIGHTS, InterpolantLoss, Times, draw_times
from training.method import Batch, LossOut, Method
from training.methods import common
from training.options import CommonOptions
from training.performance import DTYPES
from training.pictures.preview import preview_of

__all__ = ["ComboStocOptions", "InterpolantOptions", "SiTOptions", "build"]

# the published names of paths, in the direction of this project
PATH_TYPES = {"Linear": "linear", "GVP": "trig", "VP": "vp"}


@dataclass(frozen=True, kw_only=True)
class InterpolantOptions(CommonOptions):
    """Options of both commands; names and defaults are the published ones."""

    group: ClassVar = OptionGroup("Network and loss", "What is trained.", rank=3)

    model: str = opt(
        "SiT-XL/2", "Family, size and patch side: SiT or ComboStoc, S, B, L or XL, /2, /4 or /8", metavar="NAME"
    )
    width: int | None = opt(None, "Instead of the size's width", metavar="INT", at_least=4)
    depth: int | None = opt(None, "Instead of the size's number of blocks", metavar="INT", at_least=1)
    num_heads: int | None = opt(None, "Instead of the size's number of attention heads", metavar="INT", at_least=1)
    learn_sigma: bool = opt(
        False, "Twice the output channels, half of them unused, as in published files", metavar="BOOL"
    )
    label_dropout: float | None = opt(
        None, "Share of labels hidden in training, for classifier-free guidance [default: 0.1]", metavar="P",
        at_least=0, at_most=1,
    )  # fmt: skip
    path_type: str = opt("Linear", "Interpolation between noise and data", choices=list(PATH_TYPES))
    prediction: str = opt("velocity", "What the network predicts", choices=list(PREDICTIONS))
    loss_weight: str | None = opt(
        None, "Weight of the loss of noise and score over time [default: 1]", choices=list(WEIGHTS)
    )
    train_eps: float | None = opt(
        None, "Shortest distance of a time from the ends [default: 0 for velocity, else 1e-3; VP 1e-5]",
        metavar="FLOAT", at_least=0, at_most=0.5,
    )  # fmt: skip
    checkpointing: bool = opt(
        False, "Recompute the blocks in the backward pass: less memory, a third more arithmetic", metavar="BOOL",
        may_change=True,
    )  # fmt: skip

    # the published spellings of options that every method has
    data: str = opt(
        None, "Data set made by dataset_tool.py", metavar="ZIP|DIR", required=True, names=("--data-path",)
    )  # fmt: skip
    outdir: str = opt(
        None, "Where to save the results", metavar="DIR", required=True, may_change=True, names=("--results-dir",)
    )
    resume: str | None = opt(
        None, "Continue from a run directory or a training state", metavar="DIR|FILE", may_change=True,
        names=("--ckpt",),
    )  # fmt: skip
    seed: int | None = opt(
        None, "Random seed; default: drawn and recorded", metavar="INT", at_least=0, names=("--global-seed",)
    )
    workers: int = opt(
        1, "Threads that read and decode images", metavar="INT", at_least=1, may_change=True, names=("--num-workers",)
    )
    image_size: int | None = opt(None, "Refuse data of another size", metavar="INT", at_least=1)
    num_classes: int | None = opt(None, "Refuse data of another number of classes", metavar="INT", at_least=0)

    batch: int = opt(
        256, "Total batch size over all processes", metavar="INT", at_least=1, names=("--global-batch-size",)
    )
    duration: float = opt(1792.0, "Training duration in million images", metavar="MIMG", above=0)
    lr: float = opt(1e-4, "Learning rate", metavar="FLOAT", above=0)
    lr_rampup: float = opt(0.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    # the published factor 0.9999 per step of 256 images, without ramp-up
    ema: float = opt(1.7744, "EMA half-life in million images", metavar="MIMG", at_least=0)
    ema_rampup: float | None = opt(
        0.0, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )

    @property
    def split(self) -> str | None:
        """Which elements have times of their own; None: one uniform time a sample."""
        return None

    def times(self, batch: Batch, interval: tuple[float, float]) -> Times:
        """Times of a batch."""
        return draw_times(batch.rng, batch.data.shape, None, interval)

    @property
    def compensation(self) -> str:
        return "off"

    def name_parts(self) -> list[str]:
        return [self.model.replace("/", "-"), self.path_type.lower(), self.prediction]


@dataclass(frozen=True, kw_only=True)
class SiTOptions(InterpolantOptions):
    """Options of `train.py sit`."""


@dataclass(frozen=True, kw_only=True)
class ComboStocOptions(InterpolantOptions):
    """Options of `train.py combostoc`."""

    group: ClassVar = OptionGroup("Times of elements", "Which elements of a sample have times of their own.", rank=3.5)

    model: str = opt(
        "ComboStoc-XL/2", "Family, size and patch side: SiT or ComboStoc, S, B, L or XL, /2, /4 or /8", metavar="NAME"
    )
    combostoc_type: str = opt(
        "UNSYNC_ALL", "Times of their own: none, per channel (VEC), per pixel (PATCH), per element (ALL)",
        choices=list(SPLITS),
    )  # fmt: skip
    compensate: str | None = opt(
        None, "Velocities that hurry elements which lag: as published for every path, on the path where they are "
        "exact, or off [default: linear-only]", choices=list(COMPENSATION),
    )  # fmt: skip
    halves: bool = opt(True, "Only every second sample has times of its own; else all", metavar="BOOL")
    blend: bool = opt(True, "Times between the common one and own ones; else own ones", metavar="BOOL")

    @property
    def split(self) -> str | None:
        return self.combostoc_type

    def times(self, batch: Batch, interval: tuple[float, float]) -> Times:
        return draw_times(batch.rng, batch.data.shape, self.split, interval, halves=self.halves, blend=self.blend)

    @property
    def compensation(self) -> str:
        if self.prediction != "velocity" and self.compensate is not None:
            raise ValueError(
                f"--compensate={self.compensate} changes velocities, and this network predicts {self.prediction}: "
                "leave it out"
            )
        return self.compensate or "linear-only"

    def name_parts(self) -> list[str]:
        return [*super().name_parts(), self.combostoc_type.lower()]


def build_network(options: InterpolantOptions, dataset: ImageDataset) -> nn.Module:
    """The transformer for a data set.

    Raises:
        ValueError: a name, size or data set that do not fit.
    """
    _check_data(options, dataset)
    given = {"width": options.width, "depth": options.depth, "num_heads": options.num_heads}
    config = transformer_config(
        options.model, dataset.resolution, dataset.num_channels, dataset.label_dim if options.cond else 0,
        path=PATH_TYPES[options.path_type], predicts=options.prediction, learn_sigma=options.learn_sigma,
        label_dropout=_label_dropout(options), compensated=_compensates(options),
    )  # fmt: skip
    if options.split not in (None, "UNSYNC_NONE") and not config["element_times"]:
        raise ValueError(
            f"--combostoc-type={options.split} gives elements times of their own, and {options.model} is told one "
            "time a sample: use a ComboStoc model, or train.py sit"
        )
    return networks.build(**config | {name: value for name, value in given.items() if value is not None})


def _check_data(options: InterpolantOptions, dataset: ImageDataset) -> None:
    """Compare what the published command line says of its data with the data."""
    sizes = (dataset.resolution, *([8 * dataset.resolution] if dataset.num_channels == 4 else []))
    if options.image_size not in (None, *sizes):
        raise ValueError(
            f"--image-size={options.image_size}, and the data set holds {dataset.resolution}x{dataset.resolution}: "
            "leave it out, or convert the data by dataset_tool.py --resolution"
        )
    classes = dataset.label_dim if options.cond else 0
    if options.num_classes not in (None, classes):
        raise ValueError(
            f"--num-classes={options.num_classes}, and this run has {classes} classes: "
            + ("leave it out" if options.cond else "add --cond=1 for those of the data, or leave it out")
        )


def _compensates(options: InterpolantOptions) -> bool:
    """Whether some elements are told to hurry."""
    loss = InterpolantLoss(PATHS[PATH_TYPES[options.path_type]](), options.prediction, None, options.compensation)
    return options.split not in (None, "UNSYNC_NONE") and loss.compensates


def _label_dropout(options: InterpolantOptions) -> float:
    if not options.cond and options.label_dropout is not None:
        raise ValueError("--label-dropout hides labels, and this network has none: add --cond=1, or leave it out")
    default = 0.1 if options.cond else 0.0
    return default if options.label_dropout is None else options.label_dropout


def build(options: InterpolantOptions, dataset: ImageDataset, device: torch.device) -> Method:
    """The method: one transformer, one phase, its averages.

    Raises:
        ValueError: the options do not describe a network for this data set.
    """
    net = build_network(options, dataset)
    cost = common.training_cost(net)
    path = PATHS[net.path]()
    interval = time_interval(path, net.predicts, eps=options.train_eps, training=True)
    loss_fn = InterpolantLoss(path, net.predicts, options.loss_weight, options.compensation)
    net.model.checkpointing = options.checkpointing
    net.to(device).train().requires_grad_(True)
    net.compute_dtype = DTYPES[options.precision]
    if options.compile:
        net.compile()

    def loss(batch: Batch) -> LossOut:
        noise = batch.rng.randn_like(batch.data)
        t, asynchronous = options.times(batch, interval)
        data, labels, synchronous = batch.data, batch.labels if net.label_dim else None, 0
        order = torch.arange(len(data), device=data.device)
        if t.shape[2:] != (1, 1) and options.halves:  # rows of one time last: they cost less, see Transformer.forward
            order = torch.argsort(asynchronous, descending=True, stable=True)
            synchronous = sum(p % 2 == 0 for p in batch.rng.positions(len(data)))
            data, noise, t, asynchronous = (v[order] for v in (data, noise, t, asynchronous))
            labels = None if labels is None else labels[order]
        target = loss_fn.target(data, noise, t, asynchronous)
        with reordered(order):
            out = net(target.x_t, t, labels, synchronous=synchronous)
        per_sample = loss_fn(out, target, noise, t)
        return LossOut(per_sample, {"Loss/loss": per_sample})

    return Method(
        name="combostoc" if options.split else "sit",
        modules={"net": net},
        phases=(common.adam_phase(loss, options, whole_first_step=True),),
        averages=common.averages(options),
        save=common.save,
        preview=preview_of(dataset),
        flops_per_image=3 * cost.flops,
        summary=_summary(net, cost, options, dataset, interval),
    )


def _summary(
    net: nn.Module, cost: Any, options: InterpolantOptions, dataset: ImageDataset, interval: tuple[float, float]
) -> tuple[tuple[str, str], ...]:
    return (
        ("Network", f"{options.model} of {net.model.grid**2} tokens, {common.size(net)}"),
        ("Data", common.data(dataset, net)),
        ("Times", f"{options.split or 'one a sample'}, from {interval[0]:g} (noise) to {interval[1]:g} (data)"),
        ("FLOPs per image", f"{format_count(cost.flops)} forward, {format_count(3 * cost.flops)} per training step"),
        common.steps(options),
    )
