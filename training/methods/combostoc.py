"""ComboStoc and SiT: interpolant transformers, with a time for every element or one for the whole sample.

Xie et al. 2024 (arXiv 2405.13729) and Ma et al. 2024 (arXiv 2401.08740). The loss is in
`training/losses/interpolant.py`, the networks are in `networks/models/interpolant.py`. Both commands train the same
transformers of the same sizes; `sit` draws one uniform time a sample, whatever it is given to split. Of shapes
(`training/data/shapes.py`) they train set transformers: clean data are predicted, and all samples are asynchronous.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import networks
from networks.models.interpolant import part_config, transformer_config
from samplers.guidance import cfg
from samplers.path import PATHS, VP
from samplers.solvers.churn import edm_sampler
from samplers.solvers.interpolant import time_interval
from samplers.solvers.native import sample_native
from torch_utils.dropout import reordered
from torch_utils.options import refuse
from training.losses.interpolant import InterpolantLoss, split_shape
from training.method import Batch, LossOut, Method
from training.methods import common
from training.methods.combostoc_options import PATH_TYPES, ComboStocOptions, InterpolantOptions, SiTOptions
from training.performance import DTYPES
from training.pictures.preview import preview_of

__all__ = ["ComboStocOptions", "SiTOptions", "build"]

PICTURE_TIMES = 18  # of --sample-eps, as many as EDM's sampler has levels


def build_network(options: InterpolantOptions, dataset: Any) -> nn.Module:
    """The transformer for a data set.

    Raises:
        ValueError: a name, size or data set that do not fit.
    """
    _check_data(options, dataset)
    given = {"width": options.width, "depth": options.depth, "num_heads": options.num_heads}
    label_dim = dataset.label_dim if options.cond else 0
    common_part = {
        "path": PATH_TYPES[options.path_type], "predicts": options.predicts, "label_dropout": _label_dropout(options),
        "compensated": _compensates(options),
    }  # fmt: skip
    if options.of_parts:
        refuse(options, ("learn_sigma",), "belongs to published files of images")
        config = part_config(
            options.named, dataset.image_shape[0], dataset.layout, label_dim, element_times=options.split is not None,
            **common_part,
        )  # fmt: skip
    else:
        config = transformer_config(
            options.named, dataset.resolution, dataset.num_channels, label_dim, learn_sigma=options.learn_sigma,
            **common_part,
        )  # fmt: skip
    if options.split not in (None, "UNSYNC_NONE") and not config["element_times"]:
        raise ValueError(
            f"--combostoc-type={options.split} gives elements times of their own, and {options.named} is told one "
            "time a sample: use a ComboStoc model, or train.py sit"
        )
    if options.split is not None:
        split_shape(options.split, (1, *dataset.image_shape), dataset.layout.groups if options.of_parts else ())
    return networks.build(**config | {name: value for name, value in given.items() if value is not None})


def _check_data(options: InterpolantOptions, dataset: Any) -> None:
    """Compare what the published command line says of its data with the data."""
    if options.of_parts:
        refuse(options, ("image_size", "vae", "cfg_scale", "sample_eps"), f"is for images, {options.data} holds shapes")
    elif options.image_size is not None:
        size = dataset.resolution
        if options.image_size not in (size, *([] if dataset.latents is None else [dataset.latents.image])):
            raise ValueError(
                f"--image-size={options.image_size}, and the data set holds {size}x{size}: "
                "leave it out, or convert the data by dataset_tool.py --resolution"
            )
    classes = dataset.label_dim if options.cond else 0
    if options.num_classes not in (None, classes):
        raise ValueError(
            f"--num-classes={options.num_classes}, and this run has {classes} classes: "
            + ("leave it out" if options.cond else "add --cond=1 for those of the data, or leave it out")
        )
    if options.vae is not None:
        if dataset.latents is None:
            raise ValueError(
                f"--vae={options.vae} made latents, and {options.data} holds images: let dataset_tool.py --encode make "
                "latents of them, or leave it out"
            )
        found = re.search(r"ft-(ema|mse)", str(dataset.latents.network))
        if found is None or found[1] != options.vae:
            raise ValueError(
                f"--vae={options.vae} is sd-vae-ft-{options.vae}, and {options.data} names {dataset.latents.network} "
                "as what made its latents: leave it out, or encode the images anew"
            )


def _pictures(net: nn.Module, options: InterpolantOptions) -> dict[str, Callable[..., Tensor]]:
    """How the pictures of a run are sampled where the published options say so, for `preview_of`.

    Raises:
        ValueError: guidance of a network without an unconditional prediction, or times at which the flow has no bound.
    """
    scale, eps = options.cfg_scale, options.sample_eps
    guided = scale not in (None, 1)
    if guided and not net.label_dropout:
        raise ValueError(
            f"--cfg-scale={scale:g} guides away from what is made without labels, and this network learns "
            + ("no labels: add --cond=1" if not options.cond else "nothing without: let --label-dropout be above 0")
            + ", or leave it out"
        )
    path = PATHS[net.path]()
    if eps == 0 and (net.predicts != "velocity" or isinstance(path, VP)):
        raise ValueError(
            f"--sample-eps=0 ends where the flow of a network that predicts {net.predicts} on the path "
            f"{options.path_type} has no bound: leave it out, or make it larger"
        )

    def sample(net: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        channels = 3 if noise.shape[1] > 3 else None
        field = cfg(net, scale, channels=channels) if guided else net
        if eps is None:
            return edm_sampler(field, noise, labels)
        times = torch.linspace(*time_interval(path, net.predicts, eps=eps), PICTURE_TIMES, dtype=torch.float64)
        return sample_native(field, noise, times, solver="heun2", class_labels=labels)

    return {"sampler": sample} if guided or eps is not None else {}


def _compensates(options: InterpolantOptions) -> bool:
    """Whether velocity targets hurry elements that lag behind."""
    loss = InterpolantLoss(PATHS[PATH_TYPES[options.path_type]](), options.predicts, None, options.compensation)
    return options.split not in (None, "UNSYNC_NONE") and loss.compensates


def _label_dropout(options: InterpolantOptions) -> float:
    if not options.cond and options.label_dropout is not None:
        raise ValueError("--label-dropout hides labels, and this network has none: add --cond=1, or leave it out")
    default = 0.1 if options.cond else 0.0
    return default if options.label_dropout is None else options.label_dropout


def build(options: InterpolantOptions, dataset: Any, device: torch.device) -> Method:
    """The method: one transformer, one phase, its averages.

    Raises:
        ValueError: the options do not describe a network for this data set.
    """
    net = build_network(options, dataset)
    cost = common.training_cost(net)
    path = PATHS[net.path]()
    interval = time_interval(path, net.predicts, eps=options.train_eps, training=True)
    loss_fn = InterpolantLoss(path, net.predicts, options.loss_weight, options.compensation)
    loss_fn.check(interval)
    net.model.checkpointing = options.checkpointing
    net.to(device).train().requires_grad_(True)
    net.compute_dtype = DTYPES[options.precision]
    if options.compile:
        net.compile()
    groups = dataset.layout.groups if options.of_parts else ()

    def loss(batch: Batch) -> LossOut:
        noise = batch.rng.randn_like(batch.data)
        t, asynchronous = options.times(batch, interval, groups)
        data, labels, synchronous = batch.data, batch.labels if net.label_dim else None, 0
        order = torch.arange(len(data), device=data.device)
        if net.model.varies(t) and options.in_halves:  # rows of one time last: they cost less, see TokenTransformer
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
        preview=preview_of(dataset, **_pictures(net, options)),
        flops_per_image=3 * cost.flops,
        summary=_summary(net, cost, options, dataset, interval),
    )


def _summary(
    net: nn.Module, cost: Any, options: InterpolantOptions, dataset: Any, interval: tuple[float, float]
) -> tuple[tuple[str, str], ...]:
    tokens = f"{net.model.num_parts} parts" if options.of_parts else f"{net.model.grid**2} tokens"
    return (
        ("Network", f"{options.named} of {tokens}, {common.size(net)}"),
        ("Data", common.data(dataset, net)),
        ("Times", f"{options.split or 'one a sample'}, from {interval[0]:g} (noise) to {interval[1]:g} (data)"),
        common.flops(cost),
        common.steps(options),
    )
