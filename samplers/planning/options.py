"""What can be asked of a sampler on the command line, shared by every script that samples.

One frozen dataclass per family of options that apply together: each field is an option (`torch_utils.options`), None
means not asked. Which families a kind of sampler reads is said in `samplers.planning.plan.KINDS`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from samplers.choices import CALIBRATION_STARTS, DISCRETIZATIONS, METRICS, SCALINGS
from samplers.planning.model_options import (
    BridgeOptions,
    DiffusionOptions,
    FusionOptions,
    GuidanceOptions,
    NativeOptions,
    PartOptions,
    PriorOptions,
    StartOptions,
)
from samplers.planning.numbers import EXPONENT, MOST, count, number, switch
from samplers.solvers.table import SOLVERS
from torch_utils.cli import CountList
from torch_utils.options import OptionGroup, opt

EDM = OptionGroup(
    "EDM sampler",
    "The default, in N noise levels and a last step to 0. With the solvers euler and heun; --S_* also with heun_churn.",
    rank=2,
)
SOLVER = OptionGroup(
    "Solver and levels",
    "Any solver over N noise levels, in N - 1 steps that end above 0: say --solver, --num-steps or another of these.",
    rank=3,
)
SEARCH = OptionGroup(
    "Search and calibration",
    "Noise levels (--dp) or a whole solver (--calibrate) fitted to this network before the first image.",
    rank=4,
)


@dataclass(frozen=True, kw_only=True)
class EDMSamplerOptions:
    group: ClassVar = EDM
    whose: ClassVar = "EDM's samplers"

    steps: int | None = opt(None, "Noise levels, then a step to 0 [default: 18]", metavar="INT", at_most=MOST)
    rho: float | None = number("Exponent of the noise levels [default: 7]", **EXPONENT)
    disc: str | None = opt(None, "General form: which noise levels [default: edm]", choices=list(DISCRETIZATIONS))
    scaling: str | None = opt(None, "General form: scale s(t) of the state [default: none]", choices=list(SCALINGS))


@dataclass(frozen=True, kw_only=True)
class ChurnOptions:
    group: ClassVar = EDM
    whose: ClassVar = "EDM's samplers"

    S_churn: float | None = number("Amount of added noise [default: 0]", at_least=0)
    S_min: float | None = number("Lowest noise level that gets added noise [default: 0]", at_least=0)
    S_max: float | None = number("Highest noise level that gets added noise [default: inf]", at_least=0, finite=False)
    S_noise: float | None = number("Inflation of the added noise [default: 1]", at_least=0)


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
    nfe: int | None = count("Network evaluations: of a schedule in a file, or of the stochastic interpolant sampler")


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
    schedule_rho: float | None = number("Exponent of the spread [default: 7]", **EXPONENT)


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "sampling in sigma coordinates"

    sigma_min: float | None = number(
        "Lowest noise level; narrowed to the network's range [default: 0.002]", at_least=1e-8
    )
    sigma_max: float | None = number(
        "Highest noise level; narrowed to the network's range [default: 80]", at_least=1e-8
    )


@dataclass(frozen=True, kw_only=True)
class EndOptions:
    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    afs: bool | None = switch("Analytical first step: one network evaluation less")
    denoise_to_zero: bool | None = switch("One more evaluation at the end: the clean estimate is the image")


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of single solvers: each knows its own (`Solver.options`)."""

    group: ClassVar = SOLVER
    whose: ClassVar = "the solvers over given noise levels"

    max_order: int | None = count("Order of a multi-step solver [default: the solver's]")
    predict_x0: bool | None = switch("dpmpp, unipc: step in the clean estimate, not the noise [default: True]")
    thresholding: str | None = opt(
        None, "dpmpp, unipc: dynamic thresholding of the clean estimate", choices=["none", "dynamic"]
    )
    lower_order_final: bool | None = switch("dpmpp, unipc: lower order in the last steps [default: True]")
    variant: str | None = opt(None, "unipc: its factor B(h) [default: bh2]", choices=["bh1", "bh2"])
    deis_mode: str | None = opt(None, "deis: how its weights are integrated [default: tab]", choices=["tab", "rhoab"])
    corrector_order: int | None = opt(
        None, "sa: order of its corrector, 0 for none [default: 3]", metavar="INT", at_least=0, at_most=4
    )
    tau: float | None = number("sa: strength of its noise, 0 for none [default: 1]", at_least=0)
    tau_min: float | None = number("sa: lowest noise level with noise [default: 0.05]", at_least=0)
    tau_max: float | None = number("sa: highest noise level with noise [default: 1]", at_least=0)
    rtol: float | None = number("Adaptive solvers: relative tolerance of every image [default: 1e-5]", at_least=1e-13)
    atol: float | None = number("Adaptive solvers: absolute tolerance of every image [default: 1e-5]", at_least=1e-13)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    group: ClassVar = SEARCH
    whose: ClassVar = "the solvers over given noise levels"

    dp: bool | None = switch("Search the noise levels along the trajectories of this network (GITS)")
    coeff: tuple[float, ...] | None = opt(
        None,
        "Factor on every later jump, larger puts more levels at low noise; further ones are searched as well, for "
        "--save-schedule [default: 1.15]. Also: which one of a schedule file",
        metavar="LIST",
    )
    metric: str | None = opt(None, "Cost of a jump [default: dev]", choices=list(METRICS))
    num_warmup: int | None = count("Samples to measure on [default: 256]")
    solver_tea: str | None = opt(None, "Solver of the teacher [default: ipndm]", metavar="NAME")
    num_steps_tea: int | None = count("Noise levels of the teacher [default: 61]", at_most=10_000)
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
    objective: str | None = opt(
        None, "What a calibration brings near the teacher's, e.g. self, efficientnet-lite0 or a mixture such as "
        "efficientnet-lite0+0.1*pixels; docs/calibration.md lists the names [default: pixels]", metavar="NAMES",
    )  # fmt: skip
    starts: str | None = opt(
        None, "Where a calibration may begin, the best is used: gits and names of --schedule "
        f"[default: {','.join(CALIBRATION_STARTS)}, and discrete of models with a table of levels]", metavar="LIST",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(
    GuidanceOptions, BridgeOptions, FusionOptions, PartOptions, StartOptions, PriorOptions, DiffusionOptions,
    NativeOptions, CalibrationOptions, SearchOptions, MethodOptions, EndOptions, RangeOptions, LevelOptions,
    CountOptions, SolverOptions, ChurnOptions, EDMSamplerOptions,
):  # fmt: skip
    """What can be asked of a sampler; None = not asked. Options that do not go together are refused by `build_plan`."""

    def given(self) -> dict[str, Any]:
        """The options that were asked for; a switch that is set to off counts as not asked."""
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
