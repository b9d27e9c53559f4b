"""What `fid.py calc` and `fid.py ref` can be asked for, and which metrics; without torch, so `--help` does not wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from samplers.planning.options import SamplerOptions
from torch_utils.options import OptionGroup, opt

# Keys of networks/features/table.py
FEATURES = ("inception", "efficientnet-lite0", "efficientnet-lite2", "dinov2", "clip", "pixels")

NUM = 50_000  # images, where neither --num nor --seeds says otherwise

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
    keep_features: bool = opt(
        False, "Store the features too (4 bytes a number), which kid and pr compare with", metavar="BOOL", flag=True
    )


@dataclass(frozen=True, kw_only=True)
class Sampled:
    group: ClassVar = OptionGroup("Network", "Instead of images from files: those of a network's sampler.", rank=1)

    network: str | None = opt(None, "Take the images from this network's sampler", metavar="FILE|URL|NAME")
    vae: str | None = opt(
        None, "Autoencoder of a network of latents that brings none", metavar="FILE|URL|NAME",
    )  # fmt: skip
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
    features: str = opt("inception", f"What is compared, a comma list of {', '.join(FEATURES)}", metavar="LIST")
    weights: str | None = opt(
        None, "Weights of the features, or NAME=... of each, with commas [default: where each looks by itself]",
        metavar="FILE|URL|DIR",
    )  # fmt: skip
    seed: int | None = opt(
        None, "Seed of the random subset where there are more images than --num [default: 0]", metavar="INT"
    )


@dataclass(frozen=True, kw_only=True)
class MeasurementDevice:
    group: ClassVar = OptionGroup("Device", "Where and how fast.", rank=7)

    batch: int = opt(64, "Images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "auto, cpu, cuda or cuda:N", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """What is computed of the features."""

    group: ClassVar = OptionGroup("Metrics", "Figures that --metrics asks for, from one pass.", rank=7.2)

    metrics: str | None = opt(
        None, "Comma list of fid, fd, kid, kid_full, pr, is [default: fid, in other features fd]", metavar="LIST",
        may_change=True,
    )  # fmt: skip
    kid_subsets: int = opt(100, "KID: subsets that are averaged", metavar="INT", at_least=1, may_change=True)
    kid_subset_size: int = opt(1000, "KID: images in a subset", metavar="INT", at_least=2, may_change=True)
    pr_k: int = opt(
        3, "Precision and recall: balls reach to this neighbour", metavar="INT", at_least=1, may_change=True
    )
    is_splits: int = opt(10, "Inception score: splits that are averaged", metavar="INT", at_least=1, may_change=True)


@dataclass(frozen=True, kw_only=True)
class CalcOptions(MeasurementDevice, SamplerOptions, MetricOptions, Measurement, Sampled, CalcFiles):
    """All options of `calc`."""


@dataclass(frozen=True, kw_only=True)
class RefOptions(MeasurementDevice, SamplerOptions, Measurement, Sampled, RefFiles):
    """All options of `ref`."""


OPTIONS = {"calc": CalcOptions, "ref": RefOptions}
