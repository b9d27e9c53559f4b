"""Schedulers of diffusers and our solvers side by side: same model, same noise, equal network evaluations.

    python -m bench.peers --network=NET --outdir=runs/peers --ref=digits.npz

Writes peers.json, peers.png and calibrated.json (the calibrated solvers, unless --schedule brings some). The schedulers
see the model as one that predicts noise on a table of 1000 variance-preserving levels over the model's own range, and
step as they do in a pipeline; their error is the distance to a fine teacher, as in `analyze.py compare`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from networks.features.table import load_features
from networks.load import load_network
from samplers.analysis import figures
from samplers.analysis.compare import Cell, Measure, compare, tables
from samplers.analysis.contestants import parse_contestant, plan_cells
from samplers.calibration.calibrate import calibrate
from samplers.field import Field, as_field
from samplers.path import VP
from samplers.planning.base import Plan
from samplers.recipe import ScheduleFile
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command, CountList
from torch_utils.files import write_json
from torch_utils.noise_table import NoiseTable
from torch_utils.reference_file import load_moments

__all__ = ["PEERS", "main", "peer_cells", "verdict"]

# label -> (class of diffusers, what it is told besides the noise levels)
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2, "use_karras_sigmas": True}),
    "DPM++ 2M log": ("DPMSolverMultistepScheduler", {"solver_order": 2, "use_lu_lambdas": True}),
    "DPM++ 3M log": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True}),
    "UniPC": ("UniPCMultistepScheduler", {"solver_order": 2, "use_karras_sigmas": True}),
    "UniPC log": ("UniPCMultistepScheduler", {"solver_order": 2, "use_exponential_sigmas": True}),
    "DEIS": ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
}
OURS = "ipndm,dpmpp:2:thresholding=none@logsnr,unipc:2:thresholding=none@logsnr,res@logsnr"
STEPS = 1000  # entries of the table


def _table(field: Field) -> NoiseTable:
    low, high = max(field.facts.sigma_min, 0.002), min(field.facts.sigma_max, 80.0)
    t = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    return NoiseTable(1 / (1 + VP.through(low, high).level_at(t).square()))


def _drive(model: Field, noise: Tensor, *, table: NoiseTable, scheduler: Any, steps: int, trace: Any = None) -> Tensor:
    """Sample as a pipeline does."""
    field = model.ve()
    scheduler.set_timesteps(steps)
    x = noise.float() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sigma = table.sigma((t.double() + 1) / STEPS)
        scale = float((1 + sigma**2).sqrt())
        seen = scheduler.scale_model_input(x, t)
        noise_there = field.noise((scale * seen).double(), sigma.to(seen.device)).float()
        x = scheduler.step(noise_there, t, x).prev_sample
    return x.double()


def peer_cells(net: Field | torch.nn.Module, counts: tuple[int, ...]) -> list[Cell]:
    """Every scheduler at every number of evaluations; `why` where it cannot take that many."""
    import diffusers

    table = _table(as_field(net))
    ratio = table.alphas_cumprod[1:] / table.alphas_cumprod[:-1]
    betas = (1 - torch.cat([table.alphas_cumprod[:1], ratio])).tolist()
    cells = []
    for nfe in counts:
        for label, (name, options) in PEERS.items():
            steps = (nfe + 1) // 2 if label == "Heun" else nfe
            scheduler = getattr(diffusers, name)(trained_betas=betas, **options)
            scheduler.set_timesteps(steps)
            if len(scheduler.timesteps) != nfe:
                cells.append(Cell(label, name, nfe, None, "takes an odd number of evaluations"))
                continue
            plan = Plan(
                kind="peer", solver=name, sigmas=torch.as_tensor(scheduler.sigmas).double(), steps=nfe, title=label,
                schedule="its own", sampler=partial(_drive, table=table, scheduler=scheduler, steps=steps),
            )  # fmt: skip
            cells.append(Cell(label, name, nfe, plan, None))
    return cells


def verdict(results: list[dict[str, Any]], measure: str = "rmse") -> list[dict[str, Any]]:
    """The calibrated solver at N evaluations beside the best scheduler of diffusers at N and at 2 N."""
    at = {(r["solver"], r["nfe"]): r[measure] for r in results if r.get(measure) is not None}
    found = []
    for (solver, nfe), ours in at.items():
        peers = {
            n: min(((v, s) for (s, m), v in at.items() if m == n and s in PEERS), default=None) for n in (nfe, 2 * nfe)
        }
        if solver.startswith("calibrated") and None not in peers.values():
            found.append(
                {
                    "nfe": nfe, "calibrated": ours, "same": peers[nfe][0], "same_by": peers[nfe][1],
                    "double": peers[2 * nfe][0], "double_by": peers[2 * nfe][1], "holds": ours <= peers[2 * nfe][0],
                }
            )  # fmt: skip
    return found


@click.command(cls=Command)
@click.option("--network", required=True, metavar="FILE|URL|NAME", help="The network")
@click.option("--outdir", required=True, metavar="DIR", help="Folder of the numbers and the picture")
@click.option("--schedule", metavar="FILE", help="Calibrated solvers; without: calibrated here, for every --nfe to 10")
@click.option("--nfe", type=CountList(), default="3-6,8,10,12,16,20", show_default=True, help="Evaluations per image")
@click.option(
    "--ours", default=OURS, show_default=True, metavar="LIST", help="Our solvers, as `analyze.py compare` has them"
)
@click.option("--ref", metavar="NPZ", help="Statistics of `fid.py ref`: also measure the Fréchet distance to them")
@click.option(
    "--num", type=click.IntRange(min=2), default=256, show_default=True, help="Samples compared with the teacher's"
)
@click.option("--num-fid", type=click.IntRange(min=2), help="Images for the Fréchet distance [default: --num]")
@click.option(
    "--num-warmup", type=click.IntRange(min=2), default=128, show_default=True, help="Samples to calibrate on"
)
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Most images at once")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
def main(
    network: str, outdir: str, schedule: str | None, nfe: tuple[int, ...], ours: str, ref: str | None, num: int,
    num_fid: int | None, num_warmup: int, batch: int, device: str,
) -> None:  # fmt: skip
    """Compare diffusers' schedulers with our solvers on one network."""
    folder = Path(outdir)
    with dist.process_group(device) as dev:
        if dist.get_world_size() > 1:
            raise ValueError("the schedulers run in one process: start this without torchrun")
        folder.mkdir(parents=True, exist_ok=True)
        net = prepare(load_network(network), dev)
        if schedule is None:
            schedule = str(folder / "calibrated.json")
            counts = tuple(n for n in nfe if n <= 10)
            found = calibrate(as_field(net), counts, num_warmup=num_warmup, device=dev, progress=click.echo)
            found.schedule_file(as_field(net).weights_hash()).save(schedule)
        texts = [*filter(None, ours.split(",")), f"{ScheduleFile.load(schedule).solver}@{schedule}"]
        reference = None if ref is None else load_moments(ref)
        features = None if ref is None else load_features(reference.features or "pixels", None, dev)
        measure = Measure(
            num=num, reference=reference, extractor=features, num_fid=num_fid if ref else None, batch=batch
        )
        cells = [*peer_cells(net, nfe), *plan_cells([parse_contestant(t) for t in texts], nfe, net)]
        with tqdm(total=measure.work(cells), unit="eval", unit_scale=True, disable=None) as bar:
            report = compare(net, cells, measure, device=dev, progress=bar.update)
        measures = ("rmse", "frechet") if ref else ("rmse",)
        report |= {"network": network, "ref": ref, "verdict": {m: verdict(report["results"], m) for m in measures}}
        write_json(folder / "peers.json", report)
        figures.draw_compare(report, folder / "peers.png")
        click.echo("\n\n".join(t.text() for t in tables(report)))
        for name, rows in report["verdict"].items():
            for row in rows:
                click.echo(f"{name}: {json.dumps(row)}")


if __name__ == "__main__":
    main()
