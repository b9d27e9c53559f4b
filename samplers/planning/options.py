"""What can be asked of a sampler on the command line, shared by every script that samples.

One frozen dataclass per family of options that apply together: each field is an option (`torch_utils.options`), None
means not asked. Which families a kind of sampler reads is said in `samplers.planning.plan.KINDS`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from samplers.fusion import SCORE_SOURCES
from samplers.gits.costs import METRICS
from samplers.guidance import BATCHES, CHANNELS, GUIDANCE
from samplers.schedules.edm import DISCRETIZATIONS, SCALINGS
from samplers.solvers.interpolant import FORMS
from samplers.solvers.interpolant import LAST_STEPS as LAST
from samplers.solvers.table import SOLVERS
from samplers.start import STARTS
from torch_utils.cli import Choice, CountList
from torch_utils.options import OptionGroup, opt

__all__ = [
    "FAMILY",
    "FIELDS",
    "CalibrationOptions",
    "ChurnOptions",
    "CountOptions",
    "DiffusionOptions",
    "EDMSamplerOptions",
    "EndOptions",
    "FusionOptions",
    "GuidanceOptions",
    "LevelOptions",
    "MethodOptions",
    "NativeOptions",
    "PriorOptions",
    "RangeOptions",
    "SamplerOptions",
    "SearchOptions",
    "SolverOptions",
    "StartOptions",
    "flag",
]

COORDINATES = ("native", "sigma")
PRIORS = ("matched", "standard")
FIELDS = ("x1", "pf", "bridge_sde", "langevin", "legacy_2024", "legacy_2025")  # of models of two heads

EDM = OptionGroup(
    "EDM sampler",
    "The default, in N noise levels and a last step to 0. With the solvers euler and heun; --S_* also with heun_churn.",
    rank=2,
)
SOLVER = OptionGroup(
    "Solver and noise levels",
    "Any solver over N noise levels, in N - 1 steps that end above 0: say --solver, --num-steps or another of these.",
    rank=3,
)
SEARCH = OptionGroup(
    "Search and calibration",
    "Noise levels (--dp) or a whole solver (--calibrate) fitted to this network before the first image.",
    rank=4,
)
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
    "Of train.py idff: what drives a sample (docs/idff.md). Fields with noise are sampled by srid2.",
    rank=5.5,
)
GUIDED = OptionGroup("Guidance", "Conditional networks, with every sampler.", rank=6)

# the published spelling of one form, and capitals, are kept
DIFFUSION_FORMS = {**{name: name for name in FORMS}, "inccreasing-decreasing": "increasing-decreasing"}


MOST = 1_000_000  # of any number: beyond it arithmetic overflows, or sampling does not end


def _number(text: str, **limits: Any) -> Any:
    if not limits.keys() & {"at_least", "above"}:
        limits["at_least"] = -MOST
    if limits.get("finite", True):
        limits.setdefault("at_most", MOST)
    return opt(None, text, metavar="FLOAT", **limits)


_LEVEL = {"at_least": 1e-8}
_EXPONENT = {"at_least": 0.1, "at_most": 1000}  # of levels; beyond, they all lie at one end


def _count(text: str, **limits: Any) -> Any:
    return opt(None, text, metavar="INT", at_least=1, **{"at_most": MOST, **limits})


def _switch(text: str) -> Any:
    return opt(None, text, metavar="BOOL", bare=True)


@dataclass(frozen=True, kw_only=True)
class EDMSamplerOptions:
    group: ClassVar = EDM
    whose: ClassVar = "EDM's samplers"

    steps: int | None = opt(None, "Noise levels, then a step to 0 [default: 18]", metavar="INT", at_most=MOST)
    rho: float | None = _number("Exponent of the noise levels [default: 7]", **_EXPONENT)
    disc: str | None = opt(None, "General form: which noise levels [default: edm]", choices=list(DISCRETIZATIONS))
    scaling: str | None = opt(None, "General form: scale s(t) of the state [default: none]", choices=list(SCALINGS))


@dataclass(frozen=True, kw_only=True)
class ChurnOptions:
    group: ClassVar = EDM
    whose: ClassVar = "EDM's samplers"

    S_churn: float | None = _number("Amount of added noise [default: 0]", at_least=0)
    S_min: float | None = _number("Lowest noise level that gets added noise [default: 0]", at_least=0)
    S_max: float | None = _number("Highest noise level that gets added noise [default: inf]", at_least=0, finite=False)
    S_noise: float | None = _number("Inflation of the added noise [default: 1]", at_least=0)


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "every sampler"

    solver: str | None = opt(
        None, f"euler or heun with EDM's options, or one of {', '.join(SOLVERS)} [default: EDM's Heun]"
    )


@dataclass(frozen=True, kw_only=True)
class CountOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    num_steps: int | None = opt(None, "Noise levels, one more than steps [default: 7]", metavar="INT", at_most=MOST)
    nfe: int | None = _count("Network evaluations: of a schedule in a file, or of the stochastic interpolant sampler")


@dataclass(frozen=True, kw_only=True)
class LevelOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    schedule: str | None = opt(
        None,
        "A file that --save-schedule wrote, or the name of a published list. With EDM's general form: sigma(t), vp, ve "
        "or linear [default: linear]",
        metavar="NAME|FILE",
    )
    t_steps: tuple[float, ...] | None = opt(
        None, "The noise levels themselves, e.g. [80,10.9,2.5,0.002]", metavar="LIST"
    )
    schedule_type: str | None = opt(
        None, "How noise levels are spread [default: polynomial]",
        choices=["polynomial", "logsnr", "time_uniform", "discrete"],
    )  # fmt: skip
    schedule_rho: float | None = _number("Exponent of the spread [default: 7]", **_EXPONENT)


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "sampling in sigma coordinates"

    sigma_min: float | None = _number(
        "Lowest noise level; narrowed to the network's range [default: 0.002]", at_least=1e-8
    )
    sigma_max: float | None = _number(
        "Highest noise level; narrowed to the network's range [default: 80]", at_least=1e-8
    )


@dataclass(frozen=True, kw_only=True)
class EndOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    afs: bool | None = _switch("Analytical first step: one network evaluation less")
    denoise_to_zero: bool | None = _switch("One more evaluation at the end: the clean estimate is the image")


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of single solvers: each knows its own (`Solver.options`)."""

    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    max_order: int | None = _count("Order of a multi-step solver [default: the solver's]")
    predict_x0: bool | None = _switch("dpmpp, unipc: step in the clean estimate, not the noise [default: True]")
    thresholding: str | None = opt(
        None, "dpmpp, unipc: dynamic thresholding of the clean estimate", choices=["none", "dynamic"]
    )
    lower_order_final: bool | None = _switch("dpmpp, unipc: lower order in the last steps [default: True]")
    variant: str | None = opt(None, "unipc: its factor B(h) [default: bh2]", choices=["bh1", "bh2"])
    deis_mode: str | None = opt(None, "deis: how its weights are integrated [default: tab]", choices=["tab", "rhoab"])
    rtol: float | None = _number("Adaptive solvers: relative tolerance of every image [default: 1e-5]", at_least=1e-13)
    atol: float | None = _number("Adaptive solvers: absolute tolerance of every image [default: 1e-5]", at_least=1e-13)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    group: ClassVar = SEARCH
    whose: ClassVar = "the solvers over given noise levels"

    dp: bool | None = _switch("Search the noise levels along the trajectories of this network (GITS)")
    coeff: tuple[float, ...] | None = opt(
        None,
        "Factor on every later jump, larger puts more levels at low noise; further ones are searched as well, for "
        "--save-schedule [default: 1.15]. Also: which one of a schedule file",
        metavar="LIST",
    )
    metric: str | None = opt(None, "Cost of a jump [default: dev]", choices=list(METRICS))
    num_warmup: int | None = _count("Samples to measure on [default: 256]")
    solver_tea: str | None = opt(None, "Solver of the teacher [default: ipndm]", metavar="NAME")
    num_steps_tea: int | None = _count("Noise levels of the teacher [default: 61]", at_most=10_000)
    search_seed: int | None = opt(None, "Seed of the warm-up samples [default: 0]", metavar="INT", at_least=0)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    group: ClassVar = SEARCH
    whose: ClassVar = "the solvers over given noise levels"

    calibrate: tuple[int, ...] | None = opt(
        None,
        "Fit a solver of NFE network evaluations to this network, noise levels and all; without a number: one less "
        "than --num-steps. The options of the search hold. Of several, e.g. 3,5,8, the last makes the images, and "
        "--save-schedule keeps all",
        metavar="NFE", type=CountList(), bare="auto",
    )  # fmt: skip


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
    diffusion_norm: float | None = _number("Factor on it [default: 1]", at_least=0)
    last_step: str | None = opt(
        None, "How the last step ends: along the drift, along the flow, at the clean estimate, or not at all "
        "[default: mean]", choices=list(LAST), type=Choice(list(LAST), case_sensitive=False),
    )  # fmt: skip
    last_step_size: float | None = _number("Length of the last step, in time [default: 0.04]", above=0, at_most=1)
    sde_order: int | None = opt(
        None, "Order of the other steps: 1 is Euler's, 2 is Heun's, of two evaluations [default: 1]", metavar="INT",
        at_least=1, at_most=2,
    )  # fmt: skip
    sample_eps: float | None = _number(
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
    damping: bool | None = _switch("Shrink the flow by the gammas [default: False, of legacy_2025 True]")
    score_source: str | None = opt(
        None, "The score: the second head, Tweedie's formula on the first (independent noise), or the derivative that "
        "programs of 2025 took [default: head, where it is one]", choices=list(SCORE_SOURCES),
    )  # fmt: skip
    sampling_sigma: float | None = _number("legacy: sigma of sampling [default: 0.2]", at_least=0)
    delta: float | None = _number("legacy: denominator at the data [default: 0.1, of 2025 0.01]", above=0)
    momentum: float | None = _number("legacy: factor of the momentum, with its sign [default: 1]")
    noise_scale: float | None = _number("legacy: added noise, 0 for images, 1 for points [default: 0]", at_least=0)


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
    guidance_rate: float | None = _number(
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


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(
    GuidanceOptions, FusionOptions, StartOptions, PriorOptions, DiffusionOptions, NativeOptions, CalibrationOptions,
    SearchOptions, MethodOptions, EndOptions, RangeOptions, LevelOptions, CountOptions, SolverOptions, ChurnOptions,
    EDMSamplerOptions,
):  # fmt: skip
    """What can be asked of a sampler; None = not asked. Options that do not go together are refused by `build_plan`."""

    def given(self) -> dict[str, Any]:
        """The options that were asked for; a switch that is off because someone said so counts as not asked."""
        values = {name: getattr(self, name) for name in FAMILY if name != "form"}
        off = ("denoise_to_zero", "dp") if self.calibrate is not None else ("afs", "denoise_to_zero", "dp")
        return {k: v for k, v in values.items() if v is not None and not (k in off and v is False)}


# The family that each option belongs to. "form" is what `schedule` means to EDM's general sampler.
FAMILY: dict[str, type] = {
    f.name: family for family in reversed(SamplerOptions.__mro__[1:-1]) for f in dataclasses.fields(family)
} | {"form": EDMSamplerOptions}


def flag(name: str) -> str:
    """Spell an option as on the command line."""
    return "--schedule" if name == "form" else f"--{name}" if name.startswith("S_") else f"--{name.replace('_', '-')}"
