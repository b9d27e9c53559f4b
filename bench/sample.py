"""Sampling throughput of a preset on this device: images per second, milliseconds per network evaluation.

    python -m bench.sample --preset=cifar10 --batch=64 --solver=heun --steps=18 --precision=bf16

Random weights: speed does not depend on them. Warm-up is excluded; the median of the repeats is printed as a JSON line.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import dataclasses
import json
import statistics

import click
import torch

import samplers
from bench.presets import PRESETS
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.layout import memory_format
from torch_utils.profile import forward_cost, measured_peak, peak_flops, time_it
from training.methods.edm import build_network
from training.performance import DTYPES


@click.command(cls=Command)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="digits", show_default=True, help="Which network")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at once")
@click.option("--solver", type=click.Choice(list(samplers.SOLVERS)), default="heun", show_default=True, help="Solver")
@click.option("--num-steps", type=click.IntRange(min=2), default=7, show_default=True, help="Noise levels")
@click.option("--precision", type=click.Choice(list(DTYPES)), default="fp32", show_default=True, help="Trunk precision")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Timed runs")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
def main(
    preset: str, batch: int, solver: str, num_steps: int, precision: str, compiled: bool, repeats: int, device: str
) -> None:
    """Sampling throughput of a preset on this device."""
    with dist.process_group(device) as dev:
        torch.backends.cudnn.benchmark = True
        entry = PRESETS[preset]
        net = build_network(dataclasses.replace(entry.options, precision=precision), entry.dataset())
        net = net.eval().requires_grad_(False).to(dev, memory_format=memory_format(net, dev))
        net.compute_dtype = DTYPES[precision]
        shape = [batch, *entry.dataset().image_shape]
        cost = forward_cost(net, lambda twin: _one(twin, shape))
        noise = torch.randn(shape, dtype=torch.float64, device=dev)
        labels = torch.eye(entry.classes, device=dev)[torch.arange(batch) % entry.classes] if entry.classes else None
        sigmas = samplers.get_schedule(num_steps=num_steps, sigma_min=0.002, sigma_max=80)
        field = samplers.Field(torch.compile(net) if compiled else net)

        def run() -> None:
            with torch.inference_mode():
                samplers.sample(field, noise, sigmas, solver=solver, class_labels=labels)

        seconds = statistics.median(time_it(run, dev, repeats=repeats, warmup=1))
        nfe = samplers.SOLVERS[solver].nfe(num_steps=num_steps)
        known = peak_flops(dev, DTYPES[precision])
        peak = known or measured_peak(dev, torch.float32)
        result = {
            "preset": preset, "device": str(dev), "torch": torch.__version__, "batch": batch, "solver": solver,
            "nfe": nfe, "precision": precision, "compile": compiled, "ms_per_evaluation": round(1e3 * seconds / nfe, 3),
            "img_per_sec": round(batch / seconds, 2),
            "utilisation": round(cost.flops * batch * nfe / seconds / peak, 4),
            "peak": f"{'data sheet' if known else 'measured'} {peak / 1e12:.3g} TFLOP/s",
        }  # fmt: skip
        dist.print0(json.dumps(result))


def _one(twin: torch.nn.Module, shape: list[int]) -> torch.Tensor:
    labels = torch.zeros(1, twin.label_dim, device="meta") if twin.label_dim else None
    return twin(torch.zeros([1, *shape[1:]], device="meta"), torch.ones(1, device="meta"), labels)


if __name__ == "__main__":
    main()
