"""Explicit random streams: one per image seed when sampling, one per global batch position when training.

Three sources share one interface (`randn`, `rand`, `randint`, `randn_like`), so that losses, augmentation and samplers
take an `rng` and do not know which it is:

- `TorchRNG`: torch's global generator (or one given), for interactive use and for golden data.
- `PerSampleRNG(seeds)`: one generator per image; image 17 is the same image in any batch on any number of processes.
- `BatchRNG(seed, counter, rows)`: a pure function of `(seed, image counter, position in the global batch)`. It has no
  state to save: a resumed run, or one on another number of processes, draws the same numbers. Draws are made in blocks
  of `BLOCK` positions, so that a process computes at most two partial blocks it does not own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_SHARED = 1 << 32  # in the place of a block: what all positions of a step share
BLOCK = 64  # positions per generator of BatchRNG; part of the definition of the stream, never change it


def fold_seed(*words: int) -> int:
    """Mix integers into one well-distributed 63-bit seed (numpy's SeedSequence hash)."""
    state = np.random.SeedSequence([w & 0xFFFFFFFFFFFFFFFF for w in words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`, for every step of a run.

    `torch.manual_seed` would queue each call, with its stack, for GPUs that a machine does not have.
    """
    torch.default_generator.manual_seed(seed)
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).manual_seed(seed)


class TorchRNG:
    """Draws from `generator`, or from torch's global one. `batch_dim` is accepted and has no effect."""

    def __init__(self, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> None:
        self.device = torch.device(device)
        self.generator = generator

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, batch_dim: int = 0) -> torch.Tensor:
        return torch.randn(list(shape), dtype=dtype, device=self.device, generator=self.generator)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, batch_dim: int = 0) -> torch.Tensor:
        return torch.rand(list(shape), dtype=dtype, device=self.device, generator=self.generator)

    def randint(self, high: int, shape: Sequence[int], batch_dim: int = 0) -> torch.Tensor:
        return torch.randint(high, list(shape), device=self.device, generator=self.generator)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        return self.randn(x.shape, dtype=x.dtype)

    def rand_shared(self) -> torch.Tensor:
        """One uniform number for the whole batch, `[]`."""
        return torch.rand([], device=self.device, generator=self.generator)

    def positions(self, batch: int) -> range:
        """Places in the global batch of the `batch` rows that are drawn for."""
        return range(batch)


class _SplitRNG(TorchRNG):
    """Several generators, each owning `sizes[i]` consecutive positions of the batch axis, `keep[i]` of them wanted."""

    def __init__(
        self, generators: list[torch.Generator], sizes: list[int], keep: list[slice], device: torch.device
    ) -> None:
        super().__init__(device)
        self.generators = generators
        self.sizes = sizes
        self.keep = keep
        self.batch = sum(len(range(n)[k]) for n, k in zip(sizes, keep, strict=True))

    def _draw(self, draw, shape: Sequence[int], batch_dim: int, **options) -> torch.Tensor:  # noqa: ANN001, ANN003
        shape = list(shape)
        if shape[batch_dim] != self.batch:
            raise ValueError(f"this random stream holds {self.batch} samples, asked for {shape[batch_dim]}")
        parts = []
        for generator, size, keep in zip(self.generators, self.sizes, self.keep, strict=True):
            shape[batch_dim] = size
            part = draw(size=shape, generator=generator, device=self.device, **options)
            parts.append(part[(slice(None),) * batch_dim + (keep,)])
        return torch.cat(parts, dim=batch_dim) if len(parts) > 1 else parts[0]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, batch_dim: int = 0) -> torch.Tensor:
        return self._draw(torch.randn, shape, batch_dim, dtype=dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, batch_dim: int = 0) -> torch.Tensor:
        return self._draw(torch.rand, shape, batch_dim, dtype=dtype)

    def randint(self, high: int, shape: Sequence[int], batch_dim: int = 0) -> torch.Tensor:
        return self._draw(torch.randint, shape, batch_dim, high=high)


class PerSampleRNG(_SplitRNG):
    """One generator per sample, seeded with `seed mod 2^32`.

    `device` is where the generators live: numbers drawn on CPU and CUDA differ for the same seed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.seeds = [int(s) for s in seeds]
        generators = [torch.Generator(device).manual_seed(s % (1 << 32)) for s in self.seeds]
        super().__init__(generators, [1] * len(generators), [slice(0, 1)] * len(generators), device)

    def _draw(self, draw, shape: Sequence[int], batch_dim: int, **options) -> torch.Tensor:  # noqa: ANN001, ANN003
        # A sample's numbers are drawn without the batch axis: the definition shared with the published samplers.
        shape = list(shape)
        n = shape.pop(batch_dim)
        if n != self.batch:
            raise ValueError(f"this random stream holds {self.batch} samples, asked for {n}")
        parts = [draw(size=shape, generator=g, device=self.device, **options) for g in self.generators]
        return torch.stack(parts, dim=batch_dim)


class BatchRNG(_SplitRNG):
    """Numbers for positions `start..stop-1` of the global batch that begins at image `counter` of the run `seed`.

    `stream` separates independent uses within one step (loss, data augmentation, a second phase).
    """

    def __init__(
        self, seed: int, counter: int, start: int, stop: int, device: torch.device | str = "cpu", stream: int = 0
    ) -> None:
        device = torch.device(device)
        blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
        generators = [torch.Generator(device).manual_seed(fold_seed(seed, counter, b, stream)) for b in blocks]
        keep = [slice(max(start - b * BLOCK, 0), min(stop - b * BLOCK, BLOCK)) for b in blocks]
        super().__init__(generators, [BLOCK] * len(generators), keep, device)
        self.rows = range(start, stop)
        self._shared = torch.Generator(device).manual_seed(fold_seed(seed, counter, _SHARED, stream))

    def rand_shared(self) -> torch.Tensor:
        return torch.rand([], device=self.device, generator=self._shared)

    def positions(self, batch: int) -> range:
        return self.rows
