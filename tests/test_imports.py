"""The direction of imports: scripts -> training -> {samplers, networks} -> torch_utils; no script imports a script."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"torch_utils", "networks", "samplers", "training"}
SCRIPTS = {p.stem for p in ROOT.glob("*.py")}
MAY_IMPORT = {
    "torch_utils": {"torch_utils"},
    "networks": {"torch_utils", "networks"},
    "samplers": {"torch_utils", "samplers"},
    "training": {"torch_utils", "networks", "samplers", "training"},
    "bench": PACKAGES | {"bench"},
}


def imported_names(path):
    """Top-level names a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def files():
    for folder in (*sorted(PACKAGES), "bench"):
        yield from ((folder, p) for p in sorted((ROOT / folder).rglob("*.py")))
    yield from (("script", p) for p in sorted(ROOT.glob("*.py")))


@pytest.mark.parametrize(("kind", "path"), [pytest.param(k, p, id=str(p.relative_to(ROOT))) for k, p in files()])
def test_import_direction(kind, path):
    allowed = MAY_IMPORT.get(kind, PACKAGES)
    own = (PACKAGES | SCRIPTS | {"bench", "tests"}) & set(imported_names(path))
    assert own <= allowed, f"{path.name} may import {sorted(allowed)}, but imports {sorted(own - allowed)}"


def test_the_rule_can_fail(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from training import loop\n    import generate\n")
    assert {"training", "generate"} <= set(imported_names(bad))
