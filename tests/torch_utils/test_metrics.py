"""KID, precision and recall, Inception score: golden numbers, definitions written out, and half-widths that hold."""

import math
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from golden_cases import cases

import torch_utils.metrics as m
from torch_utils.frechet import Moments

GOLDEN = cases("metrics", "metrics")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments(rows):
    return Moments(rows.mean(0), rows.T.cov(), num=len(rows))


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_kid(case):
    x, y, expect = case.tensor("features1"), case.tensor("features2"), case.spec["expect"]
    figure = m.kid(x, y, case.spec["kid_subsets"], case.spec["kid_subset_size"])
    assert figure.value == pytest.approx(expect["kid_mean"], rel=1e-5, abs=1e-6)
    assert figure.std == pytest.approx(expect["kid_std"], rel=1e-5, abs=1e-6)
    assert m.kid_full(x, y).value == pytest.approx(expect["kid_full"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_precision_and_recall(case):
    x, y, expect = case.tensor("features1"), case.tensor("features2"), case.spec["expect"]
    p, r = (f.value for f in m.precision_recall(x, y, case.spec["k"]))
    assert p == pytest.approx(expect["precision"], abs=1 / len(x))
    assert r == pytest.approx(expect["recall"], abs=1 / len(y))
    assert 2 * p * r / (p + r) == pytest.approx(expect["f_score"], abs=1 / min(len(x), len(y)))


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_inception_score(case):
    expect = case.spec["expect"]
    figure = m.inception_score(case.tensor("logits"), case.spec["isc_splits"])
    assert figure.value == pytest.approx(expect["isc_mean"], abs=1e-5)
    assert figure.std == pytest.approx(expect["isc_std"], abs=1e-5)


def test_blocks_change_nothing(monkeypatch):
    x, y = normal(50, 6), normal(37, 6, seed=1) + 0.3
    whole = m.kid_full(x, y), *m.precision_recall(x, y, 4)
    monkeypatch.setattr(m, "BLOCK", 8)
    for own, other in zip((m.kid_full(x, y), *m.precision_recall(x, y, 4)), whole, strict=True):
        assert own.value == pytest.approx(other.value, rel=1e-12)
        assert own.half_width == pytest.approx(other.half_width, rel=1e-10)


def test_definitions_written_out():
    x, y = normal(9, 3).numpy(), normal(11, 3, seed=1).numpy() + 0.5

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    own = [
        sum(kernel(f[i], f[j]) for i in range(len(f)) for j in range(len(f)) if i != j) / (len(f) * (len(f) - 1))
        for f in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert m.kid_full(*map(torch.from_numpy, (x, y))).value == pytest.approx(sum(own) - 2 * across, rel=1e-12)

    def share(a, b):
        inside = 0
        for point in a:
            radii = [sorted(np.linalg.norm(b - c, axis=1))[2] for c in b]
            inside += any(np.linalg.norm(point - c) <= r for c, r in zip(b, radii, strict=True))
        return inside / len(a)

    found = [f.value for f in m.precision_recall(*map(torch.from_numpy, (x, y)), k=2)]
    assert found == [pytest.approx(share(x, y)), pytest.approx(share(y, x))]


def test_sums_of_a_score_do_not_depend_on_the_order():
    logits = normal(23, 5)
    whole = m.inception_score(logits, 4)
    sums = m.ScoreSums(23, 4, 5)
    for part in torch.randperm(23, generator=torch.Generator().manual_seed(0)).split(6):
        sums.append(logits[part], part)
    assert sums.figure().value == pytest.approx(whole.value, rel=1e-12)
    parts = [logits[23 * i // 4 : 23 * (i + 1) // 4].softmax(1).numpy() for i in range(4)]
    scores = [math.exp((p * np.log(p / p.mean(0))).sum(1).mean()) for p in parts]
    assert whole.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert whole.std == pytest.approx(np.std(scores), rel=1e-10)


def test_certain_classes_have_a_score():
    """One class an image: log 0 under a probability of 0 counts nothing."""
    assert m.inception_score(2000 * torch.eye(4, dtype=torch.float64), 1).value == pytest.approx(4)


@pytest.mark.parametrize("name", ["frechet", "kid_full", "kid"])
def test_half_widths_are_those_of_repetitions(name):
    """Spread of the figure over independent draws, against the mean of what one draw says of itself."""
    reference = normal(400, 5, seed=99) * 1.5
    fixed = moments(reference)
    values, halves = [], []
    for seed in range(60):
        x = normal(400, 5, seed=seed) + 0.4
        if name == "frechet":
            figure = m.frechet_half_width(moments(x), fixed, x)
        else:
            y = normal(400, 5, seed=1000 + seed) * 1.5
            figure = m.kid_full(x, y) if name == "kid_full" else m.kid(x, y, subsets=20, size=100)
        values.append(figure.value)
        halves.append(figure.half_width)
    assert np.mean(halves) == pytest.approx(m.Z * np.std(values), rel=0.3)  # the spread of 60 is known to 9%


def test_half_width_of_fewer_images_than_features():
    x, y = normal(10, 30), normal(40, 30, seed=1)
    figure = m.frechet_half_width(moments(x), moments(y), x)
    assert figure.value == moments(x).distance(moments(y))
    assert 0 < figure.half_width < figure.value


@pytest.fixture
def no_torchvision(monkeypatch):
    """torch-fidelity imports torchvision to read images, which its functions of features do without."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, MagicMock())


@pytest.mark.parametrize("case", GOLDEN)
def test_torch_fidelity_says_the_same(case, no_torchvision):
    """Its own functions, where it is installed (`make venv` does)."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y, logits = (case.tensor(name).double() for name in ("features1", "features2", "logits"))
    sides = (fid_features_to_statistics(f) for f in (x, y))
    distance = moments(x).distance(moments(y))
    assert distance == pytest.approx(
        fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"], rel=1e-6
    )
    theirs = kid_features_to_metric(x, y, kid_subsets=7, kid_subset_size=50, verbose=False)
    own = m.kid(x, y, 7, 50)
    assert [own.value, own.std] == pytest.approx(list(theirs.values()), rel=1e-9)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=4, prc_batch_size=1000, verbose=False)
    found = [figure.value for figure in m.precision_recall(x, y, 4)]
    assert found == pytest.approx([theirs["precision"], theirs["recall"]], abs=1 / min(len(x), len(y)))
    theirs = isc_features_to_metric(logits, splits=4, shuffle=False)
    own = m.inception_score(logits, 4)
    assert [own.value, own.std] == pytest.approx(list(theirs.values()), rel=1e-9)
