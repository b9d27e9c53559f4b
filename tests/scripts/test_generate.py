"""generate.py from the command line: seeds and options decide the images; one sentence for bad input."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_results import ok
from click.testing import CliRunner
from generate_command import bare, check_refused, files, pixels, toy_network

import generate
import networks
from networks.published.table import DATASETS, PUBLISHED
from samplers.solvers.churn import edm_sampler
from torch_utils.images import to_uint8
from torch_utils.rng import PerSampleRNG


def test_images_are_those_of_the_published_sampler(run, snapshots):
    ok(run("--outdir=out --seeds=3,7 --steps=4 --S_churn=2"))
    assert files("out") == ["000003.png", "000007.png"]
    net, rng = networks.load_network(snapshots / "cond.pkl"), PerSampleRNG([3, 7])
    noise = rng.randn([2, 3, 8, 8])
    labels = torch.nn.functional.one_hot(rng.randint(4, [2]), 4)
    images = to_uint8(edm_sampler(net, noise, labels, rng=rng, num_steps=4, S_churn=2))
    for image, seed in zip(images, (3, 7), strict=True):
        np.testing.assert_array_equal(pixels(f"out/{seed:06d}.png"), image.permute(1, 2, 0))


@pytest.mark.parametrize("sampler", ["--steps=3 --S_churn=4", "--solver=ipndm --num_steps=4"])
def test_batch_size_does_not_matter(run, sampler):
    ok(run(f"{sampler} --outdir=a --seeds=0-6"))
    ok(run(f"{sampler} --outdir=b --seeds=0-6 --batch=2"))
    for name in files("a"):
        assert np.abs(pixels(f"a/{name}") - pixels(f"b/{name}")).max() <= 1  # the network's last float32 digit


def test_says_what_it_will_do(run):
    output = ok(run("--outdir=out --seeds=0 --solver=ipndm --num-steps=4 --max_order=3"))
    for text in (
        "EDMPrecond 3x8x8, 4 classes",
        "ipndm, 3 steps, max_order 3",
        "polynomial, rho 7: 80, ",
        "NFE:      3 ",
    ):
        assert text in output
    output = ok(run("--outdir=out2 --seeds=0"))
    assert "EDM, heun, 18 steps" in output
    assert "35 network evaluations per sample" in output


@pytest.mark.parametrize("option", [
    "--rho=1e-9", "--rho=1e30", "--schedule-rho=1e-9", "--sigma-max=1e30", "--sigma-min=1e-300", "--S_churn=1e30",
    "--S_noise=1e30", "--guidance-rate=1e30", "--guidance-rate=-1e30", "--rtol=1e-300", "--num-steps=100000000",
    "--num-warmup=100000000", "--num-steps-tea=100000", "--steps=100000000", "--N=100000000", "--calibrate=0",
])  # fmt: skip
def test_numbers_out_of_reach_name_their_option(run, option):
    check_refused(run(f"--seeds=0 {option}"), option.partition("=")[0].replace("_", "-"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_random_numbers_of_a_gpu_that_is_not_there(run):
    check_refused(run("--seeds=0 --npz=a.npz --rng-device=cuda"), "this machine has none")


def test_a_class_for_all(run):
    ok(run("--npz=a.npz --seeds=0-3 --class=2 --steps=1"))
    assert np.load("a.npz")["labels"].tolist() == [2] * 4


def test_a_saved_schedule_makes_the_same_images(run):
    ok(run("--npz=a.npz --seeds=0-2 --solver=dpm --num_steps=4 --schedule_type=logsnr --save-schedule=s.json"))
    output = ok(run("--npz=b.npz --seeds=0-2 --schedule=s.json"))
    assert "dpm, 3 steps" in output
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])
    check_refused(run("--npz=c.npz --steps=3 --save_schedule=s2.json"), "--save-schedule keeps noise levels")
    check_refused(run("--npz=c.npz --num_steps=3 --save_schedule=s2"), "must end in .json")
    check_refused(run("--npz=c.npz --schedule=absent.json"), "absent.json")
    assert files(".") == ["a.npz", "b.npz", "s.json"]


def test_schedule_search(run):
    search = "--solver=ipndm --max_order=3 --num_steps=5 --dp=True --metric=dev --coeff=1.15 --num_steps_tea=13"
    output = ok(run(f"{search} --num_warmup=8 --npz=a.npz --seeds=0-2 --batch=4 --save_schedule=s.json"))
    assert "searched, dev, coeff 1.15, teacher ipndm over 13 levels, 8 samples: 80, " in output
    assert "4 network evaluations" in output
    ok(run("--schedule=s.json --num_steps=5 --npz=b.npz --seeds=0-2"))
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])


def test_calibration(run):
    fit = "--calibrate=2,3 --num_warmup=4 --num_steps_tea=9 --save-schedule=c.json"
    output = ok(run(f"{fit} --npz=a.npz --seeds=0-2"))
    assert "Solver:   calibrated" in output
    assert "3 network evaluations" in output
    ok(run("--schedule=c.json --nfe=3 --npz=b.npz --seeds=0-2"))
    assert "2 network evaluations" in ok(run("--schedule=c.json --nfe=2 --npz=c.npz --seeds=0-2"))
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])


def test_guidance(run):
    output = ok(run("--npz=a.npz --seeds=0-2 --steps=2 --guidance_type=cfg --guidance_rate=3"))
    assert "cfg, rate 3" in output
    assert "6 network evaluations per sample (3 conditional, 3 unconditional)" in output
    ok(run("--npz=b.npz --seeds=0-2 --steps=2"))
    assert (np.load("a.npz")["images"] != np.load("b.npz")["images"]).any()
    ok(run("--seeds=0 --steps=2 --guidance_type=cfg --guidance_rate=1.5"))  # not taken for unguided images later
    assert list(map(bare, files("samples"))) == ["cond/edm_nfe6_cfg1.5/000000.png"]
    check_refused(run("--guidance_type=cfg --guidance_rate=3", network="grey"), "no classes")
    check_refused(run("--guidance_rate=3"), "guidance type")


def test_a_solver_that_chooses_its_steps_says_what_it_took(run):
    output = ok(run("--npz=a.npz --seeds=0-2 --solver=dopri5 --rtol=1e-2 --atol=1e-2"))
    assert "known after sampling" in output
    assert "on average over images" in output


@pytest.mark.parametrize(
    "options",
    [
        "--num-steps=3 --max-order=2 --t-steps=[80,1,0.1]",
        "--num_steps=3 --max_order=2 --t_steps=80,1,0.1",
        "--afs --solver=euler",
        "--afs=True --solver=euler --denoise_to_zero",
        "--solver=dpmpp --predict_x0=False --lower_order_final=True --max_order=2",
        "--solver=unipc --variant=bh1 --schedule_type=logsnr",
        "--solver=deis --deis_mode=tab --schedule_type=time_uniform --schedule_rho=2",
        "--steps=3 --solver=euler --disc=iddpm --schedule=linear --scaling=none",
        "--steps=3 --S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003",
        "--schedule=gits_cifar10",
        "--rng-device=cpu --precision=bf16 --tf32=1 --steps=2",
    ],
)
def test_both_spellings_and_every_option(run, options):
    ok(run(f"{options} --outdir=out --seeds=0-1"))
    assert files("out") == ["000000.png", "000001.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--class=4", "classes 0 to 3"),
        ("--class=-1", "classes 0 to 3"),
        ("--steps=0", "0 steps"),
        ("--steps=3 --num-steps=3", "give one of them"),
        ("--solver=euler --max-order=2", "no option max_order"),
        ("--solver=ipndm --max-order=5", "choose from 1, 2, 3, 4"),
        ("--solver=simple", "choose from euler"),
        ("--t-steps=[1,2]", "falling order"),
        ("--t-steps=[1,x]", "not a list of numbers"),
        ("--seeds=1-", "not a list of integers"),
        ("--batch=0", "batch"),
        ("--grid=g.picture", "image suffix"),
        ("--subdirs --npz=a.npz", "--outdir"),
        ("--precision=fp16", "needs a GPU"),
        ("--device=tpu", "tpu"),
    ],
)
def test_bad_options_are_one_sentence(run, options, message, tmp_path):
    result = run(f"{options} --seeds=0-1" if "--seeds" not in options else options)
    check_refused(result, message)
    assert files(tmp_path) == []


def test_class_for_an_unconditional_network(run):
    check_refused(run("--outdir=out --class=0", network="grey"), "unconditional")
    assert not Path("out").exists()


def test_networks_that_cannot_be_read(run, snapshots):
    whole = (snapshots / "cond.pkl").read_bytes()
    Path("short.pkl").write_bytes(whole[: len(whole) // 2])
    Path("noise.pkl").write_bytes(np.random.RandomState(0).bytes(2000))
    for name in ("short.pkl", "noise.pkl", "absent.pkl"):
        check_refused(run(f"--network={name} --outdir=out", network=None), name)
    check_refused(run("--outdir=out", network=None), "which network?")
    check_refused(run("--dataset_name=cifar100 --outdir=out", network=None), "choose from cifar10")
    assert not Path("out").exists()


def test_a_data_sets_name_is_a_published_checkpoint(run, snapshots, monkeypatch):
    asked = []
    load = networks.load_network
    monkeypatch.setattr(networks, "load_network", lambda name, **_: asked.append(name) or load(snapshots / "grey.pkl"))
    ok(run("--dataset_name=cifar10 --grid=True --seeds=0 --num_steps=3", network=None))
    assert asked == [DATASETS["cifar10"]]
    assert list(map(bare, files("samples"))) == ["grids/cifar10/ipndm_nfe2/grid.png"]
    assert set(DATASETS.values()) <= set(PUBLISHED)


def test_help_teaches_every_option():
    output = CliRunner().invoke(generate.main, ["--help"]).output
    for name in ("--network", "--seeds", "--class", "--steps", "--S-churn", "--num-steps", "--t-steps", "torchrun"):
        assert name in output
    assert all(p.help for p in generate.main.params)
    titles = ["Network", "What to make", "EDM sampler", "Solver and levels", "Search and calibration"]
    titles += ["Flow models", "Guidance", "Device"]
    places = [output.index(f"\n{title}:\n  ") for title in titles]
    assert places == sorted(places)
    others = output[output.index("\nOther options:") :].split("\nExamples")[0]
    assert others.count("--") == 1  # --help alone has no group


def test_evaluations_of_an_adaptive_solver_are_said_afterwards(tmp_path):
    toy_network(tmp_path / "net.pkl")
    args = [f"--network={tmp_path}/net.pkl", f"--npz={tmp_path}/p.npz", "--seeds=0-7", "--batch=4", "--device=cpu"]
    result = CliRunner().invoke(generate.main, [*args, "--solver=dopri5", "--rtol=1e-3"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "known after sampling" in result.output
    assert "on average over points" in result.output


def test_stochastic_interpolant_sampler(run):
    """Of a denoiser; the last step in any spelling, both spellings of a form, the cost as it is said."""
    output = ok(run("--npz=a.npz --seeds=0-2 --sde-order=1 --num-steps=4 --last-step=Tweedie"))
    assert re.search(r"NFE: +4 network evaluations per sample", output)
    ok(run("--npz=b.npz --seeds=0-2 --nfe=4 --last-step=tweedie --diffusion-form=inccreasing-decreasing"))
    ok(run("--npz=c.npz --seeds=0-2 --nfe=4 --last-step=tweedie --diffusion-form=increasing-decreasing --batch=2"))
    a, b, c = (np.load(f"{name}.npz")["images"].astype(int) for name in "abc")
    assert abs(b - c).max() <= 1  # in another batch, pixels on an edge may round to the other side
    assert abs(a - b).max() > 1
    check_refused(run("--grid=g.png --sde-order=2 --nfe=4"), "give 3, 5, 7")
    check_refused(run("--grid=g.png --sde-order=1 --solver=heun"), "has no --solver")


def test_references_are_kept(run):
    """A denoiser has one level for all elements, which is said; what is kept is the reference to the last bit."""
    ok(run("--outdir=refs --seeds=0-1 --steps=2"))
    output = ok(run("--outdir=out --seeds=0-2 --steps=3 --reference=refs --keep=left:1"))
    assert "plain replacement" in output
    for seed in range(3):
        kept, own = pixels(f"refs/{seed % 2:06d}.png"), pixels(f"out/{seed:06d}.png")
        assert abs(kept[:, :4] - own[:, :4]).max() <= 1
        assert abs(kept[:, 4:] - own[:, 4:]).max() > 1
    check_refused(run("--outdir=out --seeds=0-2 --steps=3 --reference=refs --keep=left:0.5"), "graded.keep")
    check_refused(run("--grid=g.png --keep=0.5"), "add --reference")
    check_refused(run("--grid=g.png --reference=refs --keep=some"), "says no strengths")
    check_refused(run("--grid=g.png --reference=refs --keep=0.5", network="grey"), "samples of this network 1x8x8")
