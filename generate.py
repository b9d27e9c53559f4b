"""Images from a network: any snapshot or published checkpoint, any sampler, one image per seed.

Everything about the sampler is decided and printed before the first image (`samplers/planning/plan.py`); what a seed's
image looks like does not depend on the batch size or on the number of processes (`samplers/run.py`).
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import torch
from tqdm import tqdm

import networks
from networks.load import unfinished_note
from networks.models.clip_text import TOKENIZER
from networks.published.table import DATASETS, PUBLISHED
from networks.share import load_unsafe
from samplers.conditions import check_class
from samplers.field import Facts, Field, as_field
from samplers.gits.teacher import Teacher
from samplers.guidance import autoguidance
from samplers.outputs import Targets, network_record
from samplers.planning.levels import schedule_file
from samplers.planning.plan import Plan, SamplerOptions, build_plan
from samplers.prompts import Prompts
from samplers.run import PRECISIONS, Recorder, generate, image_shape, prepare
from torch_utils import distributed as dist
from torch_utils.checkpoint import tensor_hash
from torch_utils.cli import Command
from torch_utils.misc import format_count, format_time
from torch_utils.options import OptionGroup, opt, options_of
from torch_utils.provenance import digest
from torch_utils.report.scatter import is_points
from training.data.label_pool import give_labels, refuse_labels
from training.graded import Graded, GradedOptions

# What published settings decide, and the options that say it instead.
SETTLED = {
    "schedule_type": (
        "steps", "rho", "disc", "scaling", "schedule", "t_steps", "schedule_type", "schedule_rho", "calibrate",
    ),
    "solver": ("steps", "rho", "disc", "scaling", "schedule", "solver", "calibrate"),
    "guidance_type": ("guidance_type", "guidance_rate", "guidance_network"),
}  # fmt: skip
GROUPS = {
    "schedule_rho": "schedule_type", "max_order": "solver", "predict_x0": "solver", "lower_order_final": "solver",
    "guidance_rate": "guidance_type",
}  # fmt: skip

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

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    group: ClassVar = OptionGroup("Network", "Whose images are made: give one of the first two.", rank=0)

    network: str | None = opt(
        None, "A file, an address, or the name of a published checkpoint", metavar="FILE|URL|NAME",
        names=("--model-path",),
    )  # fmt: skip
    dataset_name: str | None = opt(
        None, "A published checkpoint by its data set, with the settings its published figures were measured with "
        f"where no others are given: {', '.join(DATASETS)}", metavar="NAME",
    )  # fmt: skip
    unsafe_pickle: bool = opt(
        False, "Open --network with dill, which runs the code that the file carries: files of people you trust alone",
        flag=True,
    )  # fmt: skip
    config_de: str | None = opt(
        None, "For a file that holds tensors alone (.pt, .pth, .ckpt): what they do not show, as a JSON file, the "
        "original's YAML file, or the name of a preset of train.py curvature [default: known by their shapes]",
        metavar="FILE|NAME", names=("--config",),
    )  # fmt: skip
    classifier: str | None = opt(
        None, "Classifier of noisy images for --guidance-type=cg [default: the published one of a published name]",
        metavar="FILE|URL",
    )  # fmt: skip
    vae: str | None = opt(
        None, "Autoencoder of a DiT or SiT file on latents, which brings none: a file of its own, or a Stable "
        "Diffusion checkpoint", metavar="FILE|URL",
    )  # fmt: skip
    guidance_network: str | None = opt(
        None, "A weaker network of the same data, away from which --guidance-rate guides (autoguidance)",
        metavar="FILE|URL|NAME",
    )  # fmt: skip
    tokenizer: str | None = opt(
        None, "For models of text: folder with CLIP's tokenizer.json, or vocab.json and merges.txt, or its name on the "
        f"hub [default: {TOKENIZER}]", metavar="DIR|NAME",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    group: ClassVar = OptionGroup("What to make", "Which images, and the files they are written to.", rank=1)

    seeds: tuple[int, ...] | None = opt(None, "One image per seed, e.g. 1,2,5-10 [default: 0-63]", metavar="LIST")
    outdir: str | None = opt(
        None,
        "Folder of SEED.png; default without --grid=FILE or --npz: samples/NETWORK/SOLVER_nfeNFE[_GUIDANCE]-HASH, "
        "HASH of all that decides an image",
        metavar="DIR",
    )
    grid: str | None = opt(
        None, "All images in one; alone: OUTDIR/grid.png, and nothing else", metavar="FILE", bare="True"
    )
    class_idx: int | None = opt(
        None, "One class for all images; default: drawn per seed", metavar="INT", names=("--class",)
    )
    labels: str | None = opt(
        None, "Draw labels per seed from a data set or file, for networks of label vectors", metavar="DATA|NPY|NPZ|JSON"
    )
    prompt: str | None = opt(None, "Models of text: one text for all images; may be empty", metavar="TEXT")
    prompts: str | None = opt(
        None, "Models of text: a CSV file whose column `text` has the text of seed i in row i", metavar="FILE.csv"
    )
    npz: str | None = opt(None, "All images in one array file: images [N,H,W,C] uint8, seeds, labels", metavar="FILE")
    npz_name: str = opt(
        "images", "Name of the images in --npz; arr_0: as evaluation suites for ADM, DiT and SiT read them",
        choices=["images", "arr_0"],
    )  # fmt: skip
    subdirs: bool | None = opt(None, "A sub-folder for every 1000 seeds", metavar="BOOL", bare=True)
    overwrite: bool = opt(False, "Also make images whose files exist", flag=True)
    save_schedule: str | None = opt(
        None, "Noise levels, solver and its options, as a file for --schedule", metavar="FILE.json"
    )
    nfe_convention: str = opt(
        "true", "Beside the true number of network evaluations, say the number of steps, which IDFF was published with",
        choices=["true", "steps"],
    )  # fmt: skip
    save_traj: str | None = opt(None, "States and drifts of every step, in one array file", metavar="FILE")
    save_latents: str | None = opt(
        None, "Folder of SEED.npy: the noise of every image, for train.py distill", metavar="DIR"
    )


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


@click.command(cls=Command, context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(Options)
def main(options: Options) -> None:
    """Make images with a trained network.

    EDM's samplers (--steps) make N steps down to noise level 0. All other solvers (--num-steps) make N - 1 steps
    between N noise levels. Options that do not belong to the chosen sampler are errors.
    """
    with dist.process_group(options.device) as device:
        options = with_settings(options)
        net, name = load(options, device)
        conditional = options.guidance_type != "uncond"
        refuse_labels(options.labels, options.class_idx, conditional)
        give_labels(net, options.labels)
        if conditional:
            check_class(Facts.of(net), options.class_idx)
        model, options, weaker = guided_by_network(net, options, device)
        prompts = Prompts.of(model, options.prompt, options.prompts, conditional)
        wanted = range(64) if options.seeds is None else options.seeds
        if prompts is not None:
            prompts.check(wanted)
        graded = Graded.of(model, options, device)
        plan = plan_with_progress(model if graded is None else graded.model, options, prompts)
        graded = None if graded is None else graded.follow(plan)
        published = [steps_of(plan)] if options.nfe_convention == "steps" else []
        record = record_of(net, plan, options, device) | weaker
        record |= {} if prompts is None else {"texts": prompts.digest}
        record |= {} if graded is None else {"graded": graded.record}
        targets = choose_targets(options, name, plan, record)
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
    """The number of steps, for who compares with figures that were published as evaluations."""
    if plan.steps is None:
        raise ValueError(
            f"--nfe-convention=steps counts steps, and {plan.solver} chooses them as it goes: leave it out"
        )
    return f"Steps:    {plan.steps}, what IDFF was published with as its NFE"


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
    if options.unsafe_pickle:
        dist.print0(f"Note: {source} is opened with dill, which runs the code that it carries", file=sys.stderr)
        net = dist.rank0_first(lambda: load_unsafe(source))
    else:
        net = dist.rank0_first(
            lambda: networks.load_network(
                source,
                verbose=dist.get_rank() == 0,
                config=options.config_de,
                classifier=options.classifier,
                vae=options.vae,
            )
        )
    if note := unfinished_note(net):
        dist.print0(note, file=sys.stderr)
    if options.tokenizer is not None:
        if Facts.of(net).encode_text is None:
            raise ValueError("--tokenizer belongs to models of text, and this network takes none: leave it out")
        net.tokenizer = options.tokenizer
    net = prepare(net, device, precision=options.precision, tf32=options.tf32, compile=options.compile)
    return net, options.dataset_name or Path(source).stem


def with_settings(options: Options) -> Options:
    """The options, with what published figures of --dataset-name were measured with where nothing else is asked."""
    if options.network is not None or options.dataset_name not in DATASETS:
        return options
    said = {name for name in (f.name for f in dataclasses.fields(options)) if getattr(options, name) is not None}
    settings = PUBLISHED[DATASETS[options.dataset_name]].settings
    free = {name for name, others in SETTLED.items() if not said & set(others)}
    used = {k: v for k, v in settings.items() if GROUPS.get(k, k) in free and getattr(options, k) is None}
    if used:
        dist.print0(f"Settings: {', '.join(f'{k}={v}' for k, v in used.items())} (of the published figures)")
    return dataclasses.replace(options, **used)


def guided_by_network(
    net: torch.nn.Module, options: Options, device: torch.device
) -> tuple[Field, Options, dict[str, Any]]:  # fmt: skip
    """The model, guided away from --guidance-network where there is one, the options that are left, and a record."""
    if options.guidance_network is None:
        return as_field(net), options, {}
    if options.guidance_type is not None or options.guidance_rate is None:
        raise ValueError(
            "--guidance-network is a guidance of its own: give --guidance-rate with it and no --guidance-type"
        )
    weak = dist.rank0_first(lambda: networks.load_network(options.guidance_network, verbose=dist.get_rank() == 0))
    weak = prepare(weak, device, precision=options.precision, tf32=options.tf32, compile=options.compile)
    rate = options.guidance_rate
    dist.print0(f"Guidance: away from {options.guidance_network}, rate {rate:g}")
    guided = autoguidance(net, weak, rate)
    return guided, dataclasses.replace(options, guidance_rate=None), {"weaker": network_record(weak), "rate": rate}


def describe(net: torch.nn.Module) -> str:
    facts = Facts.of(net)
    kinds = {"none": "unconditional", "classes": f"{facts.label_dim} classes", "text": "text"}
    condition = kinds.get(facts.conditioning, f"{facts.conditioning} labels of {facts.label_dim} numbers")
    size, count = "x".join(map(str, image_shape(net))), format_count(sum(p.numel() for p in net.parameters()))
    return f"{type(net).__name__} {size}, {condition}, {count} parameters"


def plan_with_progress(model: Field, options: Options, prompts: Prompts | None = None) -> Plan:
    """The sampler; a schedule search shows how far it is."""
    if prompts is not None and (options.dp or options.calibrate is not None):
        model = model.bind(prompts.warm_up(options.num_warmup or Teacher.num_warmup))
    with tqdm(desc="Schedule search", unit="sample", disable=dist.get_rank() > 0 or not options.dp, delay=1) as bar:
        progress = functools.partial(_advance, bar)
        return build_plan(model, options, batch=options.batch, class_idx=options.class_idx, progress=progress)


def _advance(bar: tqdm, n: int) -> None:
    """Advance the bar by `n` of this process, and about as many of every other."""
    n *= dist.get_world_size()
    bar.update(n if bar.total is None else min(n, bar.total - bar.n))


def record_of(net: torch.nn.Module, plan: Plan, options: Options, device: torch.device) -> dict[str, Any]:
    """Everything that decides an image beside its seed."""
    return {
        "network": network_record(net),
        "sampler": plan.record(),
        "class": options.class_idx,
        "labels": None if (drawn := Facts.of(net).conditions) is None else tensor_hash({"labels": drawn})[:16],
        "precision": str(getattr(net, "compute_dtype", options.precision)).removeprefix("torch."),
        "tf32": options.tf32,
        "rng_device": torch.device(options.rng_device or device).type,
    }


def choose_targets(options: Options, name: str, plan: Plan, record: dict[str, Any]) -> Targets:
    """What the options ask to be written; points in the plane have no image each, so OUTDIR gets two joint files.

    A folder of the default name is that of one record: its last part changes with it.
    """
    points = is_points(tuple(record["network"]["shape"]))
    grid = (options.grid or "").strip()
    in_outdir = grid.lower() in ("true", "1", "yes")
    grid = "" if grid.lower() in ("false", "0", "no") else grid
    outdir = options.outdir
    steps = f"rtol{options.rtol or 1e-5:g}" if plan.nfe is None else f"nfe{plan.nfe}"
    if outdir is None and (in_outdir or not (grid or options.npz or options.save_traj)):
        rate = "" if options.guidance_rate is None else f"{options.guidance_rate:g}"
        guided = f"_{options.guidance_type}{rate}" if options.guidance_type else ""
        parts = [*(["grids"] if in_outdir else []), name, f"{plan.solver}_{steps}{guided}-{digest(record)}"]
        outdir = Path("samples", *parts)
    if points and outdir is not None and not in_outdir:
        return Targets(
            grid=Path(grid or Path(outdir, "points.png")), npz=Path(options.npz or Path(outdir, "points.npz")),
            traj=Path(options.save_traj) if options.save_traj else None,
            latents=Path(options.save_latents) if options.save_latents else None, record=record,
        )  # fmt: skip
    if options.npz_name != "images" and not options.npz:
        raise ValueError(f"--npz-name={options.npz_name} names the images in an array file: add --npz=FILE")
    return Targets(
        record=record,
        latents=Path(options.save_latents) if options.save_latents else None,
        outdir=Path(outdir) if outdir is not None and not in_outdir else None,
        grid=Path(outdir, "grid.png") if in_outdir else Path(grid) if grid else None,
        npz=Path(options.npz) if options.npz else None,
        npz_name=options.npz_name,
        traj=Path(options.save_traj) if options.save_traj else None,
        subdirs=bool(options.subdirs),
    )


def save_schedule(options: Options, plan: Plan, net: torch.nn.Module) -> None:
    """Write what `--schedule=FILE.json` reads."""
    if options.save_schedule is None:
        return
    if plan.chosen is None:
        raise ValueError(f"--save-schedule keeps noise levels, and {plan.solver} has none: choose another solver")
    if not options.save_schedule.endswith(".json"):
        raise ValueError(f"--save-schedule={options.save_schedule} must end in .json, by which --schedule knows a file")
    if dist.get_rank() == 0:
        schedule_file(plan.chosen, plan.model(net)).save(options.save_schedule)


def make(
    model: Field, plan: Plan, targets: Targets, seeds: list[int], options: Options, device: torch.device,
    prompts: Prompts | None = None, graded: Graded | None = None,
) -> None:  # fmt: skip
    """Sample the seeds and write what is wanted."""
    start = time.time()
    sampler = plan if graded is None else graded
    sampler = sampler if targets.traj is None else Recorder(sampler)
    batches = generate(
        model, seeds, sampler, batch=options.batch, device=device, rng_device=options.rng_device,
        class_idx=options.class_idx, prior=plan.prior, texts=prompts, decode_batch=options.decode_batch,
        conditional=options.guidance_type != "uncond",
    )  # fmt: skip
    with tqdm(total=len(seeds), unit="img", disable=dist.get_rank() > 0 or not seeds, dynamic_ncols=True) as bar:
        targets.write(batches, sampler, functools.partial(_advance, bar))
    dist.barrier()
    took = time.time() - start
    where = ", ".join(str(p) for p in ([targets.outdir] if targets.outdir else []) + targets.joint)
    if plan.evaluations:
        dist.print0(f"NFE:      {sum(plan.evaluations) / len(plan.evaluations):.4g} on average over images")
    dist.print0(f"{len(seeds)} images in {format_time(took)} ({len(seeds) / took:.3g} per second): {where}")


if __name__ == "__main__":
    main()
