"""From command line options to a running session: data set, method, run directory, first lines of the log."""

from __future__ import annotations

import dataclasses
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from torch_utils import distributed as dist
from torch_utils.files import write_json
from torch_utils.stats import Tee
from training import run_dir as runs
from training.config import CommonOptions
from training.data import Batches, ImageDataset
from training.edm import DTYPES
from training.loop import Loop, Settings
from training.method import Method
from training.registry import METHODS
from training.session import Cadence, Session

__all__ = ["launch"]


def launch(method_name: str, options: CommonOptions) -> None:
    """Train, or with `--dry-run` say what would be done.

    Raises:
        ValueError, OSError: anything wrong with the options, the data or the run directory, as one sentence.
    """
    with dist.process_group(options.device) as device:
        _set_backends(options)
        dataset = _open_dataset(options)
        settings = _settings(options)
        settings.rounds(dist.get_world_size())
        if options.dry_run:
            torch.manual_seed(0)
            method = METHODS[method_name].build(options, dataset, device)
            dist.print0(_report(method_name, options, method))
            dist.print0("Dry run; exiting.")
            return
        run_dir, state, seed = dist.broadcast_object(_place(options, dataset) if dist.get_rank() == 0 else None)
        options = dataclasses.replace(options, seed=seed)
        settings = dataclasses.replace(settings, seed=seed)
        with Tee(run_dir / "log.txt") if dist.get_rank() == 0 else nullcontext():
            _train(method_name, options, settings, dataset, run_dir, state, device)


def _train(
    method_name: str,
    options: CommonOptions,
    settings: Settings,
    dataset: ImageDataset,
    run_dir: Path,
    state: Path | None,
    device: torch.device,
) -> None:
    torch.manual_seed(settings.seed)  # the same initial weights on every process, whatever their number
    method = METHODS[method_name].build(options, dataset, device)
    dist.print0(_report(method_name, options, method))
    dist.print0(f"Run directory: {run_dir}")
    if state is None and options.transfer:
        _transfer(method, options.transfer)
    batches = Batches(
        dataset,
        options.batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        seed=settings.seed,
        device=device,
        cache=options.cache,
        workers=options.workers,
    )
    info = {
        "method": method_name,
        "options": dataclasses.asdict(options),
        "dataset": {"name": dataset.name, "resolution": dataset.resolution, "channels": dataset.num_channels},
    }
    session = Session(
        Loop(method, batches, settings, device),
        _cadence(options),
        run_dir,
        info,
        wandb=options.wandb,
        autocast_dtype=DTYPES[options.trunk_precision],
    )
    try:
        if state is not None:
            session.restore(state)
        if session.run():
            dist.print0("Finished.")
    finally:
        batches.close()


def _set_backends(options: CommonOptions) -> None:
    torch.backends.cudnn.benchmark = options.bench
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def _open_dataset(options: CommonOptions) -> ImageDataset:
    dataset = ImageDataset(options.data, use_labels=options.cond, xflip=options.xflip)
    if options.cond and not dataset.has_labels:
        raise ValueError(
            f"--cond=1 needs labels, and {options.data} has none: build the data set from a source with labels, "
            "or leave --cond=0"
        )
    return dataset


def _settings(options: CommonOptions) -> Settings:
    return Settings(
        seed=options.seed or 0,
        batch_size=options.batch,
        batch_gpu=options.batch_gpu,
        loss_scaling=options.ls,
        nonfinite=options.nonfinite,
        grad_clip=options.grad_clip,
    )


def _cadence(options: CommonOptions) -> Cadence:
    return Cadence(
        total_kimg=options.total_kimg,
        kimg_per_tick=options.tick,
        snapshot_ticks=options.snap,
        state_ticks=options.dump,
        state_seconds=options.checkpoint_mins * 60 or None,
        keep_states=options.keep,
        keep_snapshots=options.keep_snapshots,
    )


def _place(options: CommonOptions, dataset: ImageDataset) -> tuple[Path, Path | None, int]:
    """The run directory, the state to continue from (None = start), and the seed."""
    record: dict[str, Any] = dataclasses.asdict(options) | {"world_size": dist.get_world_size()}
    if options.resume:
        run_dir, state = _resume_point(Path(options.resume))
        if not runs.claim(run_dir):
            raise ValueError(f"another process is training in {run_dir}: stop it first, or start a run of its own")
    else:
        found = None if options.new_run else runs.find_unfinished(Path(options.outdir), record)
        run_dir, state = found, (runs.newest_state(found) if found else None)
    stored = runs.read_options(run_dir) if run_dir is not None else None
    seed = options.seed
    if seed is None:
        seed = stored["seed"] if stored else random.SystemRandom().randrange(1 << 31)
    if run_dir is None:
        outdir = Path(options.outdir)
        if options.nosubdir:
            outdir.mkdir(parents=True, exist_ok=True)
            run_dir = outdir
        else:
            run_dir = runs.create(outdir, options.description(dataset.name, dist.get_world_size()))
        if not runs.claim(run_dir):
            raise ValueError(f"another process is training in {run_dir}: choose another --outdir")
    write_json(run_dir / runs.OPTIONS, record | {"seed": seed, "run_dir": str(run_dir)})
    return run_dir, state, seed


def _resume_point(path: Path) -> tuple[Path, Path]:
    if path.is_dir():
        state = runs.newest_state(path)
        if state is None:
            raise ValueError(f"--resume={path}: the directory holds no complete training state ({runs.STATES})")
        return path, state
    if not path.is_file():
        raise ValueError(f"--resume={path}: no such file or directory")
    return path.parent, path


def _transfer(method: Method, source: str) -> None:
    """Start every network and average from the weights of a snapshot."""
    import networks

    donor = networks.load_network(source).state_dict()
    for name, module in method.modules.items():
        own = module.state_dict()
        shared = {k: v for k, v in donor.items() if k in own and own[k].shape == v.shape}
        if not shared:
            raise ValueError(f"--transfer={source}: no tensor of it fits the network '{name}' by name and shape")
        missing = len(own) - len(shared)
        module.load_state_dict({**own, **shared})
        dist.print0(f"Transferred {len(shared)} tensors to '{name}'" + (f", {missing} start fresh" if missing else ""))


def _report(method_name: str, options: CommonOptions, method: Method) -> str:
    """The resolved options and the costs, one per line."""
    rows = [("Method", method_name), *method.summary]
    rows += [(k, v) for k, v in dataclasses.asdict(options).items() if v is not None]
    width = max(len(k) for k, _ in rows)
    return "\n".join(f"{k:<{width}}  {v}" for k, v in rows)
