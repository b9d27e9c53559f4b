"""Published files through generate.py: guidance, text, decoding, published settings; and what is refused."""

import socket

import numpy as np
import pytest
from cli_results import ok, refused
from click.testing import CliRunner
from PIL import Image
from published_files import FAMILIES, tokenizer

import generate
import networks

SEARCH = "--num_warmup=2 --num_steps_tea=9"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files of every family by name, and a tokenizer."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, make in FAMILIES.items():
        if name == "sd":
            pytest.importorskip("transformers")
        (folder / name).mkdir()
        found[name] = make(folder / name)
    return found, tokenizer(folder / "tokenizer")


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    files, words = made

    def run(family, text, **more):
        found = files[family]
        arguments = [f"--network={found.path}", f"--config={found.config_file()}"]
        arguments += [f"--classifier={found.classifier}"] if found.classifier else []
        arguments += [f"--tokenizer={words}"] if family == "sd" else []
        arguments += ["--prompt=ab c"] if family == "sd" and more.get("prompt", True) else []
        return CliRunner().invoke(generate.main, [*arguments, "--seeds=0-2", "--batch=2", *text.split()])

    return run


def images_of(run, family, text, **more):
    ok(run(family, f"--npz=x.npz {text}", **more))
    with np.load("x.npz") as data:
        return data["images"].astype(int)


def close(a, b):
    return np.abs(a - b).max() <= 1


def test_latents_are_decoded_in_chunks(run):
    sampler = "--solver=euler --num_steps=3"
    whole = images_of(run, "ldm", f"{sampler} --decode_batch=8")
    assert close(whole, images_of(run, "ldm", f"{sampler} --decode_batch=1"))


def test_a_latent_models_distance_is_that_of_its_images(made, tmp_path, monkeypatch):
    import fid
    from networks import load_network, save_network

    files, _ = made
    monkeypatch.chdir(tmp_path)
    net = load_network(files["cin"].path, config=files["cin"].config)
    save_network("net.safetensors", net)
    sampler = ["--solver=euler", "--num-steps=3", "--batch=8"]
    arguments = ["--network=net.safetensors", "--seeds=0-7", "--outdir=out", *sampler]
    ok(CliRunner().invoke(generate.main, arguments))
    assert np.asarray(Image.open("out/000000.png")).shape == net.decoded_shape[1:] + net.decoded_shape[:1]
    more = ["--features=pixels", "--num=8"]
    ok(CliRunner().invoke(fid.main, ["ref", "--data=out", "--dest=ref.npz", "--features=pixels"]))
    output = ok(CliRunner().invoke(fid.main, ["calc", "--network=net.safetensors", "--ref=ref.npz", *more, *sampler]))
    assert abs(float(output.split()[-1])) < 1e-3


def test_guidance_of_text(run):
    sampler = "--solver=euler --num_steps=4"
    plain = images_of(run, "sd", sampler)
    assert close(plain, images_of(run, "sd", f"{sampler} --guidance_type=cfg --guidance_rate=1"))
    joint = images_of(run, "sd", f"{sampler} --guidance_type=cfg --guidance_rate=4")
    assert not close(plain, joint)
    assert close(joint, images_of(run, "sd", f"{sampler} --guidance_type=cfg --guidance_rate=4 --cfg_batch=split"))
    outside = "--guidance_type=cfg --guidance_rate=4 --guidance_interval=200,300"
    assert close(plain, images_of(run, "sd", f"{sampler} {outside}"))
    inside = "--guidance_type=cfg --guidance_rate=4 --guidance_interval=0.001,300"
    assert close(joint, images_of(run, "sd", f"{sampler} {inside}"))
    part = "--guidance_type=cfg --guidance_rate=4 --guidance_interval=5,50"
    mixed = images_of(run, "sd", f"{sampler} {part}")
    assert not close(mixed, plain)
    beyond = "--guidance_type=cfg --guidance_rate=4 --guidance_interval=50,300"
    assert not close(mixed, images_of(run, "sd", f"{sampler} {beyond}"))


