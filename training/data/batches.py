"""Data for training: the endless shuffled order, and batches of images and labels on the device.

`InfiniteSampler` is the index stream of published EDM code (Karras et al. 2022, arXiv 2206.00364): every image comes
about equally often, and no pass repeats the order of the last. `Batches` cuts one stream into global batches of which
each process takes its slice: which images make up a step does not depend on the number of processes.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.distributed import print0
from torch_utils.misc import format_count
from training.data.image_dataset import ImageDataset

SHARE_OF_GPU = 0.25  # of its free memory that images may take; network, gradients and activations come later
SHARE_OF_HOST = 0.5
BATCHES_AHEAD = 3


class InfiniteSampler:
    """Endless stream of indices below `n`; with several replicas each gets every `num_replicas`-th of one stream.

    The order starts as a random permutation. After index `i` of a pass was emitted, it changes places with one of the
    `round(n * window_size)` entries before it, so that the next pass differs while an image stays about where it was.

    Args:
        n: number of items.
        rank, num_replicas: which part of the stream.
        shuffle: False gives 0, 1, ..., n-1, 0, ...
        seed: 0..2**32-1.
        window_size: fraction of `n`, 0..1; below two entries the same permutation repeats.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(
        self,
        n: int,
        *,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
    ) -> None:
        if n < 1 or not 0 <= rank < num_replicas or not 0 <= window_size <= 1 or not 0 <= seed < 1 << 32:
            raise ValueError(
                f"a sampler takes n >= 1, 0 <= rank < num_replicas, 0 <= window_size <= 1 and 0 <= seed < 2**32; got "
                f"n={n}, rank={rank}, num_replicas={num_replicas}, window_size={window_size}, seed={seed}"
            )
        self.n, self.rank, self.num_replicas = n, rank, num_replicas
        self._random = np.random.RandomState(seed)
        order = np.arange(n, dtype=np.int64)
        if shuffle:
            self._random.shuffle(order)
        self._order = array("q", order.tobytes())
        self._window = int(np.rint(n * window_size)) if shuffle else 0
        self._position = 0  # in the common stream

    def take(self, count: int) -> np.ndarray:
        """The next `count` indices of this rank, int64."""
        if count < 1:
            return np.empty(0, dtype=np.int64)
        first = (self.rank - self._position) % self.num_replicas
        return self._advance(first + (count - 1) * self.num_replicas + 1)[first :: self.num_replicas]

    def _advance(self, count: int) -> np.ndarray:
        start, self._position = self._position, self._position + count
        if self._window < 2:
            return np.frombuffer(self._order, np.int64)[(start + np.arange(count)) % self.n]
        order, n, i = self._order, self.n, start % self.n
        emitted = array("q")
        # One call draws the same numbers as `count` single ones: a test holds numpy to that.
        for back in self._random.randint(self._window, size=count).tolist():
            index = order[i]
            emitted.append(index)
            j = i - back  # at least -n, and negative positions count from the end
            order[i] = order[j]
            order[j] = index
            i += 1
            if i == n:
                i = 0
        return np.array(emitted)

    def __iter__(self) -> Iterator[int]:
        while True:
            yield int(self.take(1)[0])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; tensors and integers only."""
        _, key, position, *_ = self._random.get_state(legacy=True)
        return {
            "n": self.n,
            "position": self._position,
            "order": torch.from_numpy(np.array(self._order)),
            "random_key": torch.from_numpy(key.astype(np.int64)),
            "random_position": int(position),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to a data set of another size.
        """
        if state["n"] != self.n:
            raise ValueError(
                f"the state was written with a data set of {state['n']} items, this one has {self.n}: "
                "continue with the same data and the same --xflip"
            )
        self._position = state["position"]
        self._order = array("q", state["order"].cpu().numpy().tobytes())
        key = state["random_key"].cpu().numpy().astype(np.uint32)
        self._random.set_state(("MT19937", key, state["random_position"]))


