"""The two-mode experiment of trajectory curvature: curvature and W2 by Euler steps, for several beta.

    python -m bench.curvature_2d --beta=1,10,20,50,independent
    python -m bench.curvature_2d --beta=10,independent --seeds=0

Data: N((-8, 8), diag(3, 0.1)) and N((8, 8), diag(3, 0.1)); prior N(0, diag(36, 1)); a tanh network of 100 units and an
encoder of the same size; 8,000 steps of Adam on 512 points (Lee, Kim, Ye 2023, arXiv 2301.12003, with fewer steps than
published). A run takes about a minute on a CPU core, and there is one for every beta and seed. Measured numbers stand
beside expected ones, with several seeds their mean and deviation over seeds; the command exits with 1 where a curvature
is off by more than 25 % or a W2 by more than 0.25.

W2 is exact, between 500 start points with their mirror images in the first coordinate (drawn points alone would favour
one mode by chance) and 500 + 500 data points; mean of several such sets. Starts: the "standard" prior; "matched", a
Gaussian of mean 0 and the deviations of the encoded data, what snapshots of learned couplings start from.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from tqdm import trange

from samplers.analysis.straightness import trajectory, trajectory_curvature
from torch_utils.cli import Command, IntList
from torch_utils.report.page import Table
from torch_utils.rng import TorchRNG
from torch_utils.wasserstein import wasserstein
from training.data.toys import ToyDataset
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.losses.flow import flow_loss
from training.methods.curvature import CurvatureOptions, build
from training.methods.prior import measure_prior, with_prior
from training.pictures.plane import Plane, draw_planes, look

PRESET = "two_gaussians"
MEANS, VARIANCE, PRIOR_STD = ((-8.0, 8.0), (8.0, 8.0)), (3.0, 0.1), (6.0, 1.0)
STEPS = (1, 2, 4, 20)
CURVATURE_STEPS = 100
ENCODED = 20_000  # data points whose noise is measured

# beta (None: independent) -> curvature of 100 Euler steps; start -> W2 at STEPS. Of the original code, 8,000 steps.
EXPECTED: dict[float | None, tuple[float, dict[str, tuple[float, ...]]]] = {
    1: (0.024, {"standard": (1.85, 1.79, 1.77, 1.75), "matched": (0.75, 0.66, 0.60, 0.57)}),
    5: (0.086, {"standard": (1.22, 1.14, 1.12, 1.14), "matched": (0.91, 0.69, 0.54, 0.50)}),
    10: (0.183, {"standard": (1.18, 1.01, 1.02, 1.08), "matched": (1.01, 0.63, 0.50, 0.54)}),
    20: (0.413, {"standard": (1.37, 0.83, 0.83, 0.91), "matched": (1.73, 0.83, 0.54, 0.39)}),
    50: (1.21, {"standard": (2.35, 0.77, 0.58, 0.66), "matched": (2.86, 0.99, 0.54, 0.31)}),
    200: (5.19, {"standard": (4.96, 1.88, 0.88, 0.44), "matched": (5.21, 2.09, 1.05, 0.41)}),
    None: (11.3, {"standard": (7.27, 3.01, 1.50, 0.59)}),
}
CURVATURE_SPREAD, W2_SPREAD = 0.25, 0.25


@dataclass(frozen=True)
class TwoModes:
    """Data of equally likely Gaussians, and the exact velocity for independent noise N(0, diag(prior_var)).

    v(x, t) = sum_k r_k (-m_k + (t P - (1 - t) S) / V * (x - (1 - t) m_k)),  V = (1 - t)^2 S + t^2 P, and r_k the
    posterior of mode k; S are the variances of the data in a mode, P those of the noise.
    """

    means: Sequence[Sequence[float]] = MEANS
    variance: Sequence[float] = VARIANCE
    prior_var: Sequence[float] = tuple(s**2 for s in PRIOR_STD)
    path = "linear"
    predicts = "velocity"

    @property
    def prior_std(self) -> list[float]:
        return [v**0.5 for v in self.prior_var]

    def mode(self, k: int, num: int, random: torch.Generator) -> Tensor:
        """`num` points of mode k, `[num, 2]`."""
        return torch.tensor(self.means[k]) + torch.tensor(self.variance).sqrt() * torch.randn(num, 2, generator=random)

    def draw(self, num: int, seed: int) -> Tensor:
        """`num` points, an equal share of every mode: `[num, 2]`."""
        random, count = torch.Generator().manual_seed(seed), len(self.means)
        return torch.cat([self.mode(k, num // count, random) for k in range(count)])

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x `[B, 2, ...]`, t a number or `[B]`."""
        flat = x.flatten(1)[:, None]  # [B, 1, 2]
        m, s, p = (torch.as_tensor(v, dtype=x.dtype) for v in (self.means, self.variance, self.prior_var))
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1)
        v = (1 - t) ** 2 * s + t**2 * p
        d = flat - (1 - t) * m  # [B, K, 2]
        share = (-0.5 * (d.square() / v).sum(-1, keepdim=True)).softmax(1)
        return (share * (-m + (t * p - (1 - t) * s) / v * d)).sum(1).reshape(x.shape)


