"""`dataset_tool.py --encode`: the latents that the network's own encoder makes, with labels and what is needed."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dataset_files import class_folders
from PIL import Image
from published_files import cin, cm, ldm

import dataset_tool
import networks
from torch_utils.checkpoint import tensor_hash
from torch_utils.images import from_uint8

MAKERS = {"moments": cin, "latents": ldm}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five labelled pictures, and files of networks."""
    root = tmp_path_factory.mktemp("encode")
    class_folders(root / "pictures", 5)
    return root


def made(folder, name, maker):
    (folder / name).mkdir(exist_ok=True)
    return maker(folder / name)


def run(folder, dest, found, *more):
    arguments = [f"--source={folder / 'pictures'}", f"--dest={dest}", "--labels=folders", "--device=cpu"]
    arguments += [f"--encode={found.path}", f"--encode-config={found.config_file()}", *more] if found else list(more)
    return CliRunner().invoke(dataset_tool.main, arguments)


@pytest.mark.parametrize("kind", MAKERS)
def test_latents_of_every_image(kind, folder, tmp_path):
    found = made(folder, kind, MAKERS[kind])
    result = run(folder, tmp_path / "x.zip", found, "--encode-flips", "--encode-batch=2")
    assert result.exit_code == 0, result.output
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]
    run(folder, tmp_path / "pixels.zip", None)
    net = networks.load_network(found.path, config=found.config)
    encode = net.first_stage.moments if kind == "moments" else net.first_stage.encode
    with zipfile.ZipFile(tmp_path / "x.zip") as latents, zipfile.ZipFile(tmp_path / "pixels.zip") as pixels:
        about, labels = json.loads(latents.read("dataset.json")), json.loads(pixels.read("dataset.json"))
        assert about["latents"] == {
            "kind": kind, "shape": [8 if kind == "moments" else 3, 8, 8],
            "dtype": "float32", "flips": True, "scale_factor": net.scale_factor, "images": [16, 16],
            "network": str(found.path), "autoencoder": tensor_hash(net.first_stage.state_dict()),
        }  # fmt: skip
        assert [label for _, label in about["labels"]] == [label for _, label in labels["labels"]]
        for name, _ in about["labels"]:
            image = np.array(Image.open(io.BytesIO(pixels.read(name.replace(".npy", ".png")))))
            x = from_uint8(torch.from_numpy(image).permute(2, 0, 1))[None]
            for suffix, seen in (("", x), ("-flip", x.flip(3))):
                own = np.load(io.BytesIO(latents.read(name.replace(".npy", f"{suffix}.npy"))), allow_pickle=False)
                torch.testing.assert_close(torch.from_numpy(own), encode(seen)[0], rtol=1e-4, atol=1e-4)


def test_half_precision_halves_the_file(folder, tmp_path):
    found = made(folder, "latents", ldm)
    assert run(folder, tmp_path / "x.zip", found, "--encode-dtype=float16").exit_code == 0
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert np.load(io.BytesIO(archive.read("00000/img00000000.npy"))).dtype == np.float16
        assert len([n for n in archive.namelist() if n.endswith(".npy")]) == 5


def test_bad_input(folder, tmp_path):
    pixels, latent = made(folder, "cm", cm), made(folder, "latents", ldm)
    for result, piece in (
        (run(folder, tmp_path / "x.zip", pixels), "works on pixels"),
        (run(folder, tmp_path / "x", latent), "does not end in .zip"),
        (run(folder, tmp_path / "x.zip", None, "--encode-flips"), "give --encode as well"),
    ):
        assert result.exit_code == 1, result.output
        assert piece in result.output
    assert not list(tmp_path.iterdir())
