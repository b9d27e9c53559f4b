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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samplers.path import PATHS, VE, Kind, Path
from torch_utils.checkpoint import tensor_hash
from torch_utils.misc import expand_to
from torch_utils.parts import PartLayout

# Facts that are attributes of the network by the same name, where it has them
_AS_SAID = (
    "latent", "conditions", "label_dropout", "round_sigma", "start", "start_noise", "begins", "gaussian_noise",
    "decode", "encode", "decoded_shape", "encode_text", "empty_condition", "with_classifier", "classify",
    "takes_gamma", "heads", "score_target", "element_times", "compensated",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything samplers know of a model besides its call: read from a network once, and by nobody else.

    Wrappers of a model (guidance, another coordinate) change the facts that they change by `dataclasses.replace`.

    Attributes:
        model: the network itself, beneath all wrappers: for its weights and their device.
        path, predicts: what `Field` has by default.
        shape: of one sample, any length, for example `(C, H, W)`; None: unknown.
        pixels: samples are images of 1 or 3 channels in pixel space, so that their values have a range.
        latent: samples are what an autoencoder makes of images; `decode` is None where it is not at hand.
        conditioning: "none", "classes", "multi-hot", "vector" or "text".
        conditions: `[n, label_dim]` of data, to be drawn from; None: not known, classes are drawn at equal rates.
        label_dim: length of one condition; 0: unconditional; None: unknown.
        label_dropout: share of the conditions left out in training; None: unknown.
        sigma_min, sigma_max: range of VE noise levels that the model was trained on.
        round_sigma: noise levels -> the nearest that the model knows.
        noise_table: has `sigma(t)` and `sigma_inv(sigma)`, where the model has a table of levels of its own.
        calls: network evaluations per sample behind each prediction: 2 under classifier-free guidance.
        start: "exact" where sampling begins at infinite sigma by default, else "scaled" (`samplers.start`).
        priors: start distributions by name, the recommended one first; () for unit noise alone.
        start_noise: `(unit noise, prior or None) -> noise` that the model starts from; None: unit noise.
        warmup_start: `(unit noise, numbers of the samples) -> noise` that searches start from; None: as samples do.
        begins: "noise", or "frame" of models of a series that go from the frame before, which the caller gives.
        gaussian_noise: noise was Gaussian and independent of the data in training, so that the model has a score.
        decode: samples -> images, for models of latents; None: samples are what is wanted.
        encode: images in [-1, 1] -> samples, of the same models.
        decoded_shape: of one image then; None: `shape`.
        encode_text: texts -> conditions `[B, ...]`, of models with text; None: they take none.
        empty_condition: () -> the condition that guidance moves away from, where it is not zeros.
        with_classifier: rate -> the network guided by a classifier that it comes with; None: it has none.
        classify: `(x, level) -> logits`, samples at a VE noise level, of models that come with a classifier.
        chooses_levels: `model` has `coefficients`, `family` and `schedule`, see `samplers.solvers.elementwise`.
        takes_gamma: calls take element-wise levels as the keyword `gamma`.
        heads: `(x, t, class_labels) -> (clean estimate, second head or None)`, of models of `samplers.fusion`.
        score_target: what their second head was trained on.
        element_times: elements of a sample may be at times of their own.
        compensated: trained so that elements which lag behind are faster, see `samplers.solvers.asynchronous`.
        parts: what the numbers of a sample mean, of models of sets of parts `[L, V]`; None: of others.
        native: the field in the coordinates of training, of a view in other coordinates.
    """

    model: Any = None
    path: Path = field(default_factory=VE)
    predicts: Kind = "data"
    shape: tuple[int, ...] | None = None
    pixels: bool = False
    latent: bool = False
    conditioning: str = "none"
    conditions: Tensor | None = None
    label_dim: int | None = None
    label_dropout: float | None = None
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    round_sigma: Callable[[Any], Tensor] = torch.as_tensor
    noise_table: Any = None
    calls: int = 1
    start: str = "scaled"
    priors: tuple[str, ...] = ()
    start_noise: Callable[[Tensor, str | None], Tensor] | None = None
    warmup_start: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    begins: str = "noise"
    gaussian_noise: bool = True
    decode: Callable[[Tensor], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    decoded_shape: tuple[int, ...] | None = None
    encode_text: Callable[[Sequence[str]], Tensor] | None = None
    empty_condition: Callable[[], Tensor] | None = None
    with_classifier: Callable[[float], Callable[..., Tensor]] | None = None
    classify: Callable[[Tensor, Tensor], Tensor] | None = None
    chooses_levels: bool = False
    takes_gamma: bool = False
    heads: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    score_target: str = "none"
    element_times: bool = False
    compensated: bool = False
    parts: PartLayout | None = None
    native: Field | None = None

    @classmethod
    def of(cls, net: Any) -> Facts:
        """Read a network's attributes; where it has a property `facts`, as a field has, that is taken as it is."""
        if isinstance(own := getattr(net, "facts", None), cls):
            return own

        def said(name: str, default: Any = None) -> Any:
            value = getattr(net, name, None)
            return default if value is None else value

        path, label_dim, channels = said("path", "ve"), said("label_dim"), said("img_channels")
        path = path if isinstance(path, Path) else PATHS[path](**said("path_options", {}))
        shape, size = said("sample_shape"), said("img_resolution")
        if shape is None and None not in (channels, size):
            shape = (channels, size, size)
        return cls(
            model=net,
            path=path,
            predicts=said("predicts", "data"),
            shape=None if shape is None else tuple(shape),
            pixels=channels in (1, 3) and not said("latent", False),
            conditioning=said("conditioning", "classes" if label_dim else "none"),
            label_dim=label_dim,
            sigma_min=float(said("sigma_min", 0)),
            sigma_max=float(said("sigma_max", math.inf)),
            noise_table=net if hasattr(net, "sigma") and hasattr(net, "sigma_inv") else None,
            calls=said("calls_per_evaluation", 1),
            priors=tuple(said("priors", ())),
            chooses_levels=callable(said("coefficients")),
            parts=said("layout"),
            **{name: value for name in _AS_SAID if (value := said(name)) is not None},
        )


@dataclass(frozen=True)
class Field:
    """A model as the solvers see it.

    Attributes:
        net: `net(x, level, class_labels) -> [B, ...]`, the quantity named by `predicts`. A plain callable
            `D(x, sigma, labels)` counts as a VE denoiser.
        path: interpolation path; default: that of the facts.
        predicts: "data", "noise", "velocity" or "score"; default: that of the facts.
        class_labels: `[B, label_dim]` or None, passed as the third argument of every call.
        cond: further keyword arguments of every call.
        facts: what else is known of the model; default: read from `net`.
    """

    net: Callable[..., Tensor]
    path: Path = None  # type: ignore[assignment]  # resolved in __post_init__
    predicts: Kind = None  # type: ignore[assignment]
    class_labels: Tensor | None = None
    cond: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        facts = Facts.of(self.net) if self.facts is None else self.facts
        path = facts.path if self.path is None else self.path
        object.__setattr__(self, "path", PATHS[path]() if isinstance(path, str) else path)
        object.__setattr__(self, "predicts", self.predicts or facts.predicts)
        if self.predicts not in ("data", "noise", "velocity", "score"):
            raise ValueError(f"a network predicts data, noise, velocity or score, not '{self.predicts}'")
        object.__setattr__(self, "facts", replace(facts, path=self.path, predicts=self.predicts))

    @property
    def calls_per_evaluation(self) -> int:
        """Network evaluations per sample behind each prediction: 2 for a model under classifier-free guidance."""
        return self.facts.calls

    def bind(self, class_labels: Tensor | None = None, **cond: Any) -> Field:
        """The same model closed over its conditions."""
        return replace(self, class_labels=class_labels, cond={**self.cond, **cond})

    def ve(self) -> Field:
        """This model in VE coordinates: a denoiser D(x; s) of x = data + s * noise."""
        return self.on(VE())

    def on(self, path: Path) -> Field:
        """This model on another path: one that predicts clean data at the states of that path."""
        own = self.native()
        for same in (self, own):
            if same.path == path:
                return same
        facts = replace(self.facts, native=own)
        return Field(_DataPredictor(own, path), path, "data", self.class_labels, self.cond, facts)

    def native(self) -> Field:
        """This model in the coordinates it was trained in: what a view (`ve`) was made from, else itself."""
        own = self.facts.native
        return self if own is None else own.bind(self.class_labels, **self.cond)

    def weights_hash(self) -> str | None:
        """SHA-256 of the network's tensors; None for a plain callable."""
        model = self.facts.model
        return tensor_hash(model.state_dict()) if hasattr(model, "state_dict") else None

    @property
    def defined_at_zero(self) -> bool:
        """Whether the drift exists at level 0: of velocities in a time of their own."""
        return self.predicts == "velocity" and not isinstance(self.path, VE)

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
        sigma = self.path.sigma(t)
        return (x + sigma**2 * p if self.predicts == "score" else x - sigma * p) / self.path.alpha(t)

    def noise(self, x: Tensor, level: Tensor) -> Tensor:
        t = expand_to(level, x)
        if self.predicts == "noise":
            return self._predict(x, level)
        if self.predicts == "score":
            return -self.path.sigma(t) * self._predict(x, level)
        if self.predicts == "data":
            return (x - self.path.alpha(t) * self._predict(x, level)) / self.path.sigma(t)
        return self.noise_of_velocity(self._predict(x, level), x, level)

    def velocity(self, x: Tensor, level: Tensor) -> Tensor:
        if self.predicts == "velocity":  # short cut: going through data and back loses digits near the ends
            return self._predict(x, level)
        return self.velocity_of(self.data(x, level), x, level)

    def velocity_and_noise(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Both by one network call: what stochastic samplers need, the score being -noise / sigma."""
        if self.predicts == "velocity":
            v = self._predict(x, level)
            return v, self.noise_of_velocity(v, x, level)
        noise, t = self.noise(x, level), expand_to(level, x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return self.path.d_alpha(t) * (x - sigma * noise) / alpha + self.path.d_sigma(t) * noise, noise

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

    def noise_of_velocity(self, velocity: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """The noise that belongs to a velocity already at hand: no network call."""
        t = expand_to(level, x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        d_alpha, d_sigma = self.path.d_alpha(t), self.path.d_sigma(t)
        return (alpha * velocity - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma)

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


class _DataPredictor:
    """Clean estimates at the states of another path, x_a / alpha_a = x_b / alpha_b where sigma / alpha is the same."""

    def __init__(self, inner: Field, path: Path) -> None:
        self.inner, self.path = inner, path

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, **cond: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        own = self.inner.path.time_of(self.path.level_at(t))
        scale = expand_to(self.inner.path.alpha(own) / self.path.alpha(t), x).to(x.dtype)
        return replace(self.inner, class_labels=class_labels, cond=cond).data(scale * x, own.to(x.dtype))
