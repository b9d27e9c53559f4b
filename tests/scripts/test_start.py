"""`--help` of the command lines that can tell it without torch waits for neither torch nor matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["train", "fid", "clip_score", "clip_score calc", "dataset_tool", "analyze"])
def test_help_does_not_wait(command):
    script, *arguments = command.split()
    code = (
        f"import sys, {script}\n"
        f"try: {script}.main([*{arguments}, '--help'])\n"
        "finally: print({'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage: " in done.stdout
    assert "Examples:" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
