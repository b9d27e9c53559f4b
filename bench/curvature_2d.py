"""The two-mode experiment of trajectory curvature: curvature and W2 by Euler steps, for several beta.

    python -m bench.curvature_2d --beta=1,10,20,50,independent

Data: N((-8, 8), diag(3, 0.1)) and N((8, 8), diag(3, 0.1)); prior N(0, diag(36, 1)); a tanh network of 100 units and an
encoder of the same size; 8,000 steps of Adam on 512 points (Lee, Kim, Ye 2023, arXiv 2301.12003, with fewer steps than
published). A run takes one to two minutes on a CPU core. Measured numbers stand beside expected ones; the command exits
with 1 where a curvature is off by more than 25 % or a W2 by more than 0.25.

W2 is exact, between 500 start points with their mirror images in the first coordinate (drawn points alone would favour
one mode by chance) and 500 + 500 data points; mean of several such sets. Starts: the prior; "moments", a Gaussian of
mean 0 and the deviations of the encoded data; "matched", what snapshots of learned couplings start from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn
from tqdm import trange

from samplers.curvature import trajectory
from samplers.straightness import trajectory_curvature
from torch_utils.cli import Command
from torch_utils.page import Table
from torch_utils.rng import TorchRNG
from torch_utils.wasserstein import wasserstein
from training.curvature import CurvatureOptions, build
from training.flow_loss import flow_loss
from training.loop import Loop, Settings
from training.prior import measure_prior, with_prior
from training.toys import ToyDataset, draw

TOY = "two_gaussians"
MEANS, VARIANCE, PRIOR_STD = ((-8.0, 8.0), (8.0, 8.0)), (3.0, 0.1), (6.0, 1.0)
STEPS = (1, 2, 4, 20)
CURVATURE_STEPS = 100
ENCODED = 20_000  # data points whose noise is measured

# beta (None: independent) -> curvature of 100 Euler steps; start -> W2 at STEPS. Of the original code, 8,000 steps.
EXPECTED: dict[float | None, tuple[float, dict[str, tuple[float, ...]]]] = {
    1: (0.024, {"prior": (1.85, 1.79, 1.76, 1.75), "moments": (0.75, 0.66, 0.60, 0.57)}),
    5: (0.086, {"prior": (1.22, 1.14, 1.13, 1.14), "moments": (0.91, 0.69, 0.54, 0.50)}),
    10: (0.183, {"prior": (1.18, 1.01, 1.02, 1.08), "moments": (1.01, 0.63, 0.50, 0.54)}),
    20: (0.413, {"prior": (1.37, 0.83, 0.83, 0.91), "moments": (1.73, 0.83, 0.54, 0.39)}),
    50: (1.21, {"prior": (2.35, 0.77, 0.58, 0.66), "moments": (2.86, 0.99, 0.54, 0.31)}),
    200: (5.19, {"prior": (4.96, 1.88, 0.88, 0.44), "moments": (5.21, 2.09, 1.05, 0.41)}),
    None: (11.3, {"prior": (7.27, 3.01, 1.50, 0.59)}),
}
CURVATURE_SPREAD, W2_SPREAD = 0.25, 0.25


@dataclass(frozen=True)
class TwoModes:
    """The exact velocity for independent noise N(0, diag(prior_var)), and data of equally likely Gaussians.

    v(x, t) = sum_k r_k (-m_k + (t P - (1 - t) S) / V * (x - (1 - t) m_k)),  V = (1 - t)^2 S + t^2 P, and r_k the
    posterior of mode k; S are the variances of the data in a mode, P those of the noise.
    """

    means: Sequence[Sequence[float]] = MEANS
    variance: Sequence[float] = VARIANCE
    prior_var: Sequence[float] = tuple(s**2 for s in PRIOR_STD)
    path = "linear"
    predicts = "velocity"

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x `[B, 2, ...]`, t a number or `[B]`."""
        flat = x.flatten(1)[:, None]  # [B, 1, 2]
        m, s, p = (torch.as_tensor(v, dtype=x.dtype) for v in (self.means, self.variance, self.prior_var))
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1)
        v = (1 - t) ** 2 * s + t**2 * p
        d = flat - (1 - t) * m  # [B, K, 2]
        share = (-0.5 * (d.square() / v).sum(-1, keepdim=True)).softmax(1)
        return (share * (-m + (t * p - (1 - t) * s) / v * d)).sum(1).reshape(x.shape)


class ModeBatches:
    """Points of one mode at a time, the modes in turn, as the original draws them: an equal share of both, exactly.

    Where the modes of a batch are left to chance, the last steps tilt the network to one side, and a share of modes
    that is off by 0.5 % is a W2 of 1.
    """

    def __init__(self, dataset: ToyDataset, batch: int, seed: int) -> None:
        classes = dataset.targets()
        self._modes = [dataset.images()[classes == k] for k in range(dataset.label_dim)]
        self._random = torch.Generator().manual_seed(seed)
        self._labels, self._batch, self._step = torch.zeros(batch, 0), batch, 0

    def next(self) -> tuple[Tensor, Tensor]:
        points = self._modes[self._step % len(self._modes)]
        self._step += 1
        return points[torch.randint(len(points), [self._batch], generator=self._random)], self._labels


