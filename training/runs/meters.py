"""Figures during training: samples of the average against the data, every few ticks, on all processes.

METERS says for each kind of data set what can be measured. Of images it is what `fid.py` measures: same seeds, sampler,
features and reference give the same numbers. The reference of `--fid-ref=auto` is the training data, without mirrored
copies; what is known of its features is kept in `OUTDIR/fid-refs`, under a name that changes with the data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from networks.features.table import FEATURES, load_features
from samplers.field import Facts
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import decoded_shape, generate
from torch_utils import distributed as dist
from torch_utils.arrays import holds
from torch_utils.feature_pass import Needs, describe, dim_of
from torch_utils.frechet import Moments
from torch_utils.options import OptionGroup, opt, refuse
from torch_utils.reference_file import check_fits, load_moments, load_reference, save_moments
from torch_utils.wasserstein import wasserstein
from training.data.boxes import rules
from training.data.image_dataset import ImageDataset, decoded, subset_indices
from training.data.series import SeriesDataset
from training.data.shapes import ShapeDataset
from training.data.toys import ToyDataset
from training.forecast import plan_of, roll_out, score
from training.measures import (
    METRICS,
    MetricOptions,
    Wanted,
    check_counts,
    figures_of,
    measure,
    names_of,
    sampled,
    shares,
    stored,
    wanted_of,
)  # fmt: skip
from training.shape_metrics import has_rules

BATCH = 64  # images at once on one process, sampled and described
# samples, where --fid-num does not say it; optimal transport takes the square of that
IMAGES, POINTS, SERIES, SHAPES = 10_000, 2_000, 1_000, 500
MEMBERS = 10  # of an ensemble
HIGHER = {"precision", "recall", "is", "valid"}  # figures of which more is better; of all others less is


@dataclass(frozen=True, kw_only=True)
class FidOptions(MetricOptions):
    """Options of the figures during training."""

    group: ClassVar = OptionGroup("FID during training", "With --fid-every: how far samples are from the data.", rank=7)

    fid_every: int | None = opt(
        None, "Measure FID, or --metrics, every TICKS, into stats.jsonl and the status line; default: never",
        metavar="TICKS", at_least=1, may_change=True,
    )  # fmt: skip
    metrics: str | None = opt(
        None, "Comma list, the first of which counts; images: fid, fd, kid, kid_full, pr, is; points: w2; "
        "series: crps; shapes: valid [default: fid, w2, crps, valid]", metavar="LIST", may_change=True,
    )  # fmt: skip
    fid_ref: str = opt(
        "auto", "Reference statistics for FID; auto = of the training data", metavar="auto|NPZ|URL", may_change=True
    )
    fid_features: str = opt(
        "inception", "Features for FID; pixels needs no weights", choices=list(FEATURES), may_change=True
    )
    fid_num: int | None = opt(
        None, f"Samples per FID; published numbers use 50000 [default: {IMAGES}, points {POINTS}, "
        f"series {SERIES}, shapes {SHAPES}]",
        metavar="INT", at_least=2, may_change=True,
    )  # fmt: skip
    fid_steps: int | None = opt(
        None, "Denoisers: steps of EDM's sampler for FID [default: 18]", metavar="INT", at_least=2, may_change=True
    )
    patience: int | None = opt(
        None, "End the run after this many measurements without a better first figure; default: never", metavar="INT",
        at_least=1, may_change=True,
    )  # fmt: skip
    stop_when: str | None = opt(
        None, "End the run once a figure is good enough, as in 'fid<2.5' or 'recall>0.6'", metavar="FIGURE<VALUE",
        may_change=True,
    )  # fmt: skip


OWN = (
    "metrics", "kid_subsets", "kid_subset_size", "pr_k", "is_splits", "fid_ref", "fid_features", "fid_num", "fid_steps",
    "patience", "stop_when",
)  # fmt: skip
OF_IMAGES = ("kid_subsets", "kid_subset_size", "pr_k", "is_splits", "fid_ref", "fid_features")


def check_fid(options: FidOptions) -> None:
    """Refuse options of figures that nobody asked for; ValueError."""
    if not options.fid_every:
        refuse(options, OWN, "is of figures during training, which --fid-every=TICKS asks for and nothing does here")


Measured = Callable[[nn.Module], Mapping[str, float]]  # a network -> figures by name, on every process


class _Request(NamedTuple):
    """What a builder of METERS is given; `names` are those of --metrics, () for its default."""

    options: FidOptions
    names: tuple[str, ...]
    refs: Path | None
    dataset: Any
    device: torch.device
    sampler: SamplerOptions | None


class MeterKind(NamedTuple):
    """What can be measured of a kind of data: names of --metrics, the builder, and figures in their order."""

    metrics: tuple[str, ...]
    build: Callable[[_Request], tuple[tuple[str, ...], Measured]]
    refused: tuple[str, ...] = ()  # options that this kind does not read


class Meter:
    """Call it with a network on every process; each samples its share of the seeds 0, 1, ..., `--fid-num` - 1.

    Attributes:
        figures: the names of what it gives; the first is the one that counts.
    """

    def __init__(
        self,
        options: FidOptions,
        refs: Path | None,
        dataset: Any,
        device: torch.device,
        sampler: SamplerOptions | None = None,
    ) -> None:
        """Find or make the reference; all processes take part.

        Args:
            refs: folder where statistics of data sets are kept; None: none are made, for a trial that measures nothing.
            sampler: of the samples; None: EDM's with `--fid-steps`, or the network's own where it chooses its levels.

        Raises:
            ValueError, OSError: data without figures, no weights of the features, a reference that does not fit.
        """
        kind = next((k for cls, k in METERS.items() if isinstance(dataset, cls)), None)
        if kind is None:
            raise ValueError(f"--fid-every has no figures for {options.data}: leave it out")
        refuse(options, kind.refused, f"is for figures of images, and {options.data} holds none")
        names = names_of(options, kind.metrics)
        self.every = options.fid_every
        self.figures, self._measure = kind.build(_Request(options, names, refs, dataset, device, sampler))
        self.patience, self._goal = options.patience, _goal(options.stop_when, self.figures)

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Figures by name, the same numbers on every process."""
        return dict(self._measure(net))

    def verdict(self, figures: Mapping[str, float], best: Best) -> str | None:
        """Why the run is to end here; None: it is not."""
        if self._goal is not None:
            name, sign, value = self._goal
            if figures[name] < value if sign == "<" else figures[name] > value:
                return f"{name} {figures[name]:.4g} {sign} {value:g}"
        if self.patience is not None and best.since >= self.patience:
            return f"no better {self.figures[0]} in {best.since} measurements"
        return None


