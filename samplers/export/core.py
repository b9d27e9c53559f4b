"""Fixed-step solvers written down as assignments, so that tools which hold the loop themselves can run them.

At given noise levels every solver of `samplers.solvers` is a list of linear combinations: of the states it has visited,
of the network's clean estimates there, and of drawn noise. `program` makes that list once, with the weight functions of
the solvers themselves; `Run` goes through it, one clean estimate at a time. Everything is in the coordinates
x = data + sigma * noise; a first level of infinity is the end of a flow model's path, where the state is the noise.

Exported files contain this module (`samplers.export.bundle`), so it needs torch and numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.solvers.exponential import dpmpp_weights, exponential_weights, order_at, sa_weights, unipc_weights
from samplers.solvers.noise import Churn, Tau
from samplers.solvers.rungekutta import TABLEAUS, Tableau
from samplers.solvers.thresholding import dynamic_threshold
from samplers.solvers.weights import ab_weights, deis_table, ipndm_v_weights, ipndm_weights

__all__ = ["FORMULAS", "Assignment", "Run", "looks", "program"]

Mix = Mapping[str, float]  # a linear combination of named tensors


class Assignment(NamedTuple):
    """One line of a program.

    Attributes:
        name: of the tensor that is assigned; "z..." is drawn noise, "end" the result.
        mix: what it is.
        level: the network is evaluated on it there; None: it is not.
    """

    name: str
    mix: Mix
    level: float | None = None


class _Writer:
    """Writes a program down; `afs` replaces the first evaluation by the analytical first step."""

    def __init__(self, afs: bool) -> None:
        self.lines: list[Assignment] = []
        self.afs, self.count = afs, 0

    def look(self, x: Mix, level: float) -> tuple[Mix, Mix]:
        """The state, now with a name of its own (a pipeline may change it before it is evaluated), and the estimate."""
        if self.afs:
            self.afs = False
            return x, mixed((1 - level / (1 + level * level) ** 0.5, x))
        n, self.count = self.count, self.count + 1
        self.lines.append(Assignment(f"x{n}", x, level))
        return {f"x{n}": 1.0}, {f"d{n}": 1.0}

    def keep(self, kind: str, x: Mix) -> Mix:
        name = f"{kind}{len(self.lines)}"
        self.lines.append(Assignment(name, x))
        return {name: 1.0}


def mixed(*terms: tuple[float, Mix]) -> dict[str, float]:
    """Sum of weight times combination."""
    out: dict[str, float] = {}
    for weight, mix in terms:
        for name, value in mix.items():
            out[name] = out.get(name, 0.0) + weight * value
    return {name: value for name, value in out.items() if value != 0}


def _drift(x: Mix, data: Mix, level: float) -> Mix:
    return mixed((1 / level, x), (-1 / level, data))


def _multistep(
    write: _Writer,
    x: Mix,
    s: Sequence[float],
    rule: Callable[[Sequence[float], int], tuple[float, Sequence[float]]],
    history: int,
    of_data: bool = False,
) -> Mix:
    """The loop of `samplers.solvers.multistep`."""
    kept: list[Mix] = []
    for i in range(len(s) - 1):
        x, data = write.look(x, s[i])
        if s[i + 1] == 0:
            return data
        kept = [data if of_data else _drift(x, data, s[i]), *kept][:history]
        scale, weights = rule(s, i)
        x = mixed((scale, x), *zip(weights, kept, strict=False))
    return x


def _runge_kutta(
    write: _Writer,
    x: Mix,
    s: Sequence[float],
    tableau_of: Callable[[float, float], Tableau],
    churn: Churn | None = None,
) -> Mix:
    """One-step solvers; `churn` raises the level before every step."""
    raised = s[:-1] if churn is None else churn.raised(torch.tensor(s[:-1], dtype=torch.float64)).tolist()
    for start, a, b in zip(s, raised, s[1:], strict=False):
        if churn is not None and churn.S_churn > 0:  # drawn at every step, needed or not
            noise = write.keep("z", {})
            x = mixed((1, x), (math.sqrt(max(a * a - start * start, 0)) * churn.S_noise, noise))
        x, data = write.look(x, a)
        if b == 0:
            return data
        tableau, h = tableau_of(a, b), b - a
        drifts = [_drift(x, data, a)]
        for node, row in zip(tableau.nodes, tableau.stages, strict=True):
            at = a + node * h if node < 1 else b
            y, data = write.look(mixed((1, x), *((h * w, d) for w, d in zip(row, drifts, strict=True))), at)
            drifts.append(_drift(y, data, at))
        x = mixed((1, x), *((h * w, d) for w, d in zip(tableau.weights, drifts, strict=True)))
    return x


def _renoise(write: _Writer, x: Mix, s: Sequence[float]) -> Mix:
    for a, b in pairwise(s):
        x, data = write.look(x, a)
        if b == 0:
            return data
        x = mixed((1, data), (b, write.keep("z", {})))
    return x


def _middle(a: float, b: float, r: float) -> Tableau:
    """DPM-Solver-2 as a Runge-Kutta step: the second evaluation at the weighted geometric mean of the levels."""
    node = (b**r * a ** (1 - r) - a) / (b - a)
    return Tableau((node,), ((node,),), (1 - 1 / (2 * r), 1 / (2 * r)))


def _predictor_corrector(
    write: _Writer,
    x: Mix,
    s: Sequence[float],
    weights: Callable[[Sequence[float], int], tuple[float, Sequence[float], Sequence[float]]],
    history: int,
    of_data: bool = True,
    added: Callable[[float, float], float] = lambda start, end: 0.0,
) -> Mix:
    """The loop of `samplers.solvers.unipc`."""

    def value(data: Mix, at: Mix, level: float) -> Mix:
        return data if of_data else _drift(at, data, level)

    x, data = write.look(x, s[0])
    kept = [value(data, x, s[0])]
    for i in range(len(s) - 1):
        if s[i + 1] == 0:
            return data
        scale, predictor, corrector = weights(s, i)
        amount = added(s[i], s[i + 1])
        noise = (amount, write.keep("z", {})) if amount else (0.0, {})
        predicted = mixed((scale, x), *zip(predictor, kept, strict=False), noise)
        if i == len(s) - 2:
            return predicted
        predicted, data = write.look(predicted, s[i + 1])
        kept = [value(data, predicted, s[i + 1]), *kept]
        corrected = mixed((scale, x), *zip(corrector, kept, strict=False), noise)
        x = write.keep("k", corrected) if corrector else predicted
        kept = kept[:history]
    return x


def _unipc(
    write: _Writer, x: Mix, s: Sequence[float], max_order: int = 3, predict_x0: bool = True,
    lower_order_final: bool = True, variant: str = "bh2",
) -> Mix:  # fmt: skip
    def weights(s: Sequence[float], i: int) -> tuple[float, list[float], list[float]]:
        return unipc_weights(s, i, order_at(i, len(s) - 1, max_order, lower_order_final), predict_x0, variant)

    return _predictor_corrector(write, x, s, weights, max_order, predict_x0)


def _sa(
    write: _Writer, x: Mix, s: Sequence[float], max_order: int = 3, corrector_order: int = 3, **noise: float
) -> Mix:  # fmt: skip
    tau = Tau(**noise)
    return _predictor_corrector(
        write, x, s, lambda s, i: sa_weights(s, i, max_order, corrector_order, tau.at(s[i])),
        max(max_order, corrector_order - 1), added=tau.added,
    )  # fmt: skip


def _res(write: _Writer, x: Mix, s: Sequence[float], max_order: int = 2) -> Mix:
    return _multistep(
        write, x, s, lambda s, i: exponential_weights(s, i, min(max_order, i + 1)), max_order, of_data=True
    )


def _adams(rule: Callable) -> Callable[..., Mix]:
    def run(write: _Writer, x: Mix, s: Sequence[float], max_order: int = 4) -> Mix:
        return _multistep(write, x, s, lambda s, i: (1, rule(s, i, min(max_order, i + 1))), max_order)

    return run


def _calibrated(
    write: _Writer, x: Mix, s: Sequence[float], coefficients: Sequence[Sequence[float]], max_order: int = 4
) -> Mix:
    def rule(s: Sequence[float], i: int) -> tuple[float, list[float]]:
        return 1, [(s[i + 1] - s[i]) * c for c in coefficients[i]]

    return _multistep(write, x, s, rule, max_order)


def _deis(
    write: _Writer, x: Mix, s: Sequence[float], max_order: int = 4, deis_mode: str = "tab",
    deis_vp_sigma_range: Sequence[float] = (0.002, 80.0), deis_quadrature_points: int | None = None,
) -> Mix:  # fmt: skip
    table = deis_table(
        s[:-1] if s[-1] == 0 else s, max_order, mode=deis_mode, vp_sigma_range=tuple(deis_vp_sigma_range),
        quadrature_points=deis_quadrature_points,
    )  # fmt: skip
    return _multistep(write, x, s, lambda s, i: (1, table[i, : i + 1].tolist()), max_order)


def _dpmpp(
    write: _Writer, x: Mix, s: Sequence[float], max_order: int = 3, predict_x0: bool = True,
    lower_order_final: bool = True,
) -> Mix:  # fmt: skip
    steps = len(s) - 1

    def rule(s: Sequence[float], i: int) -> tuple[float, Sequence[float]]:
        return dpmpp_weights(s, i, order_at(i, steps, max_order, lower_order_final), predict_x0)

    return _multistep(write, x, s, rule, max_order, of_data=predict_x0)


def _churned(write: _Writer, x: Mix, s: Sequence[float], **churn: float) -> Mix:
    return _runge_kutta(write, x, s, lambda a, b: TABLEAUS["heun2"], Churn(**churn))


def _fixed(tableau: Tableau) -> Callable[..., Mix]:
    return lambda write, x, s: _runge_kutta(write, x, s, lambda a, b: tableau)


# solver -> (what writes its program, evaluations per step)
FORMULAS: dict[str, tuple[Callable[..., Mix], int]] = {
    "euler": (_fixed(Tableau((), (), (1,))), 1),
    "heun": (_fixed(TABLEAUS["heun2"]), 2),
    "renoise": (_renoise, 1),
    "dpm": (lambda write, x, s, r=0.5: _runge_kutta(write, x, s, lambda a, b: _middle(a, b, r)), 2),
    **{name: (_fixed(tableau), len(tableau.weights)) for name, tableau in TABLEAUS.items()},
    "ipndm": (_adams(ipndm_weights), 1),
    "ipndm_v": (_adams(ipndm_v_weights), 1),
    "ab": (_adams(ab_weights), 1),
    "calibrated": (_calibrated, 1),
    "deis": (_deis, 1),
    "dpmpp": (_dpmpp, 1),
    "unipc": (_unipc, 1),
    "res": (_res, 1),
    "sa": (_sa, 1),
    "heun_churn": (_churned, 2),
}


def program(solver: str, levels: Sequence[float], afs: bool = False, **options: Any) -> list[Assignment]:
    """Write down what a solver does between noise levels.

    Args:
        solver: key of `FORMULAS`.
        levels: falling numbers; the first may be infinity (see above), the last 0.
        afs: the analytical first step.
        options: the solver's own, less `thresholding`, which `Run` applies.

    Returns:
        Assignments that begin from the tensor "start", the state at `levels[0]`, and end in "end".
    """
    s, write = [float(v) for v in levels], _Writer(afs)
    if len(s) < 2 or any(not a > b for a, b in pairwise(s)) or s[-1] < 0:
        raise ValueError(f"noise levels must be two or more falling numbers, got {', '.join(f'{v:g}' for v in s)}")
    x: Mix = {"start": 1.0}
    if s[0] == math.inf:
        x, data = write.look(x, s[0])
        x, s = mixed((1, data), (s[1], x)), s[1:]
    if len(s) > 1:
        x = FORMULAS[solver][0](write, x, s, **options)
    return [*write.lines, Assignment("end", x)]


def looks(lines: Sequence[Assignment]) -> list[Assignment]:
    """The lines of a program that the network is evaluated on."""
    return [line for line in lines if line.level is not None]


class Run:
    """A program under way, fed with one clean estimate after the other.

    Args:
        lines: from `program`.
        threshold: clean estimates are thresholded (`dynamic_threshold`).
        noise: () -> unit noise like the state, of solvers that draw some.
    """

    def __init__(
        self, lines: Sequence[Assignment], threshold: bool = False, noise: Callable[[], Tensor] | None = None
    ) -> None:
        self.lines, self.at, self.threshold, self.noise = list(lines), 0, threshold, noise
        self.last = {name: i for i, line in enumerate(self.lines) for name in line.mix}
        self.held: dict[str, Tensor] = {}

    @property
    def line(self) -> Assignment:
        """The next to be evaluated, or the end."""
        return self.lines[self.at]

    def begin(self, start: Tensor) -> Tensor:
        """The first state to evaluate, from the one at the first level."""
        self.held["start"] = start
        return self._go_on()

    def begin_at(self, x: Tensor) -> None:
        """Start with the state to be evaluated first already at hand, as pipelines have it."""
        mix = self.line.mix
        self.held["start"] = x if mix == {"start": 1.0} else x / mix["start"]

    def feed(self, x: Tensor, data: Tensor) -> Tensor:
        """Go on with the network's estimate on the state `x`: the next state to evaluate, or the result."""
        number = self.line.name[1:]
        self.held |= {f"x{number}": x, f"d{number}": dynamic_threshold(data) if self.threshold else data}
        self.at += 1
        return self._go_on()

    def _go_on(self) -> Tensor:
        while True:
            name, mix, level = self.line
            value = self.noise() if name[0] == "z" else sum(self.held[key] * weight for key, weight in mix.items())
            if level is not None or name == "end":
                self.held = {key: v for key, v in self.held.items() if self.last.get(key, -1) > self.at}
                return value
            self.held[name] = value
            self.at += 1
