"""Curvature: a velocity network and an encoder of the noise, trained together so that trajectories become straight.

Lee, Kim, Ye: Minimizing Trajectory Curvature of ODE-based Generative Models, ICML 2023, arXiv 2301.12003. The loss is
in `training/losses/flow.py`. The encoder is needed in training only; a snapshot keeps it, and the moments of the noise
it makes, from which sampling starts (`training/methods/prior.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import networks
from networks.published.flow_configs import PRESETS, read_config, to_kwargs
from samplers.path import PATHS
from torch_utils.layout import memory_format
from torch_utils.misc import format_count
from torch_utils.pickles.foreign import naming
from torch_utils.profile import forward_cost
from training.couplings import COUPLINGS
from training.data.batches import ImageDataset
from training.loop.ema import halflife_beta
from training.loop.step import lr_rampup
from training.losses.flow import flow_loss
from training.method import Average, Batch, LossOut, Method, Phase
from training.methods import common
from training.methods.curvature_options import CurvatureOptions
from training.performance import prepare
from training.pictures.velocity import Shown
from training.runs import phema


def warmup_lr(step: int, lr: float, warmup: int) -> float:
    """`lr * step / warmup` in the first `warmup` steps, then constant at the last of these values, as published."""
    return lr * min(step, max(warmup - 1, 1)) / warmup if warmup else lr


def ema_factor(step: int, decay: float, after: int) -> float:
    """Factor of the averages after 0-based `step`: they begin after step `after`, first as a copy."""
    return decay if step > after + 1 else 0.0


def optimizer_of(name: str, lr: float, **more: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """The published optimisers; note the different second beta."""
    if name == "adam":
        return functools.partial(torch.optim.Adam, lr=lr, betas=(0.9, 0.999), eps=1e-8, **more)
    return functools.partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.9999), eps=1e-8, weight_decay=0.1, **more)


def build(options: CurvatureOptions, dataset: ImageDataset, device: torch.device) -> Method:
    """The method: network and encoder in one phase, an average of each.

    Raises:
        ValueError: configurations that do not fit each other or the data set.
    """
    net, encoder = _networks(options, dataset)
    cost = _training_cost(net, encoder)
    modules = {"net": net} if encoder is None else {"encoder": encoder, "net": net}
    call = prepare(net, options, device)
    if encoder is not None:
        encoder.to(device, memory_format=memory_format(encoder, device)).train().requires_grad_(True)
    prior_std = 1.0 if net.prior_std is None else torch.tensor(net.prior_std, device=device)[:, None, None]

    def loss(batch: Batch) -> LossOut:
        out = flow_loss(
            call, encoder, batch.data, beta=options.weight_prior, rng=batch.rng, prior_std=prior_std,
            class_labels=batch.labels if net.label_dim else None, path=PATHS[net.path](),
            coupling=COUPLINGS[options.coupling],
        )  # fmt: skip
        terms = {"Loss/loss": out.total, "Loss/flow_matching": out.flow_matching}
        return LossOut(out.total, terms if encoder is None else {**terms, "Loss/kl": out.kl})

    phase = Phase(
        name="net",
        trains=tuple(modules),
        loss=loss,
        optimizer=optimizer_of(options.optimizer, options.lr, fused=True),
        lr=functools.partial(_lr, options=options),
    )
    beta = functools.partial(_ema, options=options)
    averages = {"ema": Average("net", beta)}
    if encoder is not None:
        averages["encoder"] = Average("encoder", beta)
    shown = Shown(dataset, options, device)
    return Method(
        name="curvature",
        modules=modules,
        phases=(phase,),
        averages={**averages, **phema.averages(options.phema, "net")},
        save=functools.partial(_save, shown=shown),
        export=shown.with_prior,
        preview=shown.preview,
        figures=shown.figures,
        flops_per_image=3 * cost.flops,
        summary=_summary(net, encoder, cost, options, dataset),
    )


def _lr(nimg: int, *, options: CurvatureOptions) -> float:
    if options.lr_rampup is not None:
        return lr_rampup(nimg, options.lr, options.lr_rampup * 1e6)
    return warmup_lr(nimg // options.batch, options.lr, options.warmup_steps)


def _ema(nimg: int, batch: int, *, options: CurvatureOptions) -> float:
    if options.ema is not None:
        return halflife_beta(nimg, batch, options.ema * 1e6, options.ema_rampup or None)
    return ema_factor(nimg // batch, options.ema_decay, options.ema_after_steps)


# --- networks ---------------------------------------------------------------------------------------------------------


def _networks(options: CurvatureOptions, dataset: ImageDataset) -> tuple[nn.Module, nn.Module | None]:
    """Velocity network and encoder; the encoder is drawn first, as it comes first in the optimiser."""
    encoder = None
    kwargs = _kwargs(options, dataset, "de")
    if not options.independent:
        of_encoder = _kwargs(options, dataset, "en")
        sizes = [(k["img_resolution"], k["img_channels"]) for k in (of_encoder, kwargs)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                "the encoder is for images of {0[0]} pixels and {0[1]} channels, the velocity network for {1[0]} and "
                "{1[1]}: noise has the shape of the data, give two configurations of one size".format(*sizes)
            )
        encoder = networks.build(**of_encoder)
    if (kwargs["img_resolution"], kwargs["img_channels"]) != (dataset.resolution, dataset.num_channels):
        raise ValueError(
            f"the networks are for images of {kwargs['img_resolution']} pixels and {kwargs['img_channels']} channels, "
            f"{options.data} has {dataset.resolution} and {dataset.num_channels}: choose another preset or data set"
        )
    path = "vp" if options.ddpm else "trig" if options.trig else "linear"
    more: dict[str, Any] = {"gaussian_noise": encoder is None and options.coupling == "independent", "path": path}
    if options.prior_std is not None:
        more["prior_std"] = list(options.prior_std)
    if options.cond:
        more["label_dim"] = dataset.label_dim
    return networks.build(**{**kwargs, **more}), encoder


def _kwargs(options: CurvatureOptions, dataset: ImageDataset, role: str) -> dict[str, Any]:
    """Arguments of `networks.build` for the role "de" or "en"."""
    path = options.config_en if role == "en" else options.config_de
    if path is not None:
        config = read_config(path)
        with naming(path):
            return to_kwargs(config, role == "en")
    name = options.preset or options.dataset
    if name is None:
        shape = (dataset.resolution, dataset.num_channels)
        fits = [n for n, p in PRESETS.items() if (p["de"]["img_resolution"], p["de"]["in_channels"]) == shape]
        if not fits:
            raise ValueError(
                f"no published network is for {shape[1]} channels of {shape[0]} pixels ({', '.join(PRESETS)}): give "
                "--config-de" + ("" if options.independent else " and --config-en")
            )
        name = fits[0]
    return to_kwargs(PRESETS[name][role], role == "en")


def _training_cost(net: nn.Module, encoder: nn.Module | None):  # noqa: ANN202
    def call(twins: nn.ModuleList) -> Tensor:
        x = common.example(net)
        out = twins[0](x, torch.ones(1, device="meta"))
        return out if encoder is None else out + twins[1](x, x).z

    return forward_cost(nn.ModuleList([net] if encoder is None else [net, encoder]), call)


def _summary(
    net: nn.Module, encoder: nn.Module | None, cost: Any, options: CurvatureOptions, dataset: ImageDataset
) -> tuple[tuple[str, str], ...]:
    learned = "" if encoder is None else f"encoder of {common.size(encoder)}, beta {options.weight_prior:g}"
    return (
        common.network(net),
        ("Coupling", learned or options.coupling),
        ("Data", f"{len(dataset)} samples {list(dataset.image_shape)}"),
        ("FLOPs per image", f"{format_count(3 * cost.flops)} per training step"),
        common.steps(options),
    )


def _save(path: Path, averaged: Mapping[str, nn.Module], info: Mapping[str, Any], *, shown: Shown) -> None:
    """The averaged network as the main one, with its start distribution; the averaged encoder beside it."""
    if "encoder" not in averaged:
        common.save(path, averaged, info)
        return
    encoder = averaged["encoder"]
    facts = {**info, "encoder_config": encoder.config, "beta": shown.options.weight_prior}
    networks.save_network(path, shown.with_prior(averaged), facts, extra={"encoder": encoder.state_dict()})
