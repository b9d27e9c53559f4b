"""Guidance: fields whose predictions are pulled towards their condition.

Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) of a network that was trained with and without labels:

    prediction = uncond + rate * (cond - uncond)

rate 0 is the unconditional model, 1 the conditional one, above 1 trades variety for fidelity. It is linear, and so are
the conversions of `Field`: data, noise and velocity are guided alike, on every path. Both predictions come from one
call with the batch doubled, [uncond, cond]. Classifier guidance belongs to models that come with a classifier
(`Facts.with_classifier`).

    guided = cfg(net, rate=3)                       # a Field: solvers, schedule search and metrics take it as any other
    x = sample(guided, noise, sigmas, class_labels=labels)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from samplers.field import Field, as_field

__all__ = ["GUIDANCE", "cfg", "classifier_guidance", "guide", "unconditional"]


class _Guided:
    """`net` with classifier-free guidance, called as `net` is."""

    def __init__(self, net: Callable[..., Tensor], rate: float, uncond: Tensor | None) -> None:
        self.net, self.rate, self.uncond = net, rate, uncond

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        if self.rate == 0:
            empty = self.uncond if class_labels is None else self._empty(_rows(class_labels, x))
            return self.net(x, level, empty, **cond)
        if class_labels is None:
            raise ValueError("classifier-free guidance moves towards a condition and none was given: pass class_labels")
        labels = _rows(class_labels, x)
        size = len(x)
        both = self.net(
            _twice(x, size),
            _twice(level, size),
            torch.cat([self._empty(labels), labels]),
            **{name: _twice(value, size) for name, value in cond.items()},
        )
        uncond, guided = both.chunk(2)
        return torch.lerp(uncond, guided, self.rate)

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
) -> Field:
    """`field` with classifier-free guidance.

    Rate 1 is one conditional evaluation, rate 0 one unconditional, every other rate both in one doubled batch
    (`Field.calls_per_evaluation` is 2).

    Args:
        field: a conditional model: a field or network.
        rate: strength, any finite number.
        class_labels: `[B, ...]`, bound to the result; default: those of the field, or of a later `bind`.
        uncond: the empty condition, in the shape of one condition or of all; default: zeros, what label dropout trains.

    Raises:
        ValueError: a rate that is not finite, an unconditional network, a network trained without label dropout.
    """
    field = as_field(field)
    if not math.isfinite(rate):
        raise ValueError(f"guidance rate {rate} is not possible: give a finite number")
    if field.facts.label_dim == 0:
        raise ValueError("classifier-free guidance needs a conditional network, and this one has no classes")
    if rate != 1 and uncond is None and field.facts.label_dropout == 0:
        raise ValueError(
            "this network was trained without label dropout, so that it has no unconditional prediction to guide with: "
            "use guidance rate 1 or train with --label-dropout=0.1"
        )
    field = field if class_labels is None else field.bind(class_labels)
    if rate == 1:
        return field
    if field.facts.native is not None:  # of a view: the model beneath is guided, so that its exact start is as well
        return cfg(field.native(), rate, uncond=uncond).ve()
    facts = replace(field.facts, calls=field.facts.calls * (1 if rate == 0 else 2))
    return replace(field, net=_Guided(field.net, float(rate), uncond), facts=facts)


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
    return replace(field, net=field.facts.with_classifier(float(rate)))


def unconditional(field: Field | Callable[..., Tensor], rate: float = 1.0) -> Field:
    """`field` with its condition, if it has one, left empty."""
    if rate != 1:
        raise ValueError(f"guidance type uncond has nothing to guide towards: leave out guidance rate {rate:g}")
    field = as_field(field)
    return field if field.facts.label_dim == 0 else cfg(field, 0)


# name on the command line -> (field, rate) -> field
GUIDANCE: dict[str, Callable[[Any, float], Field]] = {
    "cfg": cfg,
    "cg": classifier_guidance,
    "uncond": unconditional,
}


def guide(
    net: Field | Callable[..., Tensor], guidance_type: str | None = None, guidance_rate: float | None = None
) -> Field | Callable[..., Tensor]:
    """The model with the guidance that the options `guidance_type` and `guidance_rate` ask for; None: as it is.

    Raises:
        ValueError: a rate without type, a type without the rate it needs, an unknown type, a model it does not suit.
    """
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
    return GUIDANCE[guidance_type](net, 1.0 if guidance_rate is None else guidance_rate)
