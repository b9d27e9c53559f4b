"""From command line options to a running session: data set, method, run directory, first lines of the log."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from torch_utils import distributed as dist
from torch_utils.stats import Tee
from training.data.batches import Batches, ImageDataset
from training.data.opening import open_dataset
from training.loop.loop import Loop
from training.method import Method
from training.methods.table import method_entry
from training.options import CommonOptions
from training.performance import DTYPES, set_backends
from training.runs import run_dir as runs
from training.runs.fid_meter import FidMeter, check_fid
from training.runs.placement import Place, find_place
from training.runs.session import Session

__all__ = ["launch"]


def launch(method_name: str, options: CommonOptions) -> None:
    """Train, or with `--dry-run` say what would be done.

    Raises:
        ValueError, OSError: anything wrong with the options, the data or the run directory, as one sentence.
    """
    with dist.process_group(options.device) as device:
        set_backends(options)
        dataset = (method_entry(method_name).open or open_dataset)(options)
        options.rounds(dist.get_world_size())
        check_fid(options)
        if options.dry_run:
            torch.manual_seed(0)
            method = method_entry(method_name).build(options, dataset, device)
            dist.print0(_report(method_name, options, method))
            dist.print0("Dry run; exiting.")
            return
        world = dist.get_world_size()
        description = options.description(dataset.name, world)
        place = dist.from_rank0(lambda: find_place(options, options.seed, description, world))
        options = dataclasses.replace(options, seed=place.seed)
        try:
            with Tee(place.run_dir / "log.txt") if dist.get_rank() == 0 else nullcontext():
                _train(method_name, options, dataset, place, device)
        except BaseException:
            if dist.get_rank() == 0:
                runs.discard_unused(place.run_dir)
            raise


def _train(
    method_name: str,
    options: CommonOptions,
    dataset: ImageDataset,
    place: Place,
    device: torch.device,
) -> None:
    torch.manual_seed(options.seed)  # the same initial weights on every process, whatever their number
    method = method_entry(method_name).build(options, dataset, device)
    _tell_conditions(method, dataset)
    dist.print0(_report(method_name, options, method))
    dist.print0(f"Run directory: {place.run_dir}")
    if place.state is None and options.transfer:
        _transfer(method, options.transfer)
    batches = Batches(
        dataset,
        options.batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        seed=options.seed,
        device=device,
        cache=options.cache,
        workers=options.workers,
    )
    info = {
        "method": method_name,
        "options": dataclasses.asdict(options),
        "dataset": {
            "name": dataset.name,
            "resolution": dataset.resolution,
            "channels": dataset.num_channels,
            "label_kind": dataset.label_kind,
            "class_names": dataset.class_names,
        },
    }
    session = Session(
        Loop(method, batches, options, device),
        options,
        place.run_dir,
        info,
        autocast_dtype=DTYPES[options.precision],
        fid=_fid_meter(options, dataset, device, method),
    )
    try:
        if place.state is not None:
            session.restore(place.state)
        session.run()
        dist.print0("Finished.")
    finally:
        batches.close()


def _tell_conditions(method: Method, dataset: Any) -> None:
    """Let networks know of what kind their labels are; snapshots keep that, pictures and FID draw from the labels."""
    for module in method.modules.values():
        if getattr(module, "label_dim", 0) and dataset.label_kind not in (None, "classes"):
            module.conditioning, module.conditions = dataset.label_kind, dataset.targets()


def _fid_meter(options: CommonOptions, dataset: Any, device: torch.device, method: Method) -> FidMeter | None:
    if not options.fid_every:
        return None
    if not isinstance(dataset, ImageDataset):
        raise ValueError(f"--fid-every measures images and {options.data} holds points: leave it out")
    return FidMeter(options, Path(options.outdir) / "fid-refs", dataset, device, method.sampler)


def _transfer(method: Method, source: str) -> None:
    """Start every network and average from the weights of a snapshot, an encoder from the encoder in it."""
    import networks

    donor = networks.load_network(source)
    kind = getattr(donor, "conditioning", "classes")
    for name, module in method.modules.items():
        wanted = getattr(module, "conditioning", "classes")
        if getattr(donor, "label_dim", 0) and getattr(module, "label_dim", 0) and kind != wanted:
            raise ValueError(f"--transfer={source} was trained on {kind} labels, '{name}' takes {wanted} labels")
    donors = dict.fromkeys(method.modules, donor.state_dict())
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
