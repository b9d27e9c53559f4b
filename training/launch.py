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
from training.data.series import SeriesDataset, is_series
from training.latents import check_same_latents, find_decoder, tell_latents
from training.loop.loop import Loop
from training.method import Method
from training.methods.table import METHODS, method_entry
from training.options import CommonOptions
from training.performance import DTYPES, set_backends
from training.runs import run_dir as runs
from training.runs.meters import Meter, check_fid
from training.runs.placement import Place, find_place
from training.runs.session import Session


def launch(method_name: str, options: CommonOptions) -> None:
    """Train, or with `--dry-run` say what would be done.

    Raises:
        ValueError, OSError: anything wrong with the options, the data or the run directory, as one sentence.
    """
    with dist.process_group(options.device) as device:
        set_backends(options)
        entry = method_entry(method_name)
        if is_series(options.data) and not entry.series:
            able = ", ".join(name for name, other in METHODS.items() if other.series)
            raise ValueError(f"{method_name} does not learn from what came before, as a series asks for: use {able}")
        dataset = (entry.open or open_dataset)(options)
        options = options.told(dataset)
        find_decoder(options, dataset)
        options.rounds(dist.get_world_size())
        check_fid(options)
        world = dist.get_world_size()
        description = options.description(dataset.name, world)
        place = dist.from_rank0(lambda: find_place(options, options.seed, description, world))
        if place.finished:
            dist.print0(f"{place.run_dir} was finished before this job was started again: nothing is left to do")
            return
        options = dataclasses.replace(options, seed=place.seed)
        try:
            _train(method_name, options, dataset, place, device)
        except BaseException:
            if dist.get_rank() == 0 and not options.dry_run:
                runs.discard_unused(place.run_dir)
            raise


def _train(
    method_name: str, options: CommonOptions, dataset: ImageDataset, place: Place, device: torch.device
) -> None:  # fmt: skip
    """Build everything, restore the state, and only then write into the run directory."""
    torch.manual_seed(options.seed)  # the same initial weights on every process, whatever their number
    method = method_entry(method_name).build(options, dataset, device)
    _tell_conditions(method, dataset)
    tell_latents(method, dataset)
    said = [_report(method_name, options, method)]
    if dataset.latents is not None and dataset.autoencoder is None:
        method = dataclasses.replace(method, preview=None)
        said.append(f"No pictures: the autoencoder {dataset.latents.network or ''} is not at hand, give --decoder")
    if place.state is None and options.transfer:
        said += _transfer(method, options.transfer, dataset)
    batches = Batches(
        dataset,
        options.batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        seed=options.seed,
        device=device,
        cache=options.cache and not options.dry_run,
        workers=options.workers,
    )
    try:
        session = Session(
            Loop(method, batches, options, device),
            options,
            place.run_dir,
            {"method": method_name, "options": dataclasses.asdict(options), "dataset": _facts(dataset)},
            autocast_dtype=DTYPES[options.precision],
            meter=_meter(options, dataset, device, method),
        )
        if place.state is not None:
            session.restore(place.state)
        if options.dry_run:
            dist.print0("\n".join([*said, _forecast(place, session), "Dry run; exiting."]))
            return
        dist.from_rank0(place.write_options)
        with Tee(place.run_dir / "log.txt") if dist.get_rank() == 0 else nullcontext():
            dist.print0("\n".join([*said, f"Run directory: {place.run_dir}"]))
            if place.state is not None:
                dist.print0(f"Continuing from {place.state} at {session.loop.nimg / 1000:.3f} kimg")
            session.run()
            dist.print0("Finished.")
    finally:
        batches.close()


def _tell_conditions(method: Method, dataset: Any) -> None:
    """Let networks know of what kind their labels are; snapshots keep that, pictures and FID draw from the labels."""
    for module in method.modules.values():
        if getattr(module, "label_dim", 0) and dataset.label_kind not in (None, "classes"):
            module.conditioning, module.conditions = dataset.label_kind, dataset.conditions()


def _forecast(place: Place, session: Session) -> str:
    if place.state is None:
        return f"Would start a new run: {place.run_dir}"
    kimg = f"{session.loop.nimg / 1000:.3f} kimg"
    if place.state.parent.resolve() == place.run_dir.resolve():
        return f"Would continue {place.run_dir} at {kimg} ({place.state.name})"
    return f"Would start a new run that continues {place.state} at {kimg}: {place.run_dir}"


def _facts(dataset: Any) -> dict[str, Any]:
    """What states and snapshots say about their data; the fingerprint tells when a run continues with other data."""
    return {
        "name": dataset.name,
        "shape": list(dataset.image_shape),
        "label_kind": dataset.label_kind,
        "class_names": dataset.class_names,
        "fingerprint": dist.from_rank0(dataset.fingerprint),
        **({} if dataset.latents is None else {"latents": dataset.latents.record()}),
        **({"series": dataset.facts()} if isinstance(dataset, SeriesDataset) else {}),
    }


def _meter(options: CommonOptions, dataset: Any, device: torch.device, method: Method) -> Meter | None:
    if not options.fid_every:
        return None
    if dataset.latents is not None:
        if options.fid_ref == "auto":
            raise ValueError(
                "--fid-every compares images, and the data set holds latents: give the statistics of its images with "
                "--fid-ref, made by fid.py ref --data=IMAGES --dest=FILE.npz"
            )
        if getattr(method.modules["net"], "decode", None) is None:
            raise ValueError(
                "--fid-every compares images, and the autoencoder of the latents is not at hand: give it with --decoder"
            )
    refs = None if options.dry_run else Path(options.outdir) / "fid-refs"
    return Meter(options, refs, dataset, device, method.sampler)


def _transfer(method: Method, source: str, dataset: Any) -> list[str]:
    """Start every network and average from the weights of a snapshot, an encoder from the encoder in it; says what."""
    import networks

    said = []
    donor = networks.load_network(source)
    check_same_latents("--transfer", source, donor, dataset)
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
            said.append(f"{error}; 'encoder' starts fresh")
            del donors["encoder"]
    for name, donor in donors.items():
        module = method.modules[name]
        own = module.state_dict()
        shared = {k: v for k, v in donor.items() if k in own and own[k].shape == v.shape}
        if not shared:
            raise ValueError(f"--transfer={source}: no tensor of it fits the network '{name}' by name and shape")
        missing = len(own) - len(shared)
        module.load_state_dict({**own, **shared})
        said.append(f"Transferred {len(shared)} tensors to '{name}'" + (f", {missing} start fresh" if missing else ""))
    return said


def _report(method_name: str, options: CommonOptions, method: Method) -> str:
    """The resolved options and the costs, one per line."""
    rows = [("Method", method_name), *method.summary]
    rows += [(k, v) for k, v in dataclasses.asdict(options).items() if v is not None]
    width = max(len(k) for k, _ in rows)
    return "\n".join(f"{k:<{width}}  {v}" for k, v in rows)