def test_one_text_per_seed(run, tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n0,ab\n1,c d\n2,\n")
    sampler = "--solver=euler --num_steps=4"
    table = images_of(run, "sd", f"{sampler} --prompts=t.csv", prompt=False)
    for i, prompt in enumerate(["ab", "c", ""]):
        single = images_of(run, "sd", f"{sampler} --prompt={prompt}", prompt=False)
        assert close(table[i], single[i]) == (i != 1), "the second text has two words"
    refused(run("sd", "--npz=x.npz --prompts=t.csv --seeds=2,3", prompt=False), "seed 3 has no text", "3 rows")
    ok(run("sd", f"--npz=y.npz --prompts=t.csv --dp --num_steps=4 {SEARCH} --solver=ipndm", prompt=False))


def test_autoguidance(run, made):
    files, _ = made
    sampler = "--solver=euler --num_steps=4"
    ok(run("cm", f"{sampler} --npz=x.npz --save_schedule=s.json"))
    from networks import load_network, save_network

    net = load_network(files["cm"].path, config=files["cm"].config)
    save_network("same.pkl", net)
    with np.load("x.npz") as data:
        plain = data["images"].astype(int)
    same = images_of(run, "cm", f"{sampler} --guidance_network=same.pkl --guidance_rate=3")
    assert close(plain, same), "a model guided by itself is itself"
    for p in net.parameters():
        p.mul_(0.9)
    save_network("weak.pkl", net)
    weak = f"{sampler} --guidance_network=weak.pkl"
    assert not close(plain, images_of(run, "cm", f"{weak} --guidance_rate=3"))
    assert "6 network evaluations" in ok(run("cm", f"--npz=x.npz {weak} --guidance_rate=3"))
    refused(run("cm", f"--npz=x.npz {weak}"), "give --guidance-rate with it")
    refused(run("cm", f"--npz=x.npz {weak} --guidance_rate=3 --guidance_type=uncond"), "guidance of its own")
    refused(run("ldm", f"--npz=x.npz {weak} --guidance_rate=3"), "a weaker model of the same data")


BAD = {
    "text for classes": ("adm", "--prompt=ab", "takes no text (classes)"),
    "text for none": ("ldm", "--prompt=ab", "takes no text (none)"),
    "no text": ("sd", "", "--prompt="),
    "no table": ("sd", "--prompts=absent.csv", "absent.csv cannot be read"),
    "class for text": ("sd", "--prompt=a --class=1", "unconditional"),
    "no classifier": ("cin", "--guidance_type=cg --guidance_rate=2", "comes with a classifier"),
    "tokenizer for none": ("ldm", "--tokenizer=x", "--tokenizer belongs to models of text"),
    "cfg without dropout": ("adm", "--guidance_type=cfg --guidance_rate=2", "without label dropout"),
    "split without cfg": ("cin", "--cfg_batch=split", "belongs to guidance type cfg"),
    "empty interval": ("cin", "--guidance_type=cfg --guidance_rate=2 --guidance_interval=3,1", "two rising noise"),
    "level above the table": ("ldm", "--num-steps=4 --sigma-max=200", "--sigma-max=200 asks for the noise level 200"),
    "level below the table": ("ldm", "--num-steps=4 --sigma-min=1e-3", "asks for the noise level 0.001"),
    "levels beyond the table": ("cin", "--t-steps=100,10,1 --class=1", "--t-steps asks for the noise level 100"),
    "no extra": ("sd", "--prompt=a --tokenizer=absent", "the tokenizer 'absent'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    family, text, piece = BAD[name]
    refused(run(family, f"--outdir=out {text}", prompt=False), piece)
    assert not (tmp_path / "out").exists()


def test_published_settings_of_a_data_set(made, monkeypatch, tmp_path):
    files, _ = made
    monkeypatch.chdir(tmp_path)
    load = networks.load_network

    def tiny(source, **options):
        found = files[{"imagenet256": "adm", "lsun_bedroom_ldm": "ldm"}[asked[-1]]]
        return load(found.path, config=found.config, classifier=found.classifier)

    monkeypatch.setattr(networks, "load_network", tiny)
    asked = []

    def go(name, text=""):
        asked.append(name)
        arguments = [f"--dataset_name={name}", "--seeds=0", "--num_steps=4", "--npz=x.npz", *text.split()]
        return ok(CliRunner().invoke(generate.main, arguments))

    output = go("imagenet256")
    assert "guidance_type=cg, guidance_rate=4" in output
    assert "dpmpp" in output
    assert "time_uniform" in output
    output = go("lsun_bedroom_ldm")
    assert "schedule_type=discrete" in output
    assert "predict_x0=False" in output
    output = go("lsun_bedroom_ldm", "--solver=ipndm")
    assert "solver=" not in output
    assert "schedule_type=discrete" in output
