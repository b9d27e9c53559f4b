"""FID during training: samples of the average against a reference, every few ticks, on all processes.

The distance is that of `fid.py` (Heusel et al. 2017, arXiv 1706.08500): same seeds, sampler, features and reference
give the same number. The reference of `--fid-ref=auto` is the training data, without mirrored copies; its statistics
are kept in `OUTDIR/fid-refs`, under a name that changes with the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from networks.features.table import FEATURES, FeatureExtractor, load_features
from samplers.field import Facts
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import generate
from torch_utils import distributed as dist
from torch_utils.frechet import Moments, feature_stats, load_moments, load_reference, save_moments
from torch_utils.images import to_uint8
from torch_utils.misc import split_evenly
from torch_utils.options import OptionGroup, opt, refuse
from training.data.image_dataset import ImageDataset, decoded

__all__ = ["FidMeter", "FidOptions", "check_fid"]

BATCH = 64  # images at once on one process, sampled and described


@dataclass(frozen=True, kw_only=True)
class FidOptions:
    """Options of the FID during training."""

    group: ClassVar = OptionGroup("FID during training", "With --fid-every: how far samples are from the data.", rank=7)

    fid_every: int | None = opt(
        None, "Measure FID every TICKS, into stats.jsonl and the status line; default: never", metavar="TICKS",
        at_least=1, may_change=True,
    )  # fmt: skip
    fid_ref: str = opt(
        "auto", "Reference statistics for FID; auto = of the training data", metavar="auto|NPZ|URL", may_change=True
    )
    fid_features: str = opt(
        "inception", "Features for FID; pixels needs no weights", choices=list(FEATURES), may_change=True
    )
    fid_num: int = opt(
        10_000, "Samples per FID; published numbers use 50000", metavar="INT", at_least=2, may_change=True
    )
    fid_steps: int | None = opt(
        None, "Steps of EDM's sampler for FID, of a denoiser [default: 18]", metavar="INT", at_least=2, may_change=True
    )


def check_fid(options: FidOptions) -> None:
    """Refuse options of a FID that nobody asked for; ValueError."""
    if not options.fid_every:
        names = ("fid_ref", "fid_features", "fid_num", "fid_steps")
        refuse(options, names, "says how FID is measured, which --fid-every=TICKS asks for; give both")


class FidMeter:
    """Call it with a network on every process; each samples its share of the seeds 0, 1, ..., `--fid-num` - 1."""

    def __init__(
        self,
        options: FidOptions,
        refs: Path | None,
        dataset: ImageDataset,
        device: torch.device,
        sampler: SamplerOptions | None = None,
    ) -> None:
        """Find or make the reference; all processes take part.

        Args:
            refs: folder where statistics of data sets are kept; None: none are made, for a trial that measures nothing.
            sampler: of the images; None: EDM's with `--fid-steps`, or the network's own where it chooses its levels.

        Raises:
            ValueError, OSError: no weights of the features, or a reference that does not fit them.
        """
        self.every, self._options, self._device, self._sampler = options.fid_every, options, device, sampler
        self._extractor = dist.rank0_first(lambda: load_features(options.fid_features, device=device))
        ref, dim = options.fid_ref, self._extractor.dim or math.prod(dataset.image_shape)
        if ref == "auto":
            self._reference = None if refs is None else _of_data(refs, dataset, self._extractor)
        else:
            self._reference = load_reference(ref, self._extractor, dim, f"--fid-ref={ref}")

    def __call__(self, net: nn.Module) -> float:
        """Fréchet distance, the same number on every process."""
        plan = build_plan(net, self._sampler_of(net))
        own = {"batch": BATCH, "device": self._device, "prior": plan.prior}
        samples = generate(net, range(self._options.fid_num), plan, **own)
        stats = feature_stats((to_uint8(s.images) for s in samples), self._extractor)
        return dist.from_rank0(lambda: stats.moments().distance(self._reference))

    def _sampler_of(self, net: nn.Module) -> SamplerOptions:
        steps = self._options.fid_steps
        if self._sampler is None and not Facts.of(net).chooses_levels:
            return SamplerOptions(steps=18 if steps is None else steps)
        if steps is not None:
            raise ValueError(f"--fid-steps={steps}: this method decides itself how it is sampled, leave the option out")
        return self._sampler or SamplerOptions()


def _of_data(folder: Path, dataset: ImageDataset, extractor: FeatureExtractor) -> Moments:
    """Statistics of the data set, read from `folder` or computed by all processes and kept there."""
    path = folder / f"{dataset.name}-{extractor.name}-{dataset.fingerprint()[:16]}.npz"
    if not dist.from_rank0(path.is_file):
        share = split_evenly(dataset.num_images, dist.get_world_size())[dist.get_rank()]
        with tqdm(desc="FID reference", total=len(share), unit="img", disable=dist.get_rank() > 0 or None) as bar:

            def counted() -> Iterator[Tensor]:
                for images in decoded(dataset, share, BATCH):
                    yield images
                    bar.update(len(images))

            stats = feature_stats(counted(), extractor)
        dist.from_rank0(lambda: save_moments(path, stats.moments(extractor.name)))
    return dist.from_rank0(lambda: load_moments(path))
