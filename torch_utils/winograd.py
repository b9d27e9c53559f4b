"""3x3 convolutions on a CPU in a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

A 4x4 tile of the output depends on a 6x6 tile of the input. Both, and the weights, are seen as polynomials and
multiplied by their values at six points per axis (Lavin and Gray 2016, arXiv 1509.09308):

    Y = A^T [(G g G^T) * (B^T d B)] A      36 products of [tiles, C] and [C, O] instead of 144 multiplications per tile

The points are 0, +-5/8, +-3/2 and infinity instead of the usual 0, +-1, +-2: with them the rounding error in float32 is
that of a direct convolution (1.1e-6 against 0.9e-6 of the result's norm at 256 channels; the usual points 2.4e-6).

Layout is channels_last throughout. First derivatives are Winograd's too; where a derivative shall itself be
differentiated, PyTorch's own convolution steps in.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils import products

TILE = 4  # pixels of the output per axis and tile
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
CHANNELS = 128
LEAST = {"AVX2": (CHANNELS, 16), "AVX512": (192, 32)}  # fewer channels or pixels do not repay the transforms
_NEVER = (math.inf, math.inf)
_CHUNK = 256  # tiles at a time, so that their transforms stay in the cache


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` is the faster way for `x [N, C, H, W]` and `weight [O, C, k, k]` with k // 2 padding.

    It depends on sizes of one sample alone, so that a sample's numbers do not depend on its batch. With AVX-512 it
    needs oneDNN's matrix products (`torch_utils/products.py`): with MKL's on AMD a direct convolution is as fast.
    """
    if torch.compiler.is_compiling():  # the compiler cannot look into the questions that follow
        return False
    channels, size = _least()
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= channels
        and min(x.shape[2:]) >= size
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


@functools.cache
def _least() -> tuple[float, float]:
    """Channels and pixels of a side from which on it pays on this processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    usable = capability == "AVX2" or products.fast_in_batches()
    return LEAST.get(capability, _NEVER) if usable else _NEVER


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` in float32, in channels_last.

    Args:
        x: `[N, C, H, W]`.
        weight: `[O, C, 3, 3]`.
        bias: `[O]`.

    Returns:
        `[N, O, H, W]`.
    """
    return _Convolution.apply(x, weight, bias)


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T `[4, 6]`, G `[6, 3]` and B^T `[6, 6]` of one axis: y = A^T [(G g) * (B^T d)], float64.

    For POINTS p_i and infinity, with N_i the product of p_i - p_j: A^T and G hold powers of the points (G over N_i),
    B^T the coefficients of the polynomials prod_{j != i} (t - p_j), and of the product over all j.
    """
    p = np.asarray(POINTS)
    others = [np.delete(p, i) for i in range(len(p))]
    n = np.array([np.prod(q - rest) for q, rest in zip(p, others, strict=True)])
    at = np.vander(p, TILE, increasing=True).T
    g = np.vander(p, 3, increasing=True) / n[:, None]
    bt = np.array([[*np.poly(rest)[::-1], 0.0] for rest in others] + [np.poly(p)[::-1]])
    at, g = np.c_[at, np.eye(TILE)[-1]], np.r_[g, np.eye(3)[-1:]]
    return at, g, bt


@functools.cache
def _both_axes() -> tuple[Tensor, Tensor, Tensor]:
    """A^T `[16, 36]`, G `[36, 9]` and B^T `[36, 36]` of both axes."""
    return tuple(torch.from_numpy(np.kron(m, m)).float() for m in matrices())


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, weight)
        return _filtered(x, _transformed(weight).mT, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN001
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            ones, bias = [1, 1], [weight.shape[0]]
            options = (bias, ones, ones, ones, False, [0, 0], 1, wanted)
            return torch.ops.aten.convolution_backward(grad, x, weight, *options)
        return (
            _filtered(grad, _transformed(weight, flipped=True)) if wanted[0] else None,
            _weight_gradient(x, grad) if wanted[1] else None,
            grad.sum((0, 2, 3)) if wanted[2] else None,
        )


def _transformed(weight: Tensor, flipped: bool = False) -> Tensor:
    """Weights at the points, `[36, O, C]`; `flipped` mirrors them in both axes, as the gradient of the input wants."""
    _, g, _ = _both_axes()
    values = products.matmul(g.flip(1) if flipped else g, weight.permute(2, 3, 0, 1).reshape(9, -1))
    return values.view(36, *weight.shape[:2])


def _filtered(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [N, C, H, W]` convolved with transformed `weights [36, C, O]` -> `[N, O, H, W]`."""
    at, _, _ = _both_axes()
    n, _, height, width = x.shape
    rows, cols, channels = -(-height // TILE), -(-width // TILE), weights.shape[2]
    out = x.new_empty(n, rows, TILE, cols, TILE, channels)
    for part in _parts(n, rows * cols):
        values = products.batched(_values(x[part]), weights).flatten(1)
        tiles = products.matmul(at, values).view(TILE, TILE, -1, rows, cols, channels).permute(2, 3, 0, 4, 1, 5)
        if bias is None:
            out[part].copy_(tiles)
        else:
            torch.add(tiles, bias, out=out[part])
    out = out.view(n, rows * TILE, cols * TILE, channels)[:, :height, :width].contiguous()
    return out.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the weights `[O, C, 3, 3]` from that of the output `[N, O, H, W]`."""
    at, g, _ = _both_axes()
    n, channels, height, width = grad.shape
    rows, cols = -(-height // TILE), -(-width // TILE)
    grad = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, cols * TILE - width, 0, rows * TILE - height))
    total = x.new_zeros(36, channels, x.shape[1])
    for part in _parts(n, rows * cols):
        tiles = grad[part].reshape(-1, rows, TILE, cols, TILE, channels).permute(2, 4, 0, 1, 3, 5)
        values = products.matmul(at.mT.contiguous(), tiles.reshape(TILE**2, -1)).view(36, -1, channels)
        products.add_batched(total, values.mT, _values(x[part]))
    gradient = products.matmul(g.mT.contiguous(), total.flatten(1)).view(3, 3, channels, -1)
    return gradient.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _values(x: Tensor) -> Tensor:
    """The overlapping 6x6 tiles of `x [N, C, H, W]` at the points: `[36, tiles, C]`."""
    _, _, bt = _both_axes()
    n, channels, height, width = x.shape
    rows, cols = -(-height // TILE), -(-width // TILE)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, cols * TILE - width + 1, 1, rows * TILE - height + 1)).contiguous()
    sample, row, column, _ = x.stride()
    shape = (n, rows, cols, TILE + 2, TILE + 2, channels)
    tiles = x.as_strided(shape, (sample, TILE * row, TILE * column, row, column, 1))
    return products.matmul(bt, tiles.permute(3, 4, 0, 1, 2, 5).reshape(36, -1)).view(36, -1, channels)


def _parts(n: int, tiles: int) -> list[slice]:
    """Slices of a batch of `n` samples with `tiles` tiles each, so that a slice has at most `_CHUNK` tiles."""
    size = max(_CHUNK // tiles, 1)
    return [slice(i, i + size) for i in range(0, n, size)]
