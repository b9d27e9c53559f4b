"""A package that lends names: all are there, none is loaded before it is asked for."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["networks", "samplers"])
def test_a_package_has_all_that_it_lends(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        assert getattr(value, "__name__", name).split(".")[-1] == name
    star = {}
    exec(f"from {package} import *", star)
    assert set(module.__all__) <= set(star)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
    with pytest.raises(ImportError, match="nothing"):
        exec(f"from {package} import nothing")


def test_names_are_loaded_when_they_are_asked_for():
    code = """
import sys, networks, samplers
assert "torch" not in sys.modules, "importing packages waits for torch"
assert "ipndm" in samplers.SOLVERS and "torch" not in sys.modules
assert samplers.solvers.table.SOLVERS is samplers.SOLVERS, "no folder is empty"
from samplers import Field, gits
assert gits.cost_matrix is samplers.gits.costs.cost_matrix and Field is samplers.field.Field
assert networks.build is networks.table.build and "build" in vars(networks), "found once"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
