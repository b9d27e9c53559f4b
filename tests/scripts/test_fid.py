"""fid.py from the command line: folder, zip, npz and network give one number; bad input gives one sentence."""

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_cases import fill_weights
from PIL import Image

import fid
import networks
from networks.features.table import load_features
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import generate, prepare
from torch_utils.frechet import Moments
from torch_utils.images import to_uint8
from torch_utils.reference_file import save_moments
from training import image_figures
from training.data.image_dataset import subset_indices

ROOT = Path(__file__).parents[2]
PIXELS = "--features=pixels --device=cpu"


def run(text, **kwargs):
    return CliRunner().invoke(fid.main, shlex.split(text.format(**kwargs)))


def distance(text, **kwargs):
    result = run(f"calc {PIXELS} {text}", **kwargs)
    assert result.exit_code == 0, result.output
    return float(result.stdout)


def error(text, **kwargs):
    result = run(text, **kwargs)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def random_images(count, seed, channels=3, size=4):
    high = 100 + 50 * seed
    return np.random.RandomState(seed).randint(0, high, (count, channels, size, size), dtype=np.uint8)


def write_folder(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(folder / f"{i:04d}.png")
    return folder


def definition(images1, images2):
    """Mean and covariance by numpy, the root by eigenvalues of the product."""
    moments = []
    for images in (images1, images2):
        pixels = images.reshape(len(images), -1) / 127.5 - 1
        moments.append((pixels.mean(axis=0), np.cov(pixels, rowvar=False)))
    (mu1, s1), (mu2, s2) = moments
    root = np.sqrt(np.abs(np.linalg.eigvals(s1 @ s2).real)).sum()
    return ((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root


@pytest.fixture
def data(tmp_path):
    """130 and 140 colour images: folder, zip and npz of the first, statistics of the second."""
    images, others = random_images(130, seed=1), random_images(140, seed=2)
    folder = write_folder(tmp_path / "images", images)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    np.savez(tmp_path / "images.npz", images.transpose(0, 2, 3, 1))
    np.savez_compressed(tmp_path / "first.npz", images=images)
    np.savez(tmp_path / "others.npz", images=others)
    assert run(f"ref {PIXELS} --data={tmp_path}/others.npz --dest={tmp_path}/refs/others.npz").exit_code == 0
    return tmp_path


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    net = networks.build(
        "EDMPrecond", img_resolution=8, img_channels=1, label_dim=3, model_type="SongUNet", model_channels=8,
        channel_mult=[1], num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    path = tmp_path / "network.pkl"
    networks.save_network(path, fill_weights(net), {})
    return path


def test_every_source_gives_the_same_number(data):
    expected = definition(random_images(130, seed=1), random_images(140, seed=2))
    for source in ("images", "images.zip", "images.npz", "first.npz"):
        value = distance("--images={d}/{s} --ref={d}/refs/others.npz --num=130 --batch=32", d=data, s=source)
        assert value == pytest.approx(expected, rel=1e-4), source  # six digits are printed, float32 pixels
    assert distance("--images={d}/images --ref={d}/others.npz --num=130", d=data) == pytest.approx(expected, rel=1e-4)


def test_a_data_set_has_no_distance_to_itself(data):
    assert distance("--images={d}/images --ref={d}/images.zip --num=130", d=data) < 1e-6


def test_only_the_number_is_printed_to_stdout(data):
    result = run(f"calc {PIXELS} --images={data}/images --ref={data}/refs/others.npz --num=130")
    assert result.stdout.strip() == f"{float(result.stdout):g}"
    assert "pixels features, 130 images" in result.stderr


def test_reference_file(data):
    with np.load(data / "refs" / "others.npz") as ref:
        pixels = random_images(140, seed=2).reshape(140, -1) / 127.5 - 1
        np.testing.assert_allclose(ref["mu"], pixels.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(ref["sigma"], np.cov(pixels, rowvar=False), atol=1e-6)
        assert ref["mu"].dtype == ref["sigma"].dtype == np.float64
        assert (int(ref["num"]), str(ref["features"])) == (140, "pixels")


def test_a_reference_of_others_is_accepted(data):
    with np.load(data / "refs" / "others.npz") as ref:
        np.savez(data / "bare.npz", mu=ref["mu"], sigma=ref["sigma"])
    text = "--images={d}/images --num=130 --ref={d}/"
    assert distance(text + "bare.npz", d=data) == distance(text + "refs/others.npz", d=data)


@pytest.mark.parametrize("source", ["images", "images.npz"])
def test_more_images_than_asked_for_are_a_random_subset(data, source):
    kept = random_images(130, seed=1)[subset_indices(130, 100, seed=5)]
    np.savez(data / "kept.npz", images=kept)
    subset = distance("--images={d}/{s} --ref={d}/others.npz --num=100 --seed=5", d=data, s=source)
    assert subset == distance("--images={d}/kept.npz --ref={d}/others.npz --num=100", d=data)
    assert subset != distance("--images={d}/{s} --ref={d}/others.npz --num=100 --seed=6", d=data, s=source)


def test_a_network_needs_no_files(network, data):
    net = prepare(networks.load_network(network), "cpu")
    plan = build_plan(net, SamplerOptions(steps=3))
    images = torch.cat([to_uint8(s.images) for s in generate(net, range(10, 50), plan, batch=40)]).numpy()
    write_folder(data / "samples", images)
    np.savez(data / "digits.npz", images=random_images(80, seed=1, channels=1, size=8))
    direct = distance(
        "--network={n} --steps=3 --seeds=10-49 --batch=7 --ref={d}/digits.npz --json={d}/new/out.json",
        n=network,
        d=data,
    )
    assert direct == pytest.approx(distance("--images={d}/samples --num=40 --ref={d}/digits.npz", d=data), rel=1e-5)
    report = json.loads((data / "new" / "out.json").read_text())
    assert report["distance"] == pytest.approx(direct, rel=1e-5)
    assert (report["num"], report["ref_num"], report["features"]) == (40, 80, "pixels")
    assert (report["seeds"], report["sampler"], report["class"]) == ("10-49", {"steps": 3}, None)


def test_seeds_default_to_num_and_the_sampler_matters(network, data):
    np.savez(data / "digits.npz", images=random_images(80, seed=1, channels=1, size=8))
    text = "--network={n} --ref={d}/digits.npz --steps=2 "
    default = distance(text + "--num=20", n=network, d=data)
    assert default == distance(text + "--seeds=0-19", n=network, d=data)
    assert default != distance(text + "--seeds=0-19 --class=1", n=network, d=data)
    assert default != distance(text.replace("--steps", "--num_steps") + "--num=20 --solver=dpmpp", n=network, d=data)


def test_reference_of_a_network(network, data):
    result = run(f"ref {PIXELS} --network={network} --steps=2 --num=30 --dest={data}/net.npz")
    assert result.exit_code == 0, result.output
    assert "64 pixels features of 30 images" in result.stdout
    assert distance("--network={n} --steps=2 --num=30 --batch=11 --ref={d}/net.npz", n=network, d=data) < 1e-6


def test_inception_weights_absent(data, monkeypatch):
    monkeypatch.setenv("FEWSTEP_INCEPTION", str(data / "nowhere.pth"))
    text = error("calc --images={d}/images --ref={d}/others.npz --num=130 --device=cpu", d=data)
    assert text.startswith("Error: no Inception weights: there is no file")
    assert "--weights=PATH" in text


def test_inception_is_the_default(data, monkeypatch):
    """With a stand-in for the network: features of any other size work the same way."""

    def load(name, weights, device):
        assert (name, weights) == ("inception", "w.pth")
        extractor = load_features("pixels", None, device)
        return type(extractor)("inception", 3, extractor.device, lambda images: images.float().mean(dim=(2, 3)))

    monkeypatch.setattr(image_figures, "load_features", load)
    common = f"--images={data}/images --num=130 --weights=w.pth --device=cpu"
    result = run(f"calc {common} --ref={data}/others.npz")
    assert result.exit_code == 0, result.output
    assert "published numbers use 50000" in result.stderr
    assert "others.npz describes the features 'pixels'" in error(f"calc {common} --ref={data}/refs/others.npz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--images={d}/images --ref={d}/others.npz", "holds 130 images, 50000 are needed"),
        ("--images={d}/images.npz --ref={d}/others.npz --num=131", "holds 130 images, 131 are needed"),
        ("--images={d}/images --ref={d}/others.npz --num=1", "--num"),
        ("--images={d}/images --ref={d}/one.npz --num=130", "holds 1 images, 2 are needed"),
        ("--ref={d}/others.npz", "neither is given"),
        ("--images={d}/images --network=x --ref={d}/others.npz", "both are given"),
        ("--images={d}/images --ref={d}/others.npz --num=130 --steps=4", "--steps says how a network is sampled"),
        ("--images={d}/images --ref={d}/others.npz --num=130 --seeds=1-3", "--seeds says how a network"),
        ("--network={n} --seeds=0-9 --num=11 --ref={d}/others.npz", "--seeds names 10 images and --num=11"),
        ("--network={n} --num=11 --seed=3 --ref={d}/others.npz", "--seed chooses among images"),
        ("--network={n} --seeds=9-5 --ref={d}/others.npz", "names no number"),
        ("--network={n} --num=11 --ref={d}/others.npz", "'pixels' gives 64 for these images"),
        ("--images={d}/images --ref={d}/bad.npz --num=130", "has 2 features an image, 'pixels' gives 48"),
        ("--images={d}/images --ref={d}/clip.npz --num=130", "describes the features 'clip'"),
        ("--images={d}/nowhere --ref={d}/others.npz", "nowhere"),
        ("--images={d}/images --ref={d}/nowhere.npz --num=130", "nowhere.npz"),
        ("--images={d}/refs/others.npz --ref={d}/others.npz --num=130", "and images are an array images or arr_0"),
        (
            "--images={d}/images --ref={d}/array.npz --num=130",
            "holds arrays (a) and not mu and sigma, the statistics of their features: make those with `fid.py ref` of "
            "the same data, or give images (an array images or arr_0)",
        ),
        ("--images={d}/images --ref={d}/others.npz --num=130 --weights=x", "no weights"),
        ("--images={d}/images --ref={d}/others.npz --num=130 --features=vgg", "inception"),
    ],
)
def test_bad_input_is_one_sentence(data, network, text, words):
    np.savez(data / "one.npz", images=random_images(1, seed=1))
    np.savez(data / "array.npz", a=np.zeros(2))
    save_moments(data / "bad.npz", Moments(torch.zeros(2), torch.eye(2)))
    save_moments(data / "clip.npz", Moments(torch.zeros(48), torch.eye(48), num=9, features="clip"))
    options = text if "--features" in text else f"--features=pixels {text}"
    assert words in error(f"calc --device=cpu {options}", d=data, n=network)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_name": "FusionNetwork", "img_resolution": 1, "img_channels": 2, "model_type": "SELUMLP", "width": 4},
         "this network makes points"),
        ({"class_name": "PartNetwork", "num_parts": 3, "groups": [1, 6], "mean": [0] * 7, "std": [1] * 7, "width": 8,
          "depth": 1, "num_heads": 1}, "`analyze.py shapes` measures them"),
    ],
)  # fmt: skip
def test_what_is_no_image_has_no_features(tmp_path, config, words):
    networks.save_network(tmp_path / "net.pkl", networks.build(**config))
    assert words in error("ref {p} --network={d}/net.pkl --num=8 --dest={d}/a.npz", p=PIXELS, d=tmp_path)


def test_a_failed_ref_leaves_no_file(data):
    (data / "images" / "0129.png").write_bytes(b"no image")
    assert "0129.png" in error("ref {p} --data={d}/images --dest={d}/new.npz", p=PIXELS, d=data)
    assert not (data / "new.npz").exists()
    shutil.rmtree(data / "images")
    assert "images" in error("ref {p} --data={d}/images --dest={d}/new.npz", p=PIXELS, d=data)


def test_help_teaches():
    for text in ("--help", "calc --help", "ref --help"):
        result = run(text)
        assert result.exit_code == 0
        assert "python fid.py ref --data=" in result.output
