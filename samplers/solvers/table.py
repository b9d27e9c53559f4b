"""The solvers by name, and `sample`: from unit noise to clean data along given noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from samplers.solvers.entry import Solver

if TYPE_CHECKING:
    from torch import Tensor

    from samplers.field import Field
    from samplers.solvers.base import Step
    from torch_utils.rng import TorchRNG

__all__ = ["SOLVERS", "sample", "solver_named"]

_ADAMS = {"max_order": (1, 2, 3, 4)}
_EXPONENTIAL = {
    "max_order": (1, 2, 3),
    "predict_x0": (True, False),
    "lower_order_final": (True, False),
    "thresholding": (None, "none", "dynamic"),
}

SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver("euler", "onestep"),
        Solver("heun", "onestep", evaluations=2),
        Solver("dpm", "onestep", evaluations=2),
        Solver("renoise", "onestep"),
        Solver("midpoint", "rungekutta", evaluations=2, reaches_zero=True),
        Solver("heun2", "rungekutta", evaluations=2, reaches_zero=True),
        Solver("heun3", "rungekutta", evaluations=3, reaches_zero=True),
        Solver("ssprk3", "rungekutta", evaluations=3, reaches_zero=True),
        Solver("rk4", "rungekutta", evaluations=4, reaches_zero=True),
        Solver("ipndm", "adams", _ADAMS),
        Solver("ipndm_v", "adams", _ADAMS),
        Solver("ab", "adams", _ADAMS),
        Solver("calibrated", "calibrated", _ADAMS),
        Solver("deis", "deis", {**_ADAMS, "deis_mode": ("tab", "rhoab")}),
        Solver("dpmpp", "dpmpp", _EXPONENTIAL),
        Solver("unipc", "unipc", {**_EXPONENTIAL, "variant": ("bh1", "bh2")}),
        Solver("res", "residual", {"max_order": (1, 2, 3)}),
        Solver("sa", "residual", {"max_order": (1, 2, 3), "corrector_order": (0, 1, 2, 3, 4)}),
        Solver("heun_churn", "churn", evaluations=2),
        Solver("dopri5", "adaptive", adaptive=True),
        Solver("rk45", "adaptive", adaptive=True),
        Solver("rk23", "adaptive", adaptive=True),
        Solver("dop853", "adaptive", adaptive=True),
        Solver("radau", "adaptive", adaptive=True),
        Solver("bdf", "adaptive", adaptive=True),
        Solver("lsoda", "adaptive", adaptive=True),
    )
}


def solver_named(name: str) -> Solver:
    """The entry of a solver; a ValueError that lists the names there are, if this is none of them."""
    if name == "srid2":
        raise ValueError("srid2 samples the fields of train.py idff that have noise, chosen by --field: leave it out")
    if name not in SOLVERS:
        raise ValueError(f"there is no solver '{name}': choose from {', '.join(SOLVERS)}")
    return SOLVERS[name]


def sample(
    field: Field | Callable[..., Tensor],
    noise: Tensor,
    sigmas: Tensor | Sequence[float | Tensor],
    *,
    solver: str = "heun",
    class_labels: Tensor | None = None,
    afs: bool = False,
    denoise_to_zero: bool = False,
    start: str | None = None,
    trace: Callable[[Step], Any] | None = None,
    rng: TorchRNG | None = None,
    **options: Any,
) -> Tensor:
    """Integrate from `noise * sigmas[0]`, or from the noise at infinite sigma, to the last level, in VE coordinates.

    Args:
        field: a model; a plain callable `D(x, sigma, labels)` counts as a VE denoiser.
        noise: `[B, ...]`, unit variance. Its dtype is that of the state: float64 noise gives a float64 solve.
        sigmas: noise levels from noisy to clean: numbers `[N+1]`, per-sample `[N+1, B]` or element-wise maps
            `[N+1, B, ...]` (or lists of them), in units of the data. The last may be 0, reached by a first-order step.
        solver: key of `SOLVERS`.
        class_labels: `[B, label_dim]`; default: those already bound to the field.
        afs: replace the first evaluation by the direction of data with zero mean and unit variance.
        denoise_to_zero: return the clean estimate at the last level (one more evaluation, traced as step N).
        start: "scaled" or "exact" (one more evaluation, not traced), see `samplers.start`; None: as the network says.
        trace: called with a `Step` before each update.
        rng: source of the noise that stochastic solvers add; the others draw none.
        options: the solver's own, see `SOLVERS[solver].options`.

    Returns:
        `[B, ...]` at level `sigmas[-1]`, or clean with `denoise_to_zero`.

    Raises:
        ValueError: unknown solver or option, a value out of range, levels that do not fall.
    """
    from samplers.field import as_field  # who reads SOLVERS alone does not wait for torch
    from samplers.solvers.base import analytical_first, evaluate, read_levels
    from samplers.start import refuse_guess, start_state, starts_exactly

    entry = solver_named(solver)
    options = entry.resolve(options)
    entry.check_first(afs)
    field = as_field(field)
    if class_labels is not None:
        field = field.bind(class_labels)
    field = field.ve()
    levels = read_levels(sigmas, noise)
    if denoise_to_zero and levels.ends_at_zero:
        raise ValueError("the levels end at 0 already: leave out denoise_to_zero or the last level")
    refuse_guess(afs, afs and starts_exactly(field, start))
    top = levels.s[0]
    x = start_state(field, noise, top, start)
    if entry.takes_first:
        options["first"] = analytical_first(x, top) if afs else None
    if entry.stochastic:
        options["rng"] = rng
    x = entry.fn(field, x, sigmas, trace=trace, **options)
    if denoise_to_zero:
        x, _ = evaluate(field, x, levels.label[-1], trace=trace, i=len(levels.steps))
    return x
