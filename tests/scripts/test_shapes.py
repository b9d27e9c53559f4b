"""Shapes through every command: trained, sampled, completed, compared, and refused where they do not belong."""

import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import analyze
import generate
import networks
import train
from training.data.shapes import read_shapes

TRAIN = (
    "combostoc --data=shapes:boxes:size=200 --cond=1 --split=part --seed=0 --nosubdir --device=cpu --width=32 "
    "--depth=1 --num-heads=2 --batch=64 --lr=3e-3 --ema=0.001 --duration=0.003"
)


def run(command, text):
    return CliRunner().invoke(command, shlex.split(text))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    result = run(train.main, f"{TRAIN} --outdir={out}")
    assert result.exit_code == 0, result.output
    assert "12 parts" in result.output
    path = max(out.glob("network-snapshot-*.pkl"))
    assert networks.load_network(path).info["dataset"]["shape"] == [12, 15]
    with Image.open(max(out.glob("samples-*.png"))) as picture:
        assert picture.mode == "RGB"
    return path


def test_samples_and_figures(net, tmp_path):
    result = run(generate.main, f"--network={net} --outdir={tmp_path} --seeds=0-29 --N=4 --device=cpu")
    assert result.exit_code == 0, result.output
    assert "30 shapes in" in result.output
    assert {p.name for p in tmp_path.iterdir()} == {"shapes.npz", "shapes.png"}
    made = read_shapes(str(tmp_path / "shapes.npz"))
    assert made.parts.shape == (30, 12, 15)
    assert made.groups == (1, 6, 8)
    assert set(made.parts[..., 0].unique().tolist()) <= {0.0, 1.0}
    again = run(generate.main, f"--network={net} --npz={tmp_path}/b.npz --seeds=0-29 --N=4 --batch=7 --device=cpu")
    assert again.exit_code == 0, again.output
    np.testing.assert_allclose(read_shapes(f"{tmp_path}/b.npz").parts, made.parts, atol=1e-4)
    result = run(analyze.main, f"shapes {tmp_path}/shapes.npz --data=shapes:boxes:size=30:seed=1 --outdir={tmp_path}/a")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "a" / "shapes.json").read_text())
    assert numbers["num"] == numbers["num_reference"] == 30
    assert numbers["mmd"] > 0
    assert numbers["fpd"] > 0
    assert 0 <= numbers["right_class"] <= 1
    assert set(numbers["rules"]) == {"count", "floor", "contact", "place", "gaps", "style"}
    assert (tmp_path / "a" / "shapes.png").exists()


def test_data_is_valid_and_near_itself(tmp_path):
    from training.data.shapes import write_shapes

    write_shapes(tmp_path / "d.npz", read_shapes("shapes:boxes:size=40:seed=7"))
    result = run(analyze.main, f"shapes {tmp_path}/d.npz --data=shapes:boxes:size=40:seed=7 --outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "shapes.json").read_text())
    assert (numbers["valid"], numbers["right_class"], numbers["coverage"]) == (1, 1, 1)
    assert max(numbers["mmd"], numbers["fidelity"], numbers["fpd"]) < 1e-4


@pytest.mark.parametrize("keep", ["parts:0-1=1", "assembly", "attributes:box=0.5"])
def test_completion_and_assembly(net, keep, tmp_path):
    command = f"--network={net} --npz={tmp_path}/k.npz --seeds=0-5 --N=3 --reference=shapes:boxes:size=6:seed=2"
    result = run(generate.main, f"{command} --keep={keep} --device=cpu")
    assert result.exit_code == 0, result.output
    assert f"keeping {keep} of 6 references" in result.output
    if keep.startswith("parts"):
        reference = read_shapes("shapes:boxes:size=6:seed=2").parts
        made = read_shapes(f"{tmp_path}/k.npz").parts
        for own, wanted in zip(made, reference, strict=True):
            np.testing.assert_allclose(own[:2], wanted[wanted[:, 0] == 1][:2], atol=1e-4)


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        (train.main, "edm --data=shapes:boxes --cond=1 --outdir={o}", "combostoc and sit learn"),
        (train.main, TRAIN.replace("=part", "=patch") + " --outdir={o}", "no time split"),
        (train.main, TRAIN.replace("=part", "=halves") + " --outdir={o}", "is not one of"),
        (train.main, TRAIN + " --fid-every=1 --metrics=w2 --outdir={o}", "w2"),
        (train.main, TRAIN.replace("boxes:size=200", "spheres") + " --outdir={o}", "no shapes 'spheres'"),
        (generate.main, "--network={n} --npz={o}/k.npz --reference=shapes:boxes --keep=left:1", "strengths of parts"),
        (generate.main, "--network={n} --npz={o}/k.npz --reference=none.npz --keep=1", "there is no file none.npz"),
        (generate.main, "--network={n} --npz={o}/k.npz --npz-name=arr_0", "leave it out of shapes"),
        (analyze.main, "shapes none.npz --data=shapes:boxes --outdir={o}", "there is no file none.npz"),
        (analyze.main, "shapes {o}/x.npz --data=shapes:boxes --outdir={o}", "compare shapes of one kind"),
        (analyze.main, "shapes {o}/x.npz --data={o}/x.npz --outdir={o} --features=none.pt", "none.pt"),
    ],
)
def test_one_sentence(net, command, text, words, tmp_path):
    np.savez(tmp_path / "x.npz", parts=np.ones((3, 2, 7)))
    result = run(command, text.format(o=tmp_path, n=net))
    assert result.exit_code in (1, 2), result.output
    assert words in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output
