"""Every kind of case in the golden files is run by some test."""

import re
from pathlib import Path

import pytest
from golden_cases import GOLDEN, HANDLED, kinds


def test_no_unknown_area():
    """Those of features have no cases: test_efficientnet_lite.py reads them."""
    assert {p.relative_to(GOLDEN).parts[0] for p in GOLDEN.glob("*/**/*.json")} <= HANDLED.keys()
    assert {p.parent for p in GOLDEN.rglob("*.npz") if not p.with_suffix(".json").exists()} <= {GOLDEN / "features"}


@pytest.mark.parametrize("area", sorted(HANDLED))
def test_no_unknown_kind(area):
    if not (GOLDEN / area).is_dir():
        pytest.skip(f"{GOLDEN} holds no {area}")
    assert kinds(area) <= HANDLED[area]


@pytest.mark.parametrize("area", sorted(HANDLED))
def test_handled_kinds_are_named_in_a_test(area):
    text = "\n".join(p.read_text() for p in Path(__file__).parent.rglob("test_*.py"))
    used = {kind for call in re.findall(rf'cases\(\s*"{area}"([^)]*)\)', text) for kind in re.findall(r'"(\w+)"', call)}
    assert HANDLED[area] <= used


def test_no_test_knows_which_case_comes_first():
    """A case is a parameter of a test, or looked up by its name; other files hold other cases in another order."""
    picked = re.compile(r"cases\([^()]*\)\s*\[|[A-Z]*CASES\s*\[|next\(iter\(cases|values\[0\]\.spec\[")
    found = [p.name for p in Path(__file__).parent.rglob("*.py") if p.name != Path(__file__).name
             and picked.search(p.read_text())]  # fmt: skip
    assert not found, f"picks a golden case by position: {found}"
