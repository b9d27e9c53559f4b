"""Options of `train.py idff`, and the values that each preset gives to those left out.

Presets are the published recipes of IDFF (arXiv 2409.14599), in images instead of steps: AdamW, 5000 steps of warm-up,
gradients clipped to 1, averages with the factor 0.9999 per step. Published programs drew their pairs with replacement
(--ot-replacement=1); by default each data keeps its place and is assigned a noise, which wastes none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch_utils.options import OptionGroup, opt, refuse
from training.couplings import PLANS
from training.data.series import is_series
from training.data.toys import is_toy
from training.losses.idff import BRIDGES, TIME_WEIGHTS
from training.methods.common import LearningOptions
from training.methods.series import ContextOptions
from training.options import CommonOptions

# as written -> as stored (`networks.models.fusion.SCORE_TARGETS`)
SCORE_TARGETS = {"eps": "eps", "x0": "noise", "score": "score", "log-density": "log_density"}
COUPLING_KINDS = ("independent", "ot", "ot-labels", "previous")
WARM_UP, DECAY = 5000, 0.9999  # steps, factor per step

_IMAGES: dict[str, Any] = {
    "cbase": 128, "cres": (1, 2, 2, 2), "num_blocks": 2, "attn_resolutions": (16,), "head_channels": 64, "dropout": 0.1,
    "batch": 128, "iterations": 500_001, "lr": 2e-4, "warm_up": WARM_UP, "decay": DECAY, "grad_clip": 1.0,
    "optimizer": "adamw", "xflip": False, "sigma": 0.2, "flow_weight": 2.0, "time_weight": "none",
    "score_target": "eps", "coupling": "ot",
}  # fmt: skip
_SIX_LEVELS = {"cres": (1, 1, 2, 2, 4, 4), "lr": 1e-5, "time_weight": "early"}

_FEW_NUMBERS = {
    "cbase": 128, "batch": 10, "lr": 1e-3, "warm_up": 0, "decay": 0.0, "grad_clip": None, "optimizer": "adam",
    "sigma": 0.1, "coupling": "previous",
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"cres": (1, 2, 2, 4), "iterations": 5_000_001, "xflip": True, "score_target": "x0"},
    "celeba64": {"cres": (1, 2, 2, 4, 4), "lr": 1e-5, "score_target": "x0"},
    "celebahq256": {**_SIX_LEVELS, "batch": 8},
    "lsun_bed": {**_SIX_LEVELS, "batch": 16},
    "lsun_church": {**_SIX_LEVELS, "batch": 16},
    "imagenet64": {"cres": (1, 2, 2, 4, 4), "lr": 1e-5},
    "digits": {
        "cbase": 32, "cres": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "head_channels": 32, "dropout": 0.0,
        "iterations": 3000, "lr": 1e-3, "warm_up": 100, "decay": 0.999,
    },
    "sst": {"cres": (1, 2, 4), "attn_resolutions": (), "batch": 64, "iterations": 800_001, "coupling": "previous"},
    "md": {**_FEW_NUMBERS, "iterations": 20_000},
    "lorenz": {**_FEW_NUMBERS, "iterations": 4_000},
    "toys": {
        "cbase": 64, "batch": 256, "iterations": 8000, "lr": 1e-3, "warm_up": 0, "decay": 0.0, "grad_clip": None,
        "optimizer": "adam", "flow_weight": 5.0,
    },
}  # fmt: skip
OF_UNETS = ("cres", "num_blocks", "attn_resolutions", "head_channels", "dropout")


def _default(name: str, of_points: str = "") -> str:
    value = _IMAGES[name]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [default: the preset's, else {text}{of_points}]"


@dataclass(frozen=True, kw_only=True)
class _Network:
    group: ClassVar = OptionGroup("Network", "For maps an ADM U-Net, for points and vectors an MLP with SELU.", rank=3)

    preset: str | None = opt(
        None, "A published recipe: network, loss and learning [default: toys for points, sst for series, else "
        "CIFAR-10's with 1,2,2,2]",
        choices=list(PRESETS),
    )  # fmt: skip
    cbase: int | None = opt(
        None, "Base channels; with points the width" + _default("cbase", ", of points 64"), metavar="INT", at_least=1
    )
    cres: tuple[int, ...] | None = opt(None, "Channel multiplier per resolution" + _default("cres"), metavar="LIST")
    num_blocks: int | None = opt(
        None, "Residual blocks per resolution" + _default("num_blocks"), metavar="INT", at_least=1
    )
    attn_resolutions: tuple[int, ...] | None = opt(
        None, "Resolutions with self-attention" + _default("attn_resolutions"), metavar="LIST"
    )
    head_channels: int | None = opt(
        None, "Channels of an attention head" + _default("head_channels"), metavar="INT", at_least=1
    )
    dropout: float | None = opt(None, "Dropout probability" + _default("dropout"), metavar="P", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class _Path:
    group: ClassVar = OptionGroup("Path and loss", "The bridge between data and noise, and what the heads learn.", 3)

    bridge: str = opt(
        "idff", "The path: a Brownian bridge between data and noise (idff, and schrodinger_bridge with its coupling), "
        "a line or a quarter circle with constant noise (independent, variance_preserving), or a line to noise that "
        "no coupling chooses (target)", choices=list(BRIDGES),
    )  # fmt: skip
    sigma: float | None = opt(None, "Noise of the path" + _default("sigma"), metavar="FLOAT", at_least=0)
    heads: int = opt(
        2, "2: clean data and score; 1: clean data, from which samplers make the score", metavar="1|2", at_least=1,
        at_most=2,
    )  # fmt: skip
    score_target: str | None = opt(
        None, "What the second head learns: the path's noise or, as published for CIFAR-10 and CelebA, the noise it "
        "starts from, which is no score; the score itself; or the log density that programs of 2025 had in its place"
        + _default("score_target"), choices=list(SCORE_TARGETS),
    )  # fmt: skip
    flow_weight: float | None = opt(
        None, "Weight of the first head's error" + _default("flow_weight", ", of points 5"), metavar="FLOAT", above=0
    )
    time_weight: str | None = opt(
        None, "Where the first head's error counts more: near the noise (early), near the data (late)"
        + _default("time_weight"), choices=list(TIME_WEIGHTS),
    )  # fmt: skip
    residual: bool = opt(
        False, "The network says what to add to a state to reach the data, in units of what is left of the path, so "
        "that its errors vanish towards the data; off as published", metavar="BOOL",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    group: ClassVar = OptionGroup(
        "Coupling", "Which noise goes with which data, among the samples of one process and pass.", 3
    )

    coupling: str | None = opt(
        None, "As drawn, by optimal transport, or by that among samples of one label; of a series: previous, frames "
        "are reached from those before instead of from noise" + _default("coupling", ", of series previous"),
        choices=list(COUPLING_KINDS),
    )  # fmt: skip
    memorise: bool = opt(
        False, "Series, with previous: tell the network the number of the frame, not what came before, as published: "
        "it learns the one series by heart", metavar="BOOL",
    )  # fmt: skip
    ot_method: str | None = opt(None, "With ot: the plan; all but the first need POT", choices=list(PLANS))
    ot_replacement: bool = opt(
        False, "With ot: draw pairs from the plan with replacement, as published", metavar="BOOL"
    )
    ot_reg: float | None = opt(
        None, "Entropic regularisation of other plans than the exact one [default: 0.05, of a Schroedinger bridge "
        "2 sigma^2]", metavar="FLOAT", above=0,
    )  # fmt: skip
    ot_reg_m: float | None = opt(
        None, "Cost of leaving out weight in the unbalanced plan [default: 1]", metavar="FLOAT", above=0
    )


@dataclass(frozen=True, kw_only=True)
class IDFFOptions(_Pairs, ContextOptions, _Path, _Network, CommonOptions):
    """Options of `train.py idff`, with the values of a preset filled in."""

    group: ClassVar = LearningOptions.group

    batch: int | None = opt(
        None, "Total batch size over all processes" + _default("batch", ", of points 256"), metavar="INT", at_least=1
    )
    duration: float | None = opt(
        None, "Training duration in million images [default: the preset's]", metavar="MIMG", above=0
    )
    xflip: bool | None = opt(
        None, "Double the data set with mirrored copies [default: the preset's, else off]", metavar="BOOL"
    )
    grad_clip: float | None = opt(
        None, "Clip the gradient to this L2 norm [default: 1, of points never]", metavar="NORM", above=0
    )
    lr: float | None = opt(None, "Learning rate" + _default("lr", ", of points 1e-3"), metavar="FLOAT", above=0)
    lr_rampup: float | None = opt(
        None, "Linear learning-rate ramp-up in million images [default: 5000 steps, of points 0]", metavar="MIMG",
        at_least=0,
    )  # fmt: skip
    ema: float | None = opt(
        None, "EMA half-life in million images [default: that of the factor 0.9999 per step, of points 0]",
        metavar="MIMG", at_least=0,
    )  # fmt: skip
    ema_rampup: float | None = opt(
        0.0, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )
    optimizer: str | None = opt(
        None, "AdamW has a weight decay of 0.01" + _default("optimizer", ", of points adam"),
        choices=["adamw", "adam"],
    )  # fmt: skip

    def __post_init__(self) -> None:
        self._check()
        values = self._published()
        batch = values["batch"] if self.batch is None else self.batch
        decay = values.pop("decay")
        values |= {
            "duration": values.pop("iterations") * batch / 1e6,
            "lr_rampup": values.pop("warm_up") * batch / 1e6,
            "ema": math.log(0.5) / math.log(decay) * batch / 1e6 if decay else 0.0,
        }
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.coupling == "ot":
            self._fill_plan()

    def _published(self) -> dict[str, Any]:
        """Values of the preset by name, over those of all images."""
        preset = self.preset or ("toys" if is_toy(self.data) else "sst" if is_series(self.data) else None)
        values = _IMAGES | PRESETS.get(preset or "", {})
        if self.bridge == "target":
            values["coupling"] = "independent"
        maps = not is_toy(self.data) and not is_series(self.data)  # a series may be of maps: `unet_values`
        for name, used in (("score_target", self.heads == 2), *((name, maps) for name in OF_UNETS)):
            if not used:
                del values[name]
        return values

    def unet_values(self) -> dict[str, Any]:
        """Options of U-Nets, those left out as the preset has them."""
        preset = _IMAGES | PRESETS.get(self.preset or ("sst" if is_series(self.data) else ""), {})
        return {name: preset[name] if getattr(self, name) is None else getattr(self, name) for name in OF_UNETS}

    def _fill_plan(self) -> None:
        given = {"ot_method": self.ot_method or "exact"}
        if given["ot_method"] != "exact":
            own = 2 * self.sigma**2 if self.bridge == "schrodinger_bridge" else 0.05
            given["ot_reg"] = self.ot_reg or own
        if given["ot_method"] == "unbalanced":
            given["ot_reg_m"] = self.ot_reg_m or 1.0
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        if is_toy(self.data):
            refuse(self, OF_UNETS, f"belongs to U-Nets, and {self.data} holds points")
        if self.heads == 1:
            refuse(self, ["score_target"], "says what a second head learns, and --heads=1 has none")
        coupling = self.coupling or self._published()["coupling"]
        if coupling != "ot":
            names = ("ot_method", "ot_replacement", "ot_reg", "ot_reg_m")
            refuse(self, names, f"belongs to --coupling=ot, and this one is {coupling}")
        if self.ot_method in (None, "exact"):
            refuse(self, ["ot_reg"], "belongs to other plans than the exact one, see --ot-method")
        if self.ot_method != "unbalanced":
            refuse(self, ["ot_reg_m"], "belongs to --ot-method=unbalanced")
        self._check_series(coupling)
        if coupling.startswith("ot") and 1 in (self.batch, self.batch_gpu):
            raise ValueError(
                f"--coupling={coupling} pairs samples of a process and pass, and --batch or --batch-gpu leaves one: "
                "give 2 or more, or --coupling=independent"
            )
        if coupling == "ot-labels" and not self.cond:
            raise ValueError("--coupling=ot-labels assigns noise among samples of one label: add --cond=1")
        sigma = self._published()["sigma"] if self.sigma is None else self.sigma
        self._check_bridge(sigma, coupling)
        target = self.score_target or self._published().get("score_target")
        if sigma == 0 and self.heads == 2 and target != "log-density":
            raise ValueError(
                f"--sigma=0 leaves the second head nothing to learn from --score-target={target}: give --heads=1, or a "
                "sigma above 0"
            )
        if sigma and target == "log-density":
            raise ValueError(
                f"--score-target=log-density is of paths without noise, and --sigma={sigma:g} has some: give "
                "--sigma=0, or --score-target=score, which is what was meant"
            )

    def _check_series(self, coupling: str) -> None:
        if not is_series(self.data):
            refuse(self, ["memorise"], "belongs to series")
            if coupling == "previous":
                raise ValueError(
                    "--coupling=previous begins at the frame before, and --data is no series: choose another"
                )
        elif coupling.startswith("ot"):
            raise ValueError(
                f"--coupling={coupling} gives noise to frames whatever came before them, and the network would read "
                "the past from the noise: give previous or independent"
            )
        if coupling != "previous":
            refuse(self, ["memorise"], "belongs to --coupling=previous")
        if self.memorise:
            refuse(self, ["context_noise"], "is for what came before, of which --memorise=1 tells nothing")

    def _check_bridge(self, sigma: float, coupling: str) -> None:
        if is_series(self.data) and self.bridge not in ("idff", "schrodinger_bridge"):
            raise ValueError(
                f"--bridge={self.bridge} leaves noise in the data, which the next frame of a series would begin with: "
                "leave it out"
            )
        if self.bridge == "schrodinger_bridge" and sigma == 0:
            raise ValueError("--bridge=schrodinger_bridge has noise all along: give --sigma above 0, or --bridge=idff")
        if self.bridge == "target" and not sigma < 1:
            raise ValueError(f"--bridge=target goes from noise of deviation 1 down to --sigma={sigma:g}: give less")
        if self.bridge == "target" and coupling != "independent":
            raise ValueError(
                f"--bridge=target ends in fresh noise, which --coupling={coupling} cannot choose: leave it out"
            )
        if self.bridge not in ("idff", "schrodinger_bridge"):
            refuse(self, ["residual"], f"belongs to Brownian bridges, and --bridge={self.bridge} is another path")
        if self.bridge not in ("idff", "schrodinger_bridge") and self.score_target in ("score", "log-density"):
            raise ValueError(
                f"--score-target={self.score_target} is of Brownian bridges, and --bridge={self.bridge} is another "
                "path: give eps or x0"
            )

    def name_parts(self) -> list[str]:
        """What tells a run from others."""
        bridge = [] if self.bridge == "idff" else [self.bridge]
        return ["idff", *([self.preset] if self.preset else []), *bridge, f"sigma{self.sigma:g}", self.coupling]
