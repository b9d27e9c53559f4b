"""The structure that docs/architecture.md promises, read from the syntax trees.

Direction: scripts, analyses -> training -> {samplers, networks} -> torch_utils; no script imports a script, and nobody
imports an analysis: `analyze.py` names them. Inside a package no
file imports from a folder that contains it (its `__init__` may not be needed to load a part of it), nothing imports in
a circle, and `samplers` is at most `MOST_FLOORS` high: a file stands one floor above the highest file it imports.
"""

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
    "analyses": PACKAGES | {"analyses"},
    "bench": PACKAGES | {"bench"},
}
MOST_FLOORS = 8


def imports(tree):
    """`(module, name)` for each import anywhere in a file; name is None for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)


def imported_names(path):
    """Top-level names a file imports, anywhere in it."""
    return {module.split(".")[0] for module, _ in imports(ast.parse(path.read_text()))}


def module_of(path, root=ROOT):
    return ".".join(path.relative_to(root).with_suffix("").parts)


def modules(root=ROOT, packages=("analyses", "bench", "networks", "samplers", "torch_utils", "training")):
    """Dotted name -> file, of every file below the packages; a folder's `__init__` goes by that name."""
    return {module_of(p, root): p for folder in packages for p in sorted((root / folder).rglob("*.py"))}


def graph(known):
    """Dotted name -> the names of the files it imports; a package counts as its `__init__`."""

    def resolve(module, name):
        for full in (f"{module}.{name}", f"{module}.{name}.__init__", module, f"{module}.__init__"):
            if full in known:
                return full
        return None

    return {
        name: {found for pair in imports(ast.parse(path.read_text())) if (found := resolve(*pair)) is not None}
        for name, path in known.items()
    }


def circle(edges):
    """Some circle of imports as a list of names, or None."""
    done, under_way = set(), []

    def visit(name):
        if name in under_way:
            return [*under_way[under_way.index(name) :], name]
        if name in done:
            return None
        under_way.append(name)
        for other in sorted(edges[name]):
            if found := visit(other):
                return found
        under_way.pop()
        done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := visit(name))), None)


def floors(edges, package):
    """Dotted name -> its floor, counting files of this package alone; `__init__` files re-export and are left out."""
    own = {n: e for n, e in edges.items() if n.split(".")[0] == package and not n.endswith("__init__")}
    found = {}

    def floor(name):
        if name not in found:
            found[name] = 1 + max((floor(other) for other in own[name] if other in own), default=0)
        return found[name]

    for name in own:
        floor(name)
    return found


def imports_from_above(edges):
    """`(file, folder)` where a file imports from the `__init__` of a folder it lies in."""
    for name, others in sorted(edges.items()):
        folders = {".".join(name.split(".")[:n]) + ".__init__" for n in range(1, name.count(".") + 1)}
        yield from ((name, other) for other in sorted(others & (folders - {name})))


def files():
    for folder in (*sorted(PACKAGES), "analyses", "bench"):
        yield from ((folder, p) for p in sorted((ROOT / folder).rglob("*.py")))
    yield from (("script", p) for p in sorted(ROOT.glob("*.py")))


@pytest.mark.parametrize(("kind", "path"), [pytest.param(k, p, id=str(p.relative_to(ROOT))) for k, p in files()])
def test_import_direction(kind, path):
    allowed = MAY_IMPORT.get(kind, PACKAGES)
    own = (PACKAGES | SCRIPTS | {"analyses", "bench", "tests"}) & imported_names(path)
    assert own <= allowed, f"{path.name} may import {sorted(allowed)}, but imports {sorted(own - allowed)}"


def test_no_circle():
    assert circle(graph(modules())) is None


def test_no_import_from_a_folder_above():
    assert list(imports_from_above(graph(modules()))) == []


def test_samplers_are_not_high():
    high = floors(graph(modules()), "samplers")
    top = max(high.values())
    assert top <= MOST_FLOORS, f"{top} floors: " + ", ".join(sorted(n for n, f in high.items() if f == top))


def test_the_rules_can_fail(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    bad = write("bad.py", "def f():\n    from training import loop\n    import generate\n")
    assert {"training", "generate"} <= imported_names(bad)
    write("samplers/__init__.py", "from samplers.a.b import x\n")
    write("samplers/a/__init__.py", "")
    write("samplers/a/b.py", "def f():\n    from samplers.c import y\nx = 1\n")
    write("samplers/c.py", "from samplers.a import b\n")
    write("samplers/d.py", "from samplers import x\nfrom samplers import c\n")
    edges = graph(modules(tmp_path, ["samplers"]))
    assert circle(edges) == ["samplers.a.b", "samplers.c", "samplers.a.b"] or "samplers.a.b" in circle(edges)
    assert list(imports_from_above(edges)) == [("samplers.d", "samplers.__init__")]
    write("samplers/a/b.py", "x = 1\n")
    edges = graph(modules(tmp_path, ["samplers"]))
    assert circle(edges) is None
    assert floors(edges, "samplers") == {"samplers.a.b": 1, "samplers.c": 2, "samplers.d": 3}
