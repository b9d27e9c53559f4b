"""Training throughput of a preset on this device: images per second, milliseconds per step, FLOP/s utilisation.

    python -m bench.train --preset=cifar10 --batch=64 --precision=bf16 --compile

Synthetic images already on the device: the figure is the network's, loss's, optimiser's and average's, not the disk's.
The first steps (compilation, algorithm choice) are excluded; the median of the repeats is printed as one JSON line too.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import dataclasses
import json
import statistics
import time

import click
import torch

from bench.presets import PRESETS
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.profile import measured_peak, peak_flops, time_it
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.methods.table import METHODS
from training.performance import DTYPES


class SyntheticBatches:
    """The same random uint8 images at every step."""

    def __init__(self, batch: int, shape: list[int], label_dim: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, [batch, *shape], generator=generator).to(torch.uint8).to(device)
        self.labels = torch.eye(max(label_dim, 1), device=device)[torch.arange(batch) % max(label_dim, 1)]

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images, self.labels


@click.command(cls=Command)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="digits", show_default=True, help="What to train")
@click.option("--batch", type=click.IntRange(min=1), help="Batch per process; default: the preset's")
@click.option("--precision", type=click.Choice(list(DTYPES)), default="fp32", show_default=True, help="Trunk precision")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network")
@click.option("--tf32", is_flag=True, help="Allow TF32")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Timed steps")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Untimed steps before")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
def main(
    preset: str, batch: int | None, precision: str, compiled: bool, tf32: bool, steps: int, warmup: int, device: str
) -> None:
    """Training throughput of a preset on this device."""
    with dist.process_group(device) as dev:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        entry = PRESETS[preset]
        batch = batch or entry.options.batch
        total = batch * dist.get_world_size()
        options = dataclasses.replace(entry.options, batch=total, precision=precision, compile=compiled)
        method = METHODS["edm"].build(options, entry.dataset(), dev)
        batches = SyntheticBatches(batch, entry.dataset().image_shape, entry.classes, dev)
        loop = Loop(method, batches, LoopOptions(seed=0, batch=total), dev)
        time_it(loop.step, dev, repeats=warmup, warmup=0)
        cpu = -time.process_time()
        seconds = statistics.median(time_it(loop.step, dev, repeats=steps, warmup=0))
        cpu = dist.all_reduce_sum(torch.tensor((cpu + time.process_time()) / steps, device=dev)).item()
        known = peak_flops(dev, DTYPES[precision])
        peak = known or measured_peak(dev, torch.float32)
        speed = batch / seconds
        result = {
            "preset": preset, "device": _name(dev), "torch": torch.__version__, "processes": dist.get_world_size(),
            "batch": batch, "precision": precision, "compile": compiled, "ms_per_step": round(1e3 * seconds, 2),
            "cpu_ms_per_step": round(1e3 * cpu, 2), "img_per_sec": round(speed, 1),
            "utilisation": round(method.flops_per_image * speed / peak, 4),
            "peak": f"{'data sheet' if known else 'measured'} {peak / 1e12:.3g} TFLOP/s",
        }  # fmt: skip
        if dev.type == "cuda":
            result["gpu_gib"] = round(torch.cuda.max_memory_allocated(dev) / 2**30, 2)
        dist.print0(json.dumps(result))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
