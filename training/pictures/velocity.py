"""What a tick and a snapshot of a velocity model and its encoder show: curvature, pictures, the start distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samplers.analysis.straightness import trajectory_curvature
from samplers.field import as_field
from samplers.run import decoded
from samplers.solvers.native import sample_native, uniform_times
from torch_utils.images import enlarged, from_uint8, make_grid, save_image, to_uint8
from torch_utils.rng import PerSampleRNG, TorchRNG
from training.couplings import COUPLINGS
from training.data.batches import ImageDataset
from training.data.toys import ToyDataset
from training.methods.curvature_options import CurvatureOptions
from training.methods.prior import measure_prior, with_prior
from training.pictures.plane import LINES, draw_planes, look
from training.pictures.preview import example_conditions

PRIOR_SAMPLES = 8192  # data encoded to measure the start distribution, once a snapshot
PICTURES = 16  # samples in a preview
POINTS = 8192  # the same of points in the plane


class Shown:
    """Curvature figures, pictures and the measured start distribution: fixed data, fixed seeds, averaged networks."""

    def __init__(self, dataset: ImageDataset, options: CurvatureOptions, device: torch.device) -> None:
        self.dataset, self.options, self.device = dataset, options, device

    def data(self, count: int, batch: int = 256) -> Iterator[Tensor]:
        """`count` samples at equal distances through the data set, in batches on the device."""
        count = min(count, len(self.dataset))
        chosen = [i * len(self.dataset) // count for i in range(count)]
        drawn, rng = getattr(self.dataset, "draw", None), TorchRNG(generator=torch.Generator().manual_seed(0))
        for start in range(0, count, batch):
            items = [torch.as_tensor(self.dataset[i][0]) for i in chosen[start : start + batch]]
            x = torch.stack(items)
            x = (x if drawn is None else drawn(x, rng)).to(self.device)
            yield from_uint8(x) if x.dtype == torch.uint8 else x

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """Unit noise, the same on every device."""
        shape = [count, *self.dataset.image_shape]
        return PerSampleRNG(range(seed, seed + count), "cpu").randn(shape).to(self.device)

    @torch.inference_mode()
    def figures(self, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """Curvature of Euler trajectories from the prior, and from encoded data."""
        net, count = averaged["ema"], min(self.options.num_samples, len(self.dataset))
        found = {"Curvature/uncond": self._curvature(net, net.start_noise(self.noise(count), "standard"))}
        if "encoder" in averaged:
            x = torch.cat(list(self.data(count)))
            found["Curvature/reverse"] = self._curvature(net, averaged["encoder"](x, self.noise(count, seed=count)).z)
        return found

    def _curvature(self, net: nn.Module, start: Tensor) -> float:
        times = uniform_times(self.options.N)
        states: list[Tensor] = []
        end = self.sample(net, start, times, trace=lambda step: states.append(step.x))
        return float(trajectory_curvature([*states, end], times))

    def sample(self, net: nn.Module, start: Tensor, times: Tensor, **more: Any) -> Tensor:
        """Samples in native time, all conditions in turn."""
        return sample_native(net, start, times, class_labels=example_conditions(net, len(start)), **more)

    def with_prior(self, averaged: Mapping[str, nn.Module]) -> nn.Module:
        """The averaged network with the moments of the noise that the averaged encoder makes."""
        net = averaged["ema"]
        if "encoder" not in averaged:
            return net
        rank = min(self.options.prior_rank, net.img_channels * net.img_resolution**2)
        return with_prior(net, measure_prior(averaged["encoder"], self.data(PRIOR_SAMPLES), rank))

    def pairs(self, averaged: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
        """Data and the noise that training pairs it with, whole batches of at least LINES in all."""
        batch = self.options.batch
        x = torch.cat(list(self.data(batch * math.ceil(LINES / batch))))
        eps = self.noise(len(x), seed=POINTS)
        if "encoder" in averaged:
            return x, averaged["encoder"](x, eps).z
        z, couple = averaged["ema"].start_noise(eps, "standard"), COUPLINGS[self.options.coupling]
        return x, torch.cat([couple(*ends) for ends in zip(x.split(batch), z.split(batch), strict=True)])

    def preview(self, path: Path, averaged: Mapping[str, nn.Module]) -> None:
        """The picture of a snapshot, which depends on the kind of data."""
        draw(self.dataset, self, path, averaged)


@functools.singledispatch
@torch.inference_mode()
def draw(dataset: Any, shown: Shown, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    """Images: samples by 4 Euler steps above the same samples by N, in rows of eight."""
    net = shown.with_prior(averaged)
    start = net.start_noise(shown.noise(PICTURES))
    ends = [decoded(as_field(net), shown.sample(net, start, uniform_times(n))) for n in (4, shown.options.N)]
    rows = [to_uint8(end).cpu().split(8) for end in ends]
    grid = make_grid(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns=8)
    save_image(enlarged(grid), path)


@draw.register
@torch.inference_mode()
def _(dataset: ToyDataset, shown: Shown, path: Path, averaged: Mapping[str, nn.Module]) -> None:
    """Points: forward lines, trajectories and densities."""
    net, steps, points = shown.with_prior(averaged), shown.options.N, torch.cat(list(shown.data(POINTS)))
    labels = example_conditions(net, POINTS)
    plane = look(f"{steps} Euler steps", net, shown.pairs(averaged), points, shown.noise(POINTS), steps, labels)
    draw_planes([plane], path)
