"""Sampler order and batches: golden data, slow twins, exact continuation, threads."""

import io
import threading
import time

import numpy as np
import pytest
import torch
from dataset_files import pixels, write_dataset, write_ten
from golden_cases import cases

from training.data import batches as data
from training.data.batches import Batches, ImageDataset, InfiniteSampler


@pytest.fixture
def archive(tmp_path):
    return write_ten(tmp_path / "ten.zip")


def sampler_of(case):
    names = ("rank", "num_replicas", "shuffle", "seed", "window_size")
    return InfiniteSampler(case.spec["n"], **{name: case.spec[name] for name in names})


@pytest.mark.parametrize("case", cases("edm", "infinite_sampler"))
def test_golden_order(case):
    count = case.spec["count"]
    case.expect("order", sampler_of(case).take(count))
    iterator = iter(sampler_of(case))
    case.expect("order", [next(iterator) for _ in range(count)])
    # In pieces, through a saved state after each.
    pieces, state = [], sampler_of(case).state_dict()
    for size in (1, 0, 3, count // 2, count - 4 - count // 2):
        other = InfiniteSampler(
            case.spec["n"], seed=7, **{k: case.spec[k] for k in ("rank", "num_replicas", "shuffle", "window_size")}
        )
        other.load_state_dict(state)
        pieces.append(other.take(size))
        state = other.state_dict()
    case.expect("order", np.concatenate(pieces))


# --- sampler ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 3, 50, 64, 1000, 640_585])
def test_drawing_in_bulk_is_the_same_stream(window):
    one, many = np.random.RandomState(3), np.random.RandomState(3)
    single = [one.randint(window) for _ in range(2000)]
    assert many.randint(window, size=1300).tolist() + many.randint(window, size=700).tolist() == single


def test_order_against_the_definition():
    n, count = 37, 500
    order, random = np.arange(n), np.random.RandomState(5)
    random.shuffle(order)
    window, expected = int(np.rint(n * 0.3)), []
    for index in range(count):
        i = index % n
        expected.append(order[i])
        j = (i - random.randint(window)) % n
        order[i], order[j] = order[j], order[i]
    assert InfiniteSampler(n, seed=5, window_size=0.3).take(count).tolist() == expected


def test_ranks_share_one_stream():
    parts = [InfiniteSampler(11, rank=r, num_replicas=3, seed=2).take(50) for r in range(3)]
    assert np.stack(parts, 1).ravel().tolist() == InfiniteSampler(11, seed=2).take(150).tolist()


def test_state_survives_the_safe_loader():
    sampler, file = InfiniteSampler(20, seed=1), io.BytesIO()
    sampler.take(33)
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other = InfiniteSampler(20)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.take(99).tolist() == sampler.take(99).tolist()
    with pytest.raises(ValueError, match="20 items, this one has 21"):
        InfiniteSampler(21).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize(
    "bad",
    [{"n": 0}, {"n": 4, "rank": 1}, {"n": 4, "window_size": 1.5}, {"n": 4, "seed": -1}, {"n": 4, "seed": 1 << 32}],
)
def test_bad_sampler_arguments(bad):
    with pytest.raises(ValueError, match="a sampler takes"):
        InfiniteSampler(bad.pop("n"), **bad)


# --- batches ----------------------------------------------------------------------------------------------------------


def expected_batches(dataset, batch_size, seed, count):
    order = InfiniteSampler(len(dataset), seed=seed).take(batch_size * count)
    images, labels = zip(*(dataset[int(i)] for i in order), strict=True)
    images, labels = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


@pytest.fixture(params=["device", "host", "files"])
def storage(request, monkeypatch):
    """The three ways to hold images, all with the same results. On a CPU "host" is forced: memory is the device."""
    if request.param == "host":
        monkeypatch.setattr(data, "_storage", lambda *_: "host")
    return request.param


@pytest.mark.parametrize("options", [{}, {"use_labels": True}, {"use_labels": True, "xflip": True, "max_size": 7}])
def test_batches_follow_the_sampler(archive, storage, options):
    dataset = ImageDataset(archive, **options)
    batches = Batches(dataset, 6, seed=3, cache=storage != "files", workers=2)
    assert batches.storage == storage
    for images, labels in expected_batches(dataset, 6, 3, 8):
        own_images, own_labels = batches.next()
        assert own_images.dtype == torch.uint8
        assert torch.equal(own_images, images)
        assert torch.equal(own_labels, labels)
    batches.close()


def test_processes_share_one_stream(archive, storage):
    dataset = ImageDataset(archive, use_labels=True, xflip=True)
    parts = [Batches(dataset, 8, rank=r, world=4, seed=1, cache=storage != "files") for r in range(4)]
    whole = Batches(dataset, 8, seed=1, cache=storage != "files")
    for _ in range(5):
        own = [part.next() for part in parts]
        reference = whole.next()
        assert [i.shape[0] for i, _ in own] == [2] * 4
        for k in range(2):
            assert torch.equal(torch.cat([o[k] for o in own]), reference[k])
    states = [b.state_dict() for b in (*parts, whole)]
    assert len({s["position"] for s in states}) == 1
    for batches in (*parts, whole):
        batches.close()


def test_prefetched_batches_do_not_count(archive, storage):
    dataset = ImageDataset(archive, use_labels=True)
    batches = Batches(dataset, 4, seed=9, cache=storage != "files")
    for _ in range(5):
        batches.next()
    time.sleep(0.2)  # the thread works ahead
    state = batches.state_dict()
    assert state["position"] == 20
    rest = [batches.next() for _ in range(6)]
    batches.load_state_dict(state)  # in place, and into a new object
    again = Batches(dataset, 4, seed=0, cache=storage != "files")
    again.load_state_dict(state)
    for images, labels in rest:
        for other in (batches, again):
            own = other.next()
            assert torch.equal(own[0], images)
            assert torch.equal(own[1], labels)
    batches.close()
    again.close()


def test_state_continues_with_another_number_of_processes(archive):
    dataset = ImageDataset(archive)
    two = Batches(dataset, 4, rank=1, world=2, seed=4)
    one = Batches(dataset, 4, seed=4)
    for _ in range(3):
        two.next()
        one.next()
    other = Batches(dataset, 4, seed=0)
    other.load_state_dict(two.state_dict())
    assert torch.equal(other.next()[0], one.next()[0])


def test_errors_of_the_thread_reach_the_caller(tmp_path):
    path = write_dataset(
        tmp_path / "a.zip", {f"{i}.png": p for i, p in enumerate([pixels(4) for _ in range(3)])} | {"9.png": pixels(8)}
    )
    batches = Batches(ImageDataset(path), 4, cache=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"9\.png"):
            batches.next()
    batches.close()
    with pytest.raises(ValueError, match=r"9\.png"):
        Batches(ImageDataset(path), 4)


def test_close_ends_the_threads(archive):
    before = threading.active_count()
    batches = Batches(ImageDataset(archive), 4, cache=False, workers=3)
    first = batches.next()[0]
    assert threading.active_count() > before
    batches.close()
    batches.close()
    assert threading.active_count() == before
    assert not torch.equal(batches.next()[0], first)  # goes on after the first batch
    batches.close()


def test_images_that_do_not_fit_are_read_from_files(archive, monkeypatch, capsys):
    monkeypatch.setattr(data, "_host_memory", lambda: 100.0)
    assert Batches(ImageDataset(archive), 4).storage == "files"
    assert "do not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    "bad",
    [{"batch_size": 0}, {"batch_size": 5, "world": 2}, {"batch_size": 4, "rank": 1}, {"batch_size": 4, "workers": 0}],
)
def test_bad_batch_arguments(archive, bad):
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        Batches(ImageDataset(archive), **bad)


@pytest.mark.gpu
@pytest.mark.parametrize("forced", ["device", "host", "files"])
def test_gpu_batches_equal_those_of_the_cpu_and_never_wait(archive, forced, monkeypatch):
    dataset = ImageDataset(archive, use_labels=True, xflip=True)
    reference = expected_batches(dataset, 6, 3, 6)
    if forced == "host":
        monkeypatch.setattr(data, "SHARE_OF_GPU", 0.0)
    batches = Batches(dataset, 6, seed=3, device="cuda", cache=forced != "files")
    assert batches.storage == forced
    own = [batches.next()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        own += [batches.next() for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (ref_images, ref_labels) in zip(own, reference, strict=True):
        assert images.is_cuda
        assert torch.equal(images.cpu(), ref_images)
        assert torch.equal(labels.cpu(), ref_labels)
    batches.close()
