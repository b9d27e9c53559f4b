"""The work of `fid.py calc` and `fid.py ref`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from networks.features.maps import load_map
from networks.features.table import FEATURES, FeatureExtractor, load_features
from samplers.field import Facts
from samplers.planning.plan import build_plan, check_options
from samplers.run import prepare
from torch_utils import distributed as dist
from torch_utils.arrays import holds
from torch_utils.feature_pass import Described, Needs, Pictures, describe, dim_of
from torch_utils.files import check_target, write_json
from torch_utils.frechet import Moments
from torch_utils.metrics import KID_SEED, Figure
from torch_utils.npz_images import NAMES, NpzImages
from torch_utils.reference_file import check_fits, load_reference, local_file, save_moments
from torch_utils.report.kinds import name_of
from training.data.image_dataset import ImageDataset, decoded, subset_indices
from training.data.label_pool import give_labels, refuse_labels
from training.image_figures_options import NUM, CalcOptions, RefOptions
from training.measures import Wanted, check_counts, measure, sampled, stored, wanted_of
from training.trained import open_network


def calc(options: CalcOptions) -> None:
    """Print the figures of images, or of a network's samples, against a reference."""
    with dist.process_group(options.device) as device:
        _check_source(options, "images", options.images)
        if options.json:
            check_target(options.json, options.images, options.ref, options.network, options.vae)
        wanted = wanted_of(_extractors(options, device), options)
        source = _images(options.images, options.num or NUM, options) if options.images else _samples(options, device)
        for one in wanted:
            check_counts(one, options, source.num, "--num" if options.seeds is None else "--seeds")
        references = _references(options, wanted, source.image_shape)
        for one, reference in zip(wanted, references, strict=True):
            check_counts(one, options, reference and reference.num, options.ref, reference=True)
        described = describe(source, [(one.extractor, one.needs(source.num, options)) for one in wanted])
        if dist.get_rank() == 0:
            figures = _figures(options, wanted, described, references)
            _say(options, figures, described, references)
            if options.json:
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                write_json(options.json, _report(options, figures, described, references))
        dist.barrier()


def ref(options: RefOptions) -> None:
    """Write the statistics of images, or of a network's samples, to a file."""
    with dist.process_group(options.device) as device:
        _check_source(options, "data", options.data)
        check_target(options.dest, options.data, options.network, options.vae)
        extractors = _extractors(options, device)
        source = _images(options.data, options.num, options) if options.data else _samples(options, device)
        described = describe(source, [(extractor, Needs(int(options.keep_features))) for extractor in extractors])
        if dist.get_rank() == 0:
            command = {"command": shlex.join(sys.argv)}
            sides = [replace(d.moments, protocol={**d.moments.protocol, **command}) for d in described]
            save_moments(options.dest, *sides)
            for moments in sides:
                click.echo(f"{options.dest}: {len(moments.mu)} {moments.features} features of {moments.num} images")
        dist.barrier()


def _extractors(options: CalcOptions | RefOptions, device: torch.device) -> list[FeatureExtractor]:
    """The extractors that --features names, with the weights of --weights."""
    names = list(dict.fromkeys(name.strip() for name in options.features.split(",")))
    given = dict.fromkeys(names) if options.weights is None else _weights(names, options.weights)
    return [dist.rank0_first(lambda name=name: load_features(name, given[name], device)) for name in names]


def _weights(names: Sequence[str], text: str) -> dict[str, str | None]:
    """Weights by the name of the features: `NAME=PATH,NAME=PATH`, or a path alone where there is one name."""
    parts = [part.partition("=") for part in text.split(",")]
    if all(name in FEATURES and path for name, _, path in parts):
        if lost := [name for name, _, _ in parts if name not in names]:
            raise ValueError(f"--weights names the features '{lost[0]}', which --features does not: leave them out")
        return {**dict.fromkeys(names), **{name: path for name, _, path in parts}}
    if len(names) > 1:
        raise ValueError(f"--weights={text} does not say of which features: write {names[0]}=PATH,{names[1]}=PATH")
    return {names[0]: text}


