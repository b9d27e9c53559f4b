"""Shared fixtures. One thread per process, unless OMP_NUM_THREADS says otherwise: small tensors gain nothing
from more, and pytest-xdist runs two processes."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from golden_cases import Case
from large_memory import reserve_memory  # noqa: F401  # a fixture of several files
from live_pickles import persistence  # noqa: F401  # a fixture of several files
from run_locks import release_locks

pytest_plugins = ["margins"]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "callspec") and any(isinstance(p, Case) for p in item.callspec.params.values()):
            item.add_marker(pytest.mark.golden)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """A test that draws from torch's global generator draws the same numbers in any order and any selection."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _run_directories_are_free_again():
    yield
    release_locks()
