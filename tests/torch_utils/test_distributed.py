"""Helpers around process groups that need no processes."""

import threading

import pytest
import torch.distributed as dist

from torch_utils.distributed import fresh_store, from_rank0, rank0_first


@pytest.mark.parametrize("world", [1, 2, 5])
def test_processes_of_one_attempt_find_each_other_in_a_used_store(world):
    """Earlier attempts left questions, answers and addresses, some of them by processes that died half way."""
    store = dist.HashStore()
    names = []
    for attempt in range(3):
        for rank in range(1, world, 2):
            store.set(f"fewstep/ask/{rank}", f"dead{attempt}")
            store.set(f"fewstep/answer/dead{attempt}", "old")
        parts = [None] * world

        def join(rank, parts=parts):
            parts[rank] = fresh_store(store, rank, world)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(world))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert None not in parts
        assert not parts[-1].check(["address"])
        parts[0].set("address", str(attempt))
        names += [part.get("address").decode() for part in parts]
    assert names == [str(attempt) for attempt in range(3) for _ in range(world)]


def test_alone():
    assert from_rank0(lambda: 3) == 3
    assert rank0_first(lambda: 4) == 4
    with pytest.raises(ValueError, match="wrong"):
        from_rank0(lambda: (_ for _ in ()).throw(ValueError("wrong")))
