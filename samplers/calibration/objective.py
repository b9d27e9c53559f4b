"""What a calibration compares of end points: pixels, or features in which people's judgement is nearer to a distance.

An objective is text, `efficientnet-lite0+0.1*pixels`: features by name with weights. Each is divided by its own spread
over the teacher's samples, so that weights compare: the squared distance is

    sum_i w_i |phi_i(teacher) - phi_i(student)|^2 / E|phi_i(teacher) - E phi_i(teacher)|^2.

`pixels` are the samples as they are, `self` the middle block of the network at hand at a low noise level (any data, no
other model), `classifier` the logits of the classifier that some models come with. Every other name is a map of images
that the caller knows (`networks.features.maps`); latents are decoded for it. Refinement takes forward differences, so a
map costs one call per trial and need not have a gradient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samplers.calibration.student import Features, itself
from samplers.field import Facts
from samplers.start import Chunk
from torch_utils import distributed as dist

__all__ = ["OWN", "Maps", "Measured", "check_names", "measure", "mixture", "read_objective"]

# name -> a map from images [b, 1 or 3, H, W] in [-1, 1] to features [b, F], and a hash of its weights
Maps = Callable[[str], tuple[Callable[[Tensor], Tensor], str]]
OWN = ("pixels", "self", "classifier")
_LOW = 0.2  # noise level that `self` looks at, in spreads of the data: details are there, and the network is at work


@dataclass(frozen=True)
class Measured:
    """Features with the root of their mean square deviation from their mean over the teacher's samples."""

    features: Features
    spread: float
    digest: str | None = None


def read_objective(text: str) -> dict[str, float]:
    """Names and weights of `[WEIGHT*]NAME[+[WEIGHT*]NAME...]`.

    Raises:
        ValueError: another form, a name twice, a weight that is not positive.
    """
    found: dict[str, float] = {}
    for part in text.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(\d+\.?\d*|\.\d+)\*)?([a-z][a-z0-9-]*)", part)
        if match is None or match[2] in found or float(match[1] or 1) == 0:
            raise ValueError(
                f"the objective '{text}' is not understood: write names with positive weights, each name once, for "
                "example efficientnet-lite0+0.1*pixels"
            )
        found[match[2]] = float(match[1] or 1)
    return found


def measure(
    names: Iterable[str], facts: Facts, chunks: Sequence[Chunk], ends: Sequence[Tensor],
    load: Maps | None = None,
) -> dict[str, Measured]:  # fmt: skip
    """Features by name with their spread over the teacher's end points on all processes.

    Raises:
        ValueError: features that this model or this installation does not have.
    """
    pixels = _spread(itself, chunks, ends)
    found = {}
    for name in names:
        features, digest = _features(name, facts, _LOW * pixels, load)
        spread = pixels if name == "pixels" else _spread(features, chunks, ends)
        if not (math.isfinite(spread) and spread > 0):
            raise ValueError(f"the features '{name}' are the same for all samples of the teacher: choose others")
        found[name] = Measured(features, spread, digest)
    return found


def check_names(names: Iterable[str], facts: Facts, load: Maps | None = None) -> None:
    """Raise the ValueError of `measure` for features that cannot be had, before there are samples."""
    for name in names:
        _features(name, facts, _LOW, load)


def mixture(weights: Mapping[str, float], measured: Mapping[str, Measured]) -> Features:
    """What the mean square of differences is the objective of; of pixels alone, the samples as they are."""
    if list(weights) == ["pixels"]:
        return itself

    def phi(chunk: Chunk, x: Tensor) -> Tensor:
        parts = [measured[name].features(chunk, x).flatten(1) for name in weights]
        size = sum(part.shape[1] for part in parts)
        scales = [(w * size / p.shape[1]) ** 0.5 for w, p in zip(weights.values(), parts, strict=True)]
        spreads = [measured[name].spread for name in weights]
        return torch.cat([p * (a / s) for p, a, s in zip(parts, scales, spreads, strict=True)], dim=1)

    return phi


