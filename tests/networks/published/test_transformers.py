"""Files of diffusion transformers: what each means by the same tensors, averages, and the autoencoder they need."""

import argparse

import pytest
import torch
from click.testing import CliRunner
from golden_cases import fill_weights
from published_files import KL, latent_state, state_of, unet

import networks
from networks.models.autoencoder import build_autoencoder
from networks.models.noise_precond import denoise
from networks.trunks.transformer import Transformer
from samplers.field import Facts
from torch_utils.noise_table import NoiseTable, alphas_cumprod, betas_of

SIZE = {"patch_size": 2, "width": 32, "depth": 2, "num_heads": 2, "learn_sigma": True}


def trunk(element_times=False, channels=4):
    net = Transformer(8, channels, channels, 10, element_times=element_times, **SIZE)
    return fill_weights(net, ["pos_embed"]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of every kind, and an autoencoder in three containers."""
    root = tmp_path_factory.mktemp("transformers")
    state = trunk().state_dict()
    torch.save(state, root / "DiT-tiny.pt")
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    args = argparse.Namespace(model="SiT-XL/2")
    torch.save({"model": zeros, "ema": state, "opt": {"state": {}}, "args": args}, root / "0050000.pt")
    torch.save({**state, "projectors.0.0.weight": torch.zeros(2, 2)}, root / "repa.pt")
    torch.save(trunk(element_times=True).state_dict(), root / "elements.pt")
    torch.save(trunk(channels=3).state_dict(), root / "SiT-pixels.pt")
    stage = state_of(build_autoencoder("KLAutoencoder", **KL))
    torch.save({"state_dict": {**stage, "loss.logvar": torch.zeros(())}}, root / "vae.ckpt")
    torch.save(latent_state(unet(), stage), root / "sd.ckpt")
    return root


def load(folder, name, vae="vae.ckpt", **config):
    return networks.load_network(folder / name, config={"num_heads": 2, **config}, vae=vae and folder / vae)


BROKEN = [
    ("x_embedder.proj.weight", torch.zeros(3), "not 4 dimensions"),
    ("pos_embed", torch.ones(()), "not 3 dimensions"),
    ("y_embedder.embedding_table.weight", torch.ones(()), "do not fit together"),
    ("x_embedder.proj.weight", torch.zeros(0, 0, 0, 0), "do not fit together"),
    ("blocks.0.mlp.fc1.weight", None, "do not fit together"),
]


@pytest.mark.parametrize(("name", "value", "words"), BROKEN)
def test_tensors_of_impossible_shapes_are_one_sentence(tmp_path, name, value, words):
    state = {**trunk(channels=3).state_dict(), name: value}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "SiT.pt")
    with pytest.raises(ValueError, match=words):
        load(tmp_path, "SiT.pt", vae=None)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.eye(10)[[1, 2]]


def test_a_dit_predicts_noise_at_an_index_of_its_table(folder):
    net = load(folder, "DiT-tiny.pt")
    x, labels = inputs()
    table = NoiseTable(alphas_cumprod(betas_of("linear", 1000, 1e-4, 0.02)))
    assert net.sigma_max == pytest.approx(157.4073, rel=1e-5)
    own = net(x * 3, torch.tensor([0.5, 2.0]), labels)
    expected = denoise(
        lambda x_in, t: trunk()(x_in, t.reshape(-1, 1, 1, 1), labels), table, x * 3, torch.tensor([0.5, 2.0])
    )
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(net(x, 1.0, torch.tensor([1, 2])), net(x, 1.0, labels))
    assert net.label_dropout > 0, "classifier-free guidance is possible"


@pytest.mark.parametrize("name", ["0050000.pt", "repa.pt"])
def test_a_sit_predicts_velocity(name, folder):
    net = load(folder, name, **({"type": "sit"} if name == "0050000.pt" else {}))
    assert net.predicts == "velocity"
    assert net.info["method"] == "sit"
    x, labels = inputs()
    t = torch.tensor([0.3, 0.9])
    torch.testing.assert_close(net(x, t, labels), -trunk()(x, (1 - t).reshape(-1, 1, 1, 1), labels))


def test_a_time_for_every_element_is_combostoc(folder):
    net = load(folder, "elements.pt")
    assert net.info["method"] == "combostoc"
    x, labels = inputs()
    t = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x, t, labels), -trunk(element_times=True)(x, 1 - t, labels))


def test_decode_and_snapshot(folder, tmp_path):
    for vae in ("vae.ckpt", "sd.ckpt"):
        net = load(folder, "DiT-tiny.pt", vae)
        z = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(net.decode(z), net.first_stage.decode(z / 0.18215))
        image = torch.rand(1, 3, 16, 16) * 2 - 1
        torch.testing.assert_close(Facts.of(net).encode(image), net.first_stage.encode(image) * 0.18215)
    networks.save_network(tmp_path / "x.safetensors", net)
    again = networks.load_network(tmp_path / "x.safetensors")
    x, labels = inputs()
    torch.testing.assert_close(again(x, 1.0, labels), net(x, 1.0, labels))
    net.compute_dtype = torch.bfloat16
    assert net.network.compute_dtype == torch.bfloat16


def test_what_must_be_said(folder):
    for name, options, piece in (
        ("0050000.pt", {}, "may be a DiT"),
        ("DiT-tiny.pt", {"vae": None}, "give its file with --vae"),
        ("DiT-tiny.pt", {"num_heads": None}, "do not show the heads"),
        ("DiT-tiny.pt", {"type": "combostoc"}, "told one time a sample"),
        ("elements.pt", {"type": "sit"}, "told one time for every element"),
        ("DiT-tiny.pt", {"type": "x"}, "no transformer of type 'x'"),
        ("DiT-tiny.pt", {"vae": "elements.pt"}, "holds no autoencoder"),
        ("SiT-pixels.pt", {}, "makes images, not latents"),
    ):
        with pytest.raises(ValueError, match=piece):
            load(folder, name, **options)
    with pytest.raises(ValueError, match="leave it out"):
        networks.load_network(folder / "sd.ckpt", vae=folder / "vae.ckpt")
    assert load(folder, "SiT-pixels.pt", vae=None).img_channels == 3


@pytest.mark.parametrize("sampler", ["--solver=ipndm --num-steps=6", "--calibrate=3 --num-warmup=2 --num-steps-tea=9",
                                     "--solver=ipndm --num-steps=4 --dp --num-warmup=2 --num-steps-tea=9"])  # fmt: skip
@pytest.mark.parametrize("name", ["DiT-tiny.pt", "repa.pt", "elements.pt"])
def test_crossings(name, sampler, folder, tmp_path, monkeypatch):
    import generate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text('{"num_heads": 2}')
    arguments = [f"--network={folder / name}", f"--vae={folder / 'vae.ckpt'}", "--config=c.json", "--seeds=0,1"]
    done = CliRunner().invoke(
        generate.main, [*arguments, "--guidance-type=cfg", "--guidance-rate=2", "--outdir=out", *sampler.split()]
    )
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["000000.png", "000001.png"]
