"""Images from a network: any snapshot or published checkpoint, any sampler, one image per seed.

Everything about the sampler is decided and printed before the first image (`samplers/planning/plan.py`); what a seed's
image looks like does not depend on the batch size or on the number of processes (`samplers/run.py`).
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import functools
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import click
import torch
from tqdm import tqdm

from networks.features.maps import load_map
from samplers.conditions import check_class
from samplers.field import Facts, Field
from samplers.gits.teacher import Teacher
from samplers.outputs import Targets, network_record
from samplers.planning.plan import Plan, SamplerOptions, build_plan, check_options
from samplers.prompts import Prompts
from samplers.run import PRECISIONS, Recorder, generate, prepare
from samplers.wanted import OutputOptions, check_latents, choose_targets, save_schedule
from torch_utils import distributed as dist
from torch_utils.checkpoint import tensor_hash
from torch_utils.cli import Command
from torch_utils.misc import format_time
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.report.kinds import name_of
from training.data.label_pool import give_labels, refuse_labels
from training.graded import Graded, GradedOptions
from training.trained import NetworkOptions, away_from, describe, open_chosen, with_settings

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

The same command again makes only what is missing (--overwrite to redo); another network, sampler or class is refused
where its images would be mixed with those that are there."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    group: ClassVar = OptionGroup("Device", "Where and how fast; --batch changes no image.", rank=7)

    batch: int = opt(64, "Most images at once on one process", metavar="INT", at_least=1)
    decode_batch: int = opt(8, "Most latents that become images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")
    precision: str = opt("auto", "Precision of the network's trunk; auto: as it was saved", choices=list(PRECISIONS))
    compile: bool = opt(False, "Compile the network with torch.compile; did not pay on a CPU", flag=True)
    rng_device: str | None = opt(
        None, "Where random numbers are drawn: cpu makes the same images on every device; default: --device",
        choices=["cpu", "cuda"],
    )  # fmt: skip
    tf32: bool = opt(False, "Allow TF32 in fp32 matrix products and convolutions", metavar="BOOL")


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions, GradedOptions, SamplerOptions, OutputOptions, NetworkOptions):
    pass


@click.command(cls=Command, epilog=EXAMPLES)
@options_of(Options)
def main(options: Options) -> None:
    """Make images with a trained network.

    EDM's samplers (--steps) make N steps down to noise level 0. All other solvers (--num-steps) make N - 1 steps
    between N noise levels. Options that do not belong to the chosen sampler are errors.
    """
    with dist.process_group(options.device) as device:
        options = with_settings(options)
        ready = functools.partial(
            prepare, device=device, precision=options.precision, tf32=options.tf32, compile=options.compile
        )
        conditional = options.guidance_type != "uncond"
        refuse_labels(options.labels, options.class_idx, conditional)
        check_options(options, options.class_idx)
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
        plan = plan_with_progress(model if graded is None else graded.model, options, device, prompts)
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


def plan_with_progress(model: Field, options: Options, device: torch.device, prompts: Prompts | None = None) -> Plan:
    """Build the plan; a schedule search shows its progress."""
    if prompts is not None and (options.dp or options.calibrate is not None):
        model = model.bind(prompts.warm_up(options.num_warmup or Teacher.num_warmup))
    with tqdm(desc="Schedule search", unit="sample", disable=dist.get_rank() > 0 or not options.dp, delay=1) as bar:
        progress = functools.partial(_advance, bar)
        maps = functools.partial(load_map, device=device)
        return build_plan(
            model, options, batch=options.batch, class_idx=options.class_idx, progress=progress, maps=maps
        )


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
        labels_of=graded.labels_of if graded is not None and options.class_idx is None else None,
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


if __name__ == "__main__":
    main()
