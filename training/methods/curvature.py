"""Curvature: a velocity network and an encoder of the noise, trained together so that trajectories become straight.

Lee, Kim, Ye: Minimizing Trajectory Curvature of ODE-based Generative Models, ICML 2023, arXiv 2301.12003. The loss is
in `training/losses/flow.py`. The encoder is needed in training only; a snapshot keeps it, and the moments of the noise
it makes, from which sampling starts (`training/methods/prior.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import networks
from networks.published.flow_configs import PRESETS, read_config, to_kwargs
from samplers.analysis.straightness import trajectory_curvature
from samplers.path import PATHS
from samplers.solvers.native import sample_native, uniform_times
from torch_utils.images import enlarged, from_uint8, make_grid, save_image, to_uint8
from torch_utils.layout import memory_format
from torch_utils.misc import format_count
from torch_utils.pickles.foreign import naming
from torch_utils.profile import forward_cost
from torch_utils.report.scatter import is_points
from torch_utils.rng import PerSampleRNG
from training.couplings import COUPLINGS
from training.data.batches import ImageDataset
from training.learning_rate import lr_rampup
from training.loop.ema import halflife_beta
from training.losses.flow import flow_loss
from training.method import Average, Batch, LossOut, Method, Phase
from training.methods import common
from training.methods.curvature_options import CurvatureOptions
from training.methods.prior import measure_prior, with_prior
from training.performance import prepare
from training.pictures.plane import LINES, draw_planes, look
from training.pictures.preview import example_conditions
from training.runs import phema

__all__ = ["CurvatureOptions", "build", "ema_factor", "optimizer_of", "warmup_lr"]

PRIOR_SAMPLES = 8192  # data encoded to measure the start distribution, once a snapshot
PICTURES = 16  # samples in a preview
POINTS = 8192  # the same of points in the plane


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
    shown = _Shown(dataset, options, device)
    return Method(
        name="curvature",
        modules=modules,
        phases=(phase,),
        averages={**averages, **phema.averages(options.phema, "net")},
        save=functools.partial(_save, shown=shown),
        export=shown.with_prior,
        preview=shown.preview if dataset.num_channels in (1, 3) or is_points(dataset.image_shape) else None,
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
        ("Network", f"{type(net).__name__} ({type(net.model).__name__}), {common.size(net)}"),
        ("Coupling", learned or options.coupling),
        ("Data", f"{len(dataset)} samples {list(dataset.image_shape)}"),
        ("FLOPs per image", f"{format_count(3 * cost.flops)} per training step"),
        common.steps(options),
    )


# --- what a tick and a snapshot show ----------------------------------------------------------------------------------


class _Shown:
    """Curvature figures, pictures and the measured start distribution: fixed data, fixed seeds, averaged networks."""

    def __init__(self, dataset: ImageDataset, options: CurvatureOptions, device: torch.device) -> None:
        self.dataset, self.options, self.device = dataset, options, device

    def data(self, count: int, batch: int = 256) -> Iterator[Tensor]:
        """`count` samples at equal distances through the data set, in batches on the device."""
        count = min(count, len(self.dataset))
        chosen = [i * len(self.dataset) // count for i in range(count)]
        for start in range(0, count, batch):
            items = [torch.as_tensor(self.dataset[i][0]) for i in chosen[start : start + batch]]
            x = torch.stack(items).to(self.device)
            yield from_uint8(x) if x.dtype == torch.uint8 else x

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """Unit noise, the same on every device."""
        shape = [count, *self.dataset.image_shape]
        return PerSampleRNG(range(seed, seed + count), "cpu").randn(shape).to(self.device)

    @torch.inference_mode()
    def figures(self, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """Curvature of Euler trajectories from the prior, and from encoded data."""
        net, count = averaged["ema"], min(self.options.num_samples, len(self.dataset))
        found = {"Curvature/uncond": self._curvature(net, net.start_noise(self.noise(count), "standard"))}
        if "encoder" in averaged:
            x = torch.cat(list(self.data(count)))
            found["Curvature/reverse"] = self._curvature(net, averaged["encoder"](x, self.noise(count, seed=count)).z)
        return found

    def _curvature(self, net: nn.Module, start: Tensor) -> float:
        times = uniform_times(self.options.N)
        states: list[Tensor] = []
        end = self._sample(net, start, times, trace=lambda step: states.append(step.x))
        return float(trajectory_curvature([*states, end], times))

    def _sample(self, net: nn.Module, start: Tensor, times: Tensor, **more: Any) -> Tensor:
        return sample_native(net, start, times, class_labels=self._labels(net, len(start)), **more)

    def _labels(self, net: nn.Module, count: int) -> Tensor | None:
        """The conditions in turn."""
        return example_conditions(net, count)

    def with_prior(self, averaged: Mapping[str, nn.Module]) -> nn.Module:
        """The averaged network with the moments of the noise that the averaged encoder makes."""
        net = averaged["ema"]
        if "encoder" not in averaged:
            return net
        rank = min(self.options.prior_rank, net.img_channels * net.img_resolution**2)
        return with_prior(net, measure_prior(averaged["encoder"], self.data(PRIOR_SAMPLES), rank))

    def _pairs(self, averaged: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
        """Data and the noise that training pairs it with, whole batches of at least LINES in all."""
        batch = self.options.batch
        x = torch.cat(list(self.data(batch * math.ceil(LINES / batch))))
        eps = self.noise(len(x), seed=POINTS)
        if "encoder" in averaged:
            return x, averaged["encoder"](x, eps).z
        z, couple = averaged["ema"].start_noise(eps, "standard"), COUPLINGS[self.options.coupling]
        return x, torch.cat([couple(*ends) for ends in zip(x.split(batch), z.split(batch), strict=True)])

    @torch.inference_mode()
    def preview(self, path: Path, averaged: Mapping[str, nn.Module]) -> None:
        """Samples by 4 Euler steps above the same samples by N, in rows of eight; of points, lines and densities."""
        net = self.with_prior(averaged)
        if is_points(self.dataset.image_shape):
            name, points = f"{self.options.N} Euler steps", torch.cat(list(self.data(POINTS)))
            plane = look(
                name, net, self._pairs(averaged), points, self.noise(POINTS), self.options.N, self._labels(net, POINTS)
            )
            draw_planes([plane], path)
            return
        start = net.start_noise(self.noise(PICTURES))
        rows = [to_uint8(self._sample(net, start, uniform_times(n))).cpu().split(8) for n in (4, self.options.N)]
        grid = make_grid(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns=8)
        save_image(enlarged(grid), path)


def _save(path: Path, averaged: Mapping[str, nn.Module], info: Mapping[str, Any], *, shown: _Shown) -> None:
    """The averaged network as the main one, with its start distribution; the averaged encoder beside it."""
    if "encoder" not in averaged:
        common.save(path, averaged, info)
        return
    encoder = averaged["encoder"]
    facts = {**info, "encoder_config": encoder.config, "beta": shown.options.weight_prior}
    networks.save_network(path, shown.with_prior(averaged), facts, extra={"encoder": encoder.state_dict()})
