"""IDFF against flow matching on points in the plane: W2 by solver and network calls, beside published behaviour.

    python -m bench.idff_toys --outdir=runs/toys
    python -m bench.idff_toys --outdir=runs/toys --targets=moons --models=idff_ot --seeds=0 --picture=idff.png

Five models per target: velocity or two heads (bridge sigma 0.2, flow weight 5), noise independent or coupled by
minibatch optimal transport, and coupled with `--residual=1`; MLPs of 64 units, 8000 steps of Adam on 256 fresh points.
The five take three minutes of a CPU core per target and seed; networks that are in --outdir already are not trained
again. Samples start from N(0, I). W2 is exact, between 1024 samples and as many fresh points, mean over sets, then mean
and deviation over seeds. Between two sets of the target alone it is 0.68 (8gaussians) and 0.10 (moons). Measured
numbers stand beside those of the original code (in brackets); the command exits with 1 where one is off by more than
the spread between runs.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from tqdm import trange

from networks.trunks.mlp import SELUMLP
from samplers.field import Field, as_field
from samplers.fusion import Fusion, Fusion2024, fused
from samplers.path import Linear
from samplers.solvers.base import Step
from samplers.solvers.native import sample_native
from samplers.solvers.table import SOLVERS
from torch_utils.cli import Command, IntList
from torch_utils.files import atomic_write, write_json
from torch_utils.report.page import Table
from torch_utils.report.plot import colour, figure
from torch_utils.rng import TorchRNG
from torch_utils.wasserstein import wasserstein
from training.couplings import COUPLINGS
from training.data.toys import TOYS, ToyDataset, draw
from training.losses.flow import flow_loss
from training.method import Batch
from training.methods.idff import IDFFOptions, build

# name -> coupling, of velocities and of two heads
VELOCITIES = {"icfm": "independent", "ot_cfm": "ot"}
HEADS = {"idff": "independent", "idff_ot": "ot", "idff_residual": "ot"}
MODELS = (*VELOCITIES, *HEADS)
TARGETS = ("8gaussians", "moons", "checkerboard", "spirals", "pinwheel")
SIGMA = 0.2
COLUMNS = (*(("euler", n) for n in (1, 2, 3, 5, 10, 20, 50)), *(("ssprk3", n) for n in (2, 5, 10)), ("euler", 100))
SPREAD = {"8gaussians": 0.25}  # of other targets 0.15

# target -> model, field -> W2 at the first of COLUMNS, of the original code, mean of three seeds
EXPECTED: dict[str, dict[tuple[str, str], tuple[float, ...]]] = {
    "8gaussians": {
        ("ot_cfm", "velocity"): (0.737, 0.643, 0.623, 0.617, 0.620, 0.626, 0.631, 0.626, 0.633, 0.634),
        ("icfm", "velocity"): (4.601, 2.296, 1.336, 0.953, 0.806, 0.786, 0.789, 0.857, 0.801, 0.798),
        ("idff_ot", "sigma_s=0"): (0.750, 0.644, 0.619, 0.617, 0.643, 0.680, 0.732, 0.702, 0.682, 0.705),
        ("idff_ot", "sigma_s=0.2"): (0.750, 0.645, 0.620, 0.618, 0.643, 0.679, 0.731, 0.705, 0.683, 0.705),
        ("idff_ot", "sigma_s=0.4"): (0.750, 0.649, 0.625, 0.622, 0.644, 0.677, 0.727, 0.716, 0.686, 0.704),
        ("idff_ot", "two-head"): (0.750, 0.653, 0.627, 0.619, 0.639, 0.672, 0.723, 0.696, 0.664, 0.689),
        ("idff", "sigma_s=0"): (4.745, 2.564, 1.447, 1.003, 0.917, 0.996, 1.147, 1.117, 0.985, 1.069),
        ("idff", "sigma_s=0.4"): (4.745, 2.589, 1.481, 1.028, 0.927, 0.996, 1.141, 1.125, 0.988, 1.066),
        ("idff", "two-head"): (4.745, 2.595, 1.463, 0.993, 0.869, 0.930, 1.074, 0.982, 0.875, 0.973),
    },
    "moons": {
        ("ot_cfm", "velocity"): (0.378, 0.319, 0.299, 0.283, 0.272, 0.267, 0.263, 0.268, 0.262, 0.261),
        ("icfm", "velocity"): (2.721, 1.765, 1.174, 0.799, 0.489, 0.376, 0.356, 0.420, 0.362, 0.367),
        ("idff_ot", "sigma_s=0"): (0.384, 0.337, 0.333, 0.353, 0.403, 0.466, 0.544, 0.398, 0.447, 0.499),
        ("idff_ot", "sigma_s=0.2"): (0.384, 0.335, 0.331, 0.350, 0.399, 0.461, 0.539, 0.395, 0.442, 0.494),
        ("idff_ot", "sigma_s=0.4"): (0.384, 0.334, 0.327, 0.343, 0.388, 0.448, 0.527, 0.389, 0.430, 0.481),
        ("idff_ot", "two-head"): (0.384, 0.350, 0.349, 0.368, 0.420, 0.483, 0.566, 0.372, 0.438, 0.506),
        ("idff", "sigma_s=0"): (2.895, 1.911, 1.396, 1.057, 0.827, 0.739, 0.744, 0.882, 0.668, 0.680),
        ("idff", "sigma_s=0.4"): (2.895, 1.919, 1.410, 1.075, 0.844, 0.753, 0.754, 0.903, 0.682, 0.688),
        ("idff", "two-head"): (2.895, 1.908, 1.390, 1.045, 0.805, 0.711, 0.711, 0.898, 0.632, 0.640),
    },
}


def train(
    model: str,
    target: str,
    seed: int = 0,
    *,
    iterations: int = 8000,
    batch: int = 256,
    width: int = 64,
    lr: float = 1e-3,
    sigma: float = SIGMA,
    flow_weight: float = 5.0,
    quiet: bool = True,
) -> nn.Module:
    """One of MODELS on fresh points of a target, after the last step, in eval mode."""
    torch.manual_seed(seed)
    rng = TorchRNG(generator=torch.Generator().manual_seed(seed))
    if model in HEADS:
        options = IDFFOptions(
            outdir="", data=f"toy:{target}:size=1", coupling=HEADS[model], cbase=width, lr=lr, batch=batch, sigma=sigma,
            flow_weight=flow_weight, residual=model == "idff_residual",
        )  # fmt: skip
        method = build(options, ToyDataset(options.data), torch.device("cpu"))  # of the data set only the shape counts
        net, (phase,) = method.modules["net"], method.phases
        optimizer = phase.optimizer(list(net.parameters()))

        def loss(points: Tensor) -> Tensor:
            return phase.loss(Batch(points, torch.zeros(batch, 0), rng, 0)).loss
    else:
        net = Velocity(width)
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)

        def loss(points: Tensor) -> Tensor:
            return flow_loss(net, None, points, beta=0, rng=rng, coupling=COUPLINGS[VELOCITIES[model]], t_eps=0).total

    for i in trange(iterations, desc=f"{model}, {target}, seed {seed}", disable=quiet, mininterval=1):
        optimizer.zero_grad()
        points, _ = draw(target, batch, seed=seed * 1_000_003 + i)
        loss(points[:, :, None, None]).mean().backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def trained(folder: Path, model: str, target: str, seed: int, iterations: int) -> nn.Module:
    """The network of a run, from its file in `folder`, which is made where it is missing."""
    file = folder / f"{target}-{model}-{seed}-{iterations}.pt"
    if file.exists():
        net = train(model, target, seed, iterations=0)
        net.load_state_dict(torch.load(file, weights_only=True))
        return net
    net = train(model, target, seed, iterations=iterations, quiet=False)
    with atomic_write(file) as f:
        torch.save(net.state_dict(), f)
    return net


class Velocity(nn.Module):
    """The network of flow matching: `net(x, t, labels)`, dx/dt towards the noise."""

    path, predicts, img_channels, img_resolution, label_dim = "linear", "velocity", 2, 1, 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = SELUMLP(1, 2, 2, width)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.model(x.float(), torch.as_tensor(1 - t))


def legacy(sigma_s: float, **more: float) -> Callable[[nn.Module], Field]:
    """The published sampler of 2024."""
    return lambda net: fused(as_field(net), Fusion2024(sigma_s, **more))


def two_heads(net: nn.Module) -> Field:
    """Flow of both heads as the original toys have it: no score at the noise, no drift at the data."""

    def velocity(x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        estimate, second = net.heads(x, t)
        if t == 0:
            return torch.zeros_like(x)
        return (x - estimate) / t + (second if t < 1 else 0)

    return Field(velocity, Linear(), "velocity")


# name -> network to field: of the original code, and those of generate.py --field
FIELDS: dict[str, Callable[[nn.Module], Field]] = {
    "velocity": as_field,
    **{f"sigma_s={s:g}": legacy(s) for s in (0.0, 0.2, 0.4)},
    "two-head": two_heads,
    "x1": as_field,
    "pf": lambda net: fused(as_field(net), Fusion(net.bridge)),
}
OURS = ("x1", "pf")


def fields_of(model: str) -> list[str]:
    """Names of FIELDS that suit a model."""
    return ["velocity"] if model in VELOCITIES else [name for name in FIELDS if name != "velocity"]


def calls(field: Field, solver: str, steps: int) -> int:
    """Network calls of a solver: a step that ends on data is one call."""
    each = SOLVERS[solver].evaluations
    return each * steps if field.defined_at_zero else each * (steps - 1) + 1


@cache
def _sets(target: str, seed: int, number: int, points: int) -> list[tuple[Tensor, Tensor]]:
    """Noise `[points, 2, 1, 1]` and points of the target `[points, 2]`."""
    found = []
    for k in range(number):
        random = torch.Generator().manual_seed(10_000 + 100 * seed + k)
        found.append((torch.randn(points, 2, 1, 1, generator=random), draw(target, points, 20_000 + 100 * seed + k)[0]))
    return found


@torch.no_grad()
def w2(field: Field, target: str, solver: str, steps: int, seed: int = 0, sets: int = 1, points: int = 1024) -> float:
    """W2 of samples by equal steps to fresh points of the target, mean over sets."""
    times = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    values = [
        wasserstein(sample_native(field, noise, times, solver=solver), wanted)
        for noise, wanted in _sets(target, seed, sets, points)
    ]
    return statistics.mean(values)


def spread(target: str) -> float:
    """How far a run may be from the expected number."""
    return SPREAD.get(target, 0.15)


def table(target: str, results: dict[tuple[str, str], list[list[float]]]) -> Table:
    """Means and deviations over seeds, and the numbers of the original code in brackets."""
    heads = ("model", "field", *(f"{'Euler' if s == 'euler' else 'SSP-RK3'} {n}" for s, n in COLUMNS))
    rows = []
    for (model, field), runs in results.items():
        known = EXPECTED.get(target, {}).get((model, field), ())
        expected = [*known, *[None] * (len(COLUMNS) - len(known))]
        cells = [
            f"{statistics.mean(column):.3f} ± {statistics.pstdev(column):.3f}" + ("" if e is None else f" ({e:.3f})")
            for column, e in zip(zip(*runs, strict=True), expected, strict=True)
        ]
        rows.append((model, field, *cells))
    note = "W2 by steps. Euler: a call each, SSP-RK3: three; of x1 and pf the last step is one call."
    return Table(f"W2 to {target}", heads, rows, note=note)


def failures(target: str, results: dict[tuple[str, str], list[list[float]]]) -> list[str]:
    """What is further from the expected numbers than the spread between runs."""
    wrong = []
    for (model, field), runs in results.items():
        expected = EXPECTED.get(target, {}).get((model, field), ())
        for (solver, n), e, column in zip(COLUMNS, expected, zip(*runs, strict=True), strict=False):
            if abs(statistics.mean(column) - e) > spread(target):
                wrong.append(
                    f"{target}, {model}, {field}, {solver} {n}: {statistics.mean(column):.3f}, expected {e:.3f}"
                )
    return wrong


@torch.no_grad()
def picture(path: str, target: str, nets: dict[str, nn.Module]) -> None:
    """Trajectories and samples of each model over the target, with arrows of the momentum where there are two heads."""
    steps, shown = 5, 150
    noise = torch.randn(1024, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    times = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    data = draw(target, 1024, 5)[0]
    with figure(path, f"{steps} Euler steps", (4.2 * len(nets), 4.4)) as fig:
        for ax, (model, net) in zip(fig.subplots(1, len(nets), squeeze=False)[0], nets.items(), strict=True):
            states: list[Step] = []
            end = sample_native(as_field(net), noise, times, trace=states.append)
            way = torch.stack([*(s.x for s in states), end]).flatten(2)
            ax.plot(*data.T, ".", color="0.8", markersize=2, zorder=0)
            ax.plot(*way[-1].T, ".", color=colour(0), markersize=2, zorder=1)
            ax.plot(*way[:, :shown].unbind(2), color="black", linewidth=0.5, alpha=0.5)
            if model in HEADS:
                for step in states[1:]:
                    push = net.heads(step.x[:shown], step.level)[1].flatten(1)
                    push = push * (step.level * (1 - step.level)).sqrt()
                    ax.quiver(*step.x[:shown].flatten(1).T, *push.T, color=colour(1), width=0.003, zorder=2)
            ax.set(title=f"{model}, {calls(as_field(net), 'euler', steps)} calls", aspect="equal")


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if unknown := [n for n in names if n not in known]:
        raise ValueError(f"{option}={unknown[0]} is unknown: choose from {', '.join(known)}")
    return names


@click.command(cls=Command)
@click.option("--outdir", required=True, metavar="DIR", help="Folder of the networks and of w2.json")
@click.option("--targets", default=",".join(TARGETS), show_default=True, metavar="LIST", help=", ".join(TOYS))
@click.option("--models", default=",".join(MODELS), show_default=True, metavar="LIST", help="Which are trained")
@click.option("--iterations", type=click.IntRange(1), default=8000, show_default=True, help="Training steps of each")
@click.option("--seeds", type=IntList(), default="0-2", show_default=True, help="One run each")
@click.option("--sets", type=click.IntRange(1), default=2, show_default=True, help="Sets that a W2 is averaged over")
@click.option("--picture", "picture_file", metavar="PNG", help="Also draw the models of the first target and seed")
def main(
    outdir: str, targets: str, models: str, iterations: int, seeds: list[int], sets: int, picture_file: str | None
) -> None:
    """Train the models on every target and print W2 by solver and steps beside the expected numbers."""
    torch.set_num_threads(1)  # tiny networks: more threads are slower
    wrong, report, folder = [], {}, Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    for target in _names(targets, list(TOYS), "--targets"):
        results: dict[tuple[str, str], list[list[float]]] = {}
        first: dict[str, nn.Module] = {}
        for model in _names(models, MODELS, "--models"):
            for seed in seeds:
                net = trained(folder, model, target, seed, iterations)
                first.setdefault(model, net)
                for name in fields_of(model):
                    field = FIELDS[name](net)
                    row = [w2(field, target, solver, n, seed, sets) for solver, n in COLUMNS]
                    results.setdefault((model, name), []).append(row)
        click.echo(table(target, results).text())
        wrong += failures(target, results)
        report[target] = {" ".join(key): runs for key, runs in results.items()}
        write_json(folder / "w2.json", {"seeds": seeds, "columns": COLUMNS, "w2": report})
        if picture_file:
            picture(picture_file, target, first)
            picture_file = None
    click.echo("All within the spread." if not wrong else "Outside of the spread:\n  " + "\n  ".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
