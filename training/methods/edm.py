"""EDM: denoisers trained with preconditioning and a log-normal noise distribution, and the VP and VE baselines.

Karras, Aittala, Aila, Laine: Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
arXiv 2206.00364 (table 1). Command line and defaults follow the published training code.

Points in the plane (`--data=toy:NAME`) keep their coordinates: sigma_data is their root mean square, the noise levels
of training are those of images in units of it, and the network is an MLP. So it is with a series, whose network sees
what came before; maps may have a U-Net.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import networks
from torch_utils.options import OptionGroup, opt
from training.augment import edm_preset
from training.data.batches import ImageDataset
from training.data.series import SeriesDataset, is_series
from training.data.toys import is_toy
from training.losses.denoising import EDMLoss, loss_for
from training.losses.elementwise import COEFFICIENT_SAMPLERS, CoefficientOptions, gamma_loss
from training.method import Batch, LossOut, Method
from training.methods import common
from training.methods.series import ContextOptions, blurred, context_trunk, padding
from training.options import CommonOptions
from training.performance import prepare
from training.pictures.preview import preview_of

# What `--arch` stands for: network arguments by published name; everything else keeps the class's defaults.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard",
        "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1],
        "model_channels": 128, "channel_mult": [2, 2, 2],
    },
    "ncsnpp": {
        "model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual",
        "decoder_type": "standard", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
        "model_channels": 128, "channel_mult": [2, 2, 2],
    },
    "adm": {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4]},
    "mlp": {"model_type": "FourierMLP"},
}  # fmt: skip

# edm_alpha and edm_gamma are MAC's names: plain EDM, and EDM with a noise level for every element
# (`training/losses/elementwise.py`).
PRECONDITIONERS = {
    "vp": ("VPPrecond", "VPLoss"), "ve": ("VEPrecond", "VELoss"), "edm": ("EDMPrecond", "EDMLoss"),
    "edm_alpha": ("EDMPrecond", "EDMLoss"), "edm_gamma": ("EDMGammaPrecond", "EDMGammaLoss"),
}  # fmt: skip

# The recipes of the published networks, but for --cond, --arch and --precond where several were trained with one
# recipe (Karras et al. 2022, appendix; the released code's documentation).
_FACES = {"batch": 256, "cres": (1, 2, 2, 2), "lr": 2e-4, "augment": 0.15}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"batch": 512, "lr": 1e-3, "duration": 200, "ema": 0.5, "dropout": 0.13, "augment": 0.12},
    "ffhq64": {**_FACES, "dropout": 0.05},
    "afhqv2-64": {**_FACES, "dropout": 0.25},
    "imagenet64": {
        "arch": "adm", "duration": 2500, "batch": 4096, "lr": 1e-4, "ema": 50, "dropout": 0.10, "augment": 0,
        "precision": "fp16", "ls": 100, "tick": 200,
    },
    # configuration A, which goes with --precond=vp or ve and four or five resolutions
    "original": {
        "batch": 128, "lr": 2e-4, "lr_rampup": 0.64, "grad_clip": 1.0, "ema": 0.9, "ema_rampup": 0.0, "dropout": 0.10,
        "augment": 0, "xflip": True,
    },
}  # fmt: skip

P_MEAN = EDMLoss.P_mean
EMA_RAMPUP = 0.05


@dataclass(frozen=True, kw_only=True)
class EDMOptions(CoefficientOptions, ContextOptions, CommonOptions):
    group: ClassVar = OptionGroup("Network and loss", "Which network is trained, and what it learns.", rank=3)

    preset: str | None = opt(None, "A published recipe: values of options that are not given", presets=PRESETS)
    arch: str | None = opt(
        None, "DDPM++, NCSN++, ADM, or an MLP [default: ddpmpp; of points and series mlp]",
        choices=list(ARCHITECTURES),
    )  # fmt: skip
    precond: str = opt("edm", "Preconditioning and loss", choices=list(PRECONDITIONERS))
    cbase: int | None = opt(None, "Base channels; default: the architecture's", metavar="INT", at_least=1)
    cres: tuple[int, ...] | None = opt(None, "Channel multiplier per resolution, e.g. 1,2,2,2", metavar="LIST")
    num_blocks: int | None = opt(None, "Residual blocks per resolution", metavar="INT", at_least=1)
    attn_resolutions: tuple[int, ...] | None = opt(None, "Resolutions with self-attention, e.g. 16,8", metavar="LIST")
    dropout: float | None = opt(
        None, "Dropout probability [default: 0.13; mlp has none]", metavar="P", at_least=0, at_most=1
    )
    label_dropout: float = opt(
        0.0, "Share of labels hidden in training, for classifier-free guidance", metavar="P", at_least=0, at_most=1
    )
    augment: float | None = opt(
        None,
        "Augmentation probability; 0 = off [default: 0.12; mlp, series and latents have none]",
        metavar="P",
        at_least=0,
        at_most=1,
    )
    p_mean: float | None = opt(None, "Mean of ln(sigma) in training (EDM loss); default -1.2", metavar="FLOAT")
    p_std: float | None = opt(None, "Std of ln(sigma) in training (EDM loss); default 1.2", metavar="FLOAT", above=0)
    sigma_data: float | None = opt(
        None,
        "Std of the data (EDM); default 0.5, but of points and latents as measured",
        metavar="FLOAT",
        above=0,
    )

    ema_rampup: float | None = opt(
        None, f"EMA half-life is at most this share of the images seen; 0 = no ramp-up [default: {EMA_RAMPUP}; 0 with "
        "--transfer]", metavar="RATIO", at_least=0,
    )  # fmt: skip
    coefficient_sampler: str | None = opt(
        None, "edm_gamma: random coefficients as defined, or with the flaws of the published code [default: defined]",
        choices=list(COEFFICIENT_SAMPLERS),
    )  # fmt: skip

    @property
    def architecture(self) -> str:
        return self.arch or ("mlp" if is_toy(self.data) or is_series(self.data) else "ddpmpp")

    @property
    def scales(self) -> bool:
        """Network and loss are told the deviation of the data."""
        return self.precond.startswith("edm")

    @property
    def augment_probability(self) -> float:
        default = 0 if self.architecture == "mlp" or is_series(self.data) else 0.12
        return default if self.augment is None else self.augment

    def name_parts(self) -> list[str]:
        return [self.architecture, self.precond]

    def network_kwargs(self) -> dict[str, Any]:
        """Constructor arguments of the network but for those of the data."""
        if is_toy(self.data):
            self._check_points()
        if is_series(self.data):
            self._check_series()
        kwargs = dict(ARCHITECTURES[self.architecture])
        if self.architecture == "mlp":
            return kwargs | self._mlp_kwargs()
        given = {
            "model_channels": self.cbase, "channel_mult": self.cres, "num_blocks": self.num_blocks,
            "attn_resolutions": self.attn_resolutions, "sigma_data": self.sigma_data,
        }  # fmt: skip
        kwargs |= {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}
        if self.augment_probability:
            kwargs["augment_dim"] = edm_preset(self.augment_probability).num_labels
        dropout = 0.13 if self.dropout is None else self.dropout
        return kwargs | {"dropout": dropout, "label_dropout": self.label_dropout}

    def _check_points(self) -> None:
        if self.architecture != "mlp":
            raise ValueError(f"--arch={self.arch} is for images, {self.data} holds points: leave it out")
        if self.lpf or self.gauss_kernel_sigma:
            raise ValueError(f"--lpf smooths maps, {self.data} holds points: leave it out")
        if not self.scales:
            raise ValueError(
                f"--precond={self.precond} is made for images in [-1, 1], {self.data} holds points of other scale: use "
                "--precond=edm"
            )

    def _check_series(self) -> None:
        for name in ("label_dropout", "augment"):
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is for images, and {self.data} is a series: leave it out")
        if self.precond not in ("edm", "edm_alpha"):
            raise ValueError(f"--precond={self.precond} has no series, whose scale is its own: use --precond=edm")

    def _mlp_kwargs(self) -> dict[str, Any]:
        for name in ("cres", "attn_resolutions", "dropout", "augment"):
            if getattr(self, name):  # 0 asks for what an MLP is
                raise ValueError(f"--{name.replace('_', '-')} belongs to U-Nets: leave it out with --arch=mlp")
        given = {"channels": self.cbase, "num_layers": self.num_blocks, "sigma_data": self.sigma_data}
        return {k: v for k, v in given.items() if v is not None} | {"label_dropout": self.label_dropout}

    def loss_kwargs(self) -> dict[str, Any]:
        given = {"P_mean": self.p_mean, "P_std": self.p_std}
        if not self.scales and any(v is not None for v in (*given.values(), self.sigma_data)):
            raise ValueError("--p-mean, --p-std and --sigma-data belong to --precond=edm")
        if self.precond != "edm_gamma" and self.coefficient_options_given():
            name = self.coefficient_options_given()[0].replace("_", "-")
            raise ValueError(f"--{name} belongs to --precond=edm_gamma: leave it out with --precond={self.precond}")
        return {k: v for k, v in given.items() if v is not None}


def build_network(options: EDMOptions, dataset: ImageDataset) -> nn.Module:
    if options.label_dropout and not options.cond:
        raise ValueError("--label-dropout hides labels, and this network has none: add --cond=1, or leave it out")
    precond, _ = PRECONDITIONERS[options.precond]
    kwargs = options.network_kwargs()
    if options.scales:
        kwargs = {"sigma_data": dataset.std} | kwargs
    series = isinstance(dataset, SeriesDataset)
    if series:
        kwargs = _with_context(options, dataset, kwargs)
    return networks.build(
        precond,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        label_dim=dataset.label_dim if options.cond or series else 0,
        use_fp16=options.precision == "fp16",
        **kwargs,
    )


def _with_context(options: EDMOptions, dataset: SeriesDataset, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the network around a trunk that sees what came before."""
    trunk = {k: v for k, v in kwargs.items() if k not in ("sigma_data", "label_dropout")}
    if options.architecture != "mlp" and dataset.resolution == 1:
        raise ValueError(f"--arch={options.arch} is for maps, and {options.data} holds none: leave it out")
    pad = 0 if options.architecture == "mlp" else padding(dataset, len(trunk["channel_mult"]))
    return {"sigma_data": kwargs["sigma_data"], **context_trunk(dataset, trunk, pad)}


