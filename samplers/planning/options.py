"""What can be asked of a sampler on the command line, shared by every script that samples.

One frozen dataclass: each field is an option (`torch_utils.options`), None means not asked. What the options mean
together, and which of them contradict each other, is decided in `samplers.planning.plan`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from samplers.gits.costs import METRICS
from samplers.guidance import GUIDANCE
from samplers.planning.native import COORDINATES, PRIORS
from samplers.solvers.churn import DISCRETIZATIONS, SCALINGS
from samplers.solvers.table import SOLVERS
from samplers.start import STARTS
from torch_utils.cli import NumberList
from torch_utils.options import opt

__all__ = ["SamplerOptions"]


def _number(text: str, **limits: Any) -> Any:
    return opt(None, text, metavar="FLOAT", **limits)


def _count(text: str, **limits: Any) -> Any:
    return opt(None, text, metavar="INT", at_least=1, **limits)


def _switch(text: str) -> Any:
    return opt(None, text, metavar="BOOL", bare=True)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What can be asked of a sampler; None = not asked. Options that do not go together are refused by `build_plan`."""

    # Both families
    solver: str | None = opt(
        None, f"euler or heun with EDM's options below, or one of {', '.join(SOLVERS)} [default: EDM's Heun]"
    )
    sigma_min: float | None = _number("Lowest noise level; narrowed to the network's range [default: 0.002]", above=0)
    sigma_max: float | None = _number("Highest noise level; narrowed to the network's range [default: 80]", above=0)

    # EDM's samplers
    steps: int | None = opt(None, "EDM: noise levels, then a step to 0 [default: 18]", metavar="INT")
    rho: float | None = _number("EDM: exponent of the time steps [default: 7]", above=0)
    S_churn: float | None = _number("EDM: amount of added noise [default: 0]", at_least=0)
    S_min: float | None = _number("EDM: lowest noise level that gets added noise [default: 0]", at_least=0)
    S_max: float | None = _number(
        "EDM: highest noise level that gets added noise [default: inf]", at_least=0, finite=False
    )
    S_noise: float | None = _number("EDM: inflation of the added noise [default: 1]", at_least=0)
    disc: str | None = opt(None, "EDM, general: which time steps [default: edm]", choices=list(DISCRETIZATIONS))
    schedule: str | None = opt(
        None,
        "EDM, general: sigma(t), vp, ve or linear [default: linear]. Or time stamps for any solver: a file that "
        "--save-schedule wrote, or the name of a published list",
        metavar="NAME|FILE",
    )
    scaling: str | None = opt(None, "EDM, general: s(t) [default: none]", choices=list(SCALINGS))

    # Every solver: time stamps
    num_steps: int | None = opt(None, "Time stamps, one more than steps [default: 7]", metavar="INT")
    schedule_type: str | None = opt(
        None, "How time stamps are spread [default: polynomial]",
        choices=["polynomial", "logsnr", "time_uniform", "discrete"],
    )  # fmt: skip
    schedule_rho: float | None = _number("Exponent of the spread [default: 7]", above=0)
    nfe: int | None = _count("Which schedule of a file: the one with so many network evaluations")
    t_steps: tuple[float, ...] | None = opt(
        None, "The time stamps themselves, e.g. [80,10.9,2.5,0.002]", metavar="LIST", type=NumberList()
    )

    # Every solver: time stamps that are searched (GITS)
    dp: bool | None = _switch("Search the time stamps for this network, along its trajectories")
    metric: str | None = opt(None, "Search: cost of a jump [default: dev]", choices=list(METRICS))
    coeff: tuple[float, ...] | None = opt(
        None,
        "Search: factor on every later jump, larger puts more time stamps at low noise; further ones are searched as "
        "well, for --save-schedule [default: 1.15]. Also: which one of a schedule file",
        metavar="LIST", type=NumberList(),
    )  # fmt: skip
    num_warmup: int | None = _count("Search: samples to measure on [default: 256]")
    solver_tea: str | None = opt(None, "Search: solver of the teacher [default: ipndm]", metavar="NAME")
    num_steps_tea: int | None = _count("Search: time stamps of the teacher [default: 61]")
    search_seed: int | None = opt(None, "Search: seed of the warm-up samples [default: 0]", metavar="INT", at_least=0)
    calibrate: tuple[int, ...] | None = opt(
        None,
        "Fit a solver of so many network evaluations to this network, time stamps and all; without a number: one less "
        "than --num-steps. The options of the search hold. Of several, e.g. 3,5,8, the last makes the images, and "
        "--save-schedule keeps all",
        metavar="NFE", bare="0",
    )  # fmt: skip

    # Every solver: how it steps
    afs: bool | None = _switch("Analytical first step: one network evaluation less")
    denoise_to_zero: bool | None = _switch("One more evaluation at the end: the clean estimate is the image")
    max_order: int | None = _count("Order of a multi-step solver [default: the solver's]")
    predict_x0: bool | None = _switch("dpmpp, unipc: step in the clean estimate, not the noise [default: True]")
    thresholding: str | None = opt(
        None, "dpmpp, unipc: dynamic thresholding of the clean estimate", choices=["none", "dynamic"]
    )
    lower_order_final: bool | None = _switch("dpmpp, unipc: lower order in the last steps [default: True]")
    variant: str | None = opt(None, "unipc: [default: bh2]", choices=["bh1", "bh2"])
    deis_mode: str | None = opt(None, "deis: [default: tab]", choices=["tab", "rhoab"])
    rtol: float | None = _number("dopri5, rk45, rk23, dop853: relative tolerance [default: 1e-5]", above=0)
    atol: float | None = _number("dopri5, rk45, rk23, dop853: absolute tolerance [default: 1e-5]", above=0)

    # Flow models
    coordinates: str | None = opt(
        None, "Flow models: step in their own time or in sigma [default: native, unless options of sigma samplers are "
        "given]", choices=list(COORDINATES),
    )  # fmt: skip
    N: int | None = opt(
        None, "Flow models in native time: network evaluations, odd for heun [default: 20]", metavar="INT"
    )
    prior: str | None = opt(
        None, "Models of a learned coupling: start from the Gaussian measured on encoded data, or from the one that "
        "training aimed at [default: matched for points, standard for images]", choices=list(PRIORS),
    )  # fmt: skip
    start: str | None = opt(
        None, "Flow models in sigma: begin at infinite sigma (one more evaluation) or with scaled noise "
        "[default: as the model says]", choices=list(STARTS),
    )  # fmt: skip

    # Every sampler: guidance
    guidance_type: str | None = opt(
        None,
        "cfg: classifier-free, of a conditional network trained with label dropout; cg: by the classifier of a "
        "published model; uncond: without condition [default: none]",
        choices=list(GUIDANCE),
    )
    guidance_rate: float | None = _number(
        "Strength of guidance: 1 is the conditional model, more is closer to the condition and less varied; cfg other "
        "than 0 or 1 doubles the network evaluations"
    )

    def given(self) -> dict[str, Any]:
        """The options that were asked for; a switch that is off because someone said so counts as not asked."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(SamplerOptions)}
        off = ("denoise_to_zero", "dp") if self.calibrate is not None else ("afs", "denoise_to_zero", "dp")
        return {k: v for k, v in values.items() if v is not None and not (k in off and v is False)}
