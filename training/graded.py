"""Graded control from the command line: references and strengths of their elements, and the sampler that keeps them.

The arithmetic is in `samplers/solvers/asynchronous.py`. Seed s starts from reference s modulo their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.field import Facts, Field, as_field
from samplers.path import Linear
from samplers.planning.plan import Plan
from samplers.solvers import asynchronous
from torch_utils.arrays import read_floats
from torch_utils.checkpoint import tensor_hash
from torch_utils.images import from_uint8
from torch_utils.rng import PerSampleRNG
from training.data.archive import ImageArchive
from training.data.decode import decode_image
from training.data.image_dataset import ImageDataset
from training.data.latent_dataset import LatentDataset, holds_latents
from training.data.transforms import to_gray_or_rgb
from training.generation_options import PART_WORDS, WORDS, GradedOptions
from training.keep_parts import checked_strengths, naming_keep, read_mask, read_part_keep, read_part_references
from training.latents import facts_of_latents

HALVES = {
    "left": lambda h, w: (slice(None), slice(0, w // 2)), "right": lambda h, w: (slice(None), slice(w // 2, None)),
    "top": lambda h, w: (slice(0, h // 2), slice(None)), "bottom": lambda h, w: (slice(h // 2, None), slice(None)),
}  # fmt: skip
ENCODE_BATCH = 8  # images at once
QUADRANTS = (0.0, 0.25, 0.5, 0.75)  # of the paper's figure, in reading order


def read_references(source: str, facts: Facts, device: torch.device | str = "cpu") -> Tensor:
    """`[n, *shape]` float32 of an image file, a folder or zip of images or latents, or an array file of samples.

    Images are encoded for a model of latents, on `device`.

    Raises:
        ValueError: nothing there, samples of another shape, or latents of another autoencoder.
    """
    path, shape = Path(source), facts.shape
    if not path.exists():
        raise ValueError(f"there is nothing at --reference={source}: give a file, folder or zip of images")
    if path.suffix == ".npy":
        array = torch.from_numpy(read_floats(path, "an array of samples in floats, images from -1 to 1")).float()
        if not array.numel() or not bool(array.isfinite().all()):
            raise ValueError(f"{path} holds {'values that are not finite' if array.numel() else 'no sample'}")
        images = array[None] if array.ndim == len(shape) else array
    elif path.is_dir() or path.suffix == ".zip":
        images = _of_archive(path, facts)
    else:
        images = from_uint8(torch.from_numpy(_pixels(path, shape[0])).permute(2, 0, 1)[None])
    if facts.encode is not None and tuple(images.shape[2:]) == tuple(facts.decoded_shape[1:]):
        images = _encoded(images, facts.encode, device)
    if tuple(images.shape[1:]) != tuple(shape):
        wanted = "x".join(map(str, shape)) + (
            "" if not facts.latent else ", latents: its autoencoder is not at hand to encode images, give --vae"
            if facts.encode is None else f", latents of images {'x'.join(map(str, facts.decoded_shape))}"
        )  # fmt: skip
        raise ValueError(
            f"the references of {source} are {'x'.join(map(str, images.shape[1:]))} (channels, height, width), and "
            f"samples of this network {wanted}: give references of that size, for example by dataset_tool.py "
            "--resolution"
        )
    return images


def _of_archive(path: Path, facts: Facts) -> Tensor:
    """Images as floats, or latents as the mean of what is stored."""
    archive = ImageArchive(path)
    if not holds_latents(archive):
        return from_uint8(ImageDataset(archive).images())
    dataset, own = LatentDataset(archive), facts_of_latents(facts.model, "")
    made = {(f.autoencoder, f.scale_factor) for f in (dataset.latents, own) if f is not None and f.autoencoder}
    if len(made) > 1:
        raise ValueError(f"--reference={path} holds latents of another autoencoder than those of this network")
    return dataset.latents.draw(dataset.images())


@torch.inference_mode()
def _encoded(images: Tensor, encode: Callable[[Tensor], Tensor], device: torch.device | str) -> Tensor:
    parts = images.expand(-1, 3, -1, -1).split(ENCODE_BATCH)
    return torch.cat([encode(part.to(device)).float().cpu() for part in parts])


def _pixels(path: Path, channels: int) -> np.ndarray:
    """`[H, W, C]` uint8 of an image file."""
    try:
        image = to_gray_or_rgb(decode_image(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not an image that can be used: {error}") from error
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def read_keep(text: str, shape: tuple[int, ...]) -> Tensor:
    """Strengths `[1, C or 1, H or 1, W or 1]` float64 in [0, 1] of what `--keep` says.

    Raises:
        ValueError: words that mean nothing, strengths outside of [0, 1], a mask of another shape.
    """
    channels, height, width = shape
    kind, _, rest = text.partition(":")
    with naming_keep(text, f"strengths: give for example {WORDS}"):
        if kind in HALVES:
            keep = torch.zeros(1, 1, height, width, dtype=torch.float64)
            keep[(0, 0, *HALVES[kind](height, width))] = float(rest)
        elif kind == "quadrants":
            a, b, c, d = map(float, rest.split(",")) if rest else QUADRANTS
            keep = torch.zeros(1, 1, height, width, dtype=torch.float64)
            for row, values in (("top", (a, b)), ("bottom", (c, d))):
                for column, value in zip(("left", "right"), values, strict=True):
                    rows, columns = HALVES[row](height, width)[0], HALVES[column](height, width)[1]
                    keep[0, 0, rows, columns] = value
        elif kind == "channels":
            keep, named = torch.zeros(1, channels, 1, 1, dtype=torch.float64), set()
            for part in rest.split(","):
                index, value = part.split("=")
                if int(index) in named:
                    raise ValueError(f"--keep={text} names channel {int(index)} twice: give one strength of each")
                named.add(int(index))
                if not 0 <= int(index) < channels:
                    raise ValueError(
                        f"--keep={text} names channel {int(index)}, and samples have channels 0 to {channels - 1}"
                    )
                keep[0, int(index)] = float(value)
        elif (path := Path(text)).suffix in (".png", ".npy"):
            pixels = (lambda path: _pixels(path, 1)[:, :, 0] / 255) if path.suffix == ".png" else None
            keep = read_mask(path, shape, "samples", "channels, height, width", pixels)
        else:
            keep = torch.full((1, 1, 1, 1), float(text), dtype=torch.float64)
    return checked_strengths(keep, text)


class Graded:
    """A sampler of references: called as the plan that it follows.

    Attributes:
        model: what the plan is to be made for.
        labels: `[n, label_dim]` of the references, where they are classes of the model; else None.
        about: how elements are kept, in words.
        record: what of the images this decides, plain JSON.
    """

    def __init__(self, model: Field, options: GradedOptions, device: torch.device | str = "cpu") -> None:
        facts = model.facts
        self.options, self.device, self.labels = options, torch.device(device), None
        if options.keep is None:
            raise ValueError(
                f"--reference needs strengths: give --keep, for example {WORDS if facts.parts is None else PART_WORDS}"
            )
        if facts.chooses_levels or facts.shape is None or (len(facts.shape) != 3 and facts.parts is None):
            raise ValueError(
                "--reference needs a network of images or shapes whose noise levels are given to it: leave it out"
            )
        if facts.parts is None:
            self.references = read_references(options.reference, facts, device)
            self.keep = read_keep(options.keep, facts.shape)
        else:
            self.references, self.labels = read_part_references(options.reference, facts)
            self.keep = read_part_keep(options.keep, facts.parts, facts.shape)
        self.elements = facts.element_times
        if not self.elements and options.graded_steps == "size":
            raise ValueError("--graded-steps=size is for models whose elements have times of their own: leave it out")
        if options.compensation_inverse and not (self.elements and facts.predicts == "velocity"):
            raise ValueError(
                "--compensation-inverse is for velocities of models that give elements times of their own: leave it out"
            )
        self.inverse = facts.compensated if options.compensation_inverse is None else options.compensation_inverse
        self.plan: Plan | None = None
        self.own = model
        self.model = self._progress(model) if self.elements else model

    @classmethod
    def of(cls, model: Field, options: GradedOptions, device: torch.device | str) -> Graded | None:
        """What the options ask for; None: no graded control.

        Raises:
            ValueError: options that need --reference, without it.
        """
        if options.reference is not None:
            return cls(model, options, device)
        for name in ("keep", "graded_steps", "compensation_inverse"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs images to keep something of: add --reference")
        return None

    def _progress(self, model: Field) -> Field:
        """The flow of progress; searches start from the references, one after the other."""
        field = asynchronous.progress_field(model, self.keep.to(self.device), inverse=self.inverse)
        facts = replace(field.facts, warmup_start=lambda noise, rows: self._start(noise, self._rows(rows)))
        return replace(field, facts=facts)

    def _start(self, noise: Tensor, rows: Tensor) -> Tensor:
        return asynchronous.start_from(self.own, self.references[rows].to(noise), noise, self.keep.to(self.device))

    def follow(self, plan: Plan) -> Graded:
        """Keep to a plan that was made for `model`.

        Raises:
            ValueError: a plan that elements of different strength cannot follow.
        """
        if self.elements and plan.stochastic and plan.kind != "sde":
            raise ValueError(
                "elements of different strength have different amounts of noise, and this sampler adds one to all: "
                "leave --reference out, or choose a sampler that adds none, or the stochastic interpolant sampler"
            )
        if self.options.graded_steps == "size" and (plan.kind != "native" or plan.solver not in asynchronous.ONE_STEP):
            raise ValueError(
                "--graded-steps=size makes equal steps by a solver of one step: give --N and no schedule, and one of "
                f"the solvers {', '.join(asynchronous.ONE_STEP)}"
            )
        if self.elements and plan.snap and not isinstance(self.own.native().path, Linear):
            raise ValueError(
                "--reference decides which parts exist on the linear path alone, and this model lives on another: add "
                "--binarise=0"
            )
        self.plan = plan
        return self

    @property
    def labels_of(self) -> Callable[[list[int]], Tensor] | None:
        """Seeds -> labels of their references, where these have some."""
        return None if self.labels is None else lambda seeds: self.labels[self._rows(seeds)]

    def _rows(self, seeds: Sequence[int]) -> Tensor:
        return torch.tensor([seed % len(self.references) for seed in seeds])

    @property
    def sigmas(self) -> Tensor:
        """The levels of the plan."""
        return self.plan.sigmas

    @property
    def record(self) -> dict[str, Any]:
        return {
            "reference": tensor_hash({"reference": self.references})[:16],
            "keep": tensor_hash({"keep": self.keep})[:16],
            "steps": self.options.graded_steps or "number",
            "compensation_inverse": self.elements and self.inverse,
        }

    @property
    def about(self) -> str:
        kept = f"{self.options.keep} of {len(self.references)} reference{'s' * (len(self.references) > 1)}"
        if self.elements:
            how = f"steps of one {self.options.graded_steps or 'number'}"
            return f"keeping {kept}, {how}{', compensation undone' * self.inverse}"
        return (
            f"keeping {kept} by plain replacement: this network has one time for all elements, so each is the noised "
            "reference until its strength is reached, and free from then on"
        )

    def __call__(
        self,
        field: Any,
        noise: Tensor,
        class_labels: Tensor | None = None,
        *,
        rng: PerSampleRNG,
        trace: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Sample as `Plan` does, for the model without references; `rng` says the seeds."""
        rows = self._rows(rng.seeds)
        if not self.elements:
            reference = self.references[rows].to(noise)
            held = asynchronous.replaced(as_field(field), self.keep.to(self.device))
            x = self.plan(
                held.bind(None, reference=reference, **as_field(field).cond), noise, class_labels, rng=rng, trace=trace
            )
            return torch.where(self.keep.to(x) == 1, reference, x)
        start = self._start(noise.double(), rows)
        if self.options.graded_steps != "size" and not self.plan.stochastic:
            x = self.plan(self.model, start, class_labels, rng=rng, trace=trace)
            # levels that end above 0 end at (1 + sigma) x, x the state at the progress sigma / (1 + sigma)
            ends = self.plan.kind in ("grid", "adaptive") and not self.plan.options.get("denoise_to_zero")
            return x / (1 + self.plan.sigmas[-1].item()) if ends else x
        model, keep = self.plan.model(self.own), self.keep.to(self.device)
        given = model.bind(class_labels, **model.cond), start, self.plan.sigmas.tolist(), keep
        how = {"inverse": self.inverse, "trace": trace}
        if not self.plan.stochastic:
            return asynchronous.common_steps(*given, solver=self.plan.solver, **how)
        x = asynchronous.stochastic_steps(*given, rng=rng, **self.plan.options, **how)
        return torch.where(keep == 1, self.references[rows].to(x), x)
