"""The work of generate.py: from its options to the network, the plan, and the images of every seed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from networks.features.maps import load_map
from samplers.conditions import check_class
from samplers.field import Facts, Field
from samplers.gits.teacher import Teacher
from samplers.outputs import Targets, network_record
from samplers.planning.plan import Plan, build_plan, check_options
from samplers.prompts import Prompts
from samplers.run import Recorder, generate, prepare
from samplers.wanted import check_files, check_latents, choose_targets, save_schedule
from torch_utils import distributed as dist
from torch_utils.checkpoint import tensor_hash
from torch_utils.misc import format_time
from torch_utils.report.kinds import name_of
from training.data.label_pool import give_labels, refuse_labels
from training.generation_options import Options
from training.graded import Graded
from training.trained import away_from, describe, open_chosen, with_settings


def run(options: Options) -> None:
    """Make what the options ask for; prints the network, the plan and its cost first.

    Raises:
        ValueError, click.UsageError: options that do not go together or with the network.
    """
    with dist.process_group(options.device) as device:
        options = with_settings(options)
        ready = functools.partial(
            prepare, device=device, precision=options.precision, tf32=options.tf32, compile=options.compile
        )
        conditional = options.guidance_type != "uncond"
        refuse_labels(options.labels, options.class_idx, conditional)
        check_options(options, options.class_idx)
        check_files(options)
        net, name = open_chosen(options, ready)
        check_latents(options, net)
        give_labels(net, options.labels)
        if conditional:
            check_class(Facts.of(net), options.class_idx)
        model, options, weaker = away_from(net, options, ready)
        prompts = Prompts.of(model, options.prompt, options.prompts, conditional)
        wanted = range(64) if options.seeds is None else options.seeds
        if prompts is not None:
            prompts.check(wanted)
        graded = Graded.of(model, options, device)
        plan = plan_with_progress(model if graded is None else graded.model, options, device, prompts, graded)
        graded = None if graded is None else graded.follow(plan)
        published = [steps_of(plan)] if options.nfe_convention == "steps" else []
        record = record_of(net, plan, options, device) | weaker
        record |= {} if prompts is None else {"texts": prompts.digest}
        record |= {} if graded is None else {"graded": graded.record}
        record |= {} if (decoder := getattr(net, "decoder_sha256", None)) is None else {"autoencoder": decoder}
        facts = Facts.of(net)
        targets = choose_targets(options, name, plan, record, images=not facts.latent or facts.decode is not None)
        targets.prepare(wanted, options.overwrite)
        published += [] if graded is None else [f"Graded:   {graded.about}"]
        dist.print0("\n".join([f"Network:  {describe(net)}", str(plan), *published]))
        save_schedule(options, plan, net)
        seeds = list(wanted) if options.overwrite else targets.missing(wanted)
        if len(seeds) < len(wanted):
            done = f"{len(wanted) - len(seeds)} of {len(wanted)}"
            dist.print0(f"Skipping: {done} images are in {targets.outdir} already (--overwrite to redo them)")
        make(model, plan, targets, seeds, options, device, prompts, graded)
        if calls := getattr(net, "classifier_calls", 0):
            dist.print0(f"Classifier: {calls / max(len(seeds), 1):g} calls per image on this process")


def steps_of(plan: Plan) -> str:
    """The number of steps, for comparison with figures that count each step as one evaluation."""
    if plan.steps is None:
        raise ValueError(
            f"--nfe-convention=steps counts steps, and {plan.solver} chooses them as it goes: leave it out"
        )
    return f"Steps:    {plan.steps}, what IDFF was published with as its NFE"


def plan_with_progress(
    model: Field, options: Options, device: torch.device, prompts: Prompts | None = None, graded: Graded | None = None
) -> Plan:
    """Build the plan; a schedule search shows its progress."""
    if options.dp or options.calibrate is not None:
        count, labels_of = options.num_warmup or Teacher.num_warmup, _labels_of(graded, options)
        if prompts is not None:
            model = model.bind(prompts.warm_up(count))
        elif labels_of is not None:
            model = model.bind(labels_of(range(count)).to(device))
    with tqdm(desc="Schedule search", unit="sample", disable=dist.get_rank() > 0 or not options.dp, delay=1) as bar:
        progress = functools.partial(_advance, bar)
        maps = functools.partial(load_map, device=device)
        return build_plan(
            model, options, batch=options.batch, class_idx=options.class_idx, progress=progress, maps=maps
        )


def _labels_of(graded: Graded | None, options: Options) -> Callable[[list[int]], torch.Tensor] | None:
    """Labels of the references, unless one class is asked for, or none."""
    return None if graded is None or options.class_idx is not None else graded.labels_of


def _advance(bar: tqdm, n: int) -> None:
    """Advance the bar by `n` of this process, and about as many of every other."""
    n *= dist.get_world_size()
    bar.update(n if bar.total is None else min(n, bar.total - bar.n))


def record_of(net: torch.nn.Module, plan: Plan, options: Options, device: torch.device) -> dict[str, Any]:
    """Everything that decides an image besides its seed."""
    return {
        "network": network_record(net),
        "sampler": plan.record(),
        "class": options.class_idx,
        "labels": None if (drawn := Facts.of(net).conditions) is None else tensor_hash({"labels": drawn})[:16],
        "precision": str(getattr(net, "compute_dtype", options.precision)).removeprefix("torch."),
        "tf32": options.tf32,
        "rng_device": torch.device(options.rng_device or device).type,
    }


def make(
    model: Field, plan: Plan, targets: Targets, seeds: list[int], options: Options, device: torch.device,
    prompts: Prompts | None = None, graded: Graded | None = None,
) -> None:  # fmt: skip
    """Sample the seeds and write what is wanted."""
    start, kind = time.time(), name_of(model.facts.shape)
    sampler = plan if graded is None else graded
    sampler = sampler if targets.traj is None else Recorder(sampler)
    batches = generate(
        model, seeds, sampler, batch=options.batch, device=device, rng_device=options.rng_device,
        class_idx=options.class_idx, prior=plan.prior, texts=prompts, decode_batch=options.decode_batch,
        conditional=options.guidance_type != "uncond",
        labels_of=_labels_of(graded, options),
    )  # fmt: skip
    hidden = dist.get_rank() > 0 or not seeds
    with tqdm(total=len(seeds), unit=kind.removesuffix("s"), disable=hidden, dynamic_ncols=True) as bar:
        targets.write(batches, sampler, functools.partial(_advance, bar))
    dist.barrier()
    took = time.time() - start
    where = ", ".join(str(p) for p in ([targets.outdir] if targets.outdir else []) + targets.joint)
    if plan.evaluations:
        dist.print0(f"NFE:      {sum(plan.evaluations) / len(plan.evaluations):.4g} on average over {kind}")
    dist.print0(f"{len(seeds)} {kind} in {format_time(took)} ({len(seeds) / took:.3g} per second): {where}")
