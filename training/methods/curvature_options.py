"""Options of `train.py curvature`: the original's command line, its defaults, and what each preset replaces.

Names are those of the published training program of Lee, Kim, Ye 2023 (arXiv 2301.12003), with - or _. An option that
is not given takes the published value of `--preset`, else the program's own default. Steps become images here:
--iterations times --batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from networks.published.flow_configs import PRESETS
from torch_utils.options import Alias, OptionGroup, opt, refuse
from training.couplings import COUPLINGS
from training.options import CommonOptions

# Defaults of the original command.
ORIGINAL: dict[str, Any] = {
    "weight_prior": 10.0, "lr": 3e-5, "warmup_steps": 0, "optimizer": "adamw", "batch": 4, "iterations": 1_000_000,
    "ema_decay": 0.9999, "xflip": False, "prior_std": None,
}  # fmt: skip

_FFHQ = {"weight_prior": 20.0, "lr": 2e-4, "warmup_steps": 39060, "batch": 256, "iterations": 800_000, "xflip": True}

# What --preset gives to options that are not given. AFHQ and CelebA-HQ have published networks but no published
# command: they take FFHQ's. The digits and the two Gaussians train on a CPU.
HYPER: dict[str, dict[str, Any]] = {
    "mnist": {
        "weight_prior": 20.0, "lr": 3e-4, "warmup_steps": 8000, "optimizer": "adam", "batch": 256, "iterations": 60_000,
    },
    "cifar10": {
        "weight_prior": 20.0, "lr": 2e-4, "warmup_steps": 5000, "optimizer": "adam", "batch": 128,
        "iterations": 500_000, "xflip": True,
    },
    "ffhq": _FFHQ,
    "afhq": _FFHQ,
    "celebahq256": _FFHQ,
    "digits": {
        "weight_prior": 10.0, "lr": 1e-3, "warmup_steps": 100, "optimizer": "adam", "batch": 128, "iterations": 1000,
        "ema_decay": 0.99,
    },
    "two_gaussians": {
        "weight_prior": 10.0, "lr": 1e-3, "optimizer": "adam", "batch": 512, "iterations": 100_000, "ema_decay": 0.0,
        "prior_std": (6.0, 1.0),
    },
}  # fmt: skip


def _default(name: str) -> str:
    return f" [default: the preset's, else {ORIGINAL[name]:g}]"


def _no_effect(value: float) -> None:
    """Check of an option that the original program accepts and never reads."""
    if value != 0:
        raise ValueError(f"--weight-cur={value:g} had no effect in the original program: leave it out")


def _device_of(index: str) -> str:
    if not index.isdigit():
        raise ValueError(
            f"--gpu={index}: give one index; for several GPUs run torchrun --standalone --nproc_per_node=COUNT "
            "train.py curvature ... without --gpu"
        )
    return f"cuda:{index}"


@dataclass(frozen=True, kw_only=True)
class _Networks:
    group: ClassVar = OptionGroup("Networks", "Which velocity network and encoder; default: by the data's size.", 3)

    preset: str | None = opt(None, "Networks and hyper-parameters of a published model", choices=list(PRESETS))
    dataset: str | None = opt(
        None, "Networks of a published model alone, with the original command's defaults", choices=list(PRESETS)
    )
    config_de: str | None = opt(None, "Velocity network, instead of the preset's", metavar="JSON")
    config_en: str | None = opt(None, "Encoder, instead of the preset's", metavar="JSON")


@dataclass(frozen=True, kw_only=True)
class _Coupling:
    group: ClassVar = OptionGroup("Coupling and path", "Which noise goes with which data, and the way between.", 3)

    weight_prior: float | None = opt(
        None, "beta, weight of the KL term: a smaller one makes trajectories straighter and takes the noise further "
        "from the prior" + _default("weight_prior"),
        metavar="BETA", names=("--beta",), aliases=(
            Alias("--weight-cur", "Accepted where it is 0: no effect in the original program", _no_effect, float, "0"),
        ),
    )  # fmt: skip
    independent: bool = opt(False, "No encoder: noise independent of the data, plain flow matching", flag=True)
    coupling: str = opt(
        "independent", "With --independent: noise as it is drawn, or assigned to the data of the batch by optimal "
        "transport", choices=list(COUPLINGS),
    )  # fmt: skip
    ddpm: bool = opt(False, "The variance-preserving path instead of the linear one", flag=True)
    trig: bool = opt(False, "The trigonometric path, cos and sin of time, instead of the linear one", flag=True)
    prior_std: tuple[float, ...] | None = opt(
        None, "Deviations of the prior per channel, e.g. 6,1 [default: the preset's, else 1]", metavar="LIST"
    )
    prior_rank: int = opt(
        0, "Rank of the matched start distribution beyond its deviations per element: 0 keeps these alone, the number "
        "of dimensions the full covariance", metavar="INT", at_least=0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Measures:
    group: ClassVar = OptionGroup("Curvature", "What is measured and drawn at every tick.", 6)

    N: int = opt(20, "Euler steps of the curvature and the pictures at every tick", metavar="INT", at_least=1)
    num_samples: int = opt(64, "Trajectories that the curvature of a tick is measured on", metavar="INT", at_least=1)


@dataclass(frozen=True, kw_only=True)
class CurvatureOptions(_Measures, _Coupling, _Networks, CommonOptions):
    """Options of `train.py curvature`, with the values of a preset filled in."""

    group: ClassVar = OptionGroup("Original command", "Length and learning in steps, as the original counts them.", 4)

    outdir: str = opt(None, "Where to save the results", metavar="DIR", required=True, names=("--dir",))
    duration: float | None = opt(None, "Training duration in million images, or --iterations", metavar="MIMG", above=0)
    batch: int | None = opt(
        None, "Total batch size over all processes" + _default("batch"), metavar="INT", at_least=1,
        names=("--batchsize",),
    )  # fmt: skip
    xflip: bool | None = opt(
        None, "Double the data set with mirrored copies [default: the preset's, else off]", metavar="BOOL"
    )
    device: str = opt(
        "auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE",
        aliases=(Alias("--gpu", "Same as --device=cuda:INDEX", _device_of, metavar="INDEX"),),
    )  # fmt: skip
    lr: float | None = opt(None, "Learning rate" + _default("lr"), metavar="FLOAT", above=0, names=("--learning-rate",))
    lr_rampup: float | None = opt(
        None, "Linear learning-rate ramp-up in million images, or --warmup-steps", metavar="MIMG", at_least=0
    )
    ema: float | None = opt(
        None, "Half-life of the moving averages in million images, or --ema-decay", metavar="MIMG", at_least=0
    )

    iterations: int | None = opt(
        None, "Training duration in steps [default: the preset's, else 1000000]", metavar="STEPS", at_least=1
    )
    optimizer: str | None = opt(None, "The optimiser [default: the preset's, else adamw]", choices=["adamw", "adam"])
    warmup_steps: int | None = opt(
        None, "Linear warm-up of the learning rate in steps" + _default("warmup_steps"), metavar="STEPS", at_least=0
    )
    ema_decay: float | None = opt(
        None, "Factor of the moving averages per step" + _default("ema_decay"), metavar="FLOAT", at_least=0, at_most=1,
        aliases=(
            Alias(
                "--no-ema", "Keep no moving averages: snapshots hold the weights of the last step",
                lambda on: 0.0 if on else None, bool,
            ),
        ),
    )  # fmt: skip
    ema_after_steps: int = opt(1, "Moving averages begin after this many steps", metavar="STEPS", at_least=0)

    def __post_init__(self) -> None:
        self._check()
        values = ORIGINAL | HYPER.get(self.preset or "", {})
        by_duration = self.duration is not None and self.iterations is None
        for name, value in values.items():
            if getattr(self, name) is None and not (name == "iterations" and by_duration):
                object.__setattr__(self, name, value)
        if self.duration is None:
            object.__setattr__(self, "duration", self.iterations * self.batch / 1e6)
        elif self.iterations is not None and not math.isclose(self.duration, self.iterations * self.batch / 1e6):
            raise ValueError("--iterations and --duration both say how long to train: leave one of them out")

    def _check(self) -> None:
        if self.weight_prior is not None and not 0 <= self.weight_prior < math.inf:
            raise ValueError(f"--weight-prior={self.weight_prior:g}: beta weights a divergence, give 0 or more")
        if self.preset and self.dataset:
            raise ValueError("--preset and --dataset both name a published model: leave one of them out")
        if self.coupling != "independent" and not self.independent:
            raise ValueError(
                f"--coupling={self.coupling} pairs noise that no encoder makes: give --independent as well"
            )
        if self.ddpm and self.trig:
            raise ValueError("--ddpm and --trig are two paths: leave one of them out")
        if self.independent and self.config_en:
            raise ValueError("--independent trains no encoder: leave out --config-en")
        if self.lr_rampup is not None and self.warmup_steps and "warmup_steps" not in self._published():
            raise ValueError("--warmup-steps and --lr-rampup both warm up the learning rate: leave one of them out")
        if self.ema is not None and self.ema_decay is not None and "ema_decay" not in self._published():
            raise ValueError("--ema-decay (or --no-ema) and --ema both say how to average: leave one of them out")
        if self.ema is None:
            refuse(self, ["ema_rampup"], "shortens the half-life that --ema gives, and there is none")
        else:
            refuse(self, ["ema_after_steps"], "goes with --ema-decay; --ema has --ema-rampup instead")
        if self.independent:
            refuse(self, ["prior_rank"], "describes noise that an encoder makes; --independent has none")

    def _published(self) -> dict[str, Any]:
        """Values that a preset, or the original program, gave."""
        values = ORIGINAL | HYPER.get(self.preset or "", {})
        return {k: v for k, v in values.items() if getattr(self, k) == v}

    @property
    def total_kimg(self) -> int:
        """Rounded up: the loop counts in thousands of images."""
        return max(math.ceil(round(self.duration * 1000, 6)), 1)

    def name_parts(self) -> list[str]:
        plain = "independent" if self.coupling == "independent" else self.coupling
        return ["curvature", plain if self.independent else f"beta{self.weight_prior:g}"]
