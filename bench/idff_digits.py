"""IDFF against EDM and curvature minimisation on the digits, at equal network evaluations, over seeds of training.

    python -m bench.idff_digits

Every network sees as many images in batches of one size, and has about as many parameters (0.70 million of IDFF, 0.72
of curvature's velocity network, 0.98 of EDM). IDFF is sampled as published and by the solvers of diffusion models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.digits import Sampler, command
from samplers.planning.plan import SamplerOptions

COUNTS = (3, 5, 10, 20)
RECIPE = "--batch=128 --lr=1e-3 --lr-rampup=0.01 --ema=0.01 --ema-rampup=0.1"
TRAINED = {
    "edm": f"edm --cbase=32 --cres=1,2 --num-blocks=2 --dropout=0 --augment=0 {RECIPE}",
    "curvature": f"curvature --preset=digits {RECIPE}",
    "idff": f"idff --preset=digits {RECIPE}",
    "idff-independent": f"idff --preset=digits --coupling=independent {RECIPE}",
    "idff-residual": f"idff --preset=digits --residual=1 {RECIPE}",
}
FITTED = {"num_warmup": 64}  # samples that schedules and solvers are fitted on


def native(n: int, **more: Any) -> SamplerOptions:
    """Euler steps in the model's own time."""
    return SamplerOptions(N=n, **more)


def published(n: int) -> SamplerOptions:
    """IDFF's own sampler takes three evaluations a step: 3, 6, 9 and 21 of them."""
    return SamplerOptions(N=3 * round(n / 3 + 0.01), field="legacy_2024", sampling_sigma=0.4, solver="ssprk3")


def ipndm(n: int, **more: Any) -> SamplerOptions:
    return SamplerOptions(solver="ipndm", num_steps=n, **more)


def gits(n: int) -> SamplerOptions:
    return ipndm(n, dp=True, **FITTED)


def calibrated(n: int) -> SamplerOptions:
    return SamplerOptions(calibrate=(n,), **FITTED)


def sampled(network: str, sampler: Callable[[int], SamplerOptions], *, extra: int = 0, last: int = 20) -> Sampler:
    """A row at COUNTS up to `last`; `extra`: noise levels beyond the evaluations."""
    return Sampler(network, {n: sampler(n + extra) for n in COUNTS if n <= last})


ROWS = {
    # the first evaluation of models with an exact start is spent there, EDM's n levels are n - 1 evaluations
    "EDM, iPNDM": sampled("edm", ipndm, extra=1),
    "EDM, GITS": sampled("edm", gits, extra=1),
    "EDM, calibrated": sampled("edm", calibrated, last=10),
    "curvature, Euler": sampled("curvature", native),
    "curvature, iPNDM": sampled("curvature", ipndm),
}
for model, name in (
    ("idff", "IDFF, coupled"), ("idff-independent", "IDFF, independent"), ("idff-residual", "IDFF, --residual=1"),
):  # fmt: skip
    ROWS |= {
        f"{name}, as published (3, 6, 9, 21)": sampled(model, published),
        f"{name}, x1, Euler": sampled(model, native),
        f"{name}, pf, Euler": sampled(model, lambda n: native(n, field="pf")),
        f"{name}, iPNDM": sampled(model, ipndm),
        f"{name}, GITS": sampled(model, gits),
        f"{name}, calibrated": sampled(model, calibrated, last=10),
    }

main = command(TRAINED, ROWS, "IDFF, EDM and curvature minimisation on the digits", "runs/bench-idff", 0.05)

if __name__ == "__main__":
    main()
