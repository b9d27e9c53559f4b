"""Adversarial optimisation of the inference trajectory: MAC's second stage (`train_trajectory.py`).

A few-step sampler of a denoiser V along the levels that a coefficient network C chooses is trained as one generator
against a discriminator D. Each step of training has three phases:

    V    one denoising step of noised real images, judged by D: no sampler is run
    C    the whole sampler from noise, judged by D; gradients reach C through every step of the solver
    D    hinge loss on real images and finished samples

Lee et al. 2024/2025, arXiv 2404.14161. D looks through frozen pretrained features (`networks.adversary.discriminator`).
What it sees of latents: `training/methods/trajectory_judge.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import networks
from networks.models.coefficient_families import FAMILY_OF_PATH, interpolant_schedule
from networks.models.latent_model import LatentModel
from networks.models.mac import MACNetwork
from networks.models.noise_precond import OnLevels
from samplers.field import Facts, Field
from samplers.schedules.edm import general_levels
from samplers.solvers.elementwise import coefficient_cost, sample_mac
from torch_utils import distributed as dist
from torch_utils.layout import memory_format
from torch_utils.misc import format_count
from torch_utils.rng import TorchRNG
from training.data.batches import ImageDataset
from training.latents import check_same_latents
from training.losses.adversarial import fake_loss, generator_loss, real_loss
from training.method import Batch, LossOut, Method
from training.methods import common
from training.methods.trajectory_judge import judge_of
from training.methods.trajectory_options import TrajectoryOptions
from training.performance import DTYPES
from training.pictures import trajectory as trajectory_pictures

ALL_NOISE = 1e9  # the level that stands for infinity, where a path ends in pure noise


def generate(
    net: MACNetwork,
    noise: Tensor,
    labels: Tensor | None,
    checkpointing: bool = False,
    rng: TorchRNG | None = None,
    **churn: float,
) -> Tensor:
    """The sampler that is trained: Euler along the levels of `net`, the last step to 0; `[B, C, H, W]` in float32."""
    field = Field(net)
    if checkpointing and torch.is_grad_enabled():  # V is in eval mode: no dropout, so no random state to restore
        again = functools.partial(checkpoint, net, use_reentrant=False, preserve_rng_state=False)
        field = replace(field, net=again)
    return sample_mac(field, noise, [*net.schedule, 0.0], solver="euler", class_labels=labels, rng=rng, **churn)


def draw_levels(
    rng: TorchRNG, batch: int, schedule: Tensor, p_mean: float = -1.2, p_std: float = 1.2, how: str = "nearest"
) -> Tensor:
    """Nominal levels for the V phase, `[batch]` of the values in `schedule [N]`.

    how: of a log-normal draw the "nearest" level by absolute difference, or by "log"; or "uniform" over levels.
    """
    if how == "uniform":
        return schedule[rng.randint(len(schedule), [batch])]
    t = torch.exp(p_mean + p_std * rng.randn([batch])).to(schedule.dtype)
    gap = (t[:, None] - schedule).abs() if how == "nearest" else (t[:, None] / schedule).log().abs()
    return schedule[gap.argmin(1)]


@torch.no_grad()
def noised_levels(net: MACNetwork, t: Tensor, like: Tensor, labels: Tensor | None, rng: TorchRNG) -> Tensor:
    """Element-wise levels `[B, C, H, W]` at nominal levels `t [B]`, for fresh noise: not that of the images."""
    return net.family.gamma(t, net.coefficients(rng.randn_like(like), labels)).to(like.dtype)


def single_step(
    net: MACNetwork, data: Tensor, noise: Tensor, labels: Tensor | None, t: Tensor, gamma: Tensor
) -> Tensor:
    """V's estimate of `data` from `data + gamma * noise`; V is told gamma, or its mean over each image."""
    if net.path != "ve":
        field = Field(net, class_labels=labels)
        time = field.path.time_of(gamma.clamp(max=ALL_NOISE))
        return field.data(field.path.mix(data, noise, time), time)
    x = data + gamma * noise
    extra = {}
    if (augment := getattr(getattr(net.V, "model", None), "map_augment", None)) is not None:
        # The same as no augmentation labels, but every parameter has a gradient: processes wait for each other's.
        extra["augment_labels"] = x.new_zeros(len(x), augment.weight.shape[1])
    if net.takes_gamma:
        return net(x, t, labels, gamma=gamma, **extra)
    return net(x, gamma, labels, **extra)