def _check_source(options: CalcOptions | RefOptions, name: str, path: str | None) -> None:
    """Refuse what says no images, those at `path` (option `name`) or a network's, before anything is fetched."""
    if (path is None) == (options.network is None):
        raise ValueError(f"give either --{name} or --network: {'both are given' if path else 'neither is given'}")
    if options.network is not None:
        seeds = _seeds(options)
        if options.num not in (None, len(seeds)):
            raise ValueError(f"--seeds names {len(seeds)} images and --num={options.num}: leave one of them out")
        if options.seed is not None:
            raise ValueError("--seed chooses among images of a folder or file: leave it out, or give --seeds")
        if len(seeds) < 2:
            raise ValueError(f"--seeds names {len(seeds)} images, 2 are needed at least: write --seeds=0-999")
        refuse_labels(options.labels, options.class_idx, options.guidance_type != "uncond")
        return check_options(options, options.class_idx)
    lost = [k for k in ("seeds", "class_idx", "labels", "vae") if getattr(options, k) is not None]
    if lost := [*lost, *options.given()]:
        raise ValueError(f"--{lost[0].replace('_', '-')} says how a network is sampled: it goes with --network only")


def _seeds(options: CalcOptions | RefOptions) -> Sequence[int]:
    return range(options.num or NUM) if options.seeds is None else options.seeds


def _images(path: str, num: int | None, options: CalcOptions | RefOptions) -> Pictures:
    """`num` of the images at a path, a random subset where there are more; all of them with num=None."""
    opened = NpzImages(path) if Path(path).suffix.lower() == ".npz" else ImageDataset(path)
    found = len(opened)
    if found < (num or 2):
        raise ValueError(f"{path} holds {found} images, {num or 2} are needed: lower --num or add images")
    read = opened.images if isinstance(opened, NpzImages) else partial(decoded, opened)
    about = {"images": path, "found": found, "seed": options.seed or 0}
    chosen = subset_indices(found, num, about["seed"]).tolist()
    return stored(read, chosen, opened.image_shape, options.batch, about)


def _samples(options: CalcOptions | RefOptions, device: torch.device) -> Pictures:
    seeds = _seeds(options)
    net = open_network(options.network, partial(prepare, device=device), vae=options.vae)
    facts = Facts.of(net)
    if (kind := name_of(facts.shape)) != "images":
        instead = "`analyze.py shapes`" if kind == "shapes" else "`train.py --metrics=w2`"
        raise ValueError(f"this network makes {kind}, and features are of images: {instead} measures them")
    if facts.latent and facts.decode is None:
        raise ValueError("this network makes latents, and their autoencoder is not at hand: give it with --vae")
    give_labels(net, options.labels)
    plan = build_plan(net, options, class_idx=options.class_idx, maps=partial(load_map, device=device))
    dist.print0(plan, file=sys.stderr)
    contiguous = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    about = {
        "network": options.network, "seeds": f"{seeds[0]}-{seeds[-1]}" if contiguous else ",".join(map(str, seeds)),
        "class": options.class_idx, "labels": options.labels, "sampler": options.given(),
    }  # fmt: skip
    how = {"batch": options.batch, "device": device, "class_idx": options.class_idx}
    return sampled(net, seeds, plan, about=about, conditional=options.guidance_type != "uncond", **how)


