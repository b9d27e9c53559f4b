"""The documentation names what is there: files, folders, modules, links and headings of docs/*.md and README.md."""

import ast
import importlib
import re
import shlex
from functools import cache

import click
import pytest
from page_commands import ROOT, commands

from samplers.solvers.table import SOLVERS
from training.methods.table import METHODS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("analyses", "networks", "samplers", "training", "torch_utils", "bench", "tests", "docs")
PATH = re.compile(rf"(?<![\w./{{-])(?:(?:{'|'.join(PACKAGES)})/[\w./*-]*|[a-z]\w*\.py(?![\w/]))")
MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(rf"^ *from ((?:{'|'.join(PACKAGES)})[\w.]*) import ([\w, ]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def unique(found):
    return sorted(set(found))


def paths(text):
    """Files and folders of the repository that a page names, as `networks/load.py`, `training/data/` or `train.py`."""
    return unique(name.rstrip(".") for name in PATH.findall(text))


def modules(text):
    """Dotted names that a page gives, as `samplers.field.Facts` or, in Python code, `from samplers import Field`."""
    imported = (f"{module}.{name.strip()}" for module, names in IMPORT.findall(text) for name in names.split(","))
    files = (name for name in MODULE.findall(text) if not name.endswith((".py", ".md")))
    return unique([*files, *imported])


@cache
def names_in(path):
    """What can be imported from a file: names that it binds at its top level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def exists(dotted):
    """Whether a dotted name leads to a folder, a file, or a name in a file; what a class holds is not looked at."""
    place, parts = ROOT, dotted.split(".")
    for part in parts:
        if (place / part).is_dir():
            place = place / part
        elif (file := place / f"{part}.py").is_file():
            rest = parts[parts.index(part) + 1 :]
            return not rest or rest[0] in names_in(file)
        else:
            return (init := place / "__init__.py").is_file() and part in names_in(init)
    return True


def parse(module, arguments):
    """Read a command line as its program does, without running it; click's UsageError where it would be refused."""
    command = importlib.import_module(module).main
    if isinstance(command, click.Group):
        name, *rest = arguments if not arguments[0].startswith("-") else [command.default, *arguments]
        command, arguments = command.get_command(click.Context(command), name), rest
    command.make_context(module, list(arguments))


def slug(heading):
    """The anchor of a heading, as on the pages that GitHub makes."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path):
    return {slug(line.lstrip("#")) for line in path.read_text().splitlines() if line.startswith("#")}


def broken_links(page):
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield f"{target}#{anchor}" if anchor else target


def ours(page):
    """The text of a page without what it says of other programs: the first column of its table of them."""
    text = page.read_text()
    return re.sub(r"^\|[^|]*", "", text, flags=re.MULTILINE) if page.stem == "coming-from" else text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_and_modules_exist(page):
    text = ours(page)
    lost = [name for name in paths(text) if not list(ROOT.glob(name))]
    lost += [name for name in modules(text) if not exists(name)]
    assert not lost, f"{page.name} names what is not there: {', '.join(lost)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_understood(page):
    refused = []
    for module, arguments, _ in commands(page.read_text()):
        try:
            parse(module, arguments)
        except (click.UsageError, KeyError) as error:
            refused.append(f"{module} {shlex.join(arguments)}: {error}")
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_no_merge_is_left_half_done(page):
    assert re.findall(r"^(?:<{7}|={7}|>{7})(?: .*)?$", page.read_text(), re.MULTILINE) == []


def test_readme_lists_every_page():
    linked = {target for target, _ in LINK.findall((ROOT / "README.md").read_text())}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert not pages - linked, f"README.md has no link to {', '.join(sorted(pages - linked))}"


def test_every_solver_and_method_is_named():
    solvers, readme = ((ROOT / name).read_text() for name in ("docs/solvers.md", "README.md"))
    assert [name for name in SOLVERS if f"`{name}`" not in solvers] == []
    assert [name for name in METHODS if f"`train.py {name}" not in readme] == []


def test_architecture_names_every_room():
    """Each folder with code is explained, so that a new one does not go without."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {p.parent.relative_to(ROOT).as_posix() for name in PACKAGES[:5] for p in (ROOT / name).rglob("*.py")}
    lost = sorted(folder for folder in folders if f"{folder}/" not in text)
    assert not lost, f"docs/architecture.md says nothing of {', '.join(lost)}"


def test_ten_questions_are_answered_by_paths():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line for line in text.partition("## Where is …")[2].partition("\n## ")[0].splitlines() if "?" in line]
    assert len(rows) >= 10
    assert all(paths(row.rpartition("?")[2]) for row in rows)


def test_the_checks_can_fail(tmp_path):
    text = "See `networks/lost.py`, `gone.py`, samplers/lost/, `samplers.lost`.\n\nfrom samplers import Lost, Field\n"
    assert paths(text) == ["gone.py", "networks/lost.py", "samplers/lost/"]
    assert modules(text) == ["samplers.Field", "samplers.Lost", "samplers.lost"]
    assert [exists(name) for name in modules(text)] == [True, False, False]
    assert exists("samplers.planning.plan.KINDS")
    assert not exists("samplers.planning.plan.LOST")
    text = "```\nA=1 python fid.py calc \\\n    --lost # why\npython other.py\n```\npython fid.py ref\n"
    assert list(commands(text)) == [("fid", ["calc", "--lost"], None)]
    table = "| a | options | 3 | 4 |\n|---|---|---|---|\n| b | `--num-steps=N` | – | 1 |\n| c | none | 1 | 1 |\n"
    assert list(commands(f"```\npython fid.py OPTIONS\n```\n\n{table}")) == [("fid", ["--num-steps=5"], 4)]
    with pytest.raises(click.UsageError):
        parse("fid", ["calc", "--lost"])
    page = tmp_path / "page.md"
    page.write_text("# One heading\n[a](#one-heading) [b](#two) [c](lost.md) [d](https://example.org)\n")
    assert list(broken_links(page)) == ["#two", "lost.md"]