def _spread(features: Features, chunks: Sequence[Chunk], ends: Sequence[Tensor]) -> float:
    values = [features(c, x).double().flatten(1) for c, x in zip(chunks, ends, strict=True)]
    size = values[0].shape[1]
    sums = dist.all_reduce_sum(torch.stack([sum(v.sum(0) for v in values), sum(v.square().sum(0) for v in values)]))
    count = float(dist.all_reduce_sum(torch.tensor(float(sum(map(len, values))), dtype=torch.float64)))
    return float(((sums[1] / count - (sums[0] / count).square()).clamp(min=0).sum() / size).sqrt())


def _features(name: str, facts: Facts, level: float, load: Maps | None) -> tuple[Features, str | None]:
    if name == "pixels":
        return itself, None
    if name == "self":
        return _Inner(facts.model, level), None
    if name == "classifier":
        if facts.classify is None:
            raise ValueError(
                "--objective=classifier needs a model that comes with a classifier of its classes, and this one has "
                "none: give --classifier=FILE, or choose self"
            )
        return lambda chunk, x: facts.classify(x, torch.tensor(facts.sigma_min or 0.002, dtype=torch.float64)), None
    if load is None:
        raise ValueError(f"--objective={name}: the maps known here are {', '.join(OWN)}")
    shape = facts.decoded_shape if facts.decode is not None else facts.shape
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"--objective={name} looks at images of 1 or 3 channels, and samples of this model are "
            f"{'of unknown shape' if shape is None else f'of shape {list(shape)}'}: choose pixels or self"
        )
    function, digest = load(name)
    decode = facts.decode or (lambda x: x)
    return lambda chunk, x: function(decode(x)), digest


class _Reached(Exception):  # noqa: N818  # no error: the forward pass has got to where it may end
    pass


class _Inner:
    """Output of the block in the middle of a network, of those that stand in its lists, at one noise level."""

    def __init__(self, model: Any, level: float) -> None:
        self.model, self.level, self.block = model, level, None
        if not isinstance(model, nn.Module) or not list(_blocks(model)):
            raise ValueError(
                "--objective=self looks at an inner block of the network, and this model has no list of blocks: "
                "choose pixels"
            )

    def __call__(self, chunk: Chunk, x: Tensor) -> Tensor:
        level = torch.tensor(self.level, dtype=torch.float64, device=x.device)
        if self.block is None:
            self.block = self._middle(chunk, x, level)
        found: list[Tensor] = []

        def keep(_block: nn.Module, _args: Any, out: Tensor) -> None:
            found.append(out)
            raise _Reached

        with _hooked([self.block], keep), suppress(_Reached):
            chunk.field.data(x, level)
        # Guidance may have doubled the batch: both halves count.
        return found[0].unflatten(0, (-1, len(x))).transpose(0, 1).flatten(1).to(x.dtype)

    def _middle(self, chunk: Chunk, x: Tensor, level: Tensor) -> nn.Module:
        """The middle one of the blocks that see the samples, and not only levels and conditions."""

        def outputs(x: Tensor) -> list[tuple[nn.Module, float]]:
            found: list[tuple[nn.Module, float]] = []

            def note(block: nn.Module, _args: Any, out: Any) -> None:
                if isinstance(out, Tensor):
                    found.append((block, out.double().sum().item()))

            with _hooked(_blocks(self.model), note):
                chunk.field.data(x, level)
            return found

        pairs = zip(outputs(x), outputs(torch.zeros_like(x)), strict=True)
        seen = [block for (block, value), (_, other) in pairs if value != other]
        if not seen:
            raise ValueError("--objective=self: no block of this network shows its output: choose pixels")
        return seen[len(seen) // 2]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists and dictionaries of modules."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from child.children()
        else:
            yield from _blocks(child)


@contextmanager
def _hooked(blocks: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(lambda *args: (hook(*args), None)[1]))
        yield
