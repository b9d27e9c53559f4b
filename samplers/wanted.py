"""From what command lines ask to be made (`samplers/output_options.py`) to the files it is written to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from samplers.field import Facts
from samplers.output_options import OutputOptions
from samplers.outputs import Targets
from samplers.planning.base import Plan
from samplers.planning.levels import schedule_file
from torch_utils import distributed as dist
from torch_utils.files import check_target
from torch_utils.images import image_format
from torch_utils.provenance import digest
from torch_utils.report.kinds import kind_of

_WRITTEN = ("grid", "npz", "save_traj", "save_schedule")


def _grid(options: OutputOptions) -> tuple[bool, str]:
    """Whether the grid lies in the folder of images, and its own file; neither, where none is asked for."""
    grid = (options.grid or "").strip()
    in_outdir = grid.lower() in ("true", "1", "yes")
    return in_outdir, "" if in_outdir or grid.lower() in ("false", "0", "no") else grid


def check_files(options: OutputOptions) -> None:
    """Refuse, before the network is opened, files that could not be written, or would replace one another or an input.

    Raises:
        ValueError, OSError: see `torch_utils.files.check_target`; a file of the wrong suffix.
    """
    asked = {**vars(options), "grid": _grid(options)[1]}
    given = {name: asked[name] for name in _WRITTEN if asked[name]}
    if (schedule := options.save_schedule) and not schedule.endswith(".json"):
        raise ValueError(f"--save-schedule={schedule} must end in .json, by which --schedule knows a file")
    if "grid" in given:
        image_format(given["grid"])
    folders = ("outdir", "save_noise", "save_latents")
    read = [value for name, value in vars(options).items() if name not in (*_WRITTEN, *folders)]
    seen: dict[str, str] = {}
    for name, value in given.items():
        check_target(value, *read)
        if (other := seen.setdefault(os.path.abspath(value), name)) != name:
            flags = (f"--{n.replace('_', '-')}" for n in (other, name))
            raise ValueError(f"{' and '.join(flags)} are both {value}: give two files")


def check_latents(options: OutputOptions, net: nn.Module) -> None:
    """Refuse latents of a model of pixels, and images of latents that nobody can decode; ValueError."""
    facts = Facts.of(net)
    if options.save_latents and not facts.latent:
        raise ValueError(
            "--save-latents keeps what is decoded, and this network makes samples without a decoder: leave it out; "
            "--save-noise keeps the noise that they start from"
        )
    images = any((options.outdir, options.grid, options.npz, not options.save_latents))
    if facts.latent and facts.decode is None and images:
        made = (getattr(net, "info", {}).get("dataset") or {}).get("latents") or {}
        raise ValueError(
            f"this network makes latents of the autoencoder {made.get('network') or 'of its training data'}, which is "
            "not at hand: give it with --vae, or take the latents alone with --save-latents=DIR"
        )


def choose_targets(
    options: OutputOptions, name: str, plan: Plan, record: Mapping[str, Any], images: bool = True
) -> Targets:
    """What the options ask to be written; points and shapes have no image each, so OUTDIR gets two joint files.

    A folder of the default name is that of one record: its last part changes with it.

    Args:
        name: of the network, in that folder's name.
        record: what decides the images, plain JSON.
        images: samples are images, or can be decoded; else no folder of them is made by default.

    Raises:
        ValueError: options that need another one.
    """
    in_outdir, grid = _grid(options)
    outdir = options.outdir
    if outdir is None and (in_outdir or not (grid or options.npz or options.save_traj or not images)):
        outdir = Path("samples", *["grids"] * in_outdir, name, f"{_name_of(plan)}-{digest(record)}")
    npz, kind = options.npz, kind_of(tuple(record["network"]["shape"]))
    if in_outdir:
        grid, outdir = Path(outdir, "grid.png"), None
    elif outdir is not None and kind is not None:
        grid, npz = grid or Path(outdir, f"{kind.name}.png"), npz or Path(outdir, f"{kind.name}.npz")
        outdir = None
    if options.npz_name != "images" and (kind or not npz):
        raise ValueError(
            f"--npz-name={options.npz_name} names the images in an array file: "
            + (f"leave it out of {kind.name}" if kind else "add --npz=FILE")
        )
    wanted = {"outdir": outdir, "grid": grid, "npz": npz, "traj": options.save_traj}
    wanted |= {"noise": options.save_noise, "latents": options.save_latents}
    return Targets(
        record=record, npz_name=options.npz_name, subdirs=bool(options.subdirs),
        **{kind: Path(path) if path else None for kind, path in wanted.items()},
    )  # fmt: skip


def _name_of(plan: Plan) -> str:
    """The sampler in the name of a folder."""
    steps = f"rtol{plan.options.get('rtol', 1e-5):g}" if plan.nfe is None else f"nfe{plan.nfe}"
    kind, rate = (plan.guidance.get(f"guidance_{what}") for what in ("type", "rate"))
    return f"{plan.solver}_{steps}" + (f"_{kind}{'' if rate is None else f'{rate:g}'}" if kind else "")


def save_schedule(options: OutputOptions, plan: Plan, net: nn.Module) -> None:
    """Write what `--schedule=FILE.json` reads.

    Raises:
        ValueError: a sampler without levels.
    """
    if options.save_schedule is None:
        return
    if plan.chosen is None:
        raise ValueError(f"--save-schedule keeps noise levels, and {plan.solver} has none: choose another solver")
    if dist.get_rank() == 0:
        schedule_file(plan.chosen, plan.model(net)).save(options.save_schedule)
