"""Timing of steps and of waiting, with a clock and buckets that the test makes itself."""

import pytest
import torch

from training.loop import sync_timer
from training.loop.sync_timer import StepTimes, SyncTimer


class Bucket:
    def __init__(self, last):
        self.last = last

    def is_last(self):
        return self.last


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(sync_timer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sync_timer, "allreduce_hook", lambda group, bucket: f"reduced {bucket.last}")

    def passes(seconds):
        now[0] += seconds

    return passes


def step(timer, clock, compute, wait, images=8):
    timer.begin()
    clock(compute - 1)
    assert timer.hook(None, Bucket(last=False)) == "reduced False"
    clock(0.5)
    assert timer.hook(None, Bucket(last=True)) == "reduced True"
    clock(wait)
    timer.synchronised()
    clock(0.5)
    timer.end(images)
    clock(7)  # between steps: files, metrics


def test_only_the_time_after_the_last_bucket_is_waiting(clock):
    timer = SyncTimer(torch.device("cpu"))
    step(timer, clock, compute=3, wait=1)
    step(timer, clock, compute=2, wait=2)
    times = timer.collect()
    assert times == StepTimes(seconds=8, waiting=3, images=16)
    assert times.share == pytest.approx(3 / 8)
    assert times.images_per_second == pytest.approx(16 / 5)
    assert timer.collect() == StepTimes(0, 0, 0)


def test_a_step_with_several_backward_passes(clock):
    timer = SyncTimer(torch.device("cpu"))
    timer.begin()
    for _ in range(2):
        clock(1)
        timer.hook(None, Bucket(last=True))
        clock(0.25)
        timer.synchronised()
    timer.end(4)
    assert timer.collect() == StepTimes(2.5, 0.5, 4)


def test_long_ticks_are_sampled(clock):
    timer = SyncTimer(torch.device("cpu"))
    for _ in range(2 * sync_timer._MAX_STEPS):
        step(timer, clock, compute=2, wait=1, images=1)
    times = timer.collect()
    assert times.images == sync_timer._MAX_STEPS
    assert times.share == pytest.approx(1 / 3)


def test_figures_of_nothing():
    assert StepTimes(0, 0, 0).share == 0
    assert StepTimes(0, 0, 0).images_per_second == 0
