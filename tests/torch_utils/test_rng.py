"""Random streams: recorded draws per seed, independence of batches, positions and processes."""

from itertools import pairwise

import pytest
import torch
from golden_cases import cases

from torch_utils.rng import BLOCK, BatchRNG, PerSampleRNG, TorchRNG, fold_seed, seed_global


@pytest.mark.parametrize("case", cases("edm", "per_seed_draws"))
def test_recorded_draws(case):
    spec = case.spec
    rng = PerSampleRNG(spec["seeds"])
    shape = [len(spec["seeds"]), *spec["image_shape"]]
    for name in spec["draw_order"]:
        if name == "class_idx":
            own = rng.randint(spec["num_classes"], shape[:1])
        else:
            own = rng.randn(shape, dtype=getattr(torch, spec["draw_dtypes"][name]))
            assert own.dtype == getattr(torch, spec["draw_dtypes"][name])
        case.expect(name, own, drawn=name != "class_idx")


def test_a_seed_draws_the_same_in_any_company():
    alone, together = PerSampleRNG([7]), PerSampleRNG([1, 7, 7 + 2**32])
    for _ in range(2):
        a, b = alone.randn([1, 3, 2]), together.randn([3, 3, 2])
        assert torch.equal(a[0], b[1])
        assert torch.equal(b[1], b[2])
        assert not torch.equal(b[0], b[1])
    assert torch.equal(alone.rand([1, 4]), together.rand([3, 4])[1:2])


def test_batch_axis_elsewhere():
    a, b = PerSampleRNG([3, 4]).randn([2, 5]), PerSampleRNG([3, 4]).randn([5, 2], batch_dim=1)
    assert torch.equal(a, b.T)
    a, b = BatchRNG(0, 0, 3, 9).randn([6, 5]), BatchRNG(0, 0, 3, 9).randn([5, 6], batch_dim=1)
    assert (a.shape, b.shape) == ((6, 5), (5, 6))


def test_wrong_number_of_samples():
    for rng in (PerSampleRNG([3, 4]), BatchRNG(0, 0, 3, 5)):
        with pytest.raises(ValueError, match="holds 2 samples, asked for 3"):
            rng.randn([3, 5])


@pytest.mark.parametrize("draw", ["randn", "rand"])
def test_positions_of_a_global_batch_do_not_depend_on_who_draws_them(draw):
    n = 2 * BLOCK + 10
    whole = getattr(BatchRNG(5, 1000, 0, n), draw)([n, 3])
    cuts = [0, 3, BLOCK - 1, BLOCK, BLOCK + 1, n]
    parts = [getattr(BatchRNG(5, 1000, a, b), draw)([b - a, 3]) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique(dim=0)) == n


def test_second_draws_agree_too():
    a, b = BatchRNG(5, 0, 0, 10), BatchRNG(5, 0, 4, 8)
    a.randn([10, 3]), b.randn([4, 3])
    assert torch.equal(a.randint(1000, [10])[4:8], b.randint(1000, [4]))


@pytest.mark.parametrize("change", [{"seed": 6}, {"counter": 64}, {"stream": 1}])
def test_other_seed_counter_or_stream_is_another_stream(change):
    base = {"seed": 5, "counter": 0, "start": 0, "stop": 8}
    assert not torch.equal(BatchRNG(**base).rand([8]), BatchRNG(**{**base, **change}).rand([8]))


def test_no_state_is_shared_with_the_global_generator():
    state = torch.get_rng_state()
    PerSampleRNG([0]).randn([1, 2])
    BatchRNG(0, 0, 0, 4).randn([4])
    assert torch.equal(state, torch.get_rng_state())


def test_torch_rng_is_torch():
    torch.manual_seed(3)
    own = TorchRNG().randn([2, 3])
    torch.manual_seed(3)
    assert torch.equal(own, torch.randn(2, 3))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    x = torch.zeros(4, dtype=torch.float64)
    own = TorchRNG(generator=generators[0]).randn_like(x)
    assert torch.equal(own, torch.randn(4, dtype=torch.float64, generator=generators[1]))


def test_folded_seeds_differ_and_are_63_bit():
    seeds = {fold_seed(a, b) for a in range(50) for b in range(50)} | {fold_seed(-1), fold_seed(1, 2, 3)}
    assert len(seeds) == 2502
    assert all(0 <= s < 2**63 for s in seeds)
    assert fold_seed(1, 2) == fold_seed(1, 2)


def test_global_seed_is_torchs_and_queues_nothing():
    torch.manual_seed(7)
    expected = torch.randn(5)
    queued = len(torch.cuda._queued_calls)
    for _ in range(3):
        seed_global(7, torch.device("cpu"))
    assert torch.equal(torch.randn(5), expected)
    assert len(torch.cuda._queued_calls) == queued
