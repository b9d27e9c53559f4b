"""Images from a network: any snapshot or published checkpoint, any sampler, one image per seed.

Everything about the sampler is decided and printed before the first image (`samplers/plan.py`); what a seed's image
looks like does not depend on the batch size or on the number of processes (`samplers/run.py`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

import networks
from samplers.plan import Plan, SamplerOptions, build_plan
from samplers.run import PRECISIONS, Recorder, Samples, check_class, generate, prepare
from torch_utils import distributed as dist
from torch_utils.cli import Command
from torch_utils.files import atomic_write
from torch_utils.images import ImageWriter, image_format, make_grid, save_image, to_uint8
from torch_utils.misc import format_count, format_time
from torch_utils.options import opt, options_of

# The checkpoint that the GITS command line means by a data set's name.
DATASETS = {
    "cifar10": "edm-cifar10-32x32-uncond-vp",
    "ffhq": "edm-ffhq-64x64-uncond-vp",
    "afhqv2": "edm-afhqv2-64x64-uncond-vp",
    "imagenet64": "edm-imagenet-64x64-cond-adm",
}

EXAMPLES = """\b
Examples:
  # 64 images, EDM's sampler with 18 steps
  python generate.py --network=edm-cifar10-32x32-cond-vp --outdir=out

\b
  # A grid in 6 network evaluations per image, along a searched schedule
  python generate.py --network=edm-cifar10-32x32-uncond-vp --solver=ipndm --num-steps=7 --dp --grid=grid.png

\b
  # 50000 images on 4 GPUs, in folders of 1000
  torchrun --standalone --nproc_per_node=4 generate.py --network=net.pkl --outdir=out --seeds=0-49999 --subdirs

