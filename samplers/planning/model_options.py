"""Families of options that depend on the kind of model: flows, two heads, conditions, and noise along the way.

They are declared as those of `samplers.planning.options`, which gathers all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from samplers.choices import BATCHES, CHANNELS, FORMS, GUIDANCE, LAST_STEPS, LEARNT, SCORE_SOURCES, STARTS
from samplers.planning.numbers import MOST, number, switch
from torch_utils.cli import Choice
from torch_utils.options import OptionGroup, opt

COORDINATES = ("native", "sigma")
PRIORS = ("matched", "standard")
FIELDS = ("x1", "pf", "bridge_sde", "langevin", "legacy_2024", "legacy_2025")  # of models of two heads

FLOW = OptionGroup(
    "Flow models", "Networks with a time of their own, in which they are sampled if nothing else is asked.", rank=5
)
NOISY = OptionGroup(
    "Stochastic interpolant sampler",
    "Noise along the way of any model, in equal steps of time: say one of these. --num-steps (times) or --nfe say how "
    "many [default: 250].",
    rank=5.5,
)
FUSED = OptionGroup(
    "Models of two heads",
    "Models of train.py idff: what drives a sample (docs/idff.md). Fields with noise are sampled by srid2.",
    rank=5.5,
)
GUIDED = OptionGroup("Guidance", "Conditional networks, with every sampler.", rank=6)

# the published spelling of one form, and capitals, are kept
DIFFUSION_FORMS = {**{name: name for name in (*FORMS, LEARNT)}, "inccreasing-decreasing": "increasing-decreasing"}


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    group: ClassVar = FLOW
    whose: ClassVar = "flow models in native time"

    N: int | None = opt(
        None, "In native time: network evaluations, odd for heun [default: 20]", metavar="INT", at_most=MOST
    )
    coordinates: str | None = opt(
        None, "Step in the model's own time or in sigma [default: native, unless options of sigma samplers are given]",
        choices=list(COORDINATES),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    group: ClassVar = NOISY
    whose: ClassVar = "the stochastic interpolant sampler"

    diffusion_form: str | None = opt(
        None, "Amount of added noise over time [default: sigma]", choices=list(DIFFUSION_FORMS)
    )
    diffusion_norm: float | None = number("Factor on it [default: 1]", at_least=0)
    diffusion_losses: str | None = opt(
        None, f"Losses over time that analyze.py losses wrote; the form is then {LEARNT}", metavar="FILE.json"
    )
    diffusion_eta: float | None = number(
        f"{LEARNT}: how much less noise where losses are small [default: 0.01]", above=0
    )
    last_step: str | None = opt(
        None, "How the last step ends: along the drift, along the flow, at the clean estimate, or not at all "
        "[default: mean]", choices=list(LAST_STEPS), type=Choice(list(LAST_STEPS), case_sensitive=False),
    )  # fmt: skip
    last_step_size: float | None = number("Length of the last step, in time [default: 0.04]", above=0, at_most=1)
    sde_order: int | None = opt(
        None, "Order of the other steps: 1 is Euler's, 2 is Heun's, of two evaluations [default: 1]", metavar="INT",
        at_least=1, at_most=2,
    )  # fmt: skip
    sample_eps: float | None = number(
        "Distance of the first time from 1, and of the last from 0 without a last step [default: 0 of velocities, else "
        "0.001; a model in sigma begins at its highest level]",
        above=0,
        at_most=0.5,
    )


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    group: ClassVar = FLOW
    whose: ClassVar = "every sampler"

    prior: str | None = opt(
        None, "Models of a learned coupling: start from the Gaussian measured on encoded data, or from the one that "
        "training aimed at [default: matched for points, standard for images]", choices=list(PRIORS),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    group: ClassVar = FLOW
    whose: ClassVar = "sampling in sigma coordinates"

    start: str | None = opt(
        None, "In sigma: begin at infinite sigma (one more evaluation) or with scaled noise "
        "[default: as the model says]", choices=list(STARTS),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    group: ClassVar = FUSED
    whose: ClassVar = "models of two heads"

    field: str | None = opt(
        None, "The clean estimate as a denoiser (x1); the flow with the score (pf); with noise, of the bridge's SDE or "
        "of the bridge itself (bridge_sde, langevin); what published programs ran (legacy) [default: x1]",
        choices=list(FIELDS),
    )  # fmt: skip
    gammas: tuple[float, ...] | None = opt(
        None, "Weights of the score and of its derivatives, one to three [default: 0.5, which is exact]", metavar="LIST"
    )
    damping: bool | None = switch("Shrink the flow by the gammas [default: False, of legacy_2025 True]")
    score_source: str | None = opt(
        None, "The score: the second head, Tweedie's formula on the first (independent noise), or the derivative that "
        "programs of 2025 took [default: head, where it is one]", choices=list(SCORE_SOURCES),
    )  # fmt: skip
    sampling_sigma: float | None = number("legacy: sigma of sampling [default: 0.2]", at_least=0)
    delta: float | None = number("legacy: denominator at the data [default: 0.1, of 2025 0.01]", above=0)
    momentum: float | None = number("legacy: factor of the momentum, with its sign [default: 1]")
    noise_scale: float | None = number("legacy: added noise, 0 for images, 1 for points [default: 0]", at_least=0)


@dataclass(frozen=True, kw_only=True)
class BridgeOptions:
    group: ClassVar = FUSED
    whose: ClassVar = "fields with noise along their own time"

    time_power: float | None = number(
        "With noise: times are this power of equal ones; above 1 the last steps, which lose spread, are short "
        "[default: 1]", above=0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    group: ClassVar = OptionGroup("Models of shapes", "Samples that are sets of parts (docs/shapes.md).", rank=5.5)
    whose: ClassVar = "models of shapes"

    binarise: bool | None = switch("Decide at every step which parts exist [default: True]")


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    group: ClassVar = GUIDED
    whose: ClassVar = "models with a condition"

    guidance_type: str | None = opt(
        None,
        "cfg: classifier-free, of a network trained with label dropout; cg: by the classifier of a published model; "
        "uncond: without condition [default: none]",
        choices=list(GUIDANCE),
    )
    guidance_rate: float | None = number(
        "Strength: 1 is the conditional model, more is closer to the condition and less varied; cfg other than 0 or 1 "
        "doubles the network evaluations"
    )
    guidance_channels: str | None = opt(
        None, "cfg: all channels, or the first 3 alone, as diffusion transformers are published [default: all]",
        choices=list(CHANNELS),
    )  # fmt: skip
    guidance_interval: tuple[float, ...] | None = opt(
        None, "cfg: only between these noise levels, e.g. 0.3,5; outside of them one evaluation", metavar="LOW,HIGH"
    )
    cfg_batch: str | None = opt(
        None, "cfg: both predictions in one call of twice the batch, or in two of half the memory [default: joint]",
        choices=list(BATCHES),
    )  # fmt: skip
