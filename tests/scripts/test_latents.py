"""Training on cached latents: encoded, trained, continued, decoded; drawn anew, and what does not go together."""

import json
import shlex
import zipfile

import numpy as np
import pytest
import torch
from cli_results import ok, refused
from click.testing import CliRunner
from latent_runs import decoded, encode, images_of, latents_in, run_train, without_autoencoder
from PIL import Image
from run_locks import release_locks

import fid
import generate
import networks
import train
from networks.load import load_autoencoder
from torch_utils.checkpoint import load
from torch_utils.rng import BatchRNG
from training.data.archive import ImageArchive
from training.data.batches import Batches
from training.data.image_dataset import ImageDataset
from training.data.latent_dataset import LatentDataset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return latents_in(tmp_path_factory.mktemp("latents"))


def test_stored_moments_are_drawn_from(made):
    dataset = LatentDataset(made / "latents.zip", use_labels=True)
    images = ImageDataset(made / "pictures")
    autoencoder = load_autoencoder(made / "vae.safetensors")
    assert autoencoder.scale_factor == 0.18215
    assert dataset.latents.autoencoder == autoencoder.sha256
    assert (dataset.image_shape, dataset.stored_shape, dataset.label_dim) == ([4, 8, 8], [8, 8, 8], 2)
    seen = torch.from_numpy(images[3][0])[None].float() / 127.5 - 1
    mean, logvar = autoencoder.stage.moments(seen).chunk(2, dim=1)
    stored = torch.from_numpy(dataset[3][0])[None]
    noise = BatchRNG(1, 0, 0, 1).randn_like(mean)
    expected = 0.18215 * (mean + (logvar.clamp(-30, 20) / 2).exp() * noise)
    torch.testing.assert_close(dataset.draw(stored, BatchRNG(1, 0, 0, 1)), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(dataset.draw(stored, BatchRNG(1, 8, 0, 1)), expected), "another draw at another image"


def test_mirrored_latents_are_those_of_mirrored_images(made):
    dataset = LatentDataset(made / "latents.zip", xflip=True)
    autoencoder = load_autoencoder(made / "vae.safetensors")
    seen = torch.from_numpy(ImageDataset(made / "pictures")[3][0])[None].float() / 127.5 - 1
    own = autoencoder.stage.moments(seen.flip(3))[0]
    torch.testing.assert_close(torch.from_numpy(dataset[12 + 3][0]), own, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(dataset[15][0], dataset[3][0][:, :, ::-1])
    for cache in (True, False):
        batches = Batches(dataset, 24, cache=cache)
        items = batches._next_items(batches._sampler)
        batches = Batches(dataset, 24, cache=cache)
        stored, _ = batches.next()
        assert torch.equal(stored, torch.stack([torch.from_numpy(dataset[i][0]) for i in items]))
        batches.close()
    assert dataset.nbytes == dataset.images().nbytes


@pytest.mark.parametrize(
    "name", ["sit", "combostoc", *(pytest.param(n, marks=pytest.mark.slow) for n in ("edm", "idff"))]
)
def test_train_continue_and_decode(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Finished" in ok(run_train(made, "runs", name, "--nosubdir"))
    assert (tmp_path / "runs/samples-000001.png").exists()
    snapshot = load("runs/network-snapshot-000001.pkl", "snapshot")
    assert snapshot.info["dataset"]["latents"]["scale_factor"] == 0.18215
    sampler = "--num-steps=4 --solver=ipndm" if name != "idff" else "--num-steps=4 --solver=euler"
    arguments = ["--network=runs/network-snapshot-000001.pkl", "--seeds=0-2", *sampler.split()]
    ok(CliRunner().invoke(generate.main, [*arguments, "--outdir=out", "--save-latents=zs", "--save-noise=eps"]))
    image = np.asarray(Image.open("out/000001.png"))
    assert image.shape == (16, 16, 3)
    latent = torch.from_numpy(np.load("zs/000001.npy"))
    decoded = load_autoencoder(made / "vae.safetensors").decode(latent[None])[0].permute(1, 2, 0)
    assert np.abs(image - (decoded * 127.5 + 128).clamp(0, 255).byte().numpy().astype(int)).max() <= 1
    assert np.load("eps/000001.npy").shape == (4, 8, 8)


def curvature(root, out, more=""):
    """A tiny run of train.py curvature on the latents."""
    common = {"img_resolution": 8, "in_channels": 4, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    for role, channels in (("de", 4), ("en", 8)):
        config = common | {"out_channels": channels, "attn_resolutions": [], "dropout": 0}
        (root / f"{role}.json").write_text(json.dumps(config))
    text = f"curvature --config-de={root}/de.json --config-en={root}/en.json --outdir={out} --data={root}/latents.zip"
    text += " --optimizer=adam --lr=1e-3 --ema-decay=0.9 --N=4 --num-samples=4 --batch=100 --duration=0.001 --tick=0.5"
    return CliRunner().invoke(train.main, shlex.split(f"{text} --snap=100 --nosubdir --device=cpu {more}"))


def test_curvature_on_latents(made, tmp_path, monkeypatch):
    """Learned coupling, start distribution, pictures and FID of what is decoded, a calibrated solver, distillation."""
    monkeypatch.chdir(tmp_path)
    ok(CliRunner().invoke(fid.main, ["ref", f"--data={made / 'pictures'}", "--dest=r.npz", "--features=pixels"]))
    more = "--fid-every=1 --fid-features=pixels --fid-num=4 --fid-ref=r.npz --fid-steps=2"
    ok(curvature(made, "runs", more))
    figures = [json.loads(line) for line in (tmp_path / "runs/stats.jsonl").read_text().splitlines()]
    assert {"Metrics/fid", "Curvature/uncond", "Curvature/reverse"} <= figures[-1].keys()
    picture = np.asarray(Image.open("runs/samples-000001.png"))
    assert picture.shape == (4 * 64, 8 * 64, 3) or picture.shape[2] == 3
    snapshot = "runs/network-snapshot-000001.pkl"
    assert networks.load_network(snapshot).priors == ("standard", "matched")
    assert networks.load_encoder(snapshot).img_channels == 4
    for how in ("--N=3 --prior=matched", "--calibrate=3 --num_warmup=2 --num_steps_tea=7"):
        images, latents, _ = images_of(snapshot, *how.split())
        assert np.abs(images - decoded(made, latents)).max() <= 1

    ok(CliRunner().invoke(generate.main, [f"--network={snapshot}", "--seeds=0-7", "--N=4", "--save-latents=p/samples",
                                          "--save-noise=p/zs", "--device=cpu"]))  # fmt: skip
    distill = (
        f"distill --data=p --network={snapshot} --outdir=d --nosubdir --duration=0.001 --batch=8 --lr=1e-12 --tick=1"
    )
    found = ok(CliRunner().invoke(train.main, [*distill.split(), "--test-data=p", "--device=cpu", *more.split()[:-1]]))
    assert "Test loss (8 pairs)" in found
    student = "d/network-snapshot-000001.pkl"
    assert load(student, "snapshot").info["dataset"]["latents"]["network"].endswith("vae.safetensors")
    images, latents, noise = images_of(student, "--N=1")
    assert np.abs(images - decoded(made, latents)).max() <= 1
    net = networks.load_network(snapshot)
    own = noise.double() - net(noise, 1.0).double()  # without a step of training the student is its teacher
    torch.testing.assert_close(latents.double(), own, rtol=0, atol=1e-5)
    refused(CliRunner().invoke(train.main, [*distill.split(), "--z-dir=nowhere"]), "nowhere")
    teacher = networks.build("VelocityNetwork", img_resolution=8, img_channels=4, model_type="MLP", hidden=8)
    networks.save_network("pixels.pkl", teacher)
    refused(
        CliRunner().invoke(train.main, distill.replace(snapshot, "pixels.pkl").split()),
        "p holds arrays, as --save-latents writes them",
    )


# every option of the published command lines, but for --ckpt, which continues a run, and --combostoc-type
PUBLISHED = (
    "--data-path latents.zip --results-dir runs --image-size 16 --num-classes 2 --exp exp_tmp --epochs 300 --vae {vae} "
    "--global-batch-size 10 --global-seed 0 --num-workers 4 --log-every 100 --ckpt-every 500 --reckpt-every 200 "
    "--sample-every 100 --cfg-scale 4.0 --wandb --path-type {path} --prediction {predicts} --loss-weight {weight} "
    "--sample-eps 1e-3 --train-eps 1e-3 --cond=1 --device=cpu --width=16 --depth=1 --num-heads=2 --dry-run"
)


@pytest.mark.parametrize(
    ("path", "predicts", "weight"),
    [("Linear", "velocity", "None"), ("GVP", "velocity", "None"), ("VP", "velocity", "None"),
     ("Linear", "noise", "None"), ("VP", "noise", "velocity"), ("GVP", "score", "likelihood")],
)  # fmt: skip
def test_published_command_lines(path, predicts, weight, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae, other = ("ema", "mse") if path == "VP" else ("mse", "ema")
    method = (
        "combostoc --model ComboStoc-S/2 --combostoc-type UNSYNC_PATCH" if path == "Linear" else "sit --model SiT-S/4"
    )
    line = f"{method} {PUBLISHED.format(vae=vae, path=path, predicts=predicts, weight=weight)}"
    without_autoencoder(made / "latents.zip", "latents.zip", f"diffusers:sd-vae-ft-{vae}")
    output = ok(CliRunner().invoke(train.main, shlex.split(line)))
    assert ("loss_weight " in output) == (weight != "None")
    assert "Dry run" in output
    named = f"names diffusers:sd-vae-ft-{vae} as what made its latents"
    refused(CliRunner().invoke(train.main, shlex.split(f"{line} --vae={other}")), named)
    assert not (tmp_path / "runs").exists()


def test_a_run_on_latents_continues_bit_for_bit(made, tmp_path):
    ok(run_train(made, tmp_path / "whole", "sit", "--nosubdir --xflip=1 --dump=1 --duration=0.002"))
    ok(run_train(made, tmp_path / "parts", "sit", "--nosubdir --xflip=1 --dump=1"))
    release_locks()
    ok(
        run_train(
            made,
            tmp_path / "parts",
            "sit",
            f"--nosubdir --xflip=1 --dump=1 --duration=0.002 --resume={tmp_path / 'parts'}",
        )
    )
    resume = f"--resume={tmp_path / 'parts'}"
    for name, more, words in (
        ("sit", "--model=SiT-S/2", "the state belongs to another network"),
        ("combostoc", "", "it is a state of the method sit, not of combostoc"),
    ):
        release_locks()
        refused(run_train(made, tmp_path / "more", name, f"{resume} {more}"), words)
    states = [load(tmp_path / f"{run}/network-snapshot-000002.pkl", "snapshot") for run in ("whole", "parts")]
    for key, value in states[0].payload["ema"].items():
        assert torch.equal(value, states[1].payload["ema"][key]), key


def test_the_decoder_given_found_or_missing(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_autoencoder(made / "latents.zip", "moved.zip")
    output = ok(run_train(made, "runs", "sit", "--nosubdir", data="moved.zip"))
    assert "No pictures: the autoencoder gone.safetensors is not at hand, give --decoder" in output
    assert not list(tmp_path.glob("runs/samples-*.png"))
    arguments = ["--network=runs/network-snapshot-000001.pkl", "--seeds=0-2", "--num-steps=4", "--solver=ipndm"]
    refused(
        CliRunner().invoke(generate.main, [*arguments, "--outdir=out"]),
        "gone.safetensors, which is not at hand: give it with --vae",
    )
    assert not (tmp_path / "out").exists()
    ok(CliRunner().invoke(generate.main, [*arguments, "--save-latents=zs"]))
    assert sorted(p.name for p in tmp_path.glob("zs/*.npy")) == [f"{i:06d}.npy" for i in range(3)]
    assert not (tmp_path / "samples").exists()
    refused(
        CliRunner().invoke(generate.main, [*arguments, "--outdir=out", f"--vae={made / 'other.safetensors'}"]),
        "is not the autoencoder of these latents",
    )
    ok(CliRunner().invoke(generate.main, [*arguments, "--outdir=out", f"--vae={made / 'vae.safetensors'}"]))
    refused(
        CliRunner().invoke(fid.main, ["ref", *arguments[:2], "--num=3", "--dest=r.npz", "--features=pixels"]),
        "--vae",
    )
    given = f"--decoder={made / 'other.safetensors'}"
    refused(run_train(made, "more", "sit", given, data="moved.zip"), "is not the autoencoder of these latents")


def test_graded_control_of_latents(made, tmp_path, monkeypatch):
    """References are encoded, as images one by one and as a data set of them or of their latents; what is kept
    whole is decoded as the autoencoder itself has it, and a half of a latent is kept to the last bit."""
    monkeypatch.chdir(tmp_path)
    ok(run_train(made, "runs", "combostoc", "--nosubdir"))
    common = ["--network=runs/network-snapshot-000001.pkl", "--seeds=0-2", "--N=3", "--device=cpu", "--overwrite"]

    def graded(reference, keep, *more):
        given = [f"--reference={reference}", f"--keep={keep}", "--outdir=out", "--save-latents=zs", *more]
        result = CliRunner().invoke(generate.main, [*common, *given])
        if result.exit_code:
            return result
        return np.stack([np.load(f"zs/{i:06d}.npy") for i in range(3)])

    dataset = LatentDataset(made / "latents.zip")
    means = dataset.latents.draw(dataset.images())[:3].numpy()
    for reference in (made / "pictures", made / "latents.zip"):
        kept = graded(reference, 1)
        np.testing.assert_allclose(kept, means, rtol=0, atol=1e-5)
        images = np.stack([np.asarray(Image.open(f"out/{i:06d}.png")) for i in range(3)])
        assert np.abs(images - decoded(made, torch.from_numpy(means))).max() <= 1
    half = graded(made / "pictures", "left:1")
    np.testing.assert_allclose(half[..., :4], means[..., :4], rtol=0, atol=1e-5)
    assert not np.isclose(half[..., 4:], means[..., 4:], atol=1e-3).all((1, 2, 3)).any()
    one = graded(sorted(made.glob("pictures/a/*.png"))[0], "channels:0=1,1=0.5")
    np.testing.assert_array_equal(one[:, 0], np.broadcast_to(one[:1, 0], one[:, 0].shape))
    ok(encode(made, tmp_path / "other.zip", made / "other.safetensors"))
    refused(graded("other.zip", 1), "holds latents of another autoencoder")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("small.png")
    refused(graded("small.png", 1), "are 3x8x8", "of this network 4x8x8, latents of images 3x16x16")


def test_fid_on_latents_is_that_of_decoded_images(made, tmp_path):
    ok(CliRunner().invoke(fid.main, ["ref", f"--data={made / 'pictures'}", f"--dest={tmp_path}/r.npz",
                                     "--features=pixels"]))  # fmt: skip
    how = f"--nosubdir --fid-every=1 --fid-features=pixels --fid-num=8 --fid-ref={tmp_path}/r.npz"
    ok(run_train(made, tmp_path / "runs", "sit", how))
    figures = [json.loads(line) for line in (tmp_path / "runs/stats.jsonl").read_text().splitlines()]
    assert figures[-1]["Metrics/fid"]["mean"] > 0
    refused(run_train(made, tmp_path / "b", "sit", "--fid-every=1 --fid-features=pixels"), "--fid-ref, made by")


def test_what_does_not_go_together(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    latents = str(made / "latents.zip")
    refused(
        CliRunner().invoke(fid.main, ["ref", f"--data={latents}", "--dest=r.npz", "--features=pixels"]),
        "images are needed here",
    )
    command = ["curvature", f"--data={latents}", "--outdir=runs", "--device=cpu", "--batch=8"]
    refused(
        CliRunner().invoke(train.main, command), "no published network is for 4 channels of 8 pixels", "--config-de"
    )
    refused(run_train(made, "runs", "edm", "--augment=0.1"), "leave it out")
    refused(
        run_train(made, "runs", "edm", f"--cond=0 --decoder={made / 'vae.safetensors'}", data=made / "pictures"),
        "belongs to data sets of latents",
    )
    ok(run_train(made, "a", "sit", "--nosubdir"))
    refused(
        CliRunner().invoke(generate.main, ["--network=a/network-snapshot-000001.pkl", "--vae=missing.pt"]),
        "neither a file nor a known checkpoint",
    )
    ok(encode(made, tmp_path / "other.zip", made / "other.safetensors"))
    refused(
        run_train(made, "b", "sit", "--transfer=a/network-snapshot-000001.pkl", data="other.zip"),
        "another autoencoder",
    )
    refused(run_train(made, "b", "sit", "--xflip=1", data="other.zip"), "--encode-flips")
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


BAD = {
    "nothing said": (lambda about: about.pop("latents"), None, "does not say which latents"),
    "no scale": (lambda about: about["latents"].pop("scale_factor"), None, "damaged"),
    "odd moments": (lambda about: about["latents"].update(shape=[7, 8, 8]), None, "damaged"),
    "huge": (lambda about: about["latents"].update(shape=[1 << 40, 8, 8]), None, "damaged"),
    "another shape": (lambda about: about["latents"].update(shape=[8, 4, 4]), None, "is expected"),
    "objects": (lambda about: None, np.array([{"a": 1}], dtype=object), "expected"),
    "cut": (lambda about: None, b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, ", "img00000000"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_latents(name, made, tmp_path):
    change, array, piece = BAD[name]
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(made / "latents.zip") as old, zipfile.ZipFile(path, "w") as new:
        about = json.loads(old.read("dataset.json"))
        change(about)
        new.writestr("dataset.json", json.dumps(about))
        for entry in old.namelist():
            if not entry.endswith(".npy"):
                continue
            content = old.read(entry)
            if array is not None and entry.endswith("img00000000.npy"):
                content = array
                if not isinstance(array, bytes):
                    with open(tmp_path / "a.npy", "wb") as file:
                        np.save(file, array, allow_pickle=True)
                    content = (tmp_path / "a.npy").read_bytes()
            new.writestr(entry, content)
    with pytest.raises(ValueError, match=piece):
        LatentDataset(ImageArchive(path))
