"""Learned trajectories in the plane: W2 of a 5-step flow along ordinary and along learned coefficients.

    python -m bench.interpolants_2d                                      # everything, about 3 minutes a row and seed
    python -m bench.interpolants_2d --toys=moons --couplings=independent --seeds=0

Gaussian to 8gaussians and to moons, a stochastic interpolant with independent and with minibatch-OT coupling; the flow
V is trained first, then the coefficients C against a discriminator with V frozen (Lee et al. 2024, arXiv 2404.14161,
two-dimensional experiments; networks, durations and the measuring are ours). Both stages are the documented commands.
W2 is exact, between 4000 samples and 4000 fresh points; "data" is the W2 between two such sets of points. The finished
runs of --outdir are used again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import torch

import networks
from bench import commands
from samplers.solvers.elementwise import sample_mac
from samplers.solvers.native import sample_native, uniform_times
from torch_utils.cli import Command, IntList
from torch_utils.report.page import Table
from torch_utils.rng import PerSampleRNG
from torch_utils.wasserstein import wasserstein
from training.data.toys import draw

FLOW = (
    "curvature --data=toy:{toy} --independent --coupling={coupling} --optimizer=adam --batch=256 --lr=1e-3 "
    "--duration=1 --ema-decay=0.999 --tick=200 --snap=100 --dump=0"
)
COEFFICIENTS = (
    "--data=toy:{toy} --network={network} --train-v=0 --num-steps=5 --scale=0.5 --coef-channels=64 "
    "--coef-blocks=2 --batch=256 --batch-disc=256 --glr=5e-4 --dlr=1e-3 --ema=0.005 --kimg=200 --checkpointing=0 "
    "--tick=100 --snap=100 --dump=0"
)
POINTS = 4000
DATA_SEED, NOISE_SEED = 10_000, 1_000_000  # of points and noise that no training saw
FINE = 100  # steps of a flow that is nearly exact


@torch.inference_mode()
def measure(toy: str, flow: Path, mac: Path, seed: int) -> dict[str, float]:
    """W2 by how the points were made."""
    start = NOISE_SEED + seed * POINTS
    noise = PerSampleRNG(range(start, start + POINTS), "cpu").randn([POINTS, 2, 1, 1]).double()
    data, other = (draw(toy, POINTS, DATA_SEED + 2 * seed + i)[0] for i in (0, 1))
    net, v = networks.load_network(mac), networks.load_network(flow)
    levels = [*net.schedule, 0.0]
    ordinary = torch.zeros(1, net.family.maps, 1, 1)
    made = {
        "ordinary": sample_mac(net, noise, levels, coefficients=ordinary),
        "learned": sample_mac(net, noise, levels),
        "fine": sample_native(v, noise, uniform_times(FINE)),
        "data": other,
    }
    return {name: wasserstein(points, data) for name, points in made.items()}


@click.command(cls=Command)
@click.option("--toys", default="8gaussians,moons", help="Targets", metavar="LIST", show_default=True)
@click.option("--couplings", default="independent,ot", help="Couplings of the flow", metavar="LIST", show_default=True)
@click.option("--seeds", type=IntList(), default="0-2", help="Seeds of training and measuring", metavar="LIST",
              show_default=True)  # fmt: skip
@click.option("--outdir", default="runs/interpolants_2d", help="Where the runs go", metavar="DIR", show_default=True)
def main(toys: str, couplings: str, seeds: Sequence[int], outdir: str) -> None:
    """W2 of five Euler steps along ordinary and learned coefficients, mean and deviation over seeds."""
    lines = []
    for toy in toys.split(","):
        for coupling in couplings.split(","):
            rows = []
            for seed in seeds:
                place = Path(outdir, f"{toy}-{coupling}-{seed}")
                common = f"--seed={seed} --device=cpu"
                options = f"{FLOW.format(toy=toy, coupling=coupling)} {common}"
                flow = commands.trained(place / "flow", "train.py", options)
                options = f"{COEFFICIENTS.format(toy=toy, network=flow)} {common}"
                mac = commands.trained(place / "mac", "train_trajectory.py", options)
                rows.append(measure(toy, flow, mac, seed))
                click.echo(json.dumps({"toy": toy, "coupling": coupling, "seed": seed, **rows[-1]}))
            gain = [1 - r["learned"] / r["ordinary"] for r in rows]
            cells = [_mean([r[name] for r in rows]) for name in ("ordinary", "learned", "fine", "data")]
            lines.append([f"{toy}, {coupling}", *cells, f"{100 * statistics.mean(gain):.0f} %"])
    heads = ("W2", "ordinary, 5 steps", "learned, 5 steps", f"ordinary, {FINE} steps", "data", "lower by")
    click.echo(Table("Flows in the plane", heads, lines).text())


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
