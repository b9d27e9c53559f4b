"""Moments, the stats file and its rewinding."""

import json

import numpy as np
import torch

from torch_utils.stats import Collector, StatsFile, Tee


def test_moments_match_numpy():
    rng = np.random.RandomState(0)
    values = [rng.randn(7), rng.randn(3, 5), rng.randn(1)]
    collector = Collector()
    for v in values:
        collector.report("x", torch.from_numpy(v))
    collector.report("scalar", 200000.512)
    flat = np.concatenate([v.ravel() for v in values])
    stats = collector.collect()
    assert stats["x"]["num"] == 23
    np.testing.assert_allclose([stats["x"]["mean"], stats["x"]["std"]], [flat.mean(), flat.std()], rtol=1e-12)
    assert stats["scalar"] == {"num": 1, "mean": 200000.512, "std": 0.0}
    assert collector.collect() == {}


def test_state_continues_a_tick():
    a, b = Collector(), Collector()
    a.report("x", torch.ones(3))
    b.load_state_dict(a.state_dict())
    for c in (a, b):
        c.report("x", torch.zeros(1))
    assert a.collect() == b.collect()


def test_stats_file_rewinds(tmp_path):
    path = tmp_path / "stats.jsonl"
    file = StatsFile(path)
    file.write({"a": 1})
    size = file.size
    file.write({"a": 2})
    file.close()
    file = StatsFile(path, size)
    file.write({"a": 3})
    file.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 3]


def test_tee_copies_and_restores(tmp_path, capsys):
    with Tee(tmp_path / "log.txt"):
        print("hello")
    print("outside")
    assert capsys.readouterr().out == "hello\noutside\n"
    assert (tmp_path / "log.txt").read_text() == "hello\n"
