"""Words of docstrings and help texts, as a newcomer reads them first."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("networks", "samplers", "training", "torch_utils", "analyses", "bench")
FILES = [*sorted(ROOT.glob("*.py")), *(p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")))]
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
SAME_NAME = {"Linear"}  # a layer and a path, each the word of its field


def first_lines(tree):
    """First lines of all docstrings with the line that they belong to."""
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS | ast.Module) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text.partition("\n")[0]


def help_texts(tree):
    """What options and their groups say: the second argument of `opt` and `OptionGroup`, and every `help=`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            said = [k.value for k in node.keywords if k.arg == "help"]
            said += node.args[1:2] if getattr(node.func, "id", "") in ("opt", "OptionGroup") else []
            yield from ((s.lineno, s.value) for s in said if isinstance(s, ast.Constant) and isinstance(s.value, str))


def stumbles(text):
    """Whether a text begins in the middle of a phrase, or has another word for a noise level."""
    return bool(
        re.match(r"(Of|As)\b|\[default", text) or re.search(r"\bso many\b|\btime ?stamps?\b", text, re.IGNORECASE)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_texts_are_whole_phrases(path):
    tree = ast.parse(path.read_text())
    assert [(line, text) for line, text in (*first_lines(tree), *help_texts(tree)) if stumbles(text)] == []


def test_no_two_public_classes_of_one_name():
    names = Counter(
        node.name
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} <= SAME_NAME


def test_the_checks_can_fail():
    tree = ast.parse(
        'def f():\n    """Of the trunk."""\nx = opt(1, "Time stamps of it")\ny = option(help="As given")\n'
    )
    assert [text for _, text in (*first_lines(tree), *help_texts(tree)) if stumbles(text)] == [
        "Of the trunk.", "Time stamps of it", "As given"
    ]  # fmt: skip
    assert not stumbles("Offset of the first level, as given")
