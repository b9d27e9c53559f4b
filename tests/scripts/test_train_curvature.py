"""`train.py curvature` as a command: what a transfer restores, which images FID measures, the other path, presets."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exact_runs import joint_options, make_data
from PIL import Image

import fid
import generate
import networks
import train
from networks.published.flow_configs import PRESETS
from training.methods.curvature_options import HYPER
from training.runs import phema


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "toy")


def call(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def refused(command, words, *arguments):
    """One sentence that holds the words, exit status 1 or 2, no traceback."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2), result.output
    text = " ".join(result.output.split())
    assert text.count("Error:") == 1, text
    assert words in text.partition("Error:")[2], text


def learn(tmp_path, data, name, *more, drop=()):
    """A tiny run; its output and its last snapshot."""
    options = [o for o in joint_options(tmp_path).split() if not o.startswith(drop or "-drop")]
    more = ["--duration=0.001", "--tick=1", "--snap=100", "--dump=0", *more]
    output = call(
        train.main, "curvature", f"--outdir={tmp_path / name}", "--nosubdir", f"--data={data}", *options, *more
    )
    return output, max((tmp_path / name).glob("network-snapshot-*.pkl"))


def weights(snapshot):
    return networks.load_network(snapshot).state_dict(), networks.load_encoder(snapshot).state_dict()


@pytest.mark.parametrize(
    "preset", ["mnist", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cifar10", "ffhq", "afhq", "celebahq256"))]
)
def test_presets_fit_their_data(tmp_path, preset):
    config = PRESETS[preset]["de"]
    shape = [config["img_resolution"]] * 2 + [3] * (config["in_channels"] == 3)
    (tmp_path / "data").mkdir()
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "data" / "0.png")
    options = [f"--outdir={tmp_path / 'out'}", f"--data={tmp_path / 'data'}", f"--preset={preset}", "--dry-run"]
    output = call(train.main, "curvature", *options)
    assert "Dry run" in output
    assert f"beta {HYPER[preset]['weight_prior']:g}" in output
    assert not (tmp_path / "out").exists()


CHANGES = [
    ("de", {"depth": 3}, "no field depth"),
    ("de", {"img_resolution": None}, "img_resolution is null"),
    ("de", {"channel_mult": "2,2"}, 'channel_mult is "2,2"'),
    ("de", {"num_blocks": -1}, "num_blocks is -1"),
    ("de", {"unet_type": "dit"}, "choose one of songunet, adm"),
    ("de", {"out_channels": 2}, "2 output channels do not fit 1"),
    ("en", {"out_channels": 1}, "an encoder has twice as many"),
    ("en", {"img_resolution": 4}, "give two configurations of one size"),
]


@pytest.mark.parametrize(("role", "change", "words"), CHANGES, ids=[words for *_, words in CHANGES])
def test_configurations_that_are_refused(tmp_path, data, role, change, words):
    options = joint_options(tmp_path).split()
    path = tmp_path / f"{role}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(train.main, words, "curvature", f"--outdir={tmp_path / 'out'}", f"--data={data}", *options)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["out_channels", "img_resolution"])
def test_configurations_that_lack_a_field(tmp_path, data, name):
    options = joint_options(tmp_path).split()
    path = tmp_path / "de.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))
    refused(train.main, f"lacks the field {name}", "curvature", f"--outdir={tmp_path}/out", f"--data={data}", *options)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--beta=-1"], "--weight-prior=-1: beta weights a divergence"),
        (["--prior-std=1,2"], "1 positive deviations"),
        (["--preset=cifar10"], "32 pixels and 3 channels"),
        (["--transfer=nowhere.pkl"], "nowhere.pkl"),
        (["--data=toy:moons"], "choose another preset or data set"),
        (["--data={wide}"], "images must be square"),
        (["--data=toy:moons", "--preset=two_gaussians", "--prior-std=1,1", "--fid-every=1", "--fid-features=pixels"],
         "--fid-features is for figures of images, and toy:moons holds none"),
    ],
)  # fmt: skip
def test_options_that_are_refused(tmp_path, data, more, words):
    (tmp_path / "wide").mkdir()
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / "wide" / "0.png")
    more = [option.format(wide=tmp_path / "wide") for option in more]
    refused(
        train.main, words, "curvature", f"--outdir={tmp_path / 'out'}", f"--data={data}", "--preset=digits",
        "--iterations=1", *more,
    )  # fmt: skip
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--solver=heun", "--N=8"], "N is odd; give 7 or 9"),
        (["--N=0"], "give 1 or more"),
        (["--N=5", "--num-steps=5"], "--num-steps belongs to sampling in sigma"),
        (["--solver=dopri5", "--N=5"], "chooses its steps itself"),
        (["--solver=unipc", "--N=5"], "native time"),
        (["--steps=4", "--S_churn=5"], "coupled to the data"),
        (["--solver=dpmpp", "--thresholding=dynamic"], "coupled to the data"),
        (["--num-steps=5", "--afs"], "leave out afs"),
    ],
)
def test_samplers_that_are_refused(tmp_path, more, words):
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", hidden=8)
    networks.save_network(tmp_path / "net.pkl", net)
    refused(generate.main, words, f"--network={tmp_path / 'net.pkl'}", f"--outdir={tmp_path}/out", "--seeds=0-1", *more)


