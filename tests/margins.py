"""How near the suite's comparisons are to their tolerances: `pytest --margins` (or `make margins`).

A comparison that passes with an error just below its tolerance fails on another processor, which sums in another order.
With the option, every passing comparison by `torch.testing.assert_close`, `numpy.testing.assert_allclose`,
`torch.allclose`, `numpy.allclose`, `pytest.approx` and `mac_golden.expect` notes its largest |error| / tolerance, and
the summary lists, worst first, each test above a fraction (one third, or `--margins=0.5`) with the line that compares.

Tolerances above a thousandth of the values are listed apart: they are for statistics of seeded draws, orders of
convergence, rounded reference numbers, whose error is the same on every processor unless something else is wrong.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing._comparison import default_tolerances

HELPERS = {"margins.py", "golden_cases.py", "mac_golden.py"}
APPROX = type(pytest.approx(1.0))  # of one number; sequences and arrays are compared by it, element by element
KINDS = {"fine": "within reach of rounding", "coarse": "with a tolerance above a thousandth of the values"}
_worst: dict[str, tuple[float, str]] = {}
_on = False


def note(error: Any, tolerance: Any, want: Any) -> None:
    """Keep the largest ratio that the running test has seen, per kind of tolerance; the arrays broadcast."""
    if not _on:
        return
    error, tolerance, size = (np.abs(np.asarray(x)).astype(np.float64) for x in (error, tolerance, want))
    with np.errstate(invalid="ignore", divide="ignore"):
        worst = float(np.nanmax(np.where(error == 0, 0.0, error / tolerance), initial=0.0))
    allowed, size = (np.max(x, initial=0.0, where=np.isfinite(x)) for x in (tolerance, size))
    kind = "coarse" if allowed > 1e-3 * size else "fine"
    if np.isfinite(worst) and worst > _worst.get(kind, (0.0, ""))[0]:
        _worst[kind] = (worst, _line_of_the_test())


def _line_of_the_test() -> str:
    frame, here = sys._getframe(1), Path(__file__).parent
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(here) and path.name not in HELPERS:
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _array(x: Any) -> np.ndarray | None:
    """float64 or complex128 of a tensor, an array or a number; None of anything else."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.to(torch.complex128 if x.is_complex() else torch.float64).numpy()
    x = np.asarray(x)
    return x.astype(np.result_type(x, np.float64)) if x.dtype.kind in "biufc" else None


def _compare(own: Any, want: Any, rtol: float | None, atol: float | None) -> None:
    """Note the comparison, leaf by leaf, as `torch.testing.assert_close` understands its arguments."""
    if isinstance(want, Mapping):
        for key in want:
            _compare(own[key], want[key], rtol, atol)
    elif isinstance(want, Sequence) and not isinstance(want, str):
        for a, b in zip(own, want, strict=True):
            _compare(a, b, rtol, atol)
    else:
        if rtol is None:
            rtol, atol = default_tolerances(*(x if isinstance(x, torch.Tensor) else torch.as_tensor(x)
                                              for x in (own, want)))  # fmt: skip
        own, want = _array(own), _array(want)
        if own is not None and want is not None:
            with np.errstate(invalid="ignore"):
                note(np.where(own == want, 0.0, np.abs(own - want)), atol + rtol * np.abs(want), want)


def _watch(module: Any, name: str, tolerances: dict[str, float | None]) -> None:
    inner: Callable = getattr(module, name)

    @functools.wraps(inner)
    def watched(own: Any, want: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(own, want, *args, **kwargs)
        given = tolerances | dict(zip(tolerances, args, strict=False)) | kwargs
        if result is not False and _on:
            _compare(own, want, given["rtol"], given["atol"])
        return result

    setattr(module, name, watched)


def _watch_approx() -> None:
    inner = APPROX.__eq__

    @functools.wraps(inner)
    def equals(self: Any, actual: Any) -> bool:
        same = inner(self, actual)
        if same and isinstance(self.expected, Number) and (own := _array(actual)) is not None:
            with np.errstate(invalid="ignore"):
                note(np.where(own == self.expected, 0.0, np.abs(own - self.expected)), self.tolerance, self.expected)
        return same

    APPROX.__eq__ = equals


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", nargs="?", const=1 / 3, type=float, metavar="FRACTION",
                     help="list the tests whose worst error is above this fraction of its tolerance (1/3)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    global _on
    _on = config.getoption("--margins") is not None
    if _on:
        _watch(torch.testing, "assert_close", {"rtol": None, "atol": None})
        _watch(torch, "allclose", {"rtol": 1e-5, "atol": 1e-8})
        _watch(np.testing, "assert_allclose", {"rtol": 1e-7, "atol": 0.0})
        _watch(np, "allclose", {"rtol": 1e-5, "atol": 1e-8})
        _watch_approx()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    _worst.clear()
    try:
        return (yield)
    finally:
        if _on:
            item.user_properties.append(("margins", dict(_worst)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    fraction = config.getoption("--margins")
    if fraction is None:
        return
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    for kind, about in KINDS.items():
        found = [(*v[kind], r.nodeid) for r in reports for k, v in r.user_properties if k == "margins" and kind in v]
        found = sorted((f for f in found if f[0] > fraction), reverse=True)
        terminalreporter.section(f"{len(found)} tests above {fraction:.3g} of a tolerance: {about}")
        for ratio, line, test in found:
            terminalreporter.line(f"{ratio:6.3f}  {test}  ({line})")