The same command again makes only what is missing (--overwrite to redo)."""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    network: str | None = opt(
        None, "Network: a file, an address, or the name of a published checkpoint", metavar="FILE|URL|NAME",
        names=("--model-path",),
    )  # fmt: skip
    dataset_name: str | None = opt(
        None, f"Instead of --network, a published checkpoint by its data set: {', '.join(DATASETS)}", metavar="NAME"
    )
    seeds: tuple[int, ...] | None = opt(None, "One image per seed, e.g. 1,2,5-10 [default: 0-63]", metavar="LIST")
    class_idx: int | None = opt(
        None, "One class for all images; default: drawn per seed", metavar="INT", names=("--class",)
    )
    batch: int = opt(64, "Most images at once on one process", metavar="INT", at_least=1)

    outdir: str | None = opt(
        None, "Folder of SEED.png; default without --grid=FILE or --npz: samples/NETWORK/SOLVER_nfeNFE", metavar="DIR"
    )
    subdirs: bool | None = opt(None, "A sub-folder for every 1000 seeds", metavar="BOOL", bare=True)
    grid: str | None = opt(
        None, "All images in one; alone: OUTDIR/grid.png, and nothing else", metavar="FILE", bare="True"
    )
    npz: str | None = opt(None, "All images in one array file: images [N,H,W,C] uint8, seeds, labels", metavar="FILE")
    save_traj: str | None = opt(None, "States and drifts of every step, in one array file", metavar="FILE")
    overwrite: bool = opt(False, "Also make images whose files exist", flag=True)

    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")
    rng_device: str | None = opt(
        None, "Where random numbers are drawn: cpu makes the same images on every device; default: --device",
        choices=["cpu", "cuda"],
    )  # fmt: skip
    precision: str = opt("auto", "Precision of the network's trunk; auto: as it was saved", choices=list(PRECISIONS))
    tf32: bool = opt(False, "Allow TF32 in fp32 matrix products and convolutions", metavar="BOOL")
    compile: bool = opt(False, "Compile the network with torch.compile", flag=True)


@dataclass(frozen=True, kw_only=True)
class Options(SamplerOptions, OutputOptions):
    pass


@dataclass(frozen=True)
class Targets:
    """Where images go: one file each, all in one picture, all in one array; None = not wanted."""

    outdir: Path | None
    grid: Path | None
    npz: Path | None
    traj: Path | None
    subdirs: bool

    @property
    def collects(self) -> bool:
        return any(p is not None for p in (self.grid, self.npz, self.traj))

    def image(self, seed: int) -> Path:
        folder = self.outdir / f"{seed - seed % 1000:06d}" if self.subdirs else self.outdir
        return folder / f"{seed:06d}.png"


@click.command(cls=Command, context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(Options)
def main(options: Options) -> None:
    """Make images with a trained network.

    EDM's samplers (--steps) make N steps down to noise level 0. All other solvers (--num-steps) make N - 1 steps
    between N time stamps. Options that do not belong to the chosen sampler are errors.
    """
    with dist.process_group(options.device) as device:
        net, name = load(options, device)
        check_class(net, options.class_idx)
        plan = build_plan(net, options)
        targets = choose_targets(options, name, plan)
        dist.print0(f"Network:  {describe(net)}\n{plan}")
        seeds = range(64) if options.seeds is None else options.seeds
        make(net, plan, targets, missing(seeds, targets, options.overwrite), options, device)


def load(options: Options, device: torch.device) -> tuple[torch.nn.Module, str]:
    """The network, and a name for it in paths."""
    if options.network is None and options.dataset_name is None:
        raise click.UsageError(
            "which network? give --network (a file, an address or the name of a published checkpoint)"
        )
    if options.network is None and options.dataset_name not in DATASETS:
        raise ValueError(
            f"no published checkpoint is known for --dataset-name={options.dataset_name}: "
            f"choose from {', '.join(DATASETS)}, or give --network"
        )
    source = options.network or DATASETS[options.dataset_name]
    if dist.get_rank() > 0:
        dist.barrier()  # rank 0 downloads
    net = networks.load_network(source, verbose=dist.get_rank() == 0)
    if dist.get_rank() == 0:
        dist.barrier()
    net = prepare(net, device, precision=options.precision, tf32=options.tf32, compile=options.compile)
    return net, options.dataset_name or Path(source).stem


def describe(net: torch.nn.Module) -> str:
    classes = f"{net.label_dim} classes" if net.label_dim else "unconditional"
    size = f"{net.img_channels}x{net.img_resolution}x{net.img_resolution}"
    return (
        f"{type(net).__name__} {size}, {classes}, {format_count(sum(p.numel() for p in net.parameters()))} parameters"
    )


def choose_targets(options: Options, name: str, plan: Plan) -> Targets:
    """What the options ask to be written; folders are made now, so that a wrong path fails before the work."""
    grid = (options.grid or "").strip()
    in_outdir = grid.lower() in ("true", "1", "yes")
    grid = "" if grid.lower() in ("false", "0", "no") else grid
    outdir = options.outdir
    if outdir is None and (in_outdir or not (grid or options.npz or options.save_traj)):
        outdir = Path("samples", *(["grids"] if in_outdir else []), name, f"{plan.solver}_nfe{plan.nfe}")
    targets = Targets(
        outdir=Path(outdir) if outdir is not None and not in_outdir else None,
        grid=Path(outdir, "grid.png") if in_outdir else Path(grid) if grid else None,
        npz=Path(options.npz) if options.npz else None,
        traj=Path(options.save_traj) if options.save_traj else None,
        subdirs=bool(options.subdirs),
    )
    if targets.subdirs and targets.outdir is None:
        raise ValueError("--subdirs sorts the images of --outdir into folders: give --outdir as well")
    if targets.grid is not None:
        image_format(targets.grid)
    for folder in (targets.outdir, *(p.parent for p in (targets.grid, targets.npz, targets.traj) if p is not None)):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    return targets


def missing(seeds: Sequence[int], targets: Targets, overwrite: bool) -> list[int]:
    """Seeds to sample: all, or where only single files are wanted, those without one. Rank 0 looks for all."""
    if overwrite or targets.collects or targets.outdir is None:
        return list(seeds)
    todo = dist.broadcast_object([s for s in seeds if not targets.image(s).exists()] if dist.get_rank() == 0 else None)
    if len(todo) < len(seeds):
        done = len(seeds) - len(todo)
        dist.print0(
            f"Skipping: {done} of {len(seeds)} images are in {targets.outdir} already (--overwrite to redo them)"
        )
    return todo


def make(
    net: torch.nn.Module, plan: Plan, targets: Targets, seeds: list[int], options: Options, device: torch.device
) -> None:
    """Sample the seeds and write what is wanted."""
    start = time.time()
    sampler = Recorder(plan) if targets.traj is not None else plan
    batches = generate(
        net,
        seeds,
        sampler,
        batch=options.batch,
        device=device,
        rng_device=options.rng_device,
        class_idx=options.class_idx,
    )
    kept: list[dict[str, np.ndarray]] = []
    bar = tqdm(total=len(seeds), unit="img", disable=dist.get_rank() > 0 or not seeds, dynamic_ncols=True)
    with ImageWriter() as writer, bar:
        for batch in batches:
            images = quantise(batch)
            if targets.outdir is not None:
                for seed, image in zip(batch.seeds, images, strict=True):
                    writer.put(image, targets.image(seed))
            if targets.collects:
                kept.append(collect(batch, images, sampler))
            bar.update(min(len(images) * dist.get_world_size(), bar.total - bar.n))
    if targets.collects and (joined := join(dist.all_gather_object(kept))) and dist.get_rank() == 0:
        write_collected(targets, joined)
    dist.barrier()
    wanted = [str(p) for p in (targets.outdir, targets.grid, targets.npz, targets.traj) if p is not None]
    took = time.time() - start
    dist.print0(f"{len(seeds)} images in {format_time(took)} ({len(seeds) / took:.3g} per second): {', '.join(wanted)}")


def quantise(batch: Samples) -> torch.Tensor:
    if not torch.isfinite(batch.images).all():
        raise ValueError(
            f"the images of seeds {batch.seeds[0]}, ... hold values that are not finite: "
            "the network is damaged, or its precision does not suffice (try --precision=fp32)"
        )
    return to_uint8(batch.images).cpu()


def collect(batch: Samples, images: torch.Tensor, sampler: Any) -> dict[str, np.ndarray]:
    """What of a batch goes into joint files, the images along axis 0."""
    arrays = {"seeds": np.array(batch.seeds), "images": images.permute(0, 2, 3, 1).numpy()}
    if batch.labels is not None:
        arrays["labels"] = batch.labels.argmax(1).cpu().numpy()
    if isinstance(sampler, Recorder):
        arrays |= {"x": sampler.x.numpy(), "drift": sampler.drift.numpy(), "sigmas": sampler.sigmas.numpy()}
    return arrays


def join(parts: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Batches of all processes -> arrays in the order of the seeds given (batches were dealt round-robin)."""
    batches = [b for group in itertools.zip_longest(*parts) for b in group if b is not None]
    return {key: np.concatenate([b[key] for b in batches]) for key in (batches[0] if batches else ())}


def write_collected(targets: Targets, arrays: dict[str, np.ndarray]) -> None:
    if targets.grid is not None:
        save_image(make_grid(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)), targets.grid)
    for path, keys in ((targets.npz, ("images", "seeds", "labels")), (targets.traj, ("x", "drift", "sigmas", "seeds"))):
        if path is not None:
            with atomic_write(path) as f:
                np.savez(f, **{key: arrays[key] for key in keys if key in arrays})


if __name__ == "__main__":
    main()