DATA = TwoModes()


class ModeBatches:
    """Points of one mode at a time, the modes in turn, as the original draws them: an equal share of both, exactly.

    Where the modes of a batch are left to chance, the last steps tilt the network to one side, and a share of modes
    that is off by 0.5 % is a W2 of 1.
    """

    def __init__(self, data: TwoModes, batch: int, seed: int) -> None:
        self._data, self._random = data, torch.Generator().manual_seed(seed)
        self._labels, self._batch, self._step = torch.zeros(batch, 0), batch, 0

    def next(self) -> tuple[Tensor, Tensor]:
        points = self._data.mode(self._step % len(self._data.means), self._batch, self._random)
        self._step += 1
        return shaped(points), self._labels


def train(
    beta: float | None,
    data: TwoModes = DATA,
    *,
    lr: float = 1e-3,
    iterations: int = 8000,
    batch: int = 512,
    seed: int = 0,
    quiet: bool = True,
) -> tuple[nn.Module, nn.Module | None]:
    """Velocity network and encoder (None with beta=None, the independent coupling) of the last step, in eval mode."""
    coupling = {"independent": True} if beta is None else {"weight_prior": beta}
    options = CurvatureOptions(
        outdir="", data=f"toy:{PRESET}:size=1", preset=PRESET, lr=lr, iterations=iterations, batch=batch,
        prior_std=tuple(data.prior_std), **coupling,
    )  # fmt: skip
    device = torch.device("cpu")
    torch.manual_seed(seed)
    method = build(options, ToyDataset(options.data), device)  # of the data set only the shape counts
    loop = Loop(method, ModeBatches(data, batch, seed), LoopOptions(seed=seed, batch=batch), device)
    for _ in trange(iterations, desc=f"{label(beta)}, seed {seed}", disable=quiet, mininterval=1):
        loop.step()
    modules = [method.modules.get(name) for name in ("net", "encoder")]
    return tuple(m and m.eval().requires_grad_(False) for m in modules)


def shaped(points: Tensor) -> Tensor:
    """`[N, 2] -> [N, 2, 1, 1]`."""
    return points[:, :, None, None]


