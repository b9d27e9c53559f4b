"""Fréchet distance between images and a reference: `fid.py calc` measures, `fid.py ref` makes reference statistics.

Images come from a folder, a zip, an npz, or straight from a network, batch by batch; only statistics are kept. Features
are Inception's (FID, Heusel et al. 2017, arXiv 1706.08500) or the pixels themselves. See docs/evaluation.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import math
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import click
import torch
from torch import Tensor
from tqdm import tqdm

from networks.features.table import FEATURES, FeatureExtractor, load_features
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import decoded_shape, generate, prepare
from torch_utils import distributed as dist
from torch_utils.cli import Group
from torch_utils.files import write_json
from torch_utils.frechet import Moments, check_fits, feature_stats, load_reference, local_file, save_moments
from torch_utils.images import to_uint8
from torch_utils.misc import split_evenly
from torch_utils.npz_images import NpzImages
from torch_utils.options import OptionGroup, opt, options_of
from training.data.image_dataset import ImageDataset, decoded, subset_indices
from training.data.label_pool import give_labels, refuse_labels
from training.trained import open_network

NUM = 50_000  # images, where neither --num nor --seeds says otherwise

EXAMPLES = """\b
Examples:
  # FID of generated images
  python fid.py calc --images=samples --ref=https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz
\b
  # FID of a network, no files in between, on 8 GPUs
  torchrun --standalone --nproc_per_node=8 fid.py calc --network=NET.pkl --steps=18 --ref=cifar10-32x32.npz
\b
  # Pixel distance of a small model to its data: no weights needed
  python fid.py calc --network=NET.pkl --num=10000 --ref=datasets/digits.zip --features=pixels
\b
  # Reference statistics of a data set
  python fid.py ref --data=datasets/cifar10-32x32.zip --dest=refs/cifar10-32x32.npz"""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}


IMAGES = OptionGroup("Images and reference", "What is measured; the sampler's options below go with --network.", rank=0)


@dataclass(frozen=True, kw_only=True)
class CalcFiles:
    group: ClassVar = IMAGES

    images: str | None = opt(None, "Images to measure", metavar="DIR|ZIP|NPZ")
    ref: str = opt(None, "Reference: statistics, or images", metavar="NPZ|URL|DIR|ZIP", required=True)
    json: str | None = opt(None, "Also write the result and what defines it to this file", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class RefFiles:
    group: ClassVar = IMAGES

    data: str | None = opt(None, "Images to describe", metavar="DIR|ZIP|NPZ")
    dest: str = opt(None, "File to write", metavar="NPZ", required=True)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    group: ClassVar = OptionGroup("Network", "Instead of images from files: those of a network's sampler.", rank=1)

    network: str | None = opt(None, "Take the images from this network's sampler", metavar="FILE|URL|NAME")
    seeds: tuple[int, ...] | None = opt(None, "Seeds of its images [default: 0 to num-1]", metavar="LIST")
    class_idx: int | None = opt(
        None, "One class for all images [default: random]", metavar="INT", at_least=0, names=("--class",)
    )
    labels: str | None = opt(
        None, "Draw labels per seed from a data set or file, for networks of label vectors", metavar="DATA|NPY|NPZ|JSON"
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    group: ClassVar = OptionGroup("Measurement", "How images are described and compared.", rank=1)

    num: int | None = opt(None, f"Images to use [default: {NUM}; ref --data: all of them]", metavar="INT", at_least=2)
    features: str = opt("inception", "What is compared", choices=list(FEATURES))
    weights: str | None = opt(
        None, "Weights of the features [default: $FEWSTEP_INCEPTION, the cache folder, the web]", metavar="FILE|URL"
    )
    seed: int = opt(0, "Seed of the random subset where there are more images than --num", metavar="INT")


@dataclass(frozen=True, kw_only=True)
class MeasurementDevice:
    group: ClassVar = OptionGroup("Device", "Where and how fast.", rank=7)

    batch: int = opt(64, "Images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "auto, cpu, cuda or cuda:N", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class CalcOptions(MeasurementDevice, SamplerOptions, Measurement, Sampled, CalcFiles):
    """All options of `calc`."""


@dataclass(frozen=True, kw_only=True)
class RefOptions(MeasurementDevice, SamplerOptions, Measurement, Sampled, RefFiles):
    """All options of `ref`."""


class Pictures(NamedTuple):
    """Images: how many over all processes, their `(C, H, W)`, and this process's share, uint8 `[B, C, H, W]` each."""

    num: int
    image_shape: tuple[int, ...]
    batches: Iterator[Tensor]


@click.group(cls=Group, context_settings=SETTINGS, epilog=EXAMPLES)
def main() -> None:
    """Fréchet distance between images and a reference, in Inception features (FID) or pixels."""


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(CalcOptions)
def calc(options: CalcOptions) -> None:
    """Print the distance between images (or a network's samples) and a reference."""
    with dist.process_group(options.device) as device:
        extractor = dist.rank0_first(lambda: load_features(options.features, options.weights, device))
        source = _source(options, "images", options.images, options.num or NUM, device)
        reference = _reference(options, extractor, _dim(extractor, source))
        moments = _moments(source, extractor, "images")
        if dist.get_rank() == 0:
            distance = moments.distance(reference)
            note = f" (published numbers use {NUM})" if extractor.name == "inception" and moments.num < NUM else ""
            click.echo(f"{extractor.name} features, {moments.num} images{note}, reference {options.ref}", err=True)
            click.echo(f"{distance:g}")
            if options.json:
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                write_json(options.json, _report(options, distance, moments, reference))
        dist.barrier()


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(RefOptions)
def ref(options: RefOptions) -> None:
    """Write mean and covariance of the features of a data set (or of a network's samples)."""
    with dist.process_group(options.device) as device:
        extractor = dist.rank0_first(lambda: load_features(options.features, options.weights, device))
        source = _source(options, "data", options.data, options.num, device)
        moments = _moments(source, extractor, "images")
        if dist.get_rank() == 0:
            save_moments(options.dest, moments)
            click.echo(f"{options.dest}: {len(moments.mu)} {extractor.name} features of {moments.num} images")
        dist.barrier()