class Batches:
    """Batches on the device, without end: `next()` gives this process's slice of the next global batch.

    Cached images lie decoded on the device if they take at most a quarter of its free memory, else decoded in host
    memory, from where a thread gathers batches ahead; failing both, and without `cache`, threads decode files ahead.

    Args:
        dataset: the images.
        batch_size: of all processes together.
        rank, world: this process and the number of processes.
        seed: of the order.
        device: where batches are wanted.
        cache: keep decoded images in memory.
        workers: threads that decode where images are not cached.

    Attributes:
        storage: "device", "host" or "files".
        draw: `(stored, rng) -> data` of data sets whose items are drawn from; None: items are the data.

    Raises:
        ValueError: `batch_size` not divisible by `world`, or an image that cannot be used.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cache: bool = True,
        workers: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world or not 0 <= rank < world or workers < 1:
            raise ValueError(
                f"the batch size must be a multiple of the number of processes, and workers at least 1; got "
                f"batch_size={batch_size}, rank={rank}, world={world}, workers={workers}"
            )
        self._dataset, self._batch_size = dataset, batch_size
        self.draw = getattr(dataset, "draw", None)
        self._rank, self._world, self._seed = rank, world, seed
        self._twins: list[Batches] = []
        self._own = slice(rank * (batch_size // world), (rank + 1) * (batch_size // world))
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._sampler = InfiniteSampler(len(dataset), seed=seed)
        self._ahead: _Ahead | None = None
        self._workers = workers
        self.storage = _storage(dataset, self._device) if cache else "files"
        self._images: Tensor | None = None
        self._targets = dataset.targets()
        if self.storage == "device":
            self._images, self._targets = dataset.images().to(self._device), self._targets.to(self._device)
            if self._device.type != "cpu":
                dataset.drop_images()
        elif self.storage == "host":
            self._images = dataset.images()

    def next(self) -> tuple[Tensor, Tensor]:
        """Images uint8 `[b,C,H,W]` and labels float32 `[b,label_dim]` on the device, `b = batch_size // world`.

        Points are float32, latents as they are stored, see `draw`.
        """
        if self.storage == "device":
            items = self._to_device(torch.from_numpy(self._next_items(self._sampler)))
            return self._gather(items)
        if self._ahead is None:
            copy = InfiniteSampler(self._sampler.n)
            copy.load_state_dict(self._sampler.state_dict())
            self._ahead = _Ahead(self._stream(copy))
        images, labels = self._ahead.get()
        self._next_items(self._sampler)  # only what was handed out counts as seen
        return self._to_device(images), self._to_device(labels)

    def twin(self, batch_size: int) -> Batches:
        """A second stream in the same order over the same decoded images, in batches of another size.

        Raises:
            ValueError: `batch_size` not divisible by the number of processes.
        """
        if batch_size < 1 or batch_size % self._world:
            raise ValueError(f"a batch of {batch_size} cannot be shared equally by {self._world} processes")
        twin = copy.copy(self)
        share = batch_size // self._world
        twin._batch_size, twin._own = batch_size, slice(self._rank * share, (self._rank + 1) * share)
        twin._sampler, twin._ahead, twin._twins = InfiniteSampler(len(self._dataset), seed=self._seed), None, []
        self._twins.append(twin)
        return twin

    def _next_items(self, sampler: InfiniteSampler) -> np.ndarray:
        return sampler.take(self._batch_size)[self._own]

    def _stream(self, sampler: InfiniteSampler) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in host memory, pinned if they will travel; runs in the thread that works ahead."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a new thread would pin memory on behalf of the first GPU
        with ThreadPoolExecutor(self._workers) as pool:
            while True:
                items = self._next_items(sampler)
                if self.storage == "host":
                    batch = self._gather(torch.from_numpy(items))
                else:
                    images, labels = zip(*pool.map(self._dataset.__getitem__, items.tolist()), strict=True)
                    batch = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
                yield tuple(t.pin_memory() for t in batch) if self._device.type == "cuda" else batch

    def _gather(self, items: Tensor) -> tuple[Tensor, Tensor]:
        n = self._dataset.num_images
        rows = items % n
        own = len(self._images) == len(self._dataset)  # mirrored ones, where there are any, are stored as well
        images = self._images.index_select(0, items if own else rows)
        if not own:
            images = torch.where((items >= n)[:, None, None, None], images.flip(-1), images)
        return images, self._dataset.encode_labels(self._targets.index_select(0, rows))

    def _to_device(self, x: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return x.to(self._device)
        return (x if x.is_pinned() else x.pin_memory()).to(self._device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly there; another number of processes or batch size is fine."""
        self._sampler.load_state_dict(state)
        self.close()

    def close(self) -> None:
        """Stop working ahead, here and in twins; the next `next()` starts it again."""
        for twin in self._twins:
            twin.close()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class _Ahead:
    """Runs an iterator in a thread, up to `BATCHES_AHEAD` values ahead; its errors appear in `get`."""

    def __init__(self, values: Iterator[Any]) -> None:
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(BATCHES_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(values,), daemon=True)
        self._thread.start()

    def _run(self, values: Iterator[Any]) -> None:
        try:
            for value in values:
                self._put((value, None))
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._put((None, error))
        finally:
            values.close()

    def _put(self, entry: tuple[Any, BaseException | None]) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._queue.put(entry, timeout=0.1)
                return

    def get(self) -> Any:
        value, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # every later call fails as well, instead of waiting for a dead thread
            raise error
        return value

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _storage(dataset: ImageDataset, device: torch.device) -> str:
    size = getattr(dataset, "nbytes", dataset.num_images * int(np.prod(dataset.image_shape)))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size * processes > SHARE_OF_HOST * _host_memory():
        print0(f"The decoded images ({format_count(size)}B) do not fit into memory: reading files instead")
        return "files"
    if device.type == "cuda" and size > SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
        print0(f"The decoded images ({format_count(size)}B) stay in host memory: they would fill too much of the GPU")
        return "host"
    return "device"


def _host_memory() -> float:
    """Bytes that could be allocated: available memory, a container's limit; infinite where the system does not say."""
    found = [float("inf")]
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        found.append(1024.0 * int(text.split("MemAvailable:")[1].split()[0]))
    with suppress(OSError, ValueError):  # the file says "max" where there is no limit
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)