def mirrored(start: Callable[[Tensor], Tensor], num: int, seed: int) -> Tensor:
    """`num` start points, half of them mirror images of the others in the first coordinate: `[num, 2, 1, 1]`."""
    noise = torch.randn(num // 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = start(shaped(noise))
    return torch.cat([points, points * shaped(torch.tensor([[-1.0, 1.0]], dtype=points.dtype))])


def w2(
    net: Any, start: Callable[[Tensor], Tensor], steps: int, data: TwoModes = DATA, sets: int = 16, num: int = 1000
) -> float:
    """W2 of samples by Euler steps to the data, mean over sets of `num` points."""
    values = []
    for seed in range(sets):
        states, _ = trajectory(net, mirrored(start, num, 1000 + seed), steps)
        values.append(wasserstein(states[-1], data.draw(num, 2000 + seed)))
    return sum(values) / sets


def curvature(net: Any, start: Callable[[Tensor], Tensor], steps: int, num: int = 4000) -> float:
    """Curvature of trajectories by Euler steps, mean over dimensions."""
    states, times = trajectory(net, mirrored(start, num, 3000), steps)
    return float(trajectory_curvature(states, times))


def complete(net: nn.Module, encoder: nn.Module | None, data: TwoModes = DATA) -> nn.Module:
    """The network as a snapshot holds it: with the deviations of encoded data, where there is an encoder."""
    return net if encoder is None else with_prior(net, measure_prior(encoder, [shaped(data.draw(ENCODED, 5))]))


def starts(net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Unit noise `[B, 2, 1, 1]` -> start noise, by the name of the prior."""
    return {name: partial(net.start_noise, prior=name) for name in sorted(net.priors, reverse=True)}


@torch.no_grad()
def measure(net: nn.Module, encoder: nn.Module | None, *, sets: int = 16, points: int = 1000) -> dict[str, Any]:
    """Curvature from the prior, W2 of `points` points by start and step count, losses over fresh data."""
    net = complete(net, encoder)
    std, rng = torch.tensor(net.prior_std)[:, None, None], TorchRNG(generator=torch.Generator().manual_seed(8))
    out = flow_loss(net, encoder, shaped(DATA.draw(ENCODED, 7)), beta=0, prior_std=std, rng=rng)
    return {
        "fm_loss": float(out.flow_matching.double().mean()),
        "kl": float(out.kl.double().mean()),
        "curvature": curvature(net, starts(net)["standard"], CURVATURE_STEPS),
        "w2": {
            name: {n: w2(net, start, n, sets=sets, num=points) for n in STEPS} for name, start in starts(net).items()
        },
    }


def label(beta: float | None) -> str:
    return "independent" if beta is None else f"beta {beta:g}"


def over_seeds(runs: Sequence[Any], reduce: Callable[[Sequence[float]], float]) -> Any:
    """Nested numbers of several runs -> the same nest of `reduce` over the runs."""
    if isinstance(runs[0], dict):
        return {key: over_seeds([r[key] for r in runs], reduce) for key in runs[0]}
    return reduce(runs)


@torch.no_grad()
def plane(beta: float | None, net: nn.Module, encoder: nn.Module | None) -> Plane:
    """A row of a picture: lines, trajectories from the recommended start, densities."""
    random = torch.Generator().manual_seed(12)
    points, eps, noise = (shaped(p) for p in (DATA.draw(ENCODED, 11), *torch.randn(2, ENCODED, 2, generator=random)))
    z = net.start_noise(eps, "standard") if encoder is None else encoder(points, eps).z
    return look(label(beta), complete(net, encoder), (points, z), points, noise, steps=20)


def failures(beta: float | None, found: dict[str, Any]) -> list[str]:
    """What is further from the expected numbers than the spread between runs; empty for a beta without such numbers."""
    if beta not in EXPECTED:
        return []
    expected, tables = EXPECTED[beta]
    wrong = []
    if abs(found["curvature"] - expected) > CURVATURE_SPREAD * expected:
        wrong.append(f"curvature {found['curvature']:.3g}, expected {expected:g}")
    for name, values in tables.items():
        for n, value in zip(STEPS, values, strict=True):
            if abs(found["w2"][name][n] - value) > W2_SPREAD:
                wrong.append(f"W2 from {name} at {n} steps {found['w2'][name][n]:.2f}, expected {value:.2f}")
    return wrong


def table(results: dict[float | None, list[dict[str, Any]]]) -> Table:
    """Measured numbers of the runs, mean ± deviation where there are several, and the expected ones in brackets."""
    rows = []
    for beta, runs in results.items():
        expected, tables = EXPECTED.get(beta, (None, {}))
        for name in runs[0]["w2"]:
            want = dict(zip(STEPS, tables.get(name, ()), strict=False))
            cells = [_cell([r["w2"][name][n] for r in runs], want.get(n), ".2f") for n in STEPS]
            curved = _cell([r["curvature"] for r in runs], expected, ".3g") if name == "standard" else ""
            rows.append((label(beta), name, curved, *cells))
    heads = ("coupling", "start", "curvature", *(f"W2, {n} step{'' if n == 1 else 's'}" for n in STEPS))
    note = "Measured (expected of the original code). Curvature: mean over dimensions, 100 Euler steps from the prior."
    return Table("Two Gaussian modes", heads, rows, note=note)


def _cell(values: Sequence[float], expected: float | None, form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}" + ("" if expected is None else f" ({expected:{form}})")


def parse_betas(text: str) -> list[float | None]:
    """`1,10,independent` -> [1.0, 10.0, None]."""
    try:
        return [None if part.strip() == "independent" else float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--beta={text} is not a list like 1,10,independent") from None


@click.command(cls=Command)
@click.option(
    "--beta", default="1,10,20,50,independent", show_default=True, metavar="LIST", help="Weights of the prior"
)
@click.option("--iterations", type=click.IntRange(1), default=8000, show_default=True, help="Training steps of each")
@click.option(
    "--seeds", type=IntList(), default="0-4", show_default=True, help="Seeds of weights, data and noise; one run each"
)
@click.option(
    "--sets", type=click.IntRange(1), default=16, show_default=True, help="Sets of points a W2 is averaged over"
)
@click.option("--points", type=click.IntRange(10), default=1000, show_default=True, help="Points of a set")
@click.option("--json", "json_file", metavar="FILE", help="Also write the numbers here")
@click.option("--picture", metavar="PNG", help="Also draw lines, trajectories and densities of the first seed here")
def main(
    beta: str, iterations: int, seeds: list[int], sets: int, points: int, json_file: str | None, picture: str | None
) -> None:
    """Train the two-mode model for each beta and print curvature and W2 beside the expected numbers."""
    torch.set_num_threads(1)  # tiny networks: more threads are slower
    betas = parse_betas(beta)
    results: dict[float | None, list[dict[str, Any]]] = {b: [] for b in betas}
    rows = []
    for value, seed in itertools.product(betas, seeds):
        net, encoder = train(value, iterations=iterations, seed=seed, quiet=False)
        results[value].append(measure(net, encoder, sets=sets, points=points))
        if seed == seeds[0]:
            rows.append(plane(value, net, encoder))
    click.echo(table(results).text())
    if picture:
        draw_planes(rows, picture)
    means = {value: over_seeds(runs, statistics.mean) for value, runs in results.items()}
    if json_file:
        report = {label(b): {"mean": means[b], "runs": results[b]} for b in betas}
        Path(json_file).write_text(json.dumps({"seeds": seeds, "couplings": report}, indent=1))
    wrong = [f"{label(b)}: {text}" for b in betas for text in failures(b, means[b])]
    click.echo("All within the spread." if not wrong else "Outside of the spread:\n  " + "\n  ".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