def _references(options: CalcOptions, wanted: Sequence[Wanted], image_shape: Sequence[int]) -> list[Moments | None]:
    """What each kind of features is compared with: from a file of statistics, or of reference images in one pass."""
    path = local_file(options.ref)
    images = not Path(path).is_file() or Path(path).suffix.lower() != ".npz" or any(holds(path, n) for n in NAMES)
    found: dict[str, Moments] = {}
    look: list[Wanted] = []
    for one in (w for w in wanted if w.compares):
        extractor, dim = one.extractor, dim_of(one.extractor, image_shape)
        if images and (not holds(path, "mu", "sigma") or extractor.name != "inception"):
            look.append(one)
            continue
        moments = found[extractor.name] = load_reference(path, extractor, dim, options.ref, one.rows)
        if one.rows and not holds(path, "rows") and not holds(path, f"{extractor.name}/rows"):
            if not images:
                raise ValueError(
                    f"{options.ref} holds mean and covariance alone, and {' and '.join(one.metrics)} together need the "
                    "features themselves: give images, or a file of `fid.py ref --keep-features`"
                )
            look.append(one)
        if differs := moments.protocol.get("differs"):
            dist.print0(f"{options.ref}: {differs}", file=sys.stderr)
    if look:
        source = _images(path, None, options)
        for one in look:
            dim = dim_of(one.extractor, source.image_shape)
            stands_for = Moments(torch.empty(dim), torch.empty(0), features=one.extractor.name)
            check_fits(options.ref, stands_for, one.extractor.name, dim_of(one.extractor, image_shape))
        seen = describe(source, [(one.extractor, Needs(int(one.rows))) for one in look], "reference")
        for one, described in zip(look, seen, strict=True):  # statistics of the file count before our own
            known = found.get(one.extractor.name, described.moments)
            found[one.extractor.name] = replace(known, rows=described.moments.rows)
    return [found.get(one.extractor.name) for one in wanted]


def _figures(
    options: CalcOptions, wanted: Sequence[Wanted], described: Sequence[Described], references: Sequence[Moments | None]
) -> dict[str, Figure]:
    """All figures by name; of several kinds of features as NAME/METRIC."""
    figures = {}
    for one, images, reference in zip(wanted, described, references, strict=True):
        prefix = f"{one.extractor.name}/" if len(wanted) > 1 else ""
        figures |= {prefix + name: figure for name, figure in measure(one, images, reference, options).items()}
    return figures


def _say(
    options: CalcOptions,
    figures: dict[str, Figure],
    described: Sequence[Described],
    references: Sequence[Moments | None],
) -> None:
    """Figures to stdout, what defines them to stderr."""
    moments = described[0].moments
    sizes = {d.moments.features: d.moments.protocol["resize"] for d in described}
    names = ", ".join(name if resize == "none" else f"{name} ({resize})" for name, resize in sizes.items())
    few = any(d.moments.features == "inception" for d in described) and moments.num < NUM
    note = f" (published numbers use {NUM})" if few else ""
    alone = len(figures) == 1
    click.echo(f"{names if not alone else moments.features} features, {moments.num} images{note}, ", nl=False, err=True)
    counts = {r.num for r in references if r is not None}
    click.echo(f"reference {options.ref} of {', '.join(str(c or 'an unknown number of') for c in counts)}", err=True)
    for name, figure in figures.items():
        if alone:
            click.echo(f"{name} {figure}, 95% by the {figure.how}", err=True)
            click.echo(f"{figure.value:g}")
        else:
            click.echo(f"{name} {figure}")


def _report(
    options: CalcOptions,
    figures: dict[str, Figure],
    described: Sequence[Described],
    references: Sequence[Moments | None],
) -> dict[str, Any]:
    """The result and what defines it, as JSON; the first Fréchet distance once more as "distance"."""
    moments, reference = described[0].moments, references[0]
    distance = next((f.value for name, f in figures.items() if name.split("/")[-1] in ("fid", "fd")), None)
    report = {"distance": distance, "features": moments.features, "num": moments.num, "ref": options.ref}
    report |= {"metrics": {name: figure._asdict() for name, figure in figures.items()}}
    if reference is not None:
        mean_term = float((moments.mu - reference.mu).square().sum())
        report |= {"ref_num": reference.num, "mean_term": mean_term}
    settings = {k: getattr(options, k) for k in ("kid_subsets", "kid_subset_size", "pr_k", "is_splits")}
    protocol = {"command": shlex.join(sys.argv), "settings": {**settings, "kid_seed": KID_SEED}}
    protocol |= {"images": [dict(d.moments.protocol) for d in described]}
    protocol |= {"reference": [dict(r.protocol) for r in references if r is not None]}
    keys = ("images", "seed", "network", "seeds", "class", "labels", "sampler")
    return report | {k: v for k, v in moments.protocol.items() if k in keys} | {"protocol": protocol}