def train(
    beta: float | None,
    *,
    prior_std: Sequence[float] = PRIOR_STD,
    iterations: int = 8000,
    batch: int = 512,
    seed: int = 0,
    quiet: bool = True,
) -> tuple[nn.Module, nn.Module | None]:
    """Velocity network and encoder (None with beta=None, the independent coupling), in eval mode."""
    coupling = {"independent": True} if beta is None else {"weight_prior": beta}
    options = CurvatureOptions(
        outdir="", data=f"toy:{TOY}:size=200000", preset=TOY, iterations=iterations, batch=batch,
        prior_std=tuple(prior_std), **coupling,
    )  # fmt: skip
    device = torch.device("cpu")
    torch.manual_seed(seed)
    dataset = ToyDataset(options.data, use_labels=True)
    method = build(options, dataset, device)
    loop = Loop(method, ModeBatches(dataset, batch, seed), Settings(seed=seed, batch_size=batch), device)
    for _ in trange(iterations, desc=f"beta {beta or 'independent'}", disable=quiet, mininterval=1):
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


def w2(net: Any, start: Callable[[Tensor], Tensor], steps: int, sets: int = 3, num: int = 1000) -> float:
    """W2 of samples by Euler steps to the data, mean over sets of `num` points."""
    values = []
    for seed in range(sets):
        states, _ = trajectory(net, mirrored(start, num, 1000 + seed), steps)
        values.append(wasserstein(states[-1], draw(TOY, num, 2000 + seed)[0]))
    return sum(values) / sets


def curvature(net: Any, start: Callable[[Tensor], Tensor], steps: int, num: int = 4000) -> float:
    """Mean over dimensions, of Euler steps."""
    states, times = trajectory(net, mirrored(start, num, 3000), steps)
    return float(trajectory_curvature(states, times))


def starts(net: nn.Module, encoder: nn.Module | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, unit noise `[B, 2, 1, 1]` -> start noise."""
    found: dict[str, Callable[[Tensor], Tensor]] = {"prior": lambda eps: net.start_noise(eps, "standard")}
    if encoder is not None:
        data = shaped(draw(TOY, ENCODED, 5)[0])
        std = encoder(data, torch.randn(data.shape, generator=torch.Generator().manual_seed(6))).z.double().std(0)
        matched = with_prior(net, measure_prior(encoder, [data], 2)).eval()
        found["moments"] = lambda eps: std * eps
        found["matched"] = lambda eps: matched.start_noise(eps, "matched")
    return found


@torch.no_grad()
def measure(net: nn.Module, encoder: nn.Module | None, *, sets: int = 3, points: int = 1000) -> dict[str, Any]:
    """Curvature from the prior, W2 of `points` points by start and step count, losses over fresh data."""
    own = starts(net, encoder)
    data = shaped(draw(TOY, ENCODED, 7)[0])
    std = torch.tensor(net.prior_std)[:, None, None]
    out = flow_loss(net, encoder, data, beta=0, prior_std=std, rng=TorchRNG(generator=torch.Generator().manual_seed(8)))
    return {
        "fm_loss": float(out.flow_matching.double().mean()),
        "kl": float(out.kl.double().mean()),
        "curvature": curvature(net, own["prior"], CURVATURE_STEPS),
        "w2": {name: {n: w2(net, start, n, sets, points) for n in STEPS} for name, start in own.items()},
    }


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


def table(results: dict[float | None, dict[str, Any]]) -> Table:
    """Measured numbers, the expected ones in brackets."""
    rows = []
    for beta, found in results.items():
        expected, tables = EXPECTED.get(beta, (None, {}))
        for name, values in found["w2"].items():
            want = dict(zip(STEPS, tables.get(name, ()), strict=False))
            cells = [f"{v:.2f}" + (f" ({want[n]:.2f})" if n in want else "") for n, v in values.items()]
            first = [f"{found['curvature']:.3g}" + ("" if expected is None else f" ({expected:g})")]
            rows.append(
                ("independent" if beta is None else f"{beta:g}", name, *(first if name == "prior" else [""]), *cells)
            )
    heads = ("beta", "start", "curvature", *(f"W2, {n} step{'' if n == 1 else 's'}" for n in STEPS))
    note = "Measured (expected of the original code). Curvature: mean over dimensions, 100 Euler steps from the prior."
    return Table("Two Gaussian modes", heads, rows, note=note)


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
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, data order and noise")
@click.option(
    "--sets", type=click.IntRange(1), default=3, show_default=True, help="Sets of points a W2 is averaged over"
)
@click.option("--points", type=click.IntRange(10), default=1000, show_default=True, help="Points of a set")
@click.option("--json", "json_file", metavar="FILE", help="Also write the numbers here")
def main(beta: str, iterations: int, seed: int, sets: int, points: int, json_file: str | None) -> None:
    """Train the two-mode model for each beta and print curvature and W2 beside the expected numbers."""
    torch.set_num_threads(1)  # tiny networks: more threads are slower
    results, wrong = {}, []
    for value in parse_betas(beta):
        net, encoder = train(value, iterations=iterations, seed=seed, quiet=False)
        results[value] = measure(net, encoder, sets=sets, points=points)
        wrong += [f"beta {value or 'independent'}: {text}" for text in failures(value, results[value])]
    click.echo(table(results).text())
    if json_file:
        with open(json_file, "w") as f:
            json.dump({str(k or "independent"): v for k, v in results.items()}, f, indent=1)
    click.echo("All within the spread." if not wrong else "Outside of the spread:\n  " + "\n  ".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