@dataclass(frozen=True, eq=False)
class _Losses:
    """The three phases as functions of a batch."""

    net: MACNetwork
    disc: Callable[..., list[Tensor]]
    options: TrajectoryOptions
    schedule: Tensor

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels if self.net.label_dim else None

    def _samples(self, noise: Tensor, labels: Tensor | None, rng: TorchRNG) -> Tensor:
        o = self.options
        s_max = math.inf if o.s_max is None else o.s_max
        churn = {"S_churn": o.s_churn, "S_min": o.s_min, "S_max": s_max, "S_noise": o.s_noise}
        return generate(self.net, noise, labels, o.checkpointing, rng, **churn)

    def denoiser(self, batch: Batch) -> LossOut:
        o, labels = self.options, self._labels(batch.labels)
        noise = batch.rng.randn_like(batch.data)
        t = draw_levels(batch.rng, len(noise), self.schedule, o.p_mean, o.p_std, o.level_draw)
        gamma = noised_levels(self.net, t, batch.data, labels, batch.rng)
        loss = generator_loss(self.disc(single_step(self.net, batch.data, noise, labels, t, gamma), labels, batch.rng))
        return LossOut(loss, {"Loss/V": loss})

    def coefficients(self, batch: Batch) -> LossOut:
        labels = self._labels(batch.labels)
        fakes = self._samples(batch.rng.randn_like(batch.data), labels, batch.rng)
        loss = generator_loss(self.disc(fakes, labels, batch.rng))
        return LossOut(loss, {"Loss/C": loss})

    def discriminator(self, batch: Batch) -> LossOut:
        labels = self._labels(batch.labels)
        # Fakes have the classes of other images of the batch: drawn like the data's, but not paired with it.
        others = None if labels is None else labels.roll(1, 0)
        with torch.no_grad():
            fakes = self._samples(batch.rng.randn_like(batch.data), others, batch.rng)
        fake = fake_loss(self.disc(fakes, others, batch.rng))
        real = real_loss(self.disc(batch.data, labels, batch.rng))
        loss = fake + real
        return LossOut(loss, {"Loss/D_fake": fake, "Loss/D_real": real, "Loss/loss": loss})


def build(options: TrajectoryOptions, dataset: ImageDataset, device: torch.device) -> Method:
    """The method: V, C and D in up to three phases, one average of V and C.

    Raises:
        ValueError: a network, data set and options that do not go together; missing weights of a backbone.
    """
    if not (options.train_v or options.train_c):
        raise ValueError("--train-v=0 and --train-c=0 leave nothing to train but the discriminator: leave one on")
    _check_batches(options)
    v = networks.load_network(options.network)
    check_same_latents("--network", options.network, v, dataset)
    v = v.network if isinstance(v, LatentModel) else v  # an autoencoder is not trained
    _check_network(v, options, dataset)
    net = networks.build("MACNetwork", **_network_config(v, options))
    net.V.load_state_dict(v.state_dict())
    costs = coefficient_cost(net)
    net.to(device, memory_format=memory_format(net, device)).requires_grad_(False)
    net.compute_dtype = DTYPES[options.precision]
    net.V.eval()
    net.C.train()
    disc, judge = judge_of(options, dataset, device)
    losses = _Losses(net, judge, options, torch.tensor(net.schedule, dtype=torch.float64, device=device))
    # beside its trunk, a network on a table of levels may have a classifier or an autoencoder, which stay as they are
    trunk = "net.V.model" if isinstance(v, OnLevels) else "net.V"
    phase = functools.partial(common.adam_phase, options=options, betas=(0.0, 0.99), whole_first_step=True)
    phases = [
        phase(losses.denoiser, name="V", trains=trunk, lr=options.lr, batch_size=options.batch_edm),
        phase(losses.coefficients, name="C", trains="net.C", lr=options.glr),
        phase(losses.discriminator, name="D", trains="D", lr=options.dlr, batch_size=options.batch_disc),
    ]
    wanted = {"V": options.train_v, "C": options.train_c, "D": True}
    return Method(
        name="trajectory",
        modules={"net": net, "D": disc.discriminators, "features": disc.feature_networks},
        phases=tuple(p for p in phases if wanted[p.name]),
        averages=common.averages(options),
        save=common.save,
        preview=functools.partial(trajectory_pictures.draw, dataset),
        summary=_summary(net, disc, costs, options, dataset),
    )


def _check_batches(options: TrajectoryOptions) -> None:
    world = dist.get_world_size()
    phases = {"--batch": options.batch, "--batch-edm": options.batch_edm, "--batch-disc": options.batch_disc}
    for option, size in phases.items():
        rows = size // world // options.rounds(world, size, option)
        if rows < 2:
            raise ValueError(
                f"{option}={size} leaves {rows} image a pass, and the heads of the discriminator normalise over the "
                "images they see together: give every process and pass 2 or more (--batch-gpu limits a pass)"
            )


