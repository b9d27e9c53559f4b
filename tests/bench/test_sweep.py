"""bench.sweep: every combination is measured once, and again where network or reference have changed."""

import json
import re

import pytest
from click.testing import CliRunner
from PIL import Image

import networks
from bench import sweep


@pytest.fixture
def files(tmp_path):
    for i, name in enumerate(("a", "b")):
        net = networks.build(
            "EDMPrecond", img_resolution=8, img_channels=1, model_type="FourierMLP", channels=8 + 8 * i
        )
        networks.save_network(tmp_path / f"{name}.pkl", net)
    (tmp_path / "ref.npz").write_bytes(b"one")
    return tmp_path


def test_cells_are_measured_once(files, monkeypatch):
    made = []

    def measured(script, arguments):
        made.append(arguments)
        cell = re.search(r"--json=(\S+)", arguments)[1]
        sweep.write_json(cell, {"distance": float(len(made))})

    monkeypatch.setattr(sweep, "call", measured)
    command = [f"--network={files / n}.pkl" for n in "ab"] + ["--guidance-rate=1,2", "--num-steps=4,6"]
    command += [f"--ref={files / 'ref.npz'}", f"--outdir={files / 'out'}"]
    first = CliRunner().invoke(sweep.main, command)
    assert first.exit_code == 0, first.output
    assert len(made) == 8
    assert sum("--guidance-rate=2" in arguments for arguments in made) == 4
    assert not any("--guidance-rate=1" in arguments for arguments in made)
    results = json.loads((files / "out" / "sweep.json").read_text())["results"]
    assert [r["distance"] for r in results] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (files / "out" / "sweep.png").exists()
    assert CliRunner().invoke(sweep.main, command).output == first.output
    assert len(made) == 8
    (files / "ref.npz").write_bytes(b"two")
    CliRunner().invoke(sweep.main, command)
    assert len(made) == 16


def test_a_folder_of_other_images_is_another_reference(tmp_path):
    seen = set()
    for value in (1, 2, 2):
        Image.new("L", (8, 8), value).save(tmp_path / "0.png")
        seen.add(sweep._contents(str(tmp_path)))
    assert len(seen) == 2


def test_widths_need_a_run(files):
    result = CliRunner().invoke(sweep.main, ["--widths=0.1", "--ref=x", f"--outdir={files / 'out'}"])
    assert result.exit_code == 1
    assert "--run with --widths" in result.output
