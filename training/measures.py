"""METRICS: what can be said of images and a reference, by name; all of it from one pass over the images.

`fid` is the Fréchet distance in Inception features and `fd` that in any others; KID, precision and recall work in every
kind of features, the Inception score (`is`) where the network knows classes. The arithmetic is in
torch_utils/metrics.py and torch_utils/frechet.py, the pass in torch_utils/feature_pass.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from networks.features.table import FeatureExtractor
from samplers.run import decoded_shape, generate, seed_batches
from torch_utils import distributed as dist
from torch_utils.feature_pass import Described, Needs, Pictures
from torch_utils.frechet import Moments
from torch_utils.images import to_uint8
from torch_utils.metrics import Figure, frechet_half_width, kid, kid_full, precision_recall
from torch_utils.misc import split_evenly
from torch_utils.options import refuse
from training.image_figures_options import MetricOptions

__all__ = [
    "METRICS", "MetricOptions", "Wanted", "check_counts", "figures_of", "measure", "names_of", "sampled", "shares",
    "stored", "wanted_of", "whole_batches",
]  # fmt: skip

SAMPLE = 1000  # images whose features tell the half-width of a Fréchet distance


class Metric(NamedTuple):
    """One name of --metrics.

    Attributes:
        figures: from generated images, reference and options to figures by name.
        least: images on either side that it needs.
        rows: it needs the features themselves. own: options that nothing else reads.
        reference: it compares with one.
    """

    figures: Callable[[Described, Moments, MetricOptions], dict[str, Figure]]
    least: Callable[[MetricOptions], int] = lambda options: 2
    rows: bool = False
    own: tuple[str, ...] = ()
    reference: bool = True


def _frechet(generated: Described, reference: Moments, options: MetricOptions) -> dict[str, Figure]:
    own = generated.moments
    name = "fid" if own.features == "inception" else "fd"
    if own.rows is None:
        return {name: Figure(own.distance(reference))}
    return {name: frechet_half_width(own, reference, own.rows[:: -(-len(own.rows) // SAMPLE)])}


def _kid(generated: Described, reference: Moments, options: MetricOptions) -> dict[str, Figure]:
    return {"kid": kid(generated.moments.rows, reference.rows, options.kid_subsets, options.kid_subset_size)}


def _kid_full(generated: Described, reference: Moments, options: MetricOptions) -> dict[str, Figure]:
    return {"kid_full": kid_full(generated.moments.rows, reference.rows)}


def _precision_recall(generated: Described, reference: Moments, options: MetricOptions) -> dict[str, Figure]:
    found = precision_recall(generated.moments.rows, reference.rows, options.pr_k)
    return dict(zip(("precision", "recall"), found, strict=True))


def _inception_score(generated: Described, reference: Moments, options: MetricOptions) -> dict[str, Figure]:
    return {"is": generated.score}


METRICS: dict[str, Metric] = {
    "fid": Metric(_frechet),
    "fd": Metric(_frechet),
    "kid": Metric(_kid, lambda options: options.kid_subset_size, rows=True, own=("kid_subsets", "kid_subset_size")),
    "kid_full": Metric(_kid_full, rows=True),
    "pr": Metric(_precision_recall, lambda options: options.pr_k + 1, rows=True, own=("pr_k",)),
    "is": Metric(_inception_score, lambda options: options.is_splits, own=("is_splits",), reference=False),
}


class Wanted(NamedTuple):
    """An extractor and the metrics that are computed of its features."""

    extractor: FeatureExtractor
    metrics: tuple[str, ...]

    @property
    def rows(self) -> bool:
        """Whether a metric needs the features of the reference themselves."""
        return any(METRICS[name].rows for name in self.metrics)

    @property
    def compares(self) -> bool:
        return any(METRICS[name].reference for name in self.metrics)

    def needs(self, num: int, options: MetricOptions, half_widths: bool = True) -> Needs:
        """What a pass over `num` generated images keeps."""
        sample = -(-num // SAMPLE) if half_widths and {"fid", "fd"} & set(self.metrics) else 0
        return Needs(1 if self.rows else sample, options.is_splits if "is" in self.metrics else 0)


def names_of(options: Any, known: Iterable[str]) -> tuple[str, ...]:
    """The names in `options.metrics`, () where it is not given; ValueError for one that is not known."""
    given = options.metrics
    names = () if given is None else tuple(dict.fromkeys(n.strip().lower() for n in given.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--metrics: there is no metric '{unknown[0]}' here: choose from {', '.join(known)}")
    for name, metric in METRICS.items():
        if name not in names:
            refuse(options, metric.own, f"is read by the metric {name}, which --metrics does not name")
    return names


def wanted_of(extractors: Sequence[FeatureExtractor], options: MetricOptions) -> list[Wanted]:
    """Which metrics each extractor is needed for.

    Raises:
        ValueError: a metric that is not known, or that none of these features can give; extractors without a metric.
    """
    names = names_of(options, METRICS) or ("fd",)
    features = [e.name for e in extractors]
    if "fid" in names and "inception" not in features:
        raise ValueError(f"fid is the distance in Inception features: in {', '.join(features)} ask for fd")
    if "is" in names and not any(e.classes for e in extractors):
        raise ValueError(
            f"is needs the classes of a network, and {', '.join(features)} has none: add --features=inception"
        )
    found = []
    for extractor in extractors:
        inception, classes = extractor.name == "inception", bool(extractor.classes)
        # Both names of the Fréchet distance mean one figure of the same features.
        own = ["fd"] if "fd" in names or ("fid" in names and inception) else []
        own += [n for n in names if n not in ("fid", "fd") and (n != "is" or classes)]
        if not own:
            raise ValueError(f"none of {', '.join(names)} is computed of --features={extractor.name}: add fd, or kid")
        found.append(Wanted(extractor, tuple(own)))
    return found


def check_counts(wanted: Wanted, options: MetricOptions, num: int | None, what: str, reference: bool = False) -> None:
    """Raise ValueError where `num` images are too few for a metric; None: the file does not say."""
    for name in wanted.metrics:
        metric = METRICS[name]
        if num is not None and num < metric.least(options) and not (reference and not metric.reference):
            options_ = f": give more images{f', or lower --{metric.own[-1]}' if metric.own else ''}".replace("_", "-")
            raise ValueError(f"{name} needs {metric.least(options)} images at least, and {what} gives {num}{options_}")


def figures_of(wanted: Wanted) -> tuple[str, ...]:
    """The names of what `measure` gives, in their order."""
    frechet = "fid" if wanted.extractor.name == "inception" else "fd"
    given = {"fd": (frechet,), "pr": ("precision", "recall")}
    return tuple(figure for name in wanted.metrics for figure in given.get(name, (name,)))


def measure(
    wanted: Wanted, generated: Described, reference: Moments | None, options: MetricOptions
) -> dict[str, Figure]:
    """The figures of one kind of features, on rank 0 alone."""
    device = wanted.extractor.device
    own, other = (_on(side, device) for side in (generated.moments, reference))
    found: dict[str, Figure] = {}
    for name in wanted.metrics:
        found |= METRICS[name].figures(generated._replace(moments=own), other, options)
    return found


def _on(side: Moments | None, device: torch.device) -> Moments | None:
    """The same with its features moved to `device`."""
    if side is None or side.rows is None:
        return side
    return Moments(side.mu, side.sigma, side.num, side.features, side.rows.to(device), side.protocol)


def stored(
    read: Callable[[Sequence[int], int], Iterator[Tensor]], indices: Sequence[int], image_shape: Sequence[int],
    batch: int, about: Mapping[str, Any],
) -> Pictures:  # fmt: skip
    """Images of a file or data set, dealt in whole batches: they are the same for any number of processes.

    Args:
        read: indices and batch size -> batches.
        indices: of the images, ascending.
    """
    share = whole_batches(len(indices), batch)
    return Pictures(len(indices), tuple(image_shape), share, read(indices[share.start : share.stop], batch), about)


def whole_batches(num: int, batch: int) -> range:
    """This process's share of `num` images, in batches that do not depend on the number of processes."""
    part = split_evenly(-(-num // batch), dist.get_world_size())[dist.get_rank()]
    return range(part.start * batch, min(part.stop * batch, num))


def sampled(net: Any, seeds: Sequence[int], plan: Any, *, batch: int, about: Mapping[str, Any], **how: Any) -> Pictures:
    """Images of a network; `how` goes to `samplers.run.generate`."""
    samples = generate(net, seeds, plan, batch=batch, prior=plan.prior, **how)
    images = (to_uint8(s.images) for s in samples)
    return Pictures(len(seeds), decoded_shape(net), shares(len(seeds), batch), images, about)


def shares(num: int, batch: int) -> list[int]:
    """Which of `num` seeds `samplers.run.generate` samples on this process, in its order."""
    own = seed_batches(range(num), batch, dist.get_rank(), dist.get_world_size())
    return [position for part in own for position in part]
