"""`--help` of the command lines that can tell it without torch waits for neither torch nor matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest

from networks.features import table
from samplers import choices, guidance, run
from samplers.gits import costs
from samplers.solvers import interpolant
from training import image_figures_options

ROOT = Path(__file__).parents[2]


COMMANDS = "generate", "train", "fid", "fid calc", "fid ref", "clip_score", "clip_score calc", "dataset_tool", "analyze"
SHARE = "networks.share", "networks.share push", "networks.share pull", "networks.share export"
WORDS = {  # written without torch for `--help`, and once more where they are keys
    "metric": (choices.METRICS, costs.METRICS),
    "diffusion_form": (choices.FORMS, interpolant.FORMS),
    "guidance_type": (choices.GUIDANCE, guidance.GUIDANCE),
    "precision": (choices.PRECISIONS, run.PRECISIONS),
    "features": (image_figures_options.FEATURES, table.FEATURES),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_of_help_are_those_that_there_are(name):
    words, entries = WORDS[name]
    assert list(words) == list(entries)


@pytest.mark.parametrize("command", COMMANDS + SHARE)
def test_help_does_not_wait(command):
    script, *arguments = command.split()
    code = (
        f"import sys, {script}\n"
        f"try: {script}.main([*{arguments}, '--help'])\n"
        "finally: print({'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage: " in done.stdout
    assert ("Examples:" in done.stdout) == (command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "set()"
