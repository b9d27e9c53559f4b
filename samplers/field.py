"""Field: a network bound to the path it was trained on and to the quantity it predicts.

With x = alpha * data + sigma * noise, any two of {x, data, noise, velocity} give the others; that algebra lives here
and nowhere else. Solvers, schedules and schedule search see only fields.

    field = Field(net)                       # path and prediction type are read from the network (default: VE denoiser)
    field.data(x, level)                     # clean estimate
    field.noise(x, level)                    # unit-noise estimate
    field.velocity(x, level)                 # d x / d t along the path
    field.drift(x, level)                    # d x / d s, s the integration variable: velocity, in native time
    field.ve()                               # the same model in VE coordinates x = data + s * noise

Nothing is clamped: a conversion that is singular at a level (noise at sigma = 0) is a ValueError only where it can be
seen without reading the tensor back from the device; solvers never evaluate there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samplers.path import PATHS, VE, Kind, Path
from torch_utils.misc import expand_to

__all__ = ["Field", "as_field"]


def _path_of(net: Callable) -> Path:
    path = getattr(net, "path", "ve")
    return path if isinstance(path, Path) else PATHS[path]()


@dataclass(frozen=True)
class Field:
    """A model as the solvers see it.

    Attributes:
        net: `net(x, level, class_labels) -> [B, ...]`, the quantity named by `predicts`. A plain callable
            `D(x, sigma, labels)` counts as a VE denoiser.
        path: interpolation path; default: `net.path`, else VE.
        predicts: "data", "noise" or "velocity"; default: `net.predicts`, else "data".
        class_labels: `[B, label_dim]` or None, passed as the third argument of every call.
        cond: further keyword arguments of every call.
    """

    net: Callable[..., Tensor]
    path: Path = None  # type: ignore[assignment]  # resolved from the network in __post_init__
    predicts: Kind = None  # type: ignore[assignment]
    class_labels: Tensor | None = None
    cond: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = _path_of(self.net) if self.path is None else self.path
        object.__setattr__(self, "path", PATHS[path]() if isinstance(path, str) else path)
        object.__setattr__(self, "predicts", self.predicts or getattr(self.net, "predicts", "data"))
        if self.predicts not in ("data", "noise", "velocity"):
            raise ValueError(f"a network predicts data, noise or velocity, not '{self.predicts}'")

    @property
    def calls_per_evaluation(self) -> int:
        """Network evaluations per sample behind each prediction: 2 for a model under classifier-free guidance."""
        return getattr(self.net, "calls_per_evaluation", 1)

    def bind(self, class_labels: Tensor | None = None, **cond: Any) -> Field:
        """The same model closed over its conditions."""
        return replace(self, class_labels=class_labels, cond={**self.cond, **cond})

    def ve(self) -> Field:
        """This model in VE coordinates: a denoiser D(x; s) of x = data + s * noise."""
        if isinstance(self.path, VE):
            return self
        return Field(_VEDenoiser(self), VE(), "data", self.class_labels, self.cond)

    def prediction(self, x: Tensor, level: Tensor) -> Tensor:
        """What the network returns, in the dtype that it returns: it may be a tensor that others hold."""
        return self.net(x, level, self.class_labels, **self.cond)

    def _predict(self, x: Tensor, level: Tensor) -> Tensor:
        return self.prediction(x, level).to(x.dtype)

    def data(self, x: Tensor, level: Tensor) -> Tensor:
        p = self._predict(x, level)
        if self.predicts == "data":
            return p
        if self.predicts == "velocity":
            return self.data_of_velocity(p, x, level)
        t = expand_to(level, x)
        return (x - self.path.sigma(t) * p) / self.path.alpha(t)

    def noise(self, x: Tensor, level: Tensor) -> Tensor:
        t = expand_to(level, x)
        if self.predicts == "noise":
            return self._predict(x, level)
        if self.predicts == "data":
            return (x - self.path.alpha(t) * self._predict(x, level)) / self.path.sigma(t)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        d_alpha, d_sigma = self.path.d_alpha(t), self.path.d_sigma(t)
        return (alpha * self._predict(x, level) - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma)

    def velocity(self, x: Tensor, level: Tensor) -> Tensor:
        if self.predicts == "velocity":  # short cut: going through data and back loses digits near the ends
            return self._predict(x, level)
        return self.velocity_of(self.data(x, level), x, level)

    drift = velocity

    def data_and_drift(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Clean estimate and drift by one network call."""
        if self.predicts == "velocity":
            v = self._predict(x, level)
            return self.data_of_velocity(v, x, level), v
        data = self.data(x, level)
        return data, self.velocity_of(data, x, level)

    def data_of_velocity(self, velocity: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """The clean estimate that belongs to a velocity already at hand: no network call."""
        t = expand_to(level, x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        d_alpha, d_sigma = self.path.d_alpha(t), self.path.d_sigma(t)
        return (d_sigma * x - sigma * velocity) / (alpha * d_sigma - d_alpha * sigma)

    def velocity_of(self, data: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """The velocity that belongs to a clean estimate already at hand: no network call."""
        t = expand_to(level, x)
        if isinstance(self.path, VE):
            return (x - data) / t
        noise = (x - self.path.alpha(t) * data) / self.path.sigma(t)
        return self.path.d_alpha(t) * data + self.path.d_sigma(t) * noise


def as_field(net: Field | Callable[..., Tensor]) -> Field:
    """A network as a field on its own path; a field as it is."""
    return net if isinstance(net, Field) else Field(net)


class _VEDenoiser:
    """D(x; s) of a model that lives on another path: x_t = alpha * x_ve at the time where sigma / alpha = s."""

    def __init__(self, inner: Field) -> None:
        self.inner = inner
        names = ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max", "round_sigma", "latent")
        for name in (*names, "label_dropout", "calls_per_evaluation", "gaussian_noise", "start", "start_noise"):
            if hasattr(inner.net, name):
                setattr(self, name, getattr(inner.net, name))

    def __call__(self, x: Tensor, s: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        t = self.inner.path.time_of(torch.as_tensor(s, dtype=torch.float64, device=x.device))
        alpha = expand_to(self.inner.path.alpha(t), x).to(x.dtype)
        return replace(self.inner, class_labels=class_labels, cond=cond).data(alpha * x, t.to(x.dtype))
