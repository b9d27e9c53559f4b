"""fid.py calc --metrics: one pass equals separate runs and two processes one; references of other tools; refusals."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patience import HUNG

import fid
from networks.features.table import load_features
from torch_utils.frechet import Moments
from torch_utils.metrics import inception_score, kid, kid_full, precision_recall
from torch_utils.reference_file import load_moments, save_moments
from training import image_figures
from training.data.image_dataset import subset_indices

ROOT = Path(__file__).parents[2]
ALL = "--metrics=fd,kid,kid_full,pr --kid-subsets=5 --kid-subset-size=40 --pr-k=4"


def run(text, **kwargs):
    return CliRunner().invoke(fid.main, shlex.split(text.format(**kwargs)))


def images(count, seed):
    return np.random.RandomState(seed).randint(0, 100 + 50 * seed, (count, 3, 4, 4), dtype=np.uint8)


def pixels(array):
    return torch.from_numpy(array).flatten(1) / 127.5 - 1


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "own.npz", images=images(130, 1))
    np.savez(tmp_path / "others.npz", images=images(140, 2))
    return tmp_path


def figures(data, text):
    num = "" if "--num" in text else "--num=130"
    result = run(f"calc --device=cpu --images={data}/own.npz {num} --batch=16 --json={data}/out.json {text}")
    assert result.exit_code == 0, result.output
    report = json.loads((data / "out.json").read_text())
    return {name: m["value"] for name, m in report["metrics"].items()}, report, result


def refused(data, text):
    result = run(f"calc --device=cpu --images={data}/own.npz --num=130 {text}")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_one_pass_equals_functions_and_separate_runs(data):
    found, report, result = figures(data, f"--features=pixels --ref={data}/others.npz {ALL}")
    x, y = pixels(images(130, 1)), pixels(images(140, 2))
    p, r = precision_recall(x, y, 4)
    expected = {"kid": kid(x, y, 5, 40), "kid_full": kid_full(x, y), "precision": p, "recall": r}
    for name, figure in expected.items():
        assert found[name] == pytest.approx(figure.value, rel=1e-12)
        assert report["metrics"][name]["half_width"] == pytest.approx(figure.half_width, rel=1e-10)
        assert f"{name} {figure.value:g} ± {figure.half_width:.2g}" in result.stdout
    for name, options in {"fd": "", "kid": "--kid-subsets=5 --kid-subset-size=40", "pr": "--pr-k=4"}.items():
        alone = figures(data, f"--features=pixels --ref={data}/others.npz --metrics={name} {options}")[0]
        assert alone == {name: pytest.approx(found[name], rel=1e-12) for name in alone}


def test_several_features_share_the_pass(data):
    np.savez(data / "few.npz", images=images(30, 2))
    text = f"--ref={data}/few.npz --num=12"
    found, report, _ = figures(data, f"--features=pixels,efficientnet-lite0 {text} --metrics=fd,is --is-splits=2")
    assert set(found) == {"pixels/fd", "efficientnet-lite0/fd", "efficientnet-lite0/is"}
    assert found["pixels/fd"] == pytest.approx(figures(data, f"--features=pixels {text}")[0]["fd"])
    made = {p["features"]: p for p in report["protocol"]["images"]}
    assert (made["pixels"]["weights"], made["efficientnet-lite0"]["weights"]) == (None, "579344248a93e230")
    assert "224" in made["efficientnet-lite0"]["resize"]
    extractor = load_features("efficientnet-lite0")
    features = extractor(torch.from_numpy(images(130, 1)[subset_indices(130, 12)]))
    score = inception_score(extractor.logits(features), 2)
    assert found["efficientnet-lite0/is"] == pytest.approx(score.value, rel=1e-5)  # float32 features


def test_two_processes_give_the_figures_of_one(data):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    text = f"fid.py calc --features=pixels --device=cpu --images={data}/own.npz --ref={data}/others.npz --num=125 {ALL}"
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}

    def start(rank):
        command = [sys.executable, *shlex.split(text), "--batch=8", f"--json={data}/two.json"]
        more = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**common, **more})

    started = [start(0), start(1)]
    one = figures(data, f"--features=pixels --ref={data}/others.npz --num=125 {ALL}")[1]["metrics"]
    outputs = [p.communicate(timeout=HUNG)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0]
    assert outputs[1] == ""
    two = json.loads((data / "two.json").read_text())["metrics"]
    for name, figure in one.items():
        for key in ("value", "half_width"):
            assert two[name][key] == pytest.approx(figure[key], rel=1e-10)


def test_kept_features_stand_for_the_images(data):
    kept = f"--data={data}/others.npz --dest={data}/kept.npz --keep-features"
    assert run(f"ref --features=pixels --device=cpu {kept}").exit_code == 0
    loaded = load_moments(data / "kept.npz", "pixels", rows=True)
    assert torch.equal(loaded.rows, pixels(images(140, 2)))
    assert loaded.protocol["num"] == 140
    assert "command" in loaded.protocol
    of_file, of_images = (
        figures(data, f"--features=pixels --ref={data}/{ref} {ALL}")[0] for ref in ("kept.npz", "others.npz")
    )
    assert of_file == {name: pytest.approx(value, rel=1e-10) for name, value in of_images.items()}


def test_a_file_of_several_features(data):
    np.savez(data / "few.npz", images=images(30, 2))
    command = f"--data={data}/few.npz --dest={data}/both.npz --keep-features"
    assert run(f"ref --features=efficientnet-lite0,pixels --device=cpu {command}").exit_code == 0
    with np.load(data / "both.npz") as file:  # the first ones where others look for them
        assert file["mu"].shape == (1280,)
    second = load_moments(data / "both.npz", "pixels", rows=True)
    assert (second.features, second.rows.shape) == ("pixels", (30, 48))
    text = "--features=pixels --metrics=fd,kid_full"
    of_file, of_images = (figures(data, f"{text} --ref={data}/{name}.npz")[0] for name in ("both", "few"))
    assert of_file == {name: pytest.approx(value, rel=1e-10) for name, value in of_images.items()}


def stand_in(monkeypatch, dim=2048):
    """Features called Inception's, of random projections."""

    def load(name, weights, device):
        plain = type(fid_pixels)("inception", dim, torch.device("cpu"), lambda x: pixels(x.numpy()) @ mix)
        return plain

    fid_pixels, mix = load_features("pixels"), torch.randn(48, dim, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(image_figures, "load_features", load)
    return lambda array: pixels(array) @ mix


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "mu and sigma alone"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "reference batch of guided-diffusion"),
        ({"arr_0": images(140, 2).transpose(0, 2, 3, 1)}, "reference batch of guided-diffusion"),
    ],
)
def test_references_of_other_tools_are_read_and_the_difference_named(data, monkeypatch, more, words):
    features = stand_in(monkeypatch, dim=8)
    rows = features(images(140, 2)).double()
    np.savez(data / "ref.npz", mu=rows.mean(0).numpy(), sigma=rows.T.cov().numpy(), **more)
    found, report, result = figures(data, f"--ref={data}/ref.npz")
    assert words in result.stderr
    assert words in report["protocol"]["reference"][0]["differs"]
    own = features(images(130, 1)).double()
    exact = Moments(own.mean(0), own.T.cov()).distance(Moments(rows.mean(0), rows.T.cov()))
    assert found["fid"] == pytest.approx(exact, rel=1e-4)  # float32 features
    if "arr_0" in more:  # its images give what its statistics cannot
        found, *_ = figures(data, f"--ref={data}/ref.npz --metrics=fid,kid_full")
        assert found["kid_full"] == pytest.approx(kid_full(own, rows).value, rel=1e-4)
        assert found["fid"] == pytest.approx(exact, rel=1e-4)
    else:
        assert "holds mean and covariance alone" in refused(data, f"--ref={data}/ref.npz --metrics=kid_full")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--metrics=fid", "fid is the distance in Inception features: in pixels ask for fd"),
        ("--metrics=lpips", "no metric 'lpips'"),
        ("--metrics=is", "is needs the classes of a network, and pixels has none"),
        ("--metrics=kid", "kid needs 1000 images at least, and --num gives 130"),
        ("--metrics=kid --kid-subset-size=135", "kid needs 135 images at least, and --num gives 130"),
        ("--metrics=pr --pr-k=130", "pr needs 131 images at least"),
        ("--pr-k=5", "--pr-k is read by the metric pr, which --metrics does not name"),
        ("--features=pixels,vgg", "no features are called 'vgg'"),
        ("--features=pixels,efficientnet-lite0 --weights=x", "does not say of which features"),
        ("--weights=inception=x", "--weights names the features 'inception', which --features does not"),
        ("--features=pixels,efficientnet-lite0 --metrics=is", "none of is is computed of --features=pixels"),
        ("--features=dinov2 --weights={d}", "neither a folder with config.json"),
    ],
)
def test_bad_input_is_one_sentence(data, text, words):
    options = text if "--features" in text else f"--features=pixels {text}"
    assert words.format(d=data) in refused(data, f"{options.format(d=data)} --ref={data}/others.npz")


def test_small_and_foreign_references_are_refused(data):
    np.savez(data / "few.npz", images=images(20, 2))
    text = "--features=pixels --metrics=kid --kid-subset-size=40"
    assert "kid needs 40 images at least, and " + f"{data}/few.npz gives 20" in refused(
        data, f"--ref={data}/few.npz {text}"
    )
    moments = Moments(torch.zeros(1280), torch.eye(1280), 9, "efficientnet-lite0", protocol={"weights": "0123"})
    save_moments(data / "weights.npz", moments)
    words = "network 'efficientnet-lite0' of other weights (hash 0123, not 579344248a93e230)"
    assert words in refused(data, f"--ref={data}/weights.npz --features=efficientnet-lite0")
