"""The broadcasting rule, integer lists, even splits, human-readable numbers."""

import pytest
import torch
from golden_cases import cases

from torch_utils.misc import expand_to, format_count, format_time, parse_int_list, split_evenly


@pytest.mark.parametrize("case", cases("edm", "parse_seed_list"))
def test_recorded_lists(case):
    assert parse_int_list(case.spec["text"]) == case.spec["expected"]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-3", "1-", "1.5", "3-4-5", "1;2"])
def test_what_is_not_a_list(text):
    with pytest.raises(ValueError, match="is not a list of integers"):
        parse_int_list(text)


def test_lists_pass_through():
    assert parse_int_list([3, 1]) == [3, 1]
    assert parse_int_list(" 1 , 2-3 ") == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([], []), ([1], [1, 1, 1, 1]), ([5], [5, 1, 1, 1]), ([5, 1, 4, 5], [5, 1, 4, 5]), ([1, 3, 1, 1], [1, 3, 1, 1])],
)
def test_levels_broadcast_sample_by_sample(shape, expected):
    assert list(expand_to(torch.zeros(shape), torch.zeros(5, 3, 4, 5)).shape) == expected


@pytest.mark.parametrize("shape", [[4], [3], [5, 3], [5, 1, 1], [5, 2, 1, 1], [5, 1, 1, 1, 1]])
def test_levels_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"\[5, 3, 4, 5\]"):
        expand_to(torch.zeros(shape), torch.zeros(5, 3, 4, 5))


@pytest.mark.parametrize(("n", "parts"), [(0, 3), (2, 3), (10, 3), (12, 3), (7, 1)])
def test_split(n, parts):
    own = split_evenly(n, parts)
    sizes = [len(p) for p in own]
    assert [i for p in own for i in p] == list(range(n))
    assert len(own) == parts
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_formats():
    assert [format_time(s) for s in (0, 59.4, 75, 3600, 90061)] == ["0s", "59s", "1m 15s", "1h 00m", "1d 01h 01m"]
    assert [format_count(n) for n in (7, 999, 1000, 55_735_299, -2.5e9)] == ["7", "999", "1.0k", "55.7M", "-2.5G"]
