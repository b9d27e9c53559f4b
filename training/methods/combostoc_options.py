"""Options of `train.py combostoc` and `train.py sit`: names and defaults are the published ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch_utils.cli import Choice
from torch_utils.options import Alias, OptionGroup, opt
from training.data.shapes import is_shapes
from training.losses.interpolant import COMPENSATION, PART_SPLITS, PREDICTIONS, SPLITS, WEIGHTS, Times, draw_times
from training.method import Batch
from training.options import CommonOptions

# the published names of paths, in the direction of this project
PATH_TYPES = {"Linear": "linear", "GVP": "trig", "VP": "vp"}
_ALL_SPLITS = list(SPLITS | PART_SPLITS)


# counts of the published command lines -> the option that says it in images or ticks; that of ticks comes first
_COUNTED = {
    "epochs": "duration", "log_every": "tick", "ckpt_every": "snap", "sample_every": "snap", "reckpt_every": "dump",
}  # fmt: skip


_SPLIT = Alias(
    "--split", "The same without UNSYNC_", lambda name: f"UNSYNC_{name.upper()}",
    Choice([name.removeprefix("UNSYNC_").lower() for name in _ALL_SPLITS]),
)  # fmt: skip


def _steps(option: str, what: str) -> Any:
    return opt(None, f"Instead of --{option}: {what} every STEPS", metavar="STEPS", at_least=1)


@dataclass(frozen=True, kw_only=True)
class InterpolantOptions(CommonOptions):
    """Options of both commands."""

    group: ClassVar = OptionGroup("Network and loss", "Which network is trained, and what it learns.", rank=3)

    takes_shapes: ClassVar = True

    model: str | None = opt(
        None, "Family, size and patch side: SiT or ComboStoc, S, B, L or XL, /2, /4 or /8; of shapes Set and a size "
        "[default: XL/2 of the command's family, of shapes Set-S]", metavar="NAME",
    )  # fmt: skip
    width: int | None = opt(None, "Instead of the size's width", metavar="INT", at_least=4)
    depth: int | None = opt(None, "Instead of the size's number of blocks", metavar="INT", at_least=1)
    num_heads: int | None = opt(None, "Instead of the size's number of attention heads", metavar="INT", at_least=1)
    learn_sigma: bool = opt(
        False, "Twice the output channels, half of them unused, as in published files", metavar="BOOL"
    )
    label_dropout: float | None = opt(
        None, "Share of labels hidden in training, for classifier-free guidance [default: 0.1]", metavar="P",
        at_least=0, at_most=1,
    )  # fmt: skip
    path_type: str = opt("Linear", "Interpolation between noise and data", choices=list(PATH_TYPES))
    prediction: str | None = opt(
        None, "What the network predicts [default: velocity, of shapes data]", choices=list(PREDICTIONS)
    )
    loss_weight: str | None = opt(
        None, "Weight of the loss of noise and score over time; None, as published, is 1 [default: 1]",
        choices=["None", *WEIGHTS],
    )  # fmt: skip
    train_eps: float | None = opt(
        None, "Shortest distance of a time from the ends [default: 0 for velocity, else 1e-3; VP 1e-5]",
        metavar="FLOAT", at_least=0, at_most=0.5,
    )  # fmt: skip
    cfg_scale: float | None = opt(
        None, "Pictures: strength of classifier-free guidance, of 3 channels where there are more [default: 1, none]",
        metavar="FLOAT", at_least=1, may_change=True,
    )  # fmt: skip
    sample_eps: float | None = opt(
        None, "Pictures: by Heun's steps in time, from this distance of the noise to this distance of the data (VP: of "
        "the data alone) [default: EDM's sampler]", metavar="FLOAT", at_least=0, at_most=0.5, may_change=True,
    )  # fmt: skip
    checkpointing: bool = opt(
        False, "Recompute the blocks in the backward pass: less memory, a third more arithmetic", metavar="BOOL",
        may_change=True,
    )  # fmt: skip

    # the published spellings of options that every method has
    data: str = opt(
        None, "Data set made by dataset_tool.py, or shapes: shapes:boxes[:size=N][:seed=S] or FILE.npz",
        metavar="ZIP|DIR|SHAPES", required=True, names=("--data-path",),
    )  # fmt: skip
    outdir: str = opt(
        None, "Where to save the results", metavar="DIR", required=True, may_change=True, names=("--results-dir",)
    )
    resume: str | None = opt(
        None, "Continue from a run directory or a training state", metavar="DIR|FILE", may_change=True,
        names=("--ckpt",),
    )  # fmt: skip
    seed: int | None = opt(
        None, "Random seed; default: drawn and recorded", metavar="INT", at_least=0, names=("--global-seed",)
    )
    workers: int = opt(
        1, "Threads that read and decode images", metavar="INT", at_least=1, may_change=True, names=("--num-workers",)
    )
    image_size: int | None = opt(None, "Refuse data of another size", metavar="INT", at_least=1)
    num_classes: int | None = opt(None, "Refuse data of another number of classes", metavar="INT", at_least=0)
    vae: str | None = opt(
        None, "Refuse latents that were not made by this one of the two published autoencoders sd-vae-ft-...",
        choices=["ema", "mse"],
    )  # fmt: skip

    desc: str | None = opt(
        None, "Text to add to the run directory's name", metavar="STR", may_change=True, names=("--exp",)
    )
    epochs: float | None = opt(None, "Instead of --duration: passes over the data", metavar="NUM", above=0)
    log_every: int | None = _steps("tick", "a status line")
    ckpt_every: int | None = _steps("snap", "a snapshot and pictures")
    sample_every: int | None = _steps("snap", "pictures and a snapshot; of both the more frequent counts")
    reckpt_every: int | None = _steps("dump", "a state to continue from")

    batch: int = opt(
        256, "Total batch size over all processes", metavar="INT", at_least=1, names=("--global-batch-size",)
    )
    duration: float = opt(1792.0, "Training duration in million images", metavar="MIMG", above=0)
    lr: float = opt(1e-4, "Learning rate", metavar="FLOAT", above=0)
    lr_rampup: float = opt(0.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    # the published factor 0.9999 per step of 256 images, without ramp-up
    ema: float = opt(1.7744, "EMA half-life in million images", metavar="MIMG", at_least=0)
    ema_rampup: float | None = opt(
        0.0, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )

    family: ClassVar = "SiT"

    def told(self, dataset: Any) -> Self:
        """The published counts of steps and epochs as images and ticks, which are what is recorded, and its None."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        given, changes = {name: getattr(self, name) for name in _COUNTED if getattr(self, name) is not None}, {}
        if given.keys() - {"epochs"} and self.tick == defaults["tick"]:
            given = {"log_every": 100, **given}  # the published default, of which counts are multiples
        for name in (name for name in _COUNTED if name in given):
            value, own, changes[name] = given[name], _COUNTED[name], None
            if getattr(self, own) != defaults[own]:
                raise ValueError(f"--{name.replace('_', '-')} and --{own} say the same: leave one of them out")
            images = value * (len(dataset) // (1 + self.xflip) if name == "epochs" else self.batch)
            if own in ("duration", "tick"):
                changes[own] = images / (1e6 if own == "duration" else 1000)
                continue
            tick = changes.get("tick", self.tick)
            ticks = round(images / 1000 / tick)
            if not ticks or not math.isclose(ticks * tick, images / 1000):
                raise ValueError(
                    f"--{name.replace('_', '-')}={value} is no whole number of ticks of {tick * 1000 / self.batch:g} "
                    "steps: choose a multiple of that, or another --log-every"
                )
            changes[own] = min(ticks, changes.get(own, ticks))
        weight = None if self.loss_weight == "None" else self.loss_weight
        return dataclasses.replace(self, **changes, loss_weight=weight)

    @property
    def of_parts(self) -> bool:
        """Samples are sets of parts, not images."""
        return is_shapes(self.data)

    @property
    def named(self) -> str:
        """The model by its name."""
        return self.model or ("Set-S" if self.of_parts else f"{self.family}-XL/2")

    @property
    def predicts(self) -> str:
        return self.prediction or ("data" if self.of_parts else "velocity")

    @property
    def split(self) -> str | None:
        """Which elements have times of their own; None: one uniform time a sample."""
        return None

    @property
    def in_halves(self) -> bool:
        """Every second sample has one time."""
        return False

    def times(self, batch: Batch, interval: tuple[float, float], groups: Sequence[int] = ()) -> Times:
        """Times of a batch; `groups` are those of its parts."""
        return draw_times(batch.rng, batch.data.shape, None, interval)

    @property
    def compensation(self) -> str:
        return "off"

    def name_parts(self) -> list[str]:
        return [self.named.replace("/", "-"), self.path_type.lower(), self.predicts]


@dataclass(frozen=True, kw_only=True)
class SiTOptions(InterpolantOptions):
    """Options of `train.py sit`."""


@dataclass(frozen=True, kw_only=True)
class ComboStocOptions(InterpolantOptions):
    """Options of `train.py combostoc`."""

    group: ClassVar = OptionGroup("Times of elements", "Which elements of a sample have times of their own.", rank=3.5)

    family: ClassVar = "ComboStoc"

    combostoc_type: str = opt(
        "UNSYNC_ALL", "Times of their own: none, per channel (VEC), per pixel (PATCH), per element (ALL); of shapes "
        "also per part, per attribute (ATT: existence, box, code), per both, and VEC per number of a part",
        choices=_ALL_SPLITS,
        aliases=(_SPLIT,),
    )  # fmt: skip
    compensate: str | None = opt(
        None, "Velocities that hurry elements which lag: as published for every path, on the path where they are "
        "exact, or off [default: linear-only]", choices=list(COMPENSATION),
    )  # fmt: skip
    halves: bool | None = opt(
        None, "Only every second sample has times of its own; else all [default: True, of shapes False]", metavar="BOOL"
    )
    blend: bool | None = opt(
        None, "Times between the common one and own ones; else own ones [default: True, of shapes False]",
        metavar="BOOL",
    )  # fmt: skip

    @property
    def split(self) -> str | None:
        return self.combostoc_type

    @property
    def in_halves(self) -> bool:
        return not self.of_parts if self.halves is None else self.halves

    def times(self, batch: Batch, interval: tuple[float, float], groups: Sequence[int] = ()) -> Times:
        blend = not self.of_parts if self.blend is None else self.blend
        return draw_times(
            batch.rng, batch.data.shape, self.split, interval, halves=self.in_halves, blend=blend, groups=groups
        )

    @property
    def compensation(self) -> str:
        if self.predicts != "velocity" and self.compensate is not None:
            raise ValueError(
                f"--compensate={self.compensate} changes velocities, and this network predicts {self.predicts}: "
                "leave it out"
            )
        return self.compensate or "linear-only"

    def name_parts(self) -> list[str]:
        return [*super().name_parts(), self.combostoc_type.lower()]