def _source(
    options: CalcOptions | RefOptions, name: str, path: str | None, num: int | None, device: torch.device
) -> Pictures:
    """The images that the options name: those at `path` (option `name`), or a network's."""
    if (path is None) == (options.network is None):
        raise ValueError(f"give either --{name} or --network: {'both are given' if path else 'neither is given'}")
    if options.network is not None:
        return _samples(options, device)
    of_network = [k for k in ("seeds", "class_idx", "labels") if getattr(options, k) is not None]
    of_network += options.given()
    if of_network:
        raise ValueError(
            f"--{of_network[0].replace('_', '-')} says how a network is sampled: it goes with --network only"
        )
    return _images(path, num, options.seed, options.batch)


def _images(path: str, num: int | None, seed: int, batch: int) -> Pictures:
    """`num` of the images at a path, a random subset where there are more; all of them with num=None."""
    opened = NpzImages(path) if Path(path).suffix.lower() == ".npz" else ImageDataset(path)
    found = len(opened)
    if found < (num or 2):
        raise ValueError(f"{path} holds {found} images, {num or 2} are needed: lower --num or add images")
    indices = subset_indices(found, num, seed).tolist()
    share = split_evenly(len(indices), dist.get_world_size())[dist.get_rank()]
    read = opened.images if isinstance(opened, NpzImages) else partial(decoded, opened)
    return Pictures(len(indices), tuple(opened.image_shape), read(indices[share.start : share.stop], batch))


def _samples(options: CalcOptions | RefOptions, device: torch.device) -> Pictures:
    seeds = range(options.num or NUM) if options.seeds is None else options.seeds
    if options.num not in (None, len(seeds)):
        raise ValueError(f"--seeds names {len(seeds)} images and --num={options.num}: leave one of them out")
    if len(seeds) < 2:
        raise ValueError(f"--seeds names {len(seeds)} images, 2 are needed at least: write for example --seeds=0-999")
    net = open_network(options.network, partial(prepare, device=device))
    conditional = options.guidance_type != "uncond"
    refuse_labels(options.labels, options.class_idx, conditional)
    give_labels(net, options.labels)
    plan = build_plan(net, options, class_idx=options.class_idx)
    dist.print0(plan, file=sys.stderr)
    samples = generate(
        net, seeds, plan, batch=options.batch, device=device, class_idx=options.class_idx, prior=plan.prior,
        conditional=conditional,
    )  # fmt: skip
    return Pictures(len(seeds), decoded_shape(net), (to_uint8(s.images) for s in samples))


def _dim(extractor: FeatureExtractor, source: Pictures) -> int:
    return extractor.dim or math.prod(source.image_shape)


def _reference(options: CalcOptions, extractor: FeatureExtractor, dim: int) -> Moments:
    """Statistics from a file, or of reference images; refused where they do not fit features of `dim` numbers."""
    path = local_file(options.ref)
    if _holds_statistics(path):
        return load_reference(path, extractor, dim, options.ref)
    source = _images(path, None, options.seed, options.batch)
    check_fits(options.ref, extractor.name, _dim(extractor, source), extractor.name, dim)
    return _moments(source, extractor, "reference")


def _holds_statistics(path: str | Path) -> bool:
    """Whether it is an npz of mean and covariance, not images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (zipfile.BadZipFile, IsADirectoryError):
        return False


def _moments(source: Pictures, extractor: FeatureExtractor, what: str) -> Moments:
    """Statistics of the images of all processes, with a progress bar of this one's share."""
    share = source.num / dist.get_world_size()
    with tqdm(desc=what, total=round(share), unit="img", disable=dist.get_rank() > 0 or None) as bar:

        def counted() -> Iterator[Tensor]:
            for images in source.batches:
                yield images
                bar.update(len(images))

        return feature_stats(counted(), extractor).moments(extractor.name)


def _report(options: CalcOptions, distance: float, moments: Moments, reference: Moments) -> dict[str, Any]:
    """The result and what defines it, as JSON."""
    report = {"distance": distance, "features": moments.features, "num": moments.num, "ref": options.ref}
    report |= {"ref_num": reference.num, "mean_term": float((moments.mu - reference.mu).square().sum())}
    if options.network is None:
        return report | {"images": options.images, "seed": options.seed}
    seeds = options.seeds or range(moments.num)
    first, last = seeds[0], seeds[-1]
    contiguous = list(seeds) == list(range(first, last + 1))
    return report | {
        "network": options.network,
        "seeds": f"{first}-{last}" if contiguous else ",".join(map(str, seeds)),
        "class": options.class_idx,
        "labels": options.labels,
        "sampler": options.given(),
    }


if __name__ == "__main__":
    main()
