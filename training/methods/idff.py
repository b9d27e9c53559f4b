"""IDFF: clean data and a score from one network, on a Brownian bridge between data and coupled noise.

Implicit Dynamical Flow Fusion, arXiv 2409.14599. The loss is in `training/losses/idff.py`, couplings are in
`training/couplings.py`, what samplers make of both heads is in `samplers/fusion.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import networks
from torch_utils.misc import format_count
from training.couplings import Coupling
from training.data.batches import ImageDataset
from training.data.toys import is_toy
from training.learning_rate import lr_rampup
from training.losses.idff import Bridge, FusionLoss, State, order1_target
from training.method import Batch, LossOut, Method, Phase
from training.methods import common
from training.methods.idff_options import SCORE_TARGETS, IDFFOptions
from training.performance import prepare
from training.pictures.preview import preview_of

__all__ = ["IDFFOptions", "build"]

_OPTIMIZERS = {"adamw": functools.partial(torch.optim.AdamW, weight_decay=0.01), "adam": torch.optim.Adam}
_PUBLISHED_SIGMA = 0.2  # in the log density that stood in for a score


def build_network(options: IDFFOptions, dataset: ImageDataset) -> nn.Module:
    """The network for a data set.

    Raises:
        ValueError: sizes that do not fit the data.
    """
    if is_toy(options.data):
        trunk: dict[str, Any] = {"model_type": "SELUMLP", "width": options.cbase}
    else:
        size = dataset.resolution
        missing = [r for r in options.attn_resolutions if r < 1 or size % r]
        if missing:
            raise ValueError(
                f"--attn-resolutions={missing[0]} is no resolution of images of {size} pixels: give {size} divided by "
                "powers of 2"
            )
        trunk = {
            "model_type": "ADMUNet", "model_channels": options.cbase, "channel_mult": list(options.cres),
            "num_res_blocks": options.num_blocks, "num_head_channels": options.head_channels,
            "attention_resolutions": [size // r for r in options.attn_resolutions], "dropout": options.dropout,
            "use_scale_shift_norm": False,
        }  # fmt: skip
    return networks.build(
        "FusionNetwork", img_resolution=dataset.resolution, img_channels=dataset.num_channels,
        label_dim=dataset.label_dim if options.cond else 0, sigma=options.sigma, heads=options.heads,
        score_target="none" if options.heads == 1 else SCORE_TARGETS[options.score_target],
        gaussian_noise=options.coupling == "independent", **trunk,
    )  # fmt: skip


def _loss_of(options: IDFFOptions, target: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`(heads, data, noise, eps, t, state)` -> the weighted errors of both heads per sample, `[B]` each.

    Args:
        target: of the network's second head.
    """
    by_lambda = target in ("eps", "noise")
    loss = FusionLoss(
        options.sigma, options.flow_weight, time_weight=options.time_weight,
        score_target=target if by_lambda else "none",
    )  # fmt: skip

    def errors(
        heads: tuple[Tensor, Tensor | None], data: Tensor, noise: Tensor, eps: Tensor, t: Tensor, state: State
    ) -> tuple[Tensor, Tensor | None]:
        estimate, second = heads
        flow = loss.flow_weight * loss.flow(estimate, data, t)
        if second is None:
            return flow, None
        if by_lambda:
            return flow, loss.score(second, noise, eps, t)
        published = target == "log_density"
        wanted = order1_target(state, t, _PUBLISHED_SIGMA if published else options.sigma, published)
        return flow, (second - wanted).square().flatten(1).mean(1)

    return errors


def build(options: IDFFOptions, dataset: ImageDataset, device: torch.device) -> Method:
    """The method: one network, one phase, its averages.

    Raises:
        ValueError: the options do not describe a network for this data set.
    """
    net = build_network(options, dataset)
    cost = common.training_cost(net)
    bridge = Bridge("idff", options.sigma)
    coupling = Coupling(
        options.coupling, options.ot_method or "exact", options.ot_reg or 0.05, options.ot_reg_m or 1.0,
        options.ot_replacement,
    )  # fmt: skip
    errors = _loss_of(options, net.score_target)
    prepare(net, options, device)
    heads = torch.compile(net.heads) if options.compile else net.heads

    def loss(batch: Batch) -> LossOut:
        noise = batch.rng.randn_like(batch.data)
        labels = batch.labels if net.label_dim else None
        data, noise, labels = coupling(batch.data, noise, labels, batch.rng)
        t, eps = batch.rng.rand([len(data)]), batch.rng.randn_like(data)
        state = bridge.state(data, noise, eps, t)
        flow, score = errors(heads(state.x, t, labels), data, noise, eps, t, state)
        total = flow if score is None else flow + score
        terms = {"Loss/loss": total, "Loss/flow": flow}
        return LossOut(total, terms if score is None else {**terms, "Loss/score": score})

    phase = Phase(
        name="net",
        trains=("net",),
        loss=loss,
        optimizer=functools.partial(_OPTIMIZERS[options.optimizer], lr=options.lr, eps=1e-8, fused=True),
        lr=functools.partial(_lr, options=options),
    )
    return Method(
        name="idff",
        modules={"net": net},
        phases=(phase,),
        averages=common.averages(options),
        save=common.save,
        preview=preview_of(dataset),
        flops_per_image=3 * cost.flops,
        summary=(
            ("Network", f"{type(net).__name__} ({type(net.model).__name__}), {common.size(net)}"),
            ("Data", common.data(dataset, net)),
            ("Path", f"Brownian bridge of sigma {options.sigma:g}, {_coupling_of(coupling)}"),
            (
                "FLOPs per image",
                f"{format_count(cost.flops)} forward, {format_count(3 * cost.flops)} per training step",
            ),
            common.steps(options),
        ),
    )


def _lr(nimg: int, *, options: IDFFOptions) -> float:
    rampup = options.lr_rampup * 1e6
    return lr_rampup(nimg, options.lr, rampup) if rampup else options.lr


def _coupling_of(coupling: Coupling) -> str:
    if coupling.kind != "ot":
        return f"coupling {coupling.kind}"
    return f"coupling ot by the {coupling.method} plan" + ", with replacement" * coupling.replacement
