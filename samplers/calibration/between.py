"""A calibrated solver for a number of evaluations that was not calibrated, out of a file that holds others.

Levels and coefficients of one model change smoothly with the number of steps. With u = step / steps, log sigma(u)
hardly depends on their number, and coefficients stay near those of Adams-Bashforth on the levels at hand. So, for M
steps,

    log sigma_n  =  the files' log sigma at u = n / M, monotone cubic in u
    c_{n,k}      =  Adams-Bashforth on these levels + the files' corrections, in the first steps (whose order still
                    grows) by number, from there to the end linear in u

each linear in 1 / steps between the two neighbours in the file; beyond its ends, those of the nearest.
Own method. `docs/calibration.md` says how far it is from a solver calibrated for the number itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samplers.calibration.student import classical
from samplers.recipe import Entry, ScheduleFile

__all__ = ["between", "entries_of"]


def entries_of(
    file: ScheduleFile, nfe: Sequence[int], coeff: float | None = None, ahead: int = 0
) -> tuple[list[Entry], tuple[str, ...]]:
    """Schedules of these numbers of evaluations; of calibrated solvers, those that the file lacks are made.

    Args:
        coeff: of files searched with several coefficients, the one to take.
        ahead: evaluations before the first level, 1 of an exact start.

    Returns:
        The schedules, and one line where some were made.

    Raises:
        ValueError: a schedule that is not there and cannot be made.
    """
    has = sorted({file.evaluations(e, ahead) for e in file.entries})
    missing = [n for n in nfe if n not in has] if file.solver == "calibrated" and coeff is None else []
    entries = [between(file, n, ahead) if n in missing else file.choose(nfe=n, coeff=coeff, ahead=ahead) for n in nfe]
    made, known = (", ".join(map(str, numbers)) for numbers in (missing, has))
    told = (
        f"Made for {made} evaluations from those calibrated for {known}; calibrated for the number it would be nearer."
    )
    return entries, (told,) if missing else ()


def between(file: ScheduleFile, nfe: int, ahead: int = 0) -> Entry:
    """The solver of `nfe` evaluations, `ahead` of them before its first level, of a file of calibrated ones.

    Raises:
        ValueError: fewer than two calibrated solvers in the file that both have the analytical first step or both have
            not, or `nfe` below half of their smallest or above twice their largest number of evaluations.
    """
    known = [e for e in file.entries if e.coefficients is not None]
    kinds = {afs: [e for e in known if e.afs == afs] for afs in (False, True)}
    afs = max(kinds, key=lambda kind: (len(kinds[kind]), kind))
    ends = sorted(kinds[afs], key=lambda e: e.num_steps)
    if len(ends) < 2:
        raise ValueError(
            f"nfe={nfe} is not in the file and cannot be made: that takes two calibrated solvers or more that both "
            "have the analytical first step or both have not; calibrate more numbers at once, or all with --afs"
        )
    has = sorted(file.evaluations(e, ahead) for e in known)
    least, most = max(1 + ahead, -(-has[0] // 2)), 2 * has[-1]
    if not least <= nfe <= most:
        raise ValueError(
            f"nfe={nfe} is too far from what the file holds, {', '.join(map(str, has))}: within reach are {least} to "
            f"{most}"
        )
    steps, share = nfe - ahead + afs, [1 / (e.num_steps - 1) for e in ends]
    i = int(np.clip(np.searchsorted(-np.array(share), -1 / steps), 1, len(ends) - 1))
    weight = float(np.clip((1 / steps - share[i]) / (share[i - 1] - share[i]), 0, 1))
    pair, weights = (ends[i - 1], ends[i]), (weight, 1 - weight)
    sigmas = _levels(pair, weights, steps)
    order = max(len(row) for e in pair for row in e.coefficients)
    corrections = sum(w * _corrections(e, steps, order) for e, w in zip(pair, weights, strict=True))
    orders = [min(n + 1, order) for n in range(steps)]
    rows = [(np.array(classical(sigmas, n, k)) + corrections[n, :k]).tolist() for n, k in enumerate(orders)]
    return Entry(sigmas=tuple(sigmas), afs=afs, coefficients=rows)


def _levels(entries: Sequence[Entry], weights: Sequence[float], steps: int) -> list[float]:
    from scipy.interpolate import PchipInterpolator  # late: a third of a second that only such schedules need

    u = np.linspace(0, 1, steps + 1)
    found = sum(
        w * PchipInterpolator(np.linspace(0, 1, e.num_steps), np.log(e.sigmas))(u)
        for e, w in zip(entries, weights, strict=True)
    )
    return np.exp(found).tolist()


def _corrections(entry: Entry, steps: int, order: int) -> np.ndarray:
    """`[steps, order]`: coefficients less the classical ones, carried over to another number of steps."""
    own = np.zeros((entry.num_steps - 1, order))
    for n, row in enumerate(entry.coefficients):
        own[n, : len(row)] = np.array(row) - classical(entry.sigmas, n, len(row))
    begin = min(order - 1, len(own) - 1, steps - 1)  # steps of growing order, of which both have as many
    u, at = (np.linspace(1, 0, n - begin)[::-1] for n in (steps, len(own)))  # one step alone is the last
    rest = [np.interp(u, at, own[begin:, k]) for k in range(order)]
    return np.concatenate([own[:begin], np.stack(rest, axis=1)])