FROZEN = ("--warmup_steps=100000", "--lr=1e-30")  # a run that stays where it starts


def test_power_function_averages_have_the_start_distribution_too(tmp_path, data):
    _, snapshot = learn(tmp_path, data, "run", "--phema=0.1")
    stored = max((tmp_path / "run").glob("phema-*.pkl"))
    assert networks.load_network(stored).priors == ("standard", "matched")
    x = torch.randn(2, 1, 8, 8)
    got, want = (networks.load_encoder(path)(x, x).z for path in (stored, snapshot))
    torch.testing.assert_close(got, want)
    rebuilt = phema.rebuild(tmp_path / "run", 0.1).net
    torch.testing.assert_close(rebuilt.prior.std, networks.load_network(stored).prior.std, atol=1e-3, rtol=1e-3)


def test_transfer_restores_the_encoder(tmp_path, data):
    _, donor = learn(tmp_path, data, "donor")
    output, snapshot = learn(tmp_path, data, "again", f"--transfer={donor}", *FROZEN)
    for want, got in zip(weights(donor), weights(snapshot), strict=True):
        assert want.keys() == got.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, msg=name)  # the start distribution is measured again
    assert "tensors to 'encoder'" in output
    assert "start fresh" not in output


def test_transfer_without_an_encoder_says_so(tmp_path, data):
    _, donor = learn(tmp_path, data, "donor", "--independent", drop="--config_en")
    output, snapshot = learn(tmp_path, data, "learned", f"--transfer={donor}", *FROZEN)
    assert "holds no encoder" in output
    assert "'encoder' starts fresh" in output
    got = networks.load_network(snapshot).state_dict()
    for name, value in networks.load_network(donor).state_dict().items():
        torch.testing.assert_close(got[name], value)
    x = torch.randn(2, 1, 8, 8)
    assert networks.load_encoder(snapshot)(x, x).mu.abs().max() < 1e-2  # a fresh encoder is the independent coupling


def test_transfer_to_an_independent_coupling_leaves_the_encoder_out(tmp_path, data):
    _, donor = learn(tmp_path, data, "donor")
    output, snapshot = learn(tmp_path, data, "free", f"--transfer={donor}", "--independent", drop="--config_en")
    assert "encoder" not in output.partition("Transferred")[2]
    assert networks.load_network(snapshot).priors == ("standard",)


def test_fid_in_training_is_that_of_fid_py(tmp_path, data):
    """Both start from the distribution that the snapshot recommends."""
    fid_options = ["--fid-every=1", "--fid-features=pixels", "--fid-num=40", "--fid-steps=3"]
    strong = ("--beta=0.01", "--lr=0.01", "--optimizer=adam")  # far from the prior within 32 steps
    _, snapshot = learn(tmp_path, data, "run", *fid_options, *strong)
    stats = [json.loads(line) for line in (snapshot.parent / "stats.jsonl").read_text().splitlines()]
    value = [s["Metrics/fid"]["mean"] for s in stats if "Metrics/fid" in s][-1]
    measured = {}
    for prior in ("default", "matched", "standard"):
        more = [] if prior == "default" else [f"--prior={prior}"]
        arguments = ["--features=pixels", "--num=40", "--steps=3", f"--network={snapshot}", f"--ref={data}", *more]
        measured[prior] = float(call(fid.main, "calc", *arguments).split()[-1])
    assert measured["standard"] == pytest.approx(value, rel=1e-3)
    assert measured["default"] == measured["standard"]
    assert measured["matched"] != pytest.approx(value, rel=1e-2)


def test_variance_preserving_path(tmp_path, data):
    _, snapshot = learn(tmp_path, data, "vp", "--ddpm")
    assert networks.load_network(snapshot).path == "vp"
    common = [f"--network={snapshot}", "--seeds=0-1", f"--outdir={tmp_path / 'out'}"]
    call(generate.main, *common, "--N=3")
    call(generate.main, *common, "--solver=ipndm", "--num-steps=4", "--overwrite")
    assert "path ends in noise alone" in call(generate.main, *common, "--num-steps=4", "--start=exact", code=1)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
