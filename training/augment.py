"""Geometric and colour augmentation that tells the network what it did.

Non-leaking augmentation of Karras et al. 2020 (arXiv 2006.06676, appendix B) in the conditional form of Karras et al.
2022 (arXiv 2206.00364, appendix F.2): every image gets a random transform and a label vector describing it; the network
sees the labels in training and zeros (= no augmentation) when sampling.

Flips, quarter turns and whole-pixel shifts move pixels. Everything else geometric is one affine map per image, sampled
bilinearly at twice the resolution between two sym6 wavelet low-pass filters. Reflection padding, interpolation and
filtering along an axis are linear, so each is one small matrix and the two filters are plain matrix products.

Nothing waits for the device: on a GPU the padding has its largest size and masks cut it to the batch's margins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.rng import TorchRNG

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263748782646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
TAPS = len(SYM6)
PAD = TAPS // 4  # pixels around the image that the final filter needs

LABELS = {
    "xflip": 1, "yflip": 1, "rotate_int": 2, "translate_int": 2,
    "scale": 1, "rotate_frac": 2, "aniso": 2, "translate_frac": 2,
    "brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 2, "saturation": 1,
}  # label entries per operation, in the order of application  # fmt: skip
AFFINE = ("scale", "rotate_frac", "aniso", "translate_frac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")


@dataclass(frozen=True)
class AugmentPipe:
    """Random transforms of a batch; each operation acts on an image with probability min(p * multiplier, 1).

    An operation whose multiplier is 0 does not exist: it draws nothing and adds no label.

    Attributes:
        p: overall probability.
        xflip ... saturation: probability multipliers of the operations.
        translate_int_max, translate_frac_std: range and standard deviation of shifts, as fractions of the image.
        scale_std, aniso_std: standard deviation of log2 of the zoom and of the stretch.
        rotate_frac_max, hue_max: largest angle, in half turns.
        aniso_rotate_prob: probability that a stretch is along a random axis instead of the x axis.
        brightness_std: of the added constant; contrast_std, saturation_std: of log2 of the factor.
    """

    p: float = 1
    xflip: float = 0
    yflip: float = 0
    rotate_int: float = 0
    translate_int: float = 0
    translate_int_max: float = 0.125
    scale: float = 0
    rotate_frac: float = 0
    aniso: float = 0
    translate_frac: float = 0
    scale_std: float = 0.2
    rotate_frac_max: float = 1
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1

    def _on(self, *names: str) -> bool:
        return any(getattr(self, name) > 0 for name in names)

    @property
    def num_labels(self) -> int:
        """Length of the label vector: what the network's `augment_dim` must be."""
        return sum(count for name, count in LABELS.items() if self._on(name))

    def __call__(self, images: Tensor, rng: TorchRNG | None = None) -> tuple[Tensor, Tensor]:
        """Transform a batch.

        Args:
            images: `[N, C, H, W]` floating point, on any device.
            rng: source of all draws; None = torch's global generator of the images' device.

        Returns:
            Images of the same shape and labels `[N, num_labels]` float32.

        Raises:
            ValueError: images of another rank or type, of a shape or number of channels an operation cannot handle.
        """
        self._check(images)
        draws = _Draws(TorchRNG(images.device) if rng is None else rng, images.shape[0], self.p)
        images = self._move_pixels(images, draws)
        if self._on(*AFFINE):
            images = _resample(images, *self._affine(images, draws), static=images.device.type != "cpu")
        if self._on(*COLOR):
            images = _recolor(images, *self._color(images, draws))
        labels = draws.labels or [images.new_zeros(images.shape[0], 0)]
        return images, torch.cat([label.to(torch.float32).reshape(images.shape[0], -1) for label in labels], dim=1)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            shape = list(images.shape)
            raise ValueError(f"augmentation needs floating-point images [N, C, H, W], got {images.dtype} {shape}")
        _, channels, height, width = images.shape
        if self._on(*COLOR) and channels not in (1, 3):
            raise ValueError(f"colour augmentation needs 1 or 3 channels, got {channels}: switch it off for such data")
        if self._on("rotate_int") and height != width:
            raise ValueError(f"quarter turns (rotate_int) need square images, got {height}x{width}")

    def _move_pixels(self, x: Tensor, draws: _Draws) -> Tensor:
        if self.xflip > 0:
            w = draws.label(draws.gate(draws.randint(2), self.xflip))
            x = _choose(w == 1, x.flip(3), x)
        if self.yflip > 0:
            w = draws.label(draws.gate(draws.randint(2), self.yflip))
            x = _choose(w == 1, x.flip(2), x)
        if self.rotate_int > 0:
            w = draws.gate(draws.randint(4), self.rotate_int)
            mirror_w = draws.label((w == 1) | (w == 2))
            mirror_h = draws.label((w == 2) | (w == 3))
            x = _choose(mirror_w, x.flip(3), x)
            x = _choose(mirror_h, x.flip(2), x)
            x = _choose((w == 1) | (w == 3), x.transpose(2, 3), x)
        if self.translate_int > 0:
            height, width = x.shape[2:]
            w = draws.gate(2 * draws.rand(2) - 1, self.translate_int)
            tx = torch.round(w[0] * width * self.translate_int_max)
            ty = torch.round(w[1] * height * self.translate_int_max)
            draws.label(tx / (width * self.translate_int_max))
            draws.label(ty / (height * self.translate_int_max))
            rows = _reflect(torch.arange(height, device=x.device) + ty.long()[:, None], height)
            columns = _reflect(torch.arange(width, device=x.device) - tx.long()[:, None], width)
            image = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
            channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
            x = x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return x

    def _affine(self, x: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Inverse map: output position p (pixels from the centre) reads input position `matrix @ p + offset`."""
        height, width = x.shape[2:]
        matrix = torch.eye(2, device=x.device).expand(x.shape[0], 2, 2)
        offset = torch.zeros(x.shape[0], 2, device=x.device)
        if self.scale > 0:
            w = draws.label(draws.gate(draws.randn(), self.scale))
            matrix = matrix / torch.exp2(w * self.scale_std)[:, None, None]
        if self.rotate_frac > 0:
            w = draws.gate((2 * draws.rand() - 1) * (math.pi * self.rotate_frac_max), self.rotate_frac)
            draws.label(w.cos() - 1)
            draws.label(w.sin())
            matrix = _product(matrix, _rotation(w))
        if self.aniso > 0:
            w = draws.randn()
            r = (2 * draws.rand() - 1) * math.pi
            w = draws.gate(w, self.aniso)
            r = torch.where(draws.rand() < self.aniso_rotate_prob, r, 0.0)
            s = torch.exp2(w * self.aniso_std)
            stretch = torch.diag_embed(torch.stack([1 / s, s], dim=1))
            matrix = _product(_product(_product(matrix, _rotation(-r)), stretch), _rotation(r))
            draws.label(w * r.cos())
            draws.label(w * r.sin())
        if self.translate_frac > 0:
            w = draws.gate(draws.randn(2), self.translate_frac)
            shift = torch.stack([w[0] * width, w[1] * height], dim=1) * self.translate_frac_std
            offset = offset - _product(matrix, shift[:, :, None])[:, :, 0]
            draws.label(w[0])
            draws.label(w[1])
        return matrix, offset

    def _color(self, x: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Map of a colour c: `matrix @ c + offset`."""
        eye = torch.eye(3, device=x.device)
        luma = torch.full((3, 3), 1 / 3, device=x.device)  # v v^T for the grey axis v = (1, 1, 1) / sqrt(3)
        matrix, offset = eye.expand(x.shape[0], 3, 3), torch.zeros(x.shape[0], 3, 1, device=x.device)
        if self.brightness > 0:
            w = draws.label(draws.gate(draws.randn(), self.brightness))
            offset = offset + (w * self.brightness_std)[:, None, None]
        if self.contrast > 0:
            w = draws.label(draws.gate(draws.randn(), self.contrast))
            factor = torch.exp2(w * self.contrast_std)[:, None, None]
            matrix, offset = matrix * factor, offset * factor
        if self.lumaflip > 0:
            w = draws.label(draws.gate(draws.randint(2), self.lumaflip))
            step = eye - 2 * luma * w[:, None, None]
            matrix, offset = _product(step, matrix), _product(step, offset)
        if self.hue > 0:
            w = draws.gate((2 * draws.rand() - 1) * (math.pi * self.hue_max), self.hue)
            draws.label(w.cos() - 1)
            draws.label(w.sin())
            cos, sin = w.cos()[:, None, None], w.sin()[:, None, None]
            cross = (eye.roll(1, 0) - eye.roll(1, 1)) / math.sqrt(3)  # c -> v x c
            step = eye * cos + cross * sin + luma * (1 - cos)
            matrix, offset = _product(step, matrix), _product(step, offset)
        if self.saturation > 0:
            w = draws.label(draws.gate(draws.randn(), self.saturation))
            step = luma + (eye - luma) * torch.exp2(w * self.saturation_std)[:, None, None]
            matrix, offset = _product(step, matrix), _product(step, offset)
        return matrix, offset


def edm_preset(p: float) -> AugmentPipe:
    """The pipe of EDM training: a fair mirror flip of every image, five geometric operations with probability p."""
    return AugmentPipe(p=p, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)


class _Draws:
    """Random parameters of one batch, and the labels collected on the way.

    Draws are `[N]`, or `[count, N]` if a count is given. An operation first draws its parameter, then its gate.
    """

    def __init__(self, rng: TorchRNG, n: int, p: float) -> None:
        self.rng, self.n, self.p = rng, n, p
        self.labels: list[Tensor] = []

    def _shape(self, count: int | None) -> tuple[list[int], int]:
        return ([self.n], 0) if count is None else ([count, self.n], 1)

    def rand(self, count: int | None = None) -> Tensor:
        shape, batch_dim = self._shape(count)
        return self.rng.rand(shape, batch_dim=batch_dim)

    def randn(self, count: int | None = None) -> Tensor:
        shape, batch_dim = self._shape(count)
        return self.rng.randn(shape, batch_dim=batch_dim)

    def randint(self, high: int) -> Tensor:
        return self.rng.randint(high, [self.n])

    def gate(self, w: Tensor, multiplier: float) -> Tensor:
        """`w`, or 0 for the images the operation passes over."""
        return torch.where(self.rand() < multiplier * self.p, w, 0)

    def label(self, value: Tensor) -> Tensor:
        self.labels.append(value)
        return value


def _choose(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition[:, None, None, None], a, b)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of tiny matrices in full float32: coordinates would not survive reduced-precision matmul."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def _reflect(index: Tensor, size: int) -> Tensor:
    """Index into 0..size-1 after mirroring at the first and the last element."""
    period = max(2 * size - 2, 1)
    return size - 1 - (size - 1 - index % period).abs()


@lru_cache
def _taps(device: torch.device) -> Tensor:
    # One per device for the whole run: a fresh copy from the host would wait for the device.
    return torch.tensor(SYM6, device=device)


def _filter(index: Tensor) -> Tensor:
    """Coefficient of the low-pass filter at an integer index, 0 outside."""
    return torch.where((index >= 0) & (index < TAPS), _taps(index.device)[index.clamp(0, TAPS - 1)], 0.0)


def _upsampling(size: int, room: tuple[int, int], margin: Tensor) -> Tensor:
    """Matrix `[size, 2 (size + sum(room))]`: reflection padding, then twofold interpolation along an axis.

    `room` is how far the result extends before and after the image, `margin` (two integers on the device, at most
    `room`) how much of that is filled; the rest is zero.
    """
    padded = size + sum(room)
    first, last = room[0] - margin[0], room[0] + size + margin[1]
    k = torch.arange(padded, device=margin.device)[:, None]
    u = torch.arange(2 * padded, device=margin.device)
    kept = (k >= first) & (k < last) & (u >= 2 * first) & (u < 2 * last)
    interpolate = torch.where(kept, _filter(u - 2 * k + TAPS // 2 - 1), 0.0)
    source = _reflect(k[:, 0] - room[0], size)
    pixels = torch.arange(size, device=margin.device)[:, None]
    return (source == pixels).to(torch.float32) @ interpolate


def _downsampling(size: int, device: torch.device) -> Tensor:
    """Matrix `[2 (size + 2 PAD), size]`: low-pass filter, every second sample, without the padding."""
    t = torch.arange(2 * (size + 2 * PAD), device=device)[:, None]
    o = torch.arange(size, device=device)
    return _filter(t - 2 * (o + PAD) + TAPS // 2 - 1)


def _margins(matrix: Tensor, offset: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Padding (before, after) per axis x, y, as integers on the device, that covers what the whole batch reads.

    The corners of the farthest-reaching image count, plus room for both filters; more than one reflection is cut off.
    """
    half = [(s - 1) / 2 for s in size]
    reach = matrix[:, :, 0].abs() * half[0] + matrix[:, :, 1].abs() * half[1]
    beyond = torch.stack([reach - offset, reach + offset]).amax(dim=1)
    return [(beyond[:, axis] + (2 * PAD - half[axis])).clamp(0, size[axis] - 1).ceil().long() for axis in range(2)]


def _resample(x: Tensor, matrix: Tensor, offset: Tensor, static: bool) -> Tensor:
    """Apply inverse affine maps (see `AugmentPipe._affine`) with band-limited resampling and reflected borders.

    With `static`, shapes do not depend on the maps and nothing is read back from the device; same result, more work.
    """
    size = (x.shape[3], x.shape[2])
    margins = _margins(matrix, offset, size)
    rooms = [(s - 1, s - 1) for s in size] if static else [tuple(m.tolist()) for m in margins]
    up = [_upsampling(s, room, margin) for s, room, margin in zip(size, rooms, margins, strict=True)]
    fine = up[1].mT @ (x.float() @ up[0])
    # In half pixels from the centre. The even-length filters move content by half a sample, in `fine` and in the
    # output: sample j of the output's doubled axis stands for position j + 1 - (its length) / 2.
    px, py = (torch.arange(2 * (s + 2 * PAD), device=x.device) + (1 - s - 2 * PAD) for s in size)
    coordinates = []
    for axis, (before, after) in enumerate(rooms):
        shift = 2 * offset[:, axis] + (before - after - 0.5)
        position = matrix[:, axis, 0, None, None] * px + matrix[:, axis, 1, None, None] * py[:, None]
        coordinates.append((position + shift[:, None, None]) * (2 / fine.shape[3 - axis]))
    grid = torch.stack(coordinates, dim=-1)
    fine = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (_downsampling(size[1], x.device).mT @ (fine @ _downsampling(size[0], x.device))).to(x.dtype)


def _recolor(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Apply a colour map per image; grey images take the mean of the map's three rows."""
    if x.shape[1] == 1:
        matrix = matrix.mean(dim=1).sum(dim=1)[:, None, None]
        offset = offset.mean(dim=1, keepdim=True)
    return (matrix @ x.float().flatten(2) + offset).view_as(x).to(x.dtype)
