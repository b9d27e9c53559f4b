"""The command line of `train_trajectory.py`; defaults are those of the published ImageNet-64 run.

Lee et al. 2024, arXiv 2404.14161. Batches, durations and images are counted as there: by the images of the C phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import click

from networks.adversary.backbones import BACKBONES
from networks.models.coefficient_families import FAMILIES
from torch_utils.options import Alias, OptionGroup, opt
from training.diffaugment import POLICY
from training.losses.elementwise import CoefficientOptions
from training.options import CommonOptions

LEVEL_DRAWS = ("nearest", "log", "uniform")


@dataclass(frozen=True, kw_only=True)
class _Sampler:
    group: ClassVar = OptionGroup("Sampler", "The few steps that are trained.", 2)

    num_steps: int = opt(5, "Steps of the sampler, the last one to noise level 0", metavar="INT", at_least=1)
    family: str | None = opt(
        None, "Coefficients of data and noise: EDM's, or of a flow that ends in pure noise [default: as the network's "
        "path]", choices=list(FAMILIES),
    )  # fmt: skip
    s_churn: float = opt(0.0, "Added noise of the sampler in the C and D phases", metavar="FLOAT", at_least=0)
    s_min: float = opt(0.0, "Lowest noise level that gets added noise", metavar="FLOAT", at_least=0)
    s_max: float | None = opt(
        None, "Highest noise level that gets added noise; default: all", metavar="FLOAT", at_least=0, finite=False
    )
    s_noise: float = opt(1.0, "Inflation of the added noise", metavar="FLOAT", at_least=0)


@dataclass(frozen=True, kw_only=True)
class _Coefficients:
    group: ClassVar = OptionGroup("Coefficient network C", "What chooses the levels of a sample.", 3)

    k: float = opt(0.0, "MAC: smoothness of the coefficients in time; larger damps fast changes", metavar="FLOAT")
    x_0_conditioning: bool = opt(True, "C sees the starting noise; else all images share their levels", metavar="BOOL")
    coefficient_conditioning: bool | None = opt(
        None, "V is told the level of every element; default: what the network is made for", metavar="BOOL"
    )
    coef_channels: int = opt(256, "Base channels of C", metavar="INT", at_least=1)
    coef_mult: tuple[int, ...] = opt((1, 2, 4), "Channel multiplier of C per resolution", metavar="LIST")
    coef_blocks: int = opt(4, "Residual blocks of C per resolution", metavar="INT", at_least=1)
    coef_downsample: int = opt(
        1, "C works on squares of this many pixels: 2 makes it four times cheaper", metavar="PIXELS", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class _Phases:
    group: ClassVar = OptionGroup("Phases", "Denoiser V, coefficients C and discriminator D in turn.", 3)

    train_v: bool = opt(True, "Train the denoiser", metavar="BOOL")
    train_c: bool = opt(True, "Train the coefficients", metavar="BOOL")
    batch_edm: int = opt(512, "Batch of the V phase", metavar="INT", at_least=1)
    batch_disc: int = opt(512, "Batch of the D phase", metavar="INT", at_least=2)
    glr: float = opt(1e-4, "Learning rate of C", metavar="FLOAT", above=0)
    dlr: float = opt(2e-3, "Learning rate of D", metavar="FLOAT", above=0)
    level_draw: str = opt(
        "nearest",
        "V phase: how often each of the sampler's levels is trained: nearest: the one nearest to a log-normal draw "
        "(published; rarely the high ones); log: the nearest in log sigma; uniform: all alike",
        choices=list(LEVEL_DRAWS),
    )
    p_mean: float = opt(-1.2, "V phase: mean of ln(sigma) of the draw", metavar="FLOAT")
    p_std: float = opt(1.2, "V phase: std of ln(sigma) of the draw", metavar="FLOAT", above=0)
    backbones: str = opt(
        "deit_base_distilled_patch16_224,tf_efficientnet_lite0",
        f"Frozen features of D: {', '.join(BACKBONES)}; NAME=FILE: weights from a file, NAME=random: random ones",
        metavar="LIST",
    )
    diffaugment: str = opt(POLICY, "What D's images are augmented by; empty = nothing", metavar="LIST")
    checkpointing: bool = opt(
        True, "Recompute V in the backward pass of the C phase: memory of one step, a third more time", metavar="BOOL"
    )


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions(_Phases, _Coefficients, CoefficientOptions, _Sampler, CommonOptions):
    """Options of `train_trajectory.py`."""

    group: ClassVar = OptionGroup("Network", "What the trajectory is optimised for.", 1)

    network: str = opt(
        None, "Denoiser to start from: a snapshot, an EDM pickle, an address or a published name",
        metavar="FILE|URL|NAME", required=True, names=("--net_pkl", "--net-pkl"),
    )  # fmt: skip
    duration: float = opt(
        2.0, "Training duration in million images of the C phase", metavar="MIMG", above=0,
        aliases=(
            Alias("--kimg", "The same in thousand images", lambda k: k / 1000, click.FloatRange(0, min_open=True),
                  "KIMG"),
        ),
    )  # fmt: skip
    batch: int = opt(128, "Batch of the C phase; images are counted by it", metavar="INT", at_least=1)
    xflip: bool = opt(False, "Double the data set with mirrored copies", metavar="BOOL", names=("--mirror",))
    lr: float = opt(1e-5, "Learning rate of V", metavar="FLOAT", above=0)
    lr_rampup: float = opt(0.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    ema: float = opt(0.01, "EMA half-life in million images", metavar="MIMG", at_least=0)
    tick: float = opt(5.0, "Status line and statistics every KIMG", metavar="KIMG", above=0)
    snap: int | None = opt(
        1, "Snapshot and pictures every TICKS; 0 = none", metavar="TICKS", at_least=0, names=("--snap_img",)
    )
    nonfinite: str = opt(
        "zero", "On NaN or infinite gradients: stop before the update, or set them to zero", choices=["stop", "zero"]
    )
    workers: int = opt(3, "Threads that read and decode images", metavar="INT", at_least=1)

    # Without meaning here: a trajectory starts from --network
    transfer: None = None
    compile: bool = False

    @property
    def total_kimg(self) -> float:
        return round(self.duration * 1000, 6)

    def name_parts(self) -> list[str]:
        return ["trajectory"]
