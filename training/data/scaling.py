"""How frames of a series become states of a network and back, fitted on training frames and kept in the snapshot.

- standard: mean and deviation of each channel; pixel: of each element.
- climatology: of each element and phase (month), so that states are anomalies.
- minmax: each channel to [-1, 1]; minmax10: all channels together to [-10, 10], as chaotic systems were published.
- circle: angles in degrees as cosine and sine, twice the channels; turns: angles / 180, to be compared modulo 2.
- none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ANGLES = ("circle", "turns")
# axes of [N, T, C, H, W] that share a mean and a deviation
_MOMENTS = {"standard": (0, 1, 3, 4), "pixel": (0, 1), "climatology": (0, 1)}
# axes that share a range, and half the width that it gets
_RANGES = {"minmax": ((0, 1, 3, 4), 1.0), "minmax10": ((0, 1, 2, 3, 4), 10.0)}
SCALINGS = (*_MOMENTS, *_RANGES, *_ANGLES, "none")


@dataclass(frozen=True, eq=False)
class Scaling:
    """States are (frames - offset) / factor.

    Attributes:
        kind: key of SCALINGS.
        offset, factor: `[P, C, H, W]` or what broadcasts to it, P phases (1 without); None for angles.
    """

    kind: str
    offset: Array | None = None
    factor: Array | None = None

    @classmethod
    def fit(cls, kind: str, values: Array, phase: Array | None = None, period: int = 0) -> Scaling:
        """For training frames `[N, T, C, H, W]` with phases `[T]`.

        Raises:
            ValueError: frames without phases where they are needed, a phase without frames, or values that are all the
                same.
        """
        if kind not in SCALINGS:
            raise ValueError(f"there is no scale '{kind}': choose from {', '.join(SCALINGS)}")
        if kind in _ANGLES:
            return cls(kind)
        if kind == "none":
            return cls(kind, np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))
        if kind == "climatology":
            if phase is None or not period:
                raise ValueError("scale=climatology is by month, and this series has none: take another scale")
            if len(missing := sorted(set(range(period)) - set(phase.tolist()))):
                raise ValueError(
                    f"scale=climatology needs training frames of each of {period} phases, number {missing[0]} has none"
                )
            groups = [values[:, phase == p] for p in range(period)]
        else:
            groups = [values]
        if kind in _RANGES:
            axes, width = _RANGES[kind]
            low, high = (f(values, axis=axes, keepdims=True)[0] for f in (np.min, np.max))
            offset, factor = (low + high) / 2, (high - low) / (2 * width)
        else:
            axes = _MOMENTS[kind]
            offset, factor = (
                np.concatenate([f(g, axis=axes, keepdims=True)[0] for g in groups]) for f in (np.mean, np.std)
            )
        if not (factor > 0).all():
            where = np.argwhere(~(factor > 0))[0].tolist()
            raise ValueError(f"scale={kind}: training frames do not vary at [phase, channel, row, column] = {where}")
        return cls(kind, offset, factor)

    @property
    def is_angle(self) -> bool:
        return self.kind in _ANGLES

    def channels(self, channels: int) -> int:
        """Channels of a state of frames with `channels`."""
        return 2 * channels if self.kind == "circle" else channels

    def states(self, values: Array, phase: Array) -> Array:
        """Frames `[..., T, C, H, W]` with phases `[T]` (or `[..., T]`) as states."""
        if self.kind == "circle":
            angle = np.radians(values)
            return np.concatenate([np.cos(angle), np.sin(angle)], axis=-3)
        return (
            values / 180
            if self.kind == "turns"
            else (values - self._of(self.offset, phase)) / self._of(self.factor, phase)
        )

    def frames(self, states: Array, phase: Array) -> Array:
        """The inverse of `states`; angles in degrees, [-180, 180]."""
        if self.kind == "circle":
            cos, sin = np.split(states, 2, axis=-3)
            return np.degrees(np.arctan2(sin, cos))
        if self.kind == "turns":
            return (180 * states + 180) % 360 - 180
        return states * self._of(self.factor, phase) + self._of(self.offset, phase)

    def _of(self, table: Array, phase: Array) -> Array:
        return table[phase] if len(table) > 1 else table[0]

    def on_manifold(self, states: Any) -> Any:
        """States (a tensor `[..., C, H, W]`) brought back to where states of angles are."""
        if self.kind == "turns":
            return (states + 1) % 2 - 1
        if self.kind != "circle":
            return states
        half = states.shape[-3] // 2
        pairs = states.unflatten(-3, (2, half))
        return (pairs / pairs.square().sum(-4, keepdim=True).sqrt().clamp_min(1e-12)).flatten(-4, -3)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "offset": None if self.offset is None else self.offset.tolist(),
            "factor": None if self.factor is None else self.factor.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scaling:
        offset, factor = (None if data[k] is None else np.asarray(data[k], np.float64) for k in ("offset", "factor"))
        return cls(data["kind"], offset, factor)
