"""Dropout whose masks are a function of (seed, image counter, position in the global batch), like all other draws.

So they do not depend on how a batch is cut into rounds and processes, and nothing needs saving. Within `keyed(rng)` the
s-th dropout of a forward pass keeps element e of sample b where

    table[e] * a[b, s] + c[b, s]  mod 2^32  >=  p 2^32,       a odd,

a multiply-add hash (Dietzfelbinger 1996) of a fixed scrambled table with fresh random words (a, c) for every sample and
place: any two elements, samples or places are independent, and it costs two integer operations an element. Outside of
`keyed` these are torch's own draws.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.rng import TorchRNG

PLACES = 128  # drawn at once; part of the definition of the masks


class _Words:
    """Random words `[B, PLACES]` of one forward pass, and how many places have used theirs."""

    def __init__(self, rng: TorchRNG, batch: int) -> None:
        self.rng, self.batch, self.used = rng, batch, 0
        self.order: Tensor | None = None
        self.factors, self.shifts = self._draw()

    def _draw(self) -> Sequence[Tensor]:
        words = self.rng.randint(1 << 32, (self.batch, 2, PLACES)) - (1 << 31)
        return (words.int() | torch.tensor([[1], [0]], dtype=torch.int32, device=words.device)).unbind(1)

    def next(self) -> tuple[Tensor, Tensor]:
        """`[B]` odd factors and `[B]` shifts, int32."""
        place = self.used % PLACES
        if self.used and place == 0:
            self.factors, self.shifts = self._draw()
        self.used += 1
        words = self.factors[:, place], self.shifts[:, place]
        return words if self.order is None else tuple(word[self.order] for word in words)


_words: _Words | None = None


@contextmanager
def keyed(rng: TorchRNG, batch: int) -> Iterator[None]:
    """Draw the masks of one forward pass over `batch` samples from `rng`, a stream of its own."""
    global _words
    before, _words = _words, _Words(rng, batch)
    try:
        yield
    finally:
        _words = before


@contextmanager
def reordered(order: Tensor) -> Iterator[None]:
    """Within `keyed`: what is passed on are its samples in this order, `[B]` indices; their masks stay theirs."""
    if _words is None:
        yield
        return
    before, _words.order = _words.order, order
    try:
        yield
    finally:
        _words.order = before


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements of `x: [B, ...]` with probability p and divide the others by 1 - p; in training only.

    Within `keyed`, x must be the samples it was entered for, and the same places must be passed in the same order.
    """
    if not training or p == 0:
        return x
    if _words is None or p == 1:
        return F.dropout(x, p, True)
    # The operation that torch's own dropout has for its gradient: x * keep * scale in one pass, keeping one byte each.
    return torch.ops.aten.native_dropout_backward(x, _keep(x, p), 1 / (1 - p))


def _keep(x: Tensor, p: float) -> Tensor:
    if x.shape[0] != _words.batch:
        raise ValueError(f"this pass draws for {_words.batch} samples, and dropout is given {x.shape[0]}")
    factors, shifts = (word.reshape(-1, *[1] * (x.ndim - 1)) for word in _words.next())
    flat = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    table = _table(tuple(x.shape[1:]), torch.channels_last if flat else torch.contiguous_format, x.device)
    return torch.addcmul(shifts, table, factors) >= round(p * 2**32) - 2**31


@functools.lru_cache(maxsize=64)
def _table(shape: tuple[int, ...], memory_format: torch.memory_format, device: torch.device) -> Tensor:
    """Scrambled numbers of the elements of one sample, `[1, *shape]` int32, in the memory layout of the samples."""
    words = torch.arange(torch.Size(shape).numel(), device=device)
    for _ in range(2):
        words = ((words >> 16 ^ words) * 0x45D9F3B) & 0xFFFFFFFF
    words = (words >> 16 ^ words) - (1 << 31)
    return words.int().reshape(1, *shape).contiguous(memory_format=memory_format)


def rand_rows(x: Tensor) -> Tensor:
    """`[B, 1]` uniform in [0, 1), one number per sample of x; keyed as the masks are."""
    if _words is None:
        return torch.rand(x.shape[0], 1, device=x.device)
    return ((_words.next()[1].float() + 2.0**31) / 2**32).clamp(max=1 - 2**-24)[:, None]


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws as `dropout` does."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
