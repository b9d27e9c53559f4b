"""Series as data sets: `--data=series:NAME` or `series:FILE`, with `:window=12:horizon=6` and so on after it.

A sample is `horizon` frames, one after the other in its channels, `[horizon * C, H, W]`; vectors have H = W = 1. Its
label is a vector: the `window` frames before, flattened, then the one-hot phase of its first frame (the month, or the
number of the frame) where there is one. Frames are scaled as the snapshot says (`training/data/scaling.py`).

Windows lie within one part of the time axis (training, validation, test), or of the sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.misc import root_mean_square
from training.data.scaling import SCALINGS, Scaling
from training.data.series_files import FILES, read_series
from training.data.series_sources import SOURCES, Recording

__all__ = ["PARTS", "SeriesDataset", "is_series"]

PREFIX = "series:"
PARTS = ("train", "val", "test")
SHARES = (0.8, 0.1)  # of training and validation, where a series does not say
EXAMPLES = 2048  # conditions that networks are shown in pictures

_NUMBERS = ("window", "horizon", "seed", "stride", "frames")
_SHARES = ("train", "val")
_WORDS = {"scale": SCALINGS, "label": ("phase", "index", "none"), "split": ("time", "sequences")}


def is_series(data: object) -> bool:
    """Whether `--data` names a series."""
    return str(data).startswith(PREFIX)


class SeriesDataset:
    """Windows of one part of a series, with the interface of `ImageDataset` that training uses.

    Args:
        text: `series:NAME[:KEY=VALUE...]`. Keys: window, horizon; stride, frames between windows; frames, only the
            first of them; scale and label (choices below); split (time or sequences) and the shares train and val; seed
            of generated series; axes and variable of files.
        part: one of PARTS, or "all".
        learnt: what a snapshot says of the series it was trained on (`facts`), whose window, horizon, label and scale
            then count.

    Attributes:
        frames: states float32 `[N, T, C, H, W]` of all parts.
        recording: the series as it was read.
        scaling, window, horizon: how windows are made.
        phase, period: `[T]` of the labels; None and 0 without.
        starts: `[windows, 2]`, sequence and frame at which each target begins.

    Raises:
        ValueError: unknown options, a series that cannot be read or is shorter than a window.
    """

    label_kind = "vector"
    latents = None
    class_names = None
    has_labels = True
    has_onehot_labels = False

    def __init__(self, text: str, part: str = "train", learnt: dict[str, Any] | None = None) -> None:
        self.text = text
        source, given = _options(text)
        self.recording = recording = _cut(_open(source, given), given.get("frames"))
        known = learnt or {}
        for name in ("window", "horizon", "label", "scale"):
            if learnt and name in given:
                raise ValueError(
                    f"{name}={given[name]} in --data={text}: the network was trained with its own, leave it out"
                )
        shape = list(recording.values.shape[2:])
        if known and known["shape"] != shape:
            raise ValueError(f"--data={text} has frames {shape} and the network was trained on {known['shape']}")
        self.window = int(known.get("window", given.get("window", recording.window)))
        self.horizon = int(known.get("horizon", given.get("horizon", recording.horizon)))
        self.label = known.get("label", given.get("label", "phase" if recording.period else "none"))
        self.phase, self.period = self._phases(known)
        pieces = _pieces(recording, given, text)
        self.scaling = self._scaling(known, given, pieces["train"])
        self.part = part
        self._piece, self._train = {**pieces, "all": (slice(None), slice(None))}[part], pieces["train"]
        self._stride = given.get("stride", 1)
        self.starts = self.starts_before(self.horizon)
        states = self.scaling.states(recording.values, self._scaling_phase(np.arange(recording.values.shape[1])))
        self.frames = torch.from_numpy(np.ascontiguousarray(states, np.float32))
        self.channels = self.frames.shape[2]
        self.resolution = self.frames.shape[4]
        self.num_channels = self.horizon * self.channels
        self.image_shape = (self.num_channels, self.resolution, self.resolution)
        self.context_dim = self.window * self.channels * self.resolution**2
        self.label_dim = self.context_dim + self.period
        self.name = recording.name
        self.num_images = len(self.starts)

    @property
    def unit(self) -> str:
        """What the values of the series are in, for the axes of pictures."""
        return "degrees" if self.recording.angles else self.recording.unit or "units of the series"

    def _phases(self, known: dict[str, Any]) -> tuple[np.ndarray | None, int]:
        recording = self.recording
        if self.label == "none":
            return None, 0
        if self.label == "index":
            return np.arange(recording.values.shape[1]), int(known.get("period", recording.values.shape[1]))
        if not recording.period:
            raise ValueError(f"label=phase tells the month, and {self.text} has none: give label=index or none")
        return recording.phase, recording.period

    def _scaling(self, known: dict[str, Any], given: dict[str, Any], train: tuple[slice, slice]) -> Scaling:
        if known:
            return Scaling.from_json(known["scaling"])
        recording = self.recording
        kind = given.get("scale", recording.scale)
        if (kind in ("circle", "turns")) != recording.angles:
            what = "angles" if recording.angles else "no angles"
            raise ValueError(f"scale={kind} does not go with {self.text}, whose values are {what}: choose another")
        values = recording.values[train]
        if not values.size:
            raise ValueError(f"--data={self.text} leaves no frame for training: raise train")
        return Scaling.fit(
            kind, values, None if recording.phase is None else recording.phase[train[1]], recording.period
        )

    def _scaling_phase(self, frames: np.ndarray) -> np.ndarray:
        """Phases that the scaling goes by, at indices of frames."""
        return np.zeros_like(frames) if self.recording.phase is None else self.recording.phase[frames]

    def starts_before(self, ahead: int, known: int = 0) -> np.ndarray:
        """Sequence and frame `[n, 2]` of every place of the part with a window before it and `ahead` frames to come.

        Args:
            known: more frames of the part that lie before it than a window.

        Raises:
            ValueError: the part is too short for one.
        """
        n, t = (np.arange(size)[self._piece[axis]] for axis, size in enumerate(self.recording.values.shape[:2]))
        known = max(known, self.window)
        span = known + ahead
        if not len(n):
            raise ValueError(f"--data={self.text}: the {self.part} part has no sequence: choose another split")
        if len(t) < span:
            raise ValueError(
                f"--data={self.text}: the {self.part} part has {len(t)} frames, and a window takes {span}, "
                f"{known} before and {ahead} to come: give smaller ones, or another split"
            )
        first = t[known : len(t) - ahead + 1 : self._stride]
        return np.stack(np.meshgrid(n, first, indexing="ij"), -1).reshape(-1, 2)

    # --- the interface of data sets ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Target float32 `[horizon * C, H, W]` and label float32 `[label_dim]`."""
        row = range(len(self))[item]
        label = self.encode_labels(self.targets()[row : row + 1])[0]
        return self._targets_at(self.starts[row : row + 1])[0].numpy(), label.numpy()

    def images(self) -> Tensor:
        """All targets, float32 `[windows, horizon * C, H, W]`."""
        return self._targets_at(self.starts)

    def _targets_at(self, starts: np.ndarray) -> Tensor:
        n, t = torch.from_numpy(starts).unbind(1)
        return self.frames[n[:, None], t[:, None] + torch.arange(self.horizon)].flatten(1, 2)

    @functools.cached_property
    def std(self) -> float:
        """Root mean square of all targets, to four digits: what EDM calls sigma_data."""
        return root_mean_square(self.images())

    def drop_images(self) -> None:
        """Nothing to drop: targets are made of the frames when they are asked for."""

    def targets(self) -> Tensor:
        """Sequence and frame of each window, int64 `[windows, 2]`."""
        return torch.from_numpy(self.starts)

    def encode_labels(self, targets: Tensor) -> Tensor:
        """Rows of `targets()`, on any device -> float32 `[rows, label_dim]`, context and phase."""
        if self.frames.device != targets.device:
            self.frames = self.frames.to(targets.device)
        n, t = targets.unbind(1)
        back = torch.arange(-self.window, 0, device=targets.device)
        context = self.frames[n[:, None], t[:, None] + back]
        return self.condition(context, None if self.phase is None else torch.from_numpy(self.phase).to(t.device)[t])

    def condition(self, context: Tensor, phase: Tensor | None) -> Tensor:
        """Context `[B, window, C, H, W]` and phases `[B]` as labels `[B, label_dim]`."""
        flat = context.flatten(1)
        if not self.period:
            return flat
        return torch.cat([flat, (phase[:, None] == torch.arange(self.period, device=phase.device)).float()], dim=1)

    def conditions(self) -> Tensor:
        """Some labels, for pictures of a network."""
        rows = self.targets()
        return self.encode_labels(rows[:: max(len(rows) // EXAMPLES, 1)][:EXAMPLES].to(self.frames.device))

    def fingerprint(self) -> str:
        """A hash of the frames and of the windows in use."""
        return hashlib.sha256(self.frames.cpu().numpy().tobytes() + self.starts.tobytes()).hexdigest()

    # --- for forecasts ----------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a snapshot keeps, so that forecasts scale and cut a series as training did."""
        return {
            "text": self.text, "window": self.window, "horizon": self.horizon, "label": self.label,
            "period": self.period, "shape": list(self.recording.values.shape[2:]), "scaling": self.scaling.to_json(),
        }  # fmt: skip

    def training_states(self) -> np.ndarray:
        """States of the training part, `[N, T, C, H, W]` float64."""
        return self.frames.numpy()[self._train].astype(np.float64)

    def training_frames(self) -> np.ndarray:
        """The training part `[N, T, C, H, W]` in the units of the series."""
        return self.recording.values[self._train]

    def part_frames(self) -> np.ndarray:
        """This part `[N, T, C, H, W]` in the units of the series."""
        return self.recording.values[self._piece]

    def windows(self, starts: np.ndarray, ahead: int) -> tuple[Tensor, Tensor, Tensor]:
        """Context `[n, window, C, H, W]`, what followed `[n, ahead, C, H, W]`, phases of both `[n, window + ahead]`."""
        n, t = torch.from_numpy(starts).unbind(1)
        index = t[:, None] + torch.arange(-self.window, ahead)
        both = self.frames[n[:, None], index.clamp_max(self.frames.shape[1] - 1)]
        return both[:, : self.window], both[:, self.window :], self._phase_at(index)

    def _phase_at(self, index: Tensor) -> Tensor:
        """Phases of frames, the last one's beyond the end; zeros without."""
        if not self.period:
            return torch.zeros_like(index)
        return torch.from_numpy(self.phase)[index.clamp_max(len(self.phase) - 1)] % self.period

    def to_frames(self, states: np.ndarray, first: np.ndarray) -> np.ndarray:
        """States `[..., leads, C, H, W]` beginning at frames `first`, `[...]`, in the units of the series."""
        index = first[..., None] + np.arange(states.shape[-4])
        return self.scaling.frames(states, self._scaling_phase(index))


def _options(text: str) -> tuple[str, dict[str, Any]]:
    """Name or file of a series, and its options."""
    source, *parts = text.removeprefix(PREFIX).split(":")
    values: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        number = _number(value)
        if key in _NUMBERS and number is not None and number == int(number) and number >= (key != "seed"):
            values[key] = int(number)
        elif key in _SHARES and number is not None and 0 <= number <= 1:
            values[key] = number
        elif (key in _WORDS and value in _WORDS[key]) or (key in ("axes", "variable") and value):
            values[key] = value
        else:
            words = ", ".join(f"{k}={'|'.join(v)}" for k, v in _WORDS.items())
            raise ValueError(
                f"'{part}' in --data={text} is not understood: write for example series:elnino:window=12:horizon=6, "
                f"with {', '.join(_NUMBERS)}, shares {' and '.join(_SHARES)}, {words}, axes and variable"
            )
    return source, values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@functools.lru_cache(maxsize=4)
def _generated(name: str, seed: int) -> Recording:
    return SOURCES[name](seed)


def _open(source: str, given: dict[str, Any]) -> Recording:
    if source in SOURCES:
        if unused := [k for k in ("axes", "variable") if k in given]:
            raise ValueError(f"{unused[0]} belongs to files, and series:{source} is none: leave it out")
        return _generated(source, given.get("seed", 0))
    if Path(source).suffix not in FILES:
        raise ValueError(
            f"there is no series '{source}': choose from {', '.join(SOURCES)}, or a file ({', '.join(FILES)})"
        )
    if "seed" in given:
        raise ValueError(f"seed belongs to generated series, and {source} is a file: leave it out")
    return read_series(source, given.get("axes"), given.get("variable"))


def _cut(recording: Recording, frames: int | None) -> Recording:
    """The first frames of every sequence; None: all."""
    if frames is None:
        return recording
    phase = None if recording.phase is None else recording.phase[:frames]
    parts = recording.parts if recording.by_sequence else None
    return dataclasses.replace(recording, values=recording.values[:, :frames], phase=phase, parts=parts)


def _pieces(recording: Recording, given: dict[str, Any], text: str) -> dict[str, tuple[slice, slice]]:
    """Sequences and frames of each part."""
    by_sequence = given["split"] == "sequences" if "split" in given else recording.by_sequence
    size = recording.values.shape[0 if by_sequence else 1]
    parts = recording.parts
    if parts is None or {"split", *_SHARES} & set(given):
        train, val = given.get("train", SHARES[0]), given.get("val", SHARES[1] if "train" not in given else 0.0)
        if train + val > 1 + 1e-9:
            raise ValueError(f"train={train:g} and val={val:g} in --data={text} are more than the whole: lower them")
        ends = round(train * size), round((train + val) * size)
        parts = ends[0], ends[1] - ends[0], size - ends[1]
    edges = np.cumsum([0, *parts])
    if edges[-1] != size:
        raise ValueError(f"--data={text} has {size} {'sequences' if by_sequence else 'frames'}, not {edges[-1]}")
    whole = slice(None)
    cuts = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return {name: (cut, whole) if by_sequence else (whole, cut) for name, cut in zip(PARTS, cuts, strict=True)}
