"""From seeds to images: batches over processes, one random stream per seed, any sampler.

The numbers of an image come from its own generator, seeded with its seed, in this order: latents (float32), a class
(where the network has classes, drawn even if one is given), then whatever noise the sampler adds. Where a model starts
from other than unit noise, it is made of the latents here, for every sampler alike. So an image depends on its seed,
the network and the sampler, and not on the batch it was made in or on the number of processes. Batches are those of EDM
(Karras et al. 2022, arXiv 2206.00364): equal contiguous parts, dealt round-robin to the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.conditions import check_class, draw_conditions
from samplers.field import Facts, Field, as_field
from samplers.solvers.base import Step
from samplers.start import start_noise
from torch_utils import distributed as dist
from torch_utils.layout import memory_format
from torch_utils.misc import split_evenly
from torch_utils.rng import PerSampleRNG

PRECISIONS = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Samples(NamedTuple):
    """One batch: seeds, floating point images `[B, ...]` on the sampling device, labels `[B, label_dim]` or None, the
    noise `[B, ...]` float64 that the sampler started from, whether the labels are classes, one-hot, and of models of
    latents the samples before they were decoded."""

    seeds: list[int]
    images: Tensor
    labels: Tensor | None
    noise: Tensor | None = None
    classes: bool = True
    latents: Tensor | None = None


def seed_batches(seeds: Sequence[int], max_batch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """The batches of process `rank` of `world`: nearly equal contiguous parts of at most `max_batch` seeds."""
    if max_batch < 1:
        raise ValueError(f"the batch size is {max_batch}: give 1 or more")
    if not seeds:
        return []
    parts = split_evenly(len(seeds), -(-len(seeds) // (max_batch * world)) * world)
    return [list(seeds[p.start : p.stop]) for p in parts[rank::world] if p]


def image_shape(net: Any) -> tuple[int, ...]:
    """Shape of one sample of a network, for example `(C, H, W)`."""
    shape = Facts.of(net).shape
    if shape is None:
        raise ValueError("this model does not say what its samples look like: it needs img_channels and img_resolution")
    return shape


def decoded_shape(net: Any) -> tuple[int, ...]:
    """Shape of one image that `generate` yields: of a sample, or of what a model of latents makes of one."""
    return Facts.of(net).decoded_shape or image_shape(net)


def generate(
    net: Field | Callable[..., Tensor],
    seeds: Sequence[int],
    sampler: Callable[..., Tensor],
    *,
    batch: int = 64,
    device: torch.device | str = "cpu",
    class_idx: int | None = None,
    conditional: bool = True,
    rng_device: torch.device | str | None = None,
    prior: str | None = None,
    texts: Callable[[list[int]], Tensor] | None = None,
    labels_of: Callable[[list[int]], Tensor] | None = None,
    decode_batch: int = 8,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[Samples]:
    """Sample this process's share of the seeds, batch by batch.

    Args:
        net: `Field` or network, on `device`, that says the shape of its samples.
        seeds: any integers, used modulo 2^32; an image is made for each, duplicates included.
        sampler: `sampler(field, noise, class_labels, rng=...)` -> images, for example a `Plan` or `edm_sampler`.
        batch: the most images at once on one process.
        class_idx: one class for all images; None: drawn per image, see `samplers/conditions.py`.
        conditional: False for a sampler that hides the conditions: samples then have no labels.
        rng_device: where random numbers are drawn. Default: `device`; "cpu" gives the same images on any device.
        prior: start distribution, of models that have several (`Facts.priors`); None: the recommended one.
        texts: seeds -> conditions `[B, ...]` of models of text.
        labels_of: seeds -> conditions `[B, label_dim]` in the place of those that are drawn.
        decode_batch: most latents that are decoded at once, of models of latents.
        rank, world: default: those of the process group.

    Yields:
        `Samples`; nothing when there are fewer seeds than processes.

    Raises:
        ValueError: at once, for a class the network does not have, or labels that cannot be drawn.
    """
    if conditional:
        check_class(Facts.of(net), class_idx)
    if torch.device(rng_device or device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "random numbers of a GPU were asked for (--rng-device=cuda), and this machine has none: use cpu"
        )
    rank = dist.get_rank() if rank is None else rank
    world = dist.get_world_size() if world is None else world
    batches = seed_batches(seeds, batch, rank, world)
    field = as_field(net)
    if conditional and texts is None and field.facts.conditioning == "text" and field.class_labels is None:
        raise ValueError("this network makes images of a text, and none was given: give a prompt, which may be empty")
    samples = _generate(
        field, batches, sampler, class_idx, conditional, device, rng_device or device, prior, texts, labels_of
    )
    latent = field.facts.latent
    return (
        s._replace(images=decoded(field, s.images, decode_batch), latents=s.images if latent else None) for s in samples
    )


@torch.inference_mode()
def decoded(field: Field, x: Tensor, batch: int = 8) -> Tensor:
    """Samples as images, at most `batch` at a time through the decoder of a model of latents; float32 then."""
    decode = field.facts.decode
    return x if decode is None else torch.cat([decode(part) for part in x.split(max(batch, 1))])


@torch.inference_mode()
def _generate(
    field: Field,
    batches: list[list[int]],
    sampler: Callable[..., Tensor],
    class_idx: int | None,
    conditional: bool,
    device: torch.device | str,
    rng_device: torch.device | str,
    prior: str | None,
    texts: Callable[[list[int]], Tensor] | None,
    labels_of: Callable[[list[int]], Tensor] | None,
) -> Iterator[Samples]:
    shape, facts = image_shape(field), field.facts
    for seeds in batches:
        rng = PerSampleRNG(seeds, rng_device)
        noise = start_noise(field, rng.randn([len(seeds), *shape]).to(device).double(), prior)
        labels = draw_conditions(facts, rng, len(seeds), class_idx)
        if labels_of is not None:
            labels = labels_of(seeds)
        labels = None if labels is None or not conditional else labels.to(device)
        condition = labels if texts is None or not conditional else texts(seeds)
        images = sampler(field, noise, condition, rng=rng)
        yield Samples(seeds, images, labels, noise, classes=facts.conditioning == "classes")


class Recorder:
    """A sampler that also keeps the trajectory of its last batch, in float32 on the CPU.

    Attributes (B first, so that batches can be joined):
        x: `[B, N+1, ...]` the state before each step, then the result.
        drift: `[B, N, ...]` the drift first used in each step.
        sigmas: `[B, N+1]` the noise levels of `x`; of an adaptive solver those that arrive early stay at the last.
    """

    def __init__(self, sampler: Callable[..., Tensor]) -> None:
        self.sampler = sampler

    def __call__(self, net: Any, noise: Tensor, class_labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        x, drift, sigmas = [], [], []

        def trace(step: Step) -> None:
            x.append(step.x.float().cpu())
            drift.append(step.drift.float().cpu())
            level = step.level.double().cpu()  # [], [B], or a map [B, ...], of which this is about the level
            sigmas.append((level.reshape(len(level), -1).mean(1) if level.ndim else level).expand(len(step.x)))

        images = self.sampler(net, noise, class_labels, trace=trace, **kwargs)
        levels = getattr(self.sampler, "sigmas", None)
        end = 0.0 if levels is None or bool((sigmas[-1] <= levels[-1]).all()) else float(levels[-1])
        self.x = torch.stack([*x, images.float().cpu()], dim=1)
        self.drift = torch.stack(drift, dim=1)
        self.sigmas = torch.stack([*sigmas, torch.full_like(sigmas[-1], end)], dim=1)
        return images


def prepare(
    net: torch.nn.Module,
    device: torch.device | str,
    *,
    precision: str = "auto",
    tf32: bool = False,
    compile: bool = False,
) -> torch.nn.Module:
    """The network ready to sample on `device`, changed in place.

    Args:
        precision: of the network's trunk: "auto" (as it was saved), "fp32", "fp16" or "bf16". The sampler works in
            float64 in any case.
        tf32: let the GPU round the factors of float32 products to TensorFloat-32.
        compile: `torch.compile` the network; the first batch then takes minutes.

    Raises:
        ValueError: unknown precision, or fp16 without a GPU.
    """
    device = torch.device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 needs a GPU, the network runs on {device.type}: use bf16 or fp32")
    net = net.to(device, memory_format=memory_format(net, device)).eval().requires_grad_(False)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if precision != "auto":
        dtype = PRECISIONS[precision]
        if hasattr(net, "compute_dtype"):
            net.compute_dtype = dtype
        elif dtype != torch.float32:
            net.forward = torch.autocast(device.type, dtype)(net.forward)
    if compile:
        net.compile()
    return net
