"""Trained networks as command lines name them: options, opening one, the settings of its published figures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from torch import nn

import networks
from networks.load import unfinished_note
from networks.published.table import DATASETS, PUBLISHED
from networks.share import load_unsafe
from samplers.field import Facts, Field, as_field
from samplers.guidance import autoguidance
from samplers.outputs import network_record
from samplers.run import image_shape
from torch_utils import distributed as dist
from torch_utils.misc import format_count
from training.generation_options import NetworkOptions

Ready = Callable[[nn.Module], nn.Module]  # what `samplers.run.prepare` does with a network

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


def open_network(source: str, ready: Ready, *, unsafe: bool = False, **how: Any) -> nn.Module:
    """The network that a file, an address or a name means; says so where it comes from the middle of a run.

    Args:
        source: see `networks.load_network`, which is given `how`.
        ready: makes it ready to sample.
        unsafe: a file of dill, whose code is run.

    Raises:
        ValueError: as `networks.load_network`; options that a file of dill has no use for.
    """
    if unsafe:
        if given := [name for name in ("config", "classifier", "vae") if how.get(name) is not None]:
            raise ValueError(f"{source} is opened with dill and holds the network itself: leave out --{given[0]}")
        dist.print0(f"Note: {source} is opened with dill, which runs the code that it carries", file=sys.stderr)
    net = dist.rank0_first(lambda: load_unsafe(source) if unsafe else networks.load_network(source, **how))
    if note := unfinished_note(net):
        dist.print0(f"{note} ({source})", file=sys.stderr)
    return ready(net)


def open_chosen(options: NetworkOptions, ready: Ready) -> tuple[nn.Module, str]:
    """The network that the options name, and a name for it in paths.

    Raises:
        click.UsageError, ValueError: no network is named, or none is known by that name.
    """
    if options.network is None and options.dataset_name is None:
        raise click.UsageError(
            "which network? give --network (a file, an address or the name of a published checkpoint)"
        )
    if options.network is None and options.dataset_name not in DATASETS:
        raise ValueError(
            f"no published checkpoint is known for --dataset-name={options.dataset_name}: "
            f"choose from {', '.join(DATASETS)}, or give --network"
        )
    _check_away(options)
    source = options.network or DATASETS[options.dataset_name]
    net = open_network(
        source, ready, unsafe=options.unsafe_pickle, verbose=dist.get_rank() == 0, config=options.config_de,
        classifier=options.classifier, vae=options.vae,
    )  # fmt: skip
    if options.tokenizer is not None:
        if Facts.of(net).encode_text is None:
            raise ValueError("--tokenizer belongs to models of text, and this network takes none: leave it out")
        net.tokenizer = options.tokenizer
    return net, options.dataset_name or Path(source).stem


def with_settings(options: Any) -> Any:
    """The options (of a network and a sampler), with what published figures of --dataset-name were measured with.

    What is asked for stays, and so does what goes with it.
    """
    if options.network is not None or options.dataset_name not in DATASETS:
        return options
    said = {name for name in (f.name for f in dataclasses.fields(options)) if getattr(options, name) is not None}
    published = PUBLISHED[DATASETS[options.dataset_name]]
    settings = published.settings
    free = {name for name, others in SETTLED.items() if not said & set(others)}
    used = {k: v for k, v in settings.items() if GROUPS.get(k, k) in free and getattr(options, k) is None}
    used |= {k: v for k, v in published.search.items() if options.dp and getattr(options, k) is None}
    if used:
        dist.print0(f"Settings: {', '.join(f'{k}={v}' for k, v in used.items())} (of the published figures)")
    return dataclasses.replace(options, **used)


def _check_away(options: Any) -> None:
    """Refuse autoguidance without a rate, or beside another kind of guidance; ValueError."""
    if options.guidance_network is not None and (options.guidance_type is not None or options.guidance_rate is None):
        raise ValueError(
            "--guidance-network is a guidance of its own: give --guidance-rate with it and no --guidance-type"
        )


def away_from(net: nn.Module, options: Any, ready: Ready) -> tuple[Field, Any, dict[str, Any]]:
    """The model, guided away from --guidance-network where there is one, the options that are left, and a record."""
    if options.guidance_network is None:
        return as_field(net), options, {}
    weak = open_network(options.guidance_network, ready, verbose=dist.get_rank() == 0)
    rate = options.guidance_rate
    dist.print0(f"Guidance: away from {options.guidance_network}, rate {rate:g}")
    guided = autoguidance(net, weak, rate)
    return guided, dataclasses.replace(options, guidance_rate=None), {"weaker": network_record(weak), "rate": rate}


def describe(net: nn.Module) -> str:
    """One line: class, size, condition, parameters."""
    facts = Facts.of(net)
    kinds = {"none": "unconditional", "classes": f"{facts.label_dim} classes", "text": "text"}
    condition = kinds.get(facts.conditioning, f"{facts.conditioning} labels of {facts.label_dim} numbers")
    size, count = "x".join(map(str, image_shape(net))), format_count(sum(p.numel() for p in net.parameters()))
    return f"{type(net).__name__} {size}, {condition}, {count} parameters"
