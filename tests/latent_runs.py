"""Runs on latents: pictures, their latents and autoencoders; data sets of them, trainings, and what networks make."""

import json
import zipfile

import numpy as np
import torch
from cli_results import ok
from click.testing import CliRunner
from dataset_files import class_folders
from PIL import Image
from published_files import KL

import dataset_tool
import generate
import networks
import train
from networks.load import load_autoencoder

COMMON = "--batch=500 --duration=0.001 --tick=0.5 --snap=100 --lr-rampup=0 --lr=1e-3 --seed=3 --workers=1"
SMALL = {
    "sit": f"sit --model=SiT-S/4 --width=16 --depth=1 --num-heads=2 --cond=1 {COMMON}",
    "combostoc": f"combostoc --model=ComboStoc-S/4 --width=16 --depth=1 --num-heads=2 --cond=1 {COMMON}",
    "edm": f"edm --cbase=32 --cres=1 --num-blocks=1 --attn-resolutions=0 --dropout=0 --cond=1 {COMMON}",
    "idff": f"idff --cbase=32 --cres=1 --num-blocks=1 --head-channels=16 --attn-resolutions=8 {COMMON}",
}


def latents_in(root):
    """Twelve pictures, their latents by a small autoencoder, and another autoencoder."""
    class_folders(root / "pictures", 12)
    for seed, name in ((0, "vae"), (1, "other")):
        torch.manual_seed(seed)
        networks.save_network(root / f"{name}.safetensors", networks.build("KLAutoencoder", **KL))
    ok(encode(root, root / "latents.zip", root / "vae.safetensors", "--encode-flips"))
    return root


def encode(root, dest, vae, *more):
    arguments = [f"--source={root / 'pictures'}", f"--dest={dest}", "--labels=folders", f"--encode={vae}"]
    return CliRunner().invoke(dataset_tool.main, [*arguments, "--device=cpu", *more])


def run_train(root, out, name, more="", data=None):
    arguments = [f"--outdir={out}", f"--data={data or root / 'latents.zip'}", "--device=cpu", *more.split()]
    method, *rest = SMALL[name].split()
    return CliRunner().invoke(train.main, [method, *rest, *arguments])


def decoded(root, latents):
    image = load_autoencoder(root / "vae.safetensors").decode(latents)
    return (image * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy().astype(int)


def images_of(network, *more):
    """Three pictures of a snapshot, their latents and the noise they start from."""
    arguments = [f"--network={network}", "--seeds=0-2", "--outdir=out", "--save-latents=zs", "--save-noise=eps", *more]
    ok(CliRunner().invoke(generate.main, [*arguments, "--overwrite", "--device=cpu"]))
    found = [torch.from_numpy(np.stack([np.load(f"{d}/{i:06d}.npy") for i in range(3)])) for d in ("zs", "eps")]
    return np.stack([np.asarray(Image.open(f"out/{i:06d}.png")) for i in range(3)]), *found


def without_autoencoder(source, dest, network="gone.safetensors"):
    """Write the data set of latents to `dest`, made by an autoencoder that is not at hand."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(dest, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "dataset.json":
                value = json.loads(content)
                value["latents"]["network"] = network
                content = json.dumps(value).encode()
            new.writestr(name, content)