class Best(NamedTuple):
    """The best value of the first figure, the kimg it was measured at, and how many measurements came since."""

    value: float
    kimg: float
    since: int = 0

    def after(self, name: str, value: float, kimg: float) -> Best:
        better = value > self.value if name in HIGHER else value < self.value
        return Best(value, kimg) if better else self._replace(since=self.since + 1)


def _goal(text: str | None, figures: tuple[str, ...]) -> tuple[str, str, float] | None:
    """What --stop-when says; ValueError where it says nothing, or names a figure that is not measured."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\w+)\s*([<>])\s*(-?\d+(?:\.\d*)?(?:e-?\d+)?)\s*", text)
    if found is None:
        raise ValueError(f"--stop-when={text} is not understood: write for example {figures[0]}<2.5")
    if found[1] not in figures:
        raise ValueError(
            f"--stop-when={text}: '{found[1]}' is not measured, only {', '.join(figures)}: --metrics asks for more"
        )
    return found[1], found[2], float(found[3])


def _sampler(request: _Request, net: nn.Module) -> SamplerOptions:
    steps = request.options.fid_steps
    if request.sampler is None and not Facts.of(net).chooses_levels:
        return SamplerOptions(steps=18 if steps is None else steps)
    if steps is not None:
        raise ValueError(f"--fid-steps={steps}: this method decides itself how it is sampled, leave the option out")
    return request.sampler or SamplerOptions()


def _images(request: _Request) -> tuple[tuple[str, ...], Measured]:
    options, dataset, device = request.options, request.dataset, request.device
    extractor = dist.rank0_first(lambda: load_features(options.fid_features, device=device))
    (wanted,) = wanted_of([extractor], options)
    num = options.fid_num or IMAGES
    check_counts(wanted, options, num, "--fid-num")
    if options.fid_ref != "auto":
        dim, name = dim_of(extractor, dataset.shown_shape), f"--fid-ref={options.fid_ref}"
        reference = load_reference(options.fid_ref, extractor, dim, name, wanted.rows)
        if wanted.rows and dist.from_rank0(lambda: reference.rows is None):
            raise ValueError(
                f"{name} holds mean and covariance alone, and {', '.join(wanted.metrics)} need the features "
                "themselves: leave it out, or give a file of `fid.py ref --keep-features`"
            )
    else:
        check_counts(wanted, options, dataset.num_images, options.data, reference=True)
        reference = None if request.refs is None else _of_data(request.refs, dataset, wanted)
    # a run without --metrics calls its only figure fid, whatever the features
    names = figures_of(wanted) if request.names else ("fid",)

    def figures(net: nn.Module) -> dict[str, float]:
        plan = build_plan(net, _sampler(request, net))
        pictures = sampled(net, range(num), plan, batch=BATCH, about={}, device=device)
        (found,) = describe(pictures, [(extractor, wanted.needs(num, options, half_widths=False))], None)
        values = dist.from_rank0(lambda: [f.value for f in measure(wanted, found, reference, options).values()])
        return dict(zip(names, values, strict=True))

    return names, figures


def _of_data(folder: Path, dataset: ImageDataset, wanted: Wanted) -> Moments:
    """What is known of the data set, read from `folder` or computed by all processes and kept there."""
    extractor = wanted.extractor
    parts = [dataset.name, extractor.name, *([extractor.weights[:8]] if extractor.weights else [])]
    path = folder / f"{'-'.join(parts)}-{dataset.fingerprint()[:16]}.npz"
    if not dist.from_rank0(lambda: path.is_file() and (holds(path, "rows") or not wanted.rows)):
        read = partial(decoded, dataset)
        pictures = stored(read, range(dataset.num_images), dataset.image_shape, BATCH, {"images": dataset.name})
        (found,) = describe(pictures, [(extractor, Needs(int(wanted.rows)))], "FID reference")
        dist.from_rank0(lambda: save_moments(path, found.moments))
    dist.barrier()
    reference = load_moments(path, rows=wanted.rows)
    check_fits(str(path), reference, extractor.name, dim_of(extractor, dataset.image_shape), extractor.weights)
    return reference


def _points(request: _Request) -> tuple[tuple[str, ...], Measured]:
    """W2 between as many samples as points of the data; exact, and never 0 of finitely many."""
    num, dataset = request.options.fid_num or POINTS, request.dataset
    data = dataset.images()[subset_indices(dataset.num_images, num)]
    wasserstein(data[:1], data[:1])  # says at once where POT is missing

    def figures(net: nn.Module) -> dict[str, float]:
        rows = _gathered(request, net, num)
        return {"w2": dist.from_rank0(lambda: wasserstein(rows, data))}

    return ("w2",), figures


def _gathered(request: _Request, net: nn.Module, num: int) -> Tensor | None:
    """Samples `[num, ...]` float32 of all processes in the order of their seeds, on rank 0."""
    plan, batch = build_plan(net, _sampler(request, net)), BATCH * 16
    batches = generate(net, range(num), plan, batch=batch, device=request.device, prior=plan.prior)
    own = [found.images.float().cpu() for found in batches]
    return dist.gather_rows(torch.cat(own) if own else torch.empty(0, *decoded_shape(net)), shares(num, batch))


def _shapes(request: _Request) -> tuple[tuple[str, ...], Measured]:
    """The share of shapes that keep all rules of their data set."""
    num, dataset = request.options.fid_num or SHAPES, request.dataset
    if not has_rules(dataset.shapes):
        raise ValueError(f"--fid-every measures shapes by the rules of shapes:boxes, {request.options.data} has none")

    def figures(net: nn.Module) -> dict[str, float]:
        parts = _gathered(request, net, num)
        return {"valid": dist.from_rank0(lambda: rules(parts)["valid"].double().mean().item())}

    return ("valid",), figures


def _series(request: _Request) -> tuple[tuple[str, ...], Measured]:
    """CRPS of ensembles of MEMBERS over windows of the validation part, in the network's units; rank 0 makes them."""
    options, device = request.options, request.device
    part = SeriesDataset(options.data, "val")
    starts, count = part.starts_before(part.horizon), (options.fid_num or SERIES) // MEMBERS
    if not len(starts) or not count:
        raise ValueError(
            f"--fid-every takes {MEMBERS} samples for each window of the validation part: --fid-num is "
            f"{options.fid_num or SERIES}, and {options.data} has {len(starts)} windows there"
        )
    starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), count)).astype(int)]
    observed = part.windows(starts, part.horizon)[1].numpy()

    def figures(net: nn.Module) -> dict[str, float]:
        bridge = Facts.of(net).begins == "frame" and options.fid_steps is None  # which has a sampler of its own
        plan = plan_of(net, SamplerOptions() if bridge else _sampler(request, net))

        def crps() -> float:
            made = roll_out(net, plan, part, starts, leads=part.horizon, members=MEMBERS, device=device)
            return score(made.members, observed)["crps"]

        return {"crps": dist.from_rank0(crps)}

    return ("crps",), figures


METERS: dict[type, MeterKind] = {
    ImageDataset: MeterKind(tuple(METRICS), _images),
    ToyDataset: MeterKind(("w2",), _points, refused=OF_IMAGES),
    SeriesDataset: MeterKind(("crps",), _series, refused=OF_IMAGES),
    ShapeDataset: MeterKind(("valid",), _shapes, refused=OF_IMAGES),
}
