"""One self-contained file from a module of ours: what it takes from other modules is written into it.

Only definitions that are needed come along, each once, those needed by others first. Imports of other packages are
collected at the top. Nothing is run: the sources are read as syntax trees.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

__all__ = ["bundle"]

_ROOT = Path(__file__).parents[2]
_OURS = ("samplers", "torch_utils")
_FUTURE = "from __future__ import annotations"


class _Module:
    """A module's source, and which statement binds which name at its top level."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (_ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.binds: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            for name in _bound(node):
                self.binds.setdefault(name, node)

    def text(self, node: ast.stmt) -> str:
        """The lines of a statement, with its decorators and the comment on its last line."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return "\n".join(self.source.splitlines()[first - 1 : node.end_lineno])


_module = functools.cache(_Module)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


class _Bundle:
    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.parts: list[str] = []
        self.owner: dict[str, str] = {}  # name -> the module that it came from

    def need(self, module: _Module, name: str) -> None:
        """Take the definition of a name, after all that it needs."""
        node = module.binds[name]
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.follow(module, node, name)
            return
        if self.owner.setdefault(name, module.name) != module.name:
            raise ValueError(f"{module.name} and {self.owner[name]} both define {name}: rename one of them")
        if (text := module.text(node)) not in self.parts:
            self.needs_of(module, node)
            if text not in self.parts:
                self.parts.append(text)

    def needs_of(self, module: _Module, node: ast.AST) -> None:
        """Take what a statement uses, whatever it binds itself."""
        own = {*_bound(node)} if isinstance(node, ast.stmt) else set()
        for used in ast.walk(node):
            if isinstance(used, ast.Name) and used.id in module.binds and used.id not in own:
                self.need(module, used.id)

    def follow(self, module: _Module, node: ast.Import | ast.ImportFrom, name: str) -> None:
        """An imported name: another module of ours, or an import to be kept."""
        source = node.module if isinstance(node, ast.ImportFrom) else None
        alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
        if source is not None and source.split(".")[0] in _OURS:
            if alias.asname:
                raise ValueError(f"{module.name} imports {alias.name} as {alias.asname}: import it by its own name")
            self.need(_module(source), name)
        elif source != "__future__":
            renamed = alias.name + (f" as {alias.asname}" if alias.asname else "")
            self.imports.add(f"from {source} import {renamed}" if source else f"import {renamed}")


def bundle(name: str) -> str:
    """Source text of the module `name` that needs no module of ours; its docstring and own statements stay in order."""
    root, found = _module(name), _Bundle()
    own = [n for n in root.tree.body[1:] if not isinstance(n, ast.Import | ast.ImportFrom)]
    for node in own:
        for used in ast.walk(node):
            if isinstance(used, ast.Name) and isinstance(root.binds.get(used.id), ast.Import | ast.ImportFrom):
                found.need(root, used.id)
    texts = [root.text(node) for node in own]
    head = [root.text(root.tree.body[0]), _FUTURE, "\n".join(sorted(found.imports, key=lambda s: s.split()[1]))]
    return "\n\n".join([*head, *found.parts, *texts]) + "\n"
