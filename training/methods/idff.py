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
from torch_utils.options import refuse
from training.couplings import Coupling
from training.data.batches import ImageDataset
from training.data.series import SeriesDataset
from training.losses.idff import Bridge, FusionLoss, State, order1_target
from training.method import Batch, LossOut, Method
from training.methods import common
from training.methods.idff_options import OF_UNETS, SCORE_TARGETS, IDFFOptions
from training.methods.series import blurred, context_trunk, padding, previous_pairs, refuse_labels_alone
from training.performance import prepare
from training.pictures.preview import preview_of

_OPTIMIZERS = {"adamw": functools.partial(torch.optim.AdamW, weight_decay=0.01), "adam": torch.optim.Adam}
_PUBLISHED_SIGMA = 0.2  # in the log density that stood in for a score


def build_network(options: IDFFOptions, dataset: ImageDataset) -> nn.Module:
    """The network for a data set.

    Raises:
        ValueError: sizes that do not fit the data.
    """
    series, label_dim = isinstance(dataset, SeriesDataset), dataset.label_dim if options.cond else 0
    trunk, pad = _trunk(options, dataset)
    if series:
        label_dim = dataset.period if options.memorise else dataset.label_dim
        if options.memorise:
            refuse_labels_alone(dataset)
        else:
            trunk = context_trunk(dataset, trunk, pad)
    return networks.build(
        "FusionNetwork", img_resolution=dataset.resolution, img_channels=dataset.num_channels,
        label_dim=label_dim, bridge_type=options.bridge, sigma=options.sigma, heads=options.heads,
        score_target="none" if options.heads == 1 else SCORE_TARGETS[options.score_target],
        gaussian_noise=options.coupling == "independent",
        begins="frame" if options.coupling == "previous" else "noise", residual=options.residual, **trunk,
    )  # fmt: skip


def _trunk(options: IDFFOptions, dataset: Any) -> tuple[dict[str, Any], int]:
    """The trunk for a data set, and the pixels that it needs more than there are."""
    if dataset.resolution == 1:
        refuse(options, OF_UNETS, f"belongs to U-Nets, and {options.data} holds no maps")
        return {"model_type": "SELUMLP", "width": options.cbase}, 0
    given = options.unet_values()
    pad = 0 if options.memorise else padding(dataset, len(given["cres"]))
    size = dataset.resolution + pad
    missing = [r for r in given["attn_resolutions"] if r < 1 or size % r]
    if missing:
        raise ValueError(
            f"--attn-resolutions={missing[0]} is no resolution of images of {size} pixels: give {size} divided by "
            "powers of 2"
        )
    return {
        "model_type": "ADMUNet", "model_channels": options.cbase, "channel_mult": list(given["cres"]),
        "num_res_blocks": given["num_blocks"], "num_head_channels": given["head_channels"],
        "attention_resolutions": [size // r for r in given["attn_resolutions"]], "dropout": given["dropout"],
        "use_scale_shift_norm": False,
    }, pad  # fmt: skip


def _loss_of(options: IDFFOptions, target: str, dataset: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`(heads, data, noise, eps, t, state)` -> the weighted errors of both heads per sample, `[B]` each.

    Args:
        target: of the network's second head.
    """
    by_lambda = target in ("eps", "noise")
    turns = isinstance(dataset, SeriesDataset) and dataset.scaling.kind == "turns"
    loss = FusionLoss(
        options.sigma, options.flow_weight, time_weight=options.time_weight, bridge=options.bridge,
        score_target=target if by_lambda else "none", **({"angles": "wrapped", "period": 2.0} if turns else {}),
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
    bridge = Bridge(options.bridge, options.sigma)
    coupling = Coupling(
        options.coupling, options.ot_method or "exact", options.ot_reg or 0.05, options.ot_reg_m or 1.0,
        options.ot_replacement,
    )  # fmt: skip
    errors = _loss_of(options, net.score_target, dataset)
    pairs = functools.partial(_noise_pairs, coupling, bool(net.label_dim))
    if options.coupling == "previous":
        pairs = previous_pairs(dataset, options.memorise)
    told = blurred(dataset, options, begins_at_frame=options.coupling == "previous")
    prepare(net, options, device)
    heads = torch.compile(net.heads) if options.compile else net.heads

    def loss(batch: Batch) -> LossOut:
        data, noise, labels = pairs(batch._replace(labels=told(batch)))
        t, eps = batch.rng.rand([len(data)]), batch.rng.randn_like(data)
        state = bridge.state(data, noise, eps, t)
        flow, score = errors(heads(state.x, t, labels), data, noise, eps, t, state)
        total = flow if score is None else flow + score
        terms = {"Loss/loss": total, "Loss/flow": flow}
        return LossOut(total, terms if score is None else {**terms, "Loss/score": score})

    return Method(
        name="idff",
        modules={"net": net},
        phases=(common.adam_phase(loss, options, kind=_OPTIMIZERS[options.optimizer], whole_first_step=True),),
        averages=common.averages(options),
        save=common.save,
        preview=preview_of(dataset),
        flops_per_image=3 * cost.flops,
        summary=(
            common.network(net),
            ("Data", common.data(dataset, net)),
            ("Path", f"bridge {options.bridge} of sigma {options.sigma:g}, {_coupling_of(coupling)}"),
            common.flops(cost),
            common.steps(options),
        ),
    )


def _noise_pairs(coupling: Coupling, labelled: bool, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    noise = batch.rng.randn_like(batch.data)
    return coupling(batch.data, noise, batch.labels if labelled else None, batch.rng)


def _coupling_of(coupling: Coupling) -> str:
    if coupling.kind != "ot":
        return f"coupling {coupling.kind}"
    return f"coupling ot by the {coupling.method} plan" + ", with replacement" * coupling.replacement