def _check_network(v: nn.Module, options: TrajectoryOptions, dataset: ImageDataset) -> None:
    what = f"--network={options.network}"
    if isinstance(v, MACNetwork):
        raise ValueError(
            f"{what} is a snapshot of this very method: continue it with --resume, or start from the denoiser that "
            "train.py made"
        )
    missing = [
        n for n in ("sigma_min", "sigma_max", "img_resolution", "img_channels", "label_dim") if not hasattr(v, n)
    ]
    if missing:
        raise ValueError(
            f"{what} holds a {type(v).__name__}, which is no denoiser with a range of noise levels (sigma_min, "
            "sigma_max): give one that train.py made, or an EDM pickle"
        )
    if getattr(v, "prior", None) is not None or getattr(v, "prior_std", None) is not None:
        raise ValueError(
            f"{what} does not start from unit noise: give a network trained without a learned coupling "
            "(train.py curvature --independent)"
        )
    if Facts.of(v).conditioning == "text":
        raise ValueError(f"{what} makes images of texts, and data sets have none: give a network of classes or none")
    image = (v.img_channels, v.img_resolution, v.img_resolution)
    if image != tuple(dataset.image_shape):
        raise ValueError(
            f"{what} makes images of shape {list(image)}, {options.data} holds {list(dataset.image_shape)}: give the "
            "data that the network was trained on"
        )
    if options.cond and not v.label_dim:
        raise ValueError(f"--cond=1, but {what} is unconditional: leave --cond=0, or give a conditional network")
    if v.label_dim and not options.cond:
        raise ValueError(f"{what} has {v.label_dim} classes: give --cond=1 and the data it was trained on")
    if options.cond and v.label_dim != dataset.label_dim:
        raise ValueError(f"{what} has {v.label_dim} classes, {options.data} has {dataset.label_dim}")
    kind = getattr(v, "conditioning", "classes")
    if options.cond and kind != dataset.label_kind:
        raise ValueError(f"{what} was trained on {kind} labels, {options.data} has {dataset.label_kind} labels")
    takes = getattr(v, "takes_gamma", False)
    if options.coefficient_conditioning not in (None, takes):
        made_for = "is told the level of every element" if takes else "is told one level per image"
        raise ValueError(
            f"--coefficient-conditioning={int(options.coefficient_conditioning)}, but {what} {made_for}: leave the "
            "option out"
        )


def _network_config(v: nn.Module, options: TrajectoryOptions) -> dict[str, Any]:
    """Arguments of the MACNetwork."""
    given = options.coefficient_settings()
    family = options.family or FAMILY_OF_PATH.get(v.path, "edm")
    if family != "edm" and v.predicts in ("noise", "score"):
        raise ValueError(
            f"--network={options.network} predicts {v.predicts}, which says nothing of the data in pure noise, where "
            f"the family {family} begins: give --family=edm, which begins at sigma 80, or a network that predicts "
            "velocity"
        )
    if family == "edm":
        rho, schedule = given["rho"], general_levels(v, options.num_steps, rho=given["rho"])[:-1].tolist()
    else:
        rho = 1.0 if options.rho is None else options.rho
        schedule = interpolant_schedule(options.num_steps, rho)
    return {
        "network": v.config, "coefficients": _coefficients(v, given, options), "schedule": schedule,
        "M": given["basis_num"], "rho": rho, "k": options.k, "family": family,
    }  # fmt: skip


def _coefficients(v: nn.Module, given: Mapping[str, Any], options: TrajectoryOptions) -> dict[str, Any]:
    """Arguments of the coefficient network."""
    common = {n: given[n] for n in ("scale", "multidimensionality")} | {
        "x_0_conditioning": options.x_0_conditioning,
        "model_channels": options.coef_channels,
        "num_blocks": options.coef_blocks,
    }
    if v.img_resolution == 1:
        return common
    return common | {
        "lpf": given["lpf"],
        "gauss_kernel_sigma": given["gauss_kernel_sigma"],
        "downsample": options.coef_downsample,
        "channel_mult": list(options.coef_mult),
    }


def _summary(
    net: MACNetwork, disc: nn.Module, costs: tuple[float, float], options: TrajectoryOptions, dataset: ImageDataset
) -> tuple[tuple[str, str], ...]:
    v, c = costs
    levels = ", ".join(f"{s:.4g}" for s in net.schedule)
    return (
        ("Network V", f"{type(net.V).__name__}, {common.size(net.V)}, {format_count(v)} FLOPs"),
        ("Network C", f"{common.size(net.C)}, {format_count(c)} FLOPs = {c / v:.2f} evaluations of V"),
        ("Network D", f"{common.size(disc.discriminators)} to train, {common.size(disc.feature_networks)} frozen"),
        ("Sampler", f"euler, levels {levels}, 0"),
        ("Cost of a sample", f"{len(net.schedule)} network evaluations + {c / v:.2f} for the coefficients"),
        ("Data", common.data(dataset, net)),
        common.steps(options),
    )
