"""Guidance: fields whose predictions are pulled towards their condition.

Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) of a network that was trained with and without labels:

    prediction = uncond + rate * (cond - uncond)

rate 0 is the unconditional model, 1 the conditional one, above 1 trades variety for fidelity. It is linear, and so are
the conversions of `Field`: data, noise and velocity are guided alike, on every path. Both predictions come from one
call with the batch doubled, [uncond, cond], or from two calls of half the memory. Classifier guidance belongs to models
that come with a classifier (`Facts.with_classifier`). Autoguidance (Karras et al. 2024, arXiv 2406.02507) moves away
from a weaker model instead of an unconditional one.

    guided = cfg(net, rate=3)                       # a Field: solvers, schedule search and metrics take it as any other
    x = sample(guided, noise, sigmas, class_labels=labels)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from samplers.choices import BATCHES, CHANNELS
from samplers.field import Field, as_field
from samplers.path import VE, Path
from torch_utils.misc import expand_to


class _Guided:
    """`net` with classifier-free guidance, called as `net` is; outside of an interval of noise levels, `net` itself."""

    def __init__(
        self,
        net: Callable[..., Tensor],
        rate: float,
        uncond: Tensor | None,
        split: bool = False,
        inside: Callable[[Tensor], Tensor] | None = None,
        channels: int | None = None,
    ) -> None:
        self.net, self.rate, self.uncond, self.split, self.inside = net, rate, uncond, split, inside
        self.channels = channels

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        if self.inside is None:
            return self._guide(x, level, class_labels, self.rate, cond)
        inside = self.inside(torch.as_tensor(level))
        if inside.numel() == 1 and inside.device.type == "cpu":  # one level for all, known without waiting
            return self._guide(x, level, class_labels, self.rate if inside.item() else 1.0, cond)
        # samples or elements at levels of their own: the conditional prediction is that of rate 1
        return self._guide(x, level, class_labels, torch.where(expand_to(inside, x), self.rate, 1.0), cond)

    def _guide(
        self, x: Tensor, level: Tensor, class_labels: Tensor | None, rate: float | Tensor, cond: dict[str, Any]
    ) -> Tensor:
        if isinstance(rate, float):
            if rate == 1:
                return self.net(x, level, class_labels, **cond)
            if rate == 0 and self.channels is None:
                empty = self.uncond if class_labels is None else self._empty(_rows(class_labels, x))
                return self.net(x, level, empty, **cond)
        if class_labels is None:
            raise ValueError("classifier-free guidance moves towards a condition and none was given: pass class_labels")
        labels = _rows(class_labels, x)
        size = len(x)
        if self.split:
            uncond = self.net(x, level, self._empty(labels), **cond)
            return self._between(uncond, self.net(x, level, labels, **cond), rate)
        both = self.net(
            _twice(x, size),
            _twice(level, size),
            torch.cat([self._empty(labels), labels]),
            **{name: _twice(value, size) for name, value in cond.items()},
        )
        uncond, guided = both.chunk(2)
        return self._between(uncond, guided, rate)

    def _between(self, uncond: Tensor, guided: Tensor, rate: float | Tensor) -> Tensor:
        """Go from the unconditional to the conditional prediction and beyond, in the channels that are guided."""
        if isinstance(rate, Tensor):
            rate = rate.to(uncond)
        if self.channels is None:
            return torch.lerp(uncond, guided, rate)
        first = torch.lerp(uncond[:, : self.channels], guided[:, : self.channels], rate)
        return torch.cat([first, guided[:, self.channels :]], dim=1)

    def _empty(self, labels: Tensor) -> Tensor:
        """The empty condition, as many rows as `labels`."""
        if self.uncond is not None:
            return self.uncond.to(labels).expand_as(labels)
        if labels.ndim == 1:
            raise ValueError("there is no empty class among class indices: give one-hot rows, or uncond")
        return torch.zeros_like(labels)


def _rows(labels: Tensor, x: Tensor) -> Tensor:
    if labels.ndim == 0 or labels.shape[0] not in (1, len(x)):
        raise ValueError(
            f"class labels of shape {list(labels.shape)} do not fit {len(x)} samples: give one row per sample, or one"
        )
    return labels.expand(len(x), *labels.shape[1:])


def _twice(value: Any, size: int) -> Any:
    """What belongs to the samples of a batch, for two halves; what is shared stays."""
    per_sample = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
    return torch.cat([value, value]) if per_sample else value


def cfg(
    field: Field | Callable[..., Tensor],
    rate: float,
    *,
    class_labels: Tensor | None = None,
    uncond: Tensor | None = None,
    batch: str = "joint",
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
) -> Field:
    """`field` with classifier-free guidance.

    Rate 1 is one conditional evaluation, rate 0 one unconditional, every other rate both in one doubled batch
    (`Field.calls_per_evaluation` is 2).

    Args:
        field: a conditional model: a field or network.
        rate: strength, any finite number.
        class_labels: `[B, ...]`, bound to the result; default: those of the field, or of a later `bind`.
        uncond: the empty condition, in the shape of one condition or of all; default: the network's own, else zeros,
            what label dropout trains.
        batch: "joint", both predictions in one call, or "split", two calls of half the memory.
        interval: noise levels sigma between which to guide; outside, the conditional model alone (Kynkaanniemi et al.
            2024, arXiv 2404.07724).
        channels: how many are guided, the first ones, the others being the conditional ones, as diffusion transformers
            are published (Peebles and Xie 2023, arXiv 2212.09748); default: all.

    Raises:
        ValueError: a rate that is not finite, an unconditional network, a network trained without label dropout.
    """
    field = as_field(field)
    if not math.isfinite(rate):
        raise ValueError(f"guidance rate {rate} is not possible: give a finite number")
    if batch not in BATCHES:
        raise ValueError(f"guidance evaluates a {' or '.join(BATCHES)} batch, not '{batch}'")
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"guidance between {list(interval)} is not possible: give two rising noise levels, LOW,HIGH")
    if field.facts.label_dim == 0 and field.facts.conditioning == "none":
        raise ValueError("classifier-free guidance needs a conditional network, and this one has no classes")
    if rate != 1 and uncond is None and field.facts.label_dropout == 0:
        raise ValueError(
            "this network was trained without label dropout, so that it has no unconditional prediction to guide with: "
            "use guidance rate 1 or train with --label-dropout=0.1"
        )
    shape = field.facts.shape
    if channels is not None and shape is not None and (len(shape) != 3 or shape[0] <= channels):
        raise ValueError(
            f"guidance of the first {channels} channels is for models of more, and samples of this one are "
            f"{'x'.join(map(str, shape))}: leave it out"
        )
    field = field if class_labels is None else field.bind(class_labels)
    if rate == 1:
        return field
    if field.facts.native is not None:  # of a view: the model beneath is guided, so that its exact start is as well
        own = cfg(field.native(), rate, uncond=uncond, batch=batch, interval=interval, channels=channels)
        return own.on(field.path)
    if uncond is None and field.facts.empty_condition is not None:
        uncond = field.facts.empty_condition()
    one = rate == 0 and channels is None and interval is None
    facts = replace(field.facts, calls=field.facts.calls * (1 if one else 2), heads=None)
    inside = None if interval is None else _Inside(field.path, *interval)
    return replace(field, net=_Guided(field.net, float(rate), uncond, batch == "split", inside, channels), facts=facts)


@dataclass(frozen=True)
class _Inside:
    """Whether a time of `path` has a noise level sigma / alpha in [low, high]."""

    path: Path
    low: float
    high: float

    def __call__(self, t: Tensor) -> Tensor:
        t = t.double()
        sigma, alpha = self.path.sigma(t), self.path.alpha(t)
        return (sigma >= self.low * alpha) & (sigma <= self.high * alpha)


def autoguidance(field: Field | Callable[..., Tensor], weak: Field | Callable[..., Tensor], rate: float) -> Field:
    """`field` guided away from a weaker model of the same data: weak + rate * (strong - weak).

    Both see the same condition. Rate 1 is the model itself, and costs no evaluation of the weaker one.

    Raises:
        ValueError: models of other samples or conditions, a rate that is not finite.
    """
    field, weak = as_field(field), as_field(weak)
    if not math.isfinite(rate):
        raise ValueError(f"guidance rate {rate} is not possible: give a finite number")
    ours, theirs = field.facts, weak.facts
    if ours.shape != theirs.shape or (ours.label_dim or 0) != (theirs.label_dim or 0):
        raise ValueError(
            f"a model of samples {list(ours.shape or [])} with {ours.label_dim or 0} classes cannot be guided by one "
            f"of {list(theirs.shape or [])} with {theirs.label_dim or 0}: give a weaker model of the same data"
        )
    if rate == 1:
        return field
    if (field.path, field.predicts) != (weak.path, weak.predicts):
        field, weak = _denoiser(field.ve()), _denoiser(weak.ve())

    def net(x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        return torch.lerp(weak.net(x, level, class_labels, **cond), field.net(x, level, class_labels, **cond), rate)

    facts = replace(field.facts, calls=field.facts.calls + weak.facts.calls, heads=None)
    return replace(field, net=net, facts=facts)


def _denoiser(field: Field) -> Field:
    """A field in VE coordinates that predicts data, whatever the model beneath predicts."""

    def net(x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        return replace(field, class_labels=class_labels, cond=cond).data(x, level)

    return Field(net, VE(), "data", field.class_labels, field.cond, field.facts)


def classifier_guidance(field: Field | Callable[..., Tensor], rate: float) -> Field:
    """`field` guided at strength `rate` by the classifier that its model comes with.

    Raises:
        ValueError: a denoiser without classifier, a rate that is not finite.
    """
    field = as_field(field)
    if not math.isfinite(rate):
        raise ValueError(f"guidance rate {rate} is not possible: give a finite number")
    if field.facts.with_classifier is None:
        raise ValueError(
            "classifier guidance needs a model that comes with a classifier of noisy images, and this one has none: "
            "use guidance type cfg with a network trained with label dropout"
        )
    return replace(field, net=field.facts.with_classifier(float(rate)), facts=replace(field.facts, heads=None))


def unconditional(field: Field | Callable[..., Tensor], rate: float = 1.0) -> Field:
    """`field` with its condition, if it has one, left empty."""
    if rate != 1:
        raise ValueError(f"guidance type uncond has nothing to guide towards: leave out guidance rate {rate:g}")
    field = as_field(field)
    return field if field.facts.label_dim == 0 and field.facts.conditioning == "none" else cfg(field, 0)


# name on the command line -> (field, rate) -> field
GUIDANCE: dict[str, Callable[..., Field]] = {"cfg": cfg, "cg": classifier_guidance, "uncond": unconditional}


def guide(
    net: Field | Callable[..., Tensor],
    guidance_type: str | None = None,
    guidance_rate: float | None = None,
    cfg_batch: str | None = None,
    guidance_interval: tuple[float, ...] | None = None,
    guidance_channels: str | None = None,
) -> Field | Callable[..., Tensor]:
    """The model with the guidance that these options ask for; None: as it is.

    Raises:
        ValueError: a rate without type, a type without the rate it needs, an unknown type, a model it does not suit.
    """
    how = {"cfg-batch": cfg_batch, "guidance-interval": guidance_interval, "guidance-channels": guidance_channels}
    how = {name: value for name, value in how.items() if value is not None}
    if how and guidance_type != "cfg":
        what = f"--{next(iter(how))}"
        raise ValueError(f"{what} belongs to guidance type cfg: leave it out, or give --guidance-type=cfg")
    if guidance_type is None:
        if guidance_rate is not None:
            raise ValueError(
                f"guidance rate {guidance_rate:g} says how strong, not which guidance: "
                f"give a guidance type as well, {', '.join(GUIDANCE)}"
            )
        return net
    if guidance_type not in GUIDANCE:
        raise ValueError(f"there is no guidance type '{guidance_type}': choose from {', '.join(GUIDANCE)}")
    if guidance_rate is None and guidance_type != "uncond":
        raise ValueError(
            f"guidance type {guidance_type} needs a guidance rate: 1 is the conditional model, larger numbers guide it"
        )
    how = {name.split("-")[1]: value for name, value in how.items()}
    if guidance_channels is not None:
        how["channels"] = CHANNELS[guidance_channels]
    return GUIDANCE[guidance_type](net, 1.0 if guidance_rate is None else guidance_rate, **how)
