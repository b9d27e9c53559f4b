"""What `--margins` notes of a comparison."""

import margins
import numpy as np
import pytest
import torch


@pytest.fixture
def worst(monkeypatch):
    monkeypatch.setattr(margins, "_on", True)
    monkeypatch.setattr(margins, "_worst", {})
    return margins._worst


def test_worst_ratio_of_a_nested_comparison_and_its_line(worst):
    own, want = torch.tensor([100.0, 50.03]), torch.tensor([100.0, 50.0])
    margins._compare({"a": [own, 1]}, {"a": [want, 1]}, 0, 0.06)
    assert worst["fine"][0] == pytest.approx(0.5, rel=1e-4)
    assert worst["fine"][1].startswith("test_margins.py:")
    margins._compare(own, want, 0, 50.0)
    assert worst["coarse"][0] == pytest.approx(0.0006, rel=1e-3)
    assert worst["fine"][0] == pytest.approx(0.5, rel=1e-4)


def test_default_tolerances_and_values_that_are_equal(worst):
    margins._compare(torch.tensor([1.0, np.inf, np.nan]), torch.tensor([1 + 2**-22, np.inf, np.nan]), None, None)
    margins._compare(np.arange(3), np.arange(3), 0, 0)
    assert set(worst) == {"fine"}
    assert worst["fine"][0] == pytest.approx(2**-22 / (1.3e-6 + 1e-5), rel=0.1)