def build(options: EDMOptions, dataset: ImageDataset, device: torch.device) -> Method:
    """The method: one network, one phase, one average and those of --phema.

    Raises:
        ValueError: the options do not describe a network for this data set.
    """
    _, loss_name = PRECONDITIONERS[options.precond]
    if dataset.latents is not None:
        if options.augment:
            raise ValueError(
                f"--augment={options.augment:g} is for images, and {options.data} holds latents: leave it out"
            )
        options = dataclasses.replace(options, augment=0.0)
    net = build_network(options, dataset)
    cost = common.training_cost(net)
    loss_kwargs = options.loss_kwargs()
    if options.scales:  # the levels are those of images, in units of the data's deviation
        loss_kwargs = {"P_mean": P_MEAN + math.log(dataset.std / ImageDataset.std)} | loss_kwargs
    if options.precond == "edm_gamma":
        loss_fn = gamma_loss(net, options.coefficient_settings(), options.coefficient_sampler, **loss_kwargs)
    else:
        loss_fn = loss_for(net, loss_name, **loss_kwargs)
    augment_pipe = edm_preset(options.augment_probability) if options.augment_probability else None
    told = blurred(dataset, options)
    call = prepare(net, options, device)

    def loss(batch: Batch) -> LossOut:
        labels = told(batch) if net.label_dim else None
        elementwise = loss_fn(call, batch.data, labels, augment_pipe=augment_pipe, rng=batch.rng)
        return LossOut(elementwise, {"Loss/loss": elementwise})

    return Method(
        name="edm",
        modules={"net": net},
        phases=(common.adam_phase(loss, options),),
        # A transferred model is not a random start to be forgotten: by default, no ramp-up of the half-life.
        averages=common.averages(options, rampup=0 if options.transfer else EMA_RAMPUP),
        save=common.save,
        preview=preview_of(dataset),
        flops_per_image=3 * cost.flops,
        summary=_summary(net, cost, options, dataset),
    )


def _summary(net: nn.Module, cost: Any, options: EDMOptions, dataset: ImageDataset) -> tuple[tuple[str, str], ...]:
    parameters = sum(p.numel() for p in net.parameters())
    # fp32 weights, gradients, two Adam moments and the average; activations of one accumulation round
    fixed, per_image = 20 * parameters, cost.activation_bytes
    return (
        common.network(net),
        ("Data", common.data(dataset, net)),
        common.flops(cost),
        (
            "Memory",
            f"{fixed / 2**30:.2f} GiB for weights, gradients, Adam and EMA + {per_image / 2**20:.1f} MiB of "
            "activations per image in a round (fp32; about half in 16 bit)",
        ),
        common.steps(options),
    )
