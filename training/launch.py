"""From command line options to a running session: data set, method, run directory, first lines of the log."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

from torch_utils import distributed as dist
from torch_utils.stats import Tee
from training.data.batches import Batches, ImageDataset
from training.data.toys import ToyDataset, is_toy
from training.loop.loop import Loop, Settings
from training.method import Method
from training.methods.edm import DTYPES
from training.methods.table import method_entry
from training.options import CommonOptions
from training.runs import run_dir as runs
from training.runs.fid_meter import FidMeter
from training.runs.placement import Place, find_place
from training.runs.session import Cadence, Session

__all__ = ["launch"]


def launch(method_name: str, options: CommonOptions) -> None:
    """Train, or with `--dry-run` say what would be done.

    Raises:
        ValueError, OSError: anything wrong with the options, the data or the run directory, as one sentence.
    """
    with dist.process_group(options.device) as device:
        _set_backends(options)
        dataset = _open_dataset(method_name, options)
        settings = _settings(options)
        settings.rounds(dist.get_world_size())
        if options.dry_run:
            torch.manual_seed(0)
            method = method_entry(method_name).build(options, dataset, device)
            dist.print0(_report(method_name, options, method))
            dist.print0("Dry run; exiting.")
            return
        place = dist.from_rank0(lambda: find_place(options, dataset.name, dist.get_world_size()))
        options = dataclasses.replace(options, seed=place.seed)
        settings = dataclasses.replace(settings, seed=place.seed)
        try:
            with Tee(place.run_dir / "log.txt") if dist.get_rank() == 0 else nullcontext():
                _train(method_name, options, settings, dataset, place, device)
        except BaseException:
            if dist.get_rank() == 0:
                runs.discard_unused(place.run_dir)
            raise


def _train(
    method_name: str,
    options: CommonOptions,
    settings: Settings,
    dataset: ImageDataset,
    place: Place,
    device: torch.device,
) -> None:
    torch.manual_seed(settings.seed)  # the same initial weights on every process, whatever their number
    method = method_entry(method_name).build(options, dataset, device)
    dist.print0(_report(method_name, options, method))
    dist.print0(f"Run directory: {place.run_dir}")
    if place.state is None and options.transfer:
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
        place.run_dir,
        info,
        wandb=options.wandb,
        autocast_dtype=DTYPES[options.trunk_precision],
        fid=FidMeter(options, dataset, device, method.sampler) if options.fid_every else None,
    )
    try:
        if place.state is not None:
            session.restore(place.state)
        session.run()
        dist.print0("Finished.")
    finally:
        batches.close()


def _set_backends(options: CommonOptions) -> None:
    torch.backends.cudnn.benchmark = options.bench
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def _open_dataset(method_name: str, options: CommonOptions) -> ImageDataset | ToyDataset:
    own = method_entry(method_name).open
    if own is not None:
        return own(options)
    opened = ToyDataset if is_toy(options.data) else ImageDataset
    dataset = opened(options.data, use_labels=options.cond, xflip=options.xflip)
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
        fid_ticks=options.fid_every,
    )


def _transfer(method: Method, source: str) -> None:
    """Start every network and average from the weights of a snapshot, an encoder from the encoder in it."""
    import networks

    donors = dict.fromkeys(method.modules, networks.load_network(source).state_dict())
    if "encoder" in donors:
        try:
            donors["encoder"] = networks.load_encoder(source).state_dict()
        except ValueError as error:  # a coupling that is learned from here on: it begins as the independent one
            dist.print0(f"{error}; 'encoder' starts fresh")
            del donors["encoder"]
    for name, donor in donors.items():
        module = method.modules[name]
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
