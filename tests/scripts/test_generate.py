"""generate.py from the command line: what it writes, that seeds decide the images, and one sentence for bad input."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patience import HUNG
from PIL import Image

import generate
import networks
from networks.published.table import DATASETS, PUBLISHED
from samplers.solvers.churn import edm_sampler
from torch_utils.images import to_uint8
from torch_utils.provenance import MADE_BY
from torch_utils.rng import PerSampleRNG

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A conditional colour network and an unconditional grey one, 8x8, with weights that make varied images."""
    folder = tmp_path_factory.mktemp("snapshots")
    torch.manual_seed(0)
    for name, label_dim, channels in (("cond", 4, 3), ("grey", 0, 1)):
        net = networks.build(
            "EDMPrecond", img_resolution=8, img_channels=channels, label_dim=label_dim, model_type="SongUNet",
            model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[4], dropout=0.0, label_dropout=0.1,
        )  # fmt: skip
        for p in net.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        networks.save_network(folder / f"{name}.pkl", net)
    return folder


@pytest.fixture
def run(snapshots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(text, network="cond"):
        args = ["--device=cpu", *([f"--network={snapshots / network}.pkl"] if network else []), *shlex.split(text)]
        return CliRunner().invoke(generate.main, args)

    return invoke


def ok(result):
    assert result.exit_code == 0, result.output
    return result.output


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def files(folder):
    """Without the record of what made them."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != MADE_BY)


def bare(name):
    """The name of a default folder's file without the hash."""
    return re.sub(r"-[0-9a-f]{8}/", "/", name)


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


def test_two_processes_make_the_images_of_one(run, snapshots, tmp_path):
    options = "--seeds=0-4 --batch=2 --steps=3 --S_churn=4 --npz=NAME.npz --grid=NAME.png --outdir=NAME"
    ok(run(options.replace("NAME", "one")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "generate.py"), "--device=cpu", f"--network={snapshots / 'cond.pkl'}"]
    command += shlex.split(options.replace("NAME", "two"))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Solver:") == 1
    assert files("one") == files("two") == [f"{i:06d}.png" for i in range(5)]
    for name in [f"/{n}" for n in files("one")] + [".png"]:
        assert np.abs(pixels(f"one{name}") - pixels(f"two{name}")).max() <= 1
    one, two = np.load("one.npz"), np.load("two.npz")
    assert two["seeds"].tolist() == one["seeds"].tolist() == [0, 1, 2, 3, 4]
    assert two["labels"].tolist() == one["labels"].tolist()
    assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1
    np.testing.assert_array_equal(two["images"][3], pixels("two/000003.png"))


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
    assert "35 network evaluations per image" in output


def test_present_seeds_are_skipped_unless_overwritten(run):
    ok(run("--outdir=out --seeds=0-2 --steps=1"))
    before = {n: Path("out", n).stat().st_mtime_ns for n in files("out")}
    Path("out/000001.png").unlink()
    output = ok(run("--outdir=out --seeds=0-3 --steps=1"))
    assert "Skipping: 2 of 4 images are in out already (--overwrite" in output
    assert "2 images in " in output
    assert files("out") == [f"{i:06d}.png" for i in range(4)]
    assert Path("out/000000.png").stat().st_mtime_ns == before["000000.png"]
    ok(run("--outdir=out --seeds=0-3 --steps=1 --overwrite"))
    assert Path("out/000000.png").stat().st_mtime_ns > before["000000.png"]


# what decides an image, beside its seed: each alone changes the record and the default folder
OTHERS = ["--steps=3", "--steps=2 --S_churn=1", "--solver=euler --num-steps=3", "--solver=ipndm --num-steps=3",
          "--solver=euler --num-steps=3 --schedule-type=logsnr", "--steps=2 --class=1", "--steps=2 --precision=bf16",
          "--steps=2 --sigma-max=40", "--steps=2 --rho=5", "--solver=euler --num-steps=3 --dp --num-warmup=8",
          "--steps=2 --guidance-type=uncond", "--steps=2 --tf32=1"]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_images_of_another_sampler_are_not_taken_for_these(run, other):
    ok(run("--outdir=out --seeds=0-2 --steps=2"))
    before = {name: Path("out", name).read_bytes() for name in [*files("out"), MADE_BY]}
    check_refused(run(f"--outdir=out --seeds=0-3 {other}"), "out holds 3 files of another network or sampler (other ")
    assert {name: Path("out", name).read_bytes() for name in [*files("out"), MADE_BY]} == before
    check_refused(run(f"--outdir=out --seeds=0-1 --overwrite {other}"), "give another folder, or remove them")
    ok(run(f"--outdir=out --seeds=0-2 --overwrite {other}"))
    assert files("out") == ["000000.png", "000001.png", "000002.png"]
    assert "0 images" in ok(run(f"--outdir=out --seeds=0-2 {other}"))


def test_images_of_another_network_are_not_taken_for_these(run, snapshots, tmp_path):
    net = networks.load_network(snapshots / "cond.pkl")
    with torch.no_grad():
        next(net.parameters()).add_(1e-3)
    (tmp_path / "other").mkdir()
    networks.save_network(tmp_path / "other" / "cond.pkl", net)
    ok(run("--outdir=out --seeds=0 --steps=1"))
    options = f"--seeds=0 --steps=1 --network={tmp_path / 'other' / 'cond.pkl'}"
    check_refused(run(f"--outdir=out {options}"), "other network.weights")
    ok(run("--seeds=0 --steps=1"))
    ok(run(options))  # the same name of file, another default folder
    assert len(files("samples/cond")) == 2


def test_default_folders_do_not_collide(run):
    for other in OTHERS:
        ok(run(f"--seeds=0 {other}"))
    assert len(files("samples")) == len(OTHERS)


def test_files_without_a_record_are_left_alone(run):
    Path("out").mkdir()
    Path("out/000007.png").write_bytes(b"mine")
    check_refused(run("--outdir=out --seeds=0-8 --steps=1"), "no record of what made them")
    assert files("out") == ["000007.png"]
    Path("out/000007.png").rename("out/holiday.png")  # not a seed: nobody's business
    ok(run("--outdir=out --seeds=0 --steps=1"))
    assert files("out") == ["000000.png", "holiday.png"]


def test_latents_have_a_record_of_their_own(run):
    ok(run("--outdir=a/samples --save-latents=a/zs --seeds=0-1 --steps=1"))
    check_refused(
        run("--outdir=b/samples --save-latents=a/zs --seeds=0-1 --steps=2"),
        "a/zs holds 2 files of another network or sampler (other sampler.levels",
    )


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


def test_nothing_to_do_is_fine(run):
    ok(run("--outdir=out --seeds=0 --steps=1"))
    assert "0 images" in ok(run("--outdir=out --seeds=0 --steps=1"))
    check_refused(run("--outdir=out --seeds=5-4 --steps=1"), "names no number")


def test_subdirs(run):
    ok(run("--outdir=out --seeds=5,1999,123456 --subdirs --steps=1"))
    assert files("out") == ["000000/000005.png", "001000/001999.png", "123000/123456.png"]


def test_grey_images(run):
    ok(run("--outdir=out --seeds=0 --steps=2", network="grey"))
    with Image.open("out/000000.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))


def test_grid_and_default_folders(run):
    ok(run("--solver=euler --num_steps=4 --seeds=0-8 --grid=True"))
    (in_default,) = files(".")
    assert re.fullmatch(r"samples/grids/cond/euler_nfe3-[0-9a-f]{8}/grid.png", in_default)
    ok(run("--solver=euler --num_steps=4 --seeds=0-8 --npz=all.npz"))
    ok(run("--solver=euler --num_steps=4 --seeds=4 --grid=False"))
    assert files(".") == ["all.npz", in_default.replace("grids/", "").replace("grid.png", "000004.png"), in_default]
    grid = pixels(in_default)
    assert grid.shape == (528, 528, 3)  # 22 times: 512 or just above
    np.testing.assert_array_equal(grid[:22, :22], np.broadcast_to(grid[0, 0], (22, 22, 3)))
    grid = grid[::22, ::22]
    images = np.load("all.npz")["images"]
    np.testing.assert_array_equal(grid[8:16, 16:24], images[5])


def test_a_class_for_all(run):
    ok(run("--npz=a.npz --seeds=0-3 --class=2 --steps=1"))
    assert np.load("a.npz")["labels"].tolist() == [2] * 4


def test_trajectories(run):
    ok(run("--save_traj=t.npz --npz=i.npz --seeds=4,2,3 --batch=2 --solver=euler --num_steps=5"))
    data, images = np.load("t.npz"), np.load("i.npz")["images"]
    assert data["seeds"].tolist() == [4, 2, 3]
    assert data["x"].shape == (3, 5, 3, 8, 8)
    assert data["drift"].shape == (3, 4, 3, 8, 8)
    steps = np.diff(data["sigmas"])[:, :, None, None, None] * data["drift"]
    np.testing.assert_allclose(data["x"][:, :-1] + steps, data["x"][:, 1:], rtol=1e-4, atol=1e-4)
    last = to_uint8(torch.from_numpy(data["x"][:, -1])).permute(0, 2, 3, 1).numpy()
    assert np.abs(last.astype(int) - images).max() <= 1


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
    assert "6 network evaluations per image (3 conditional, 3 unconditional)" in output
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


def check_refused(result, message):
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit), result.exception
    error = result.output[result.output.index("Error: ") :]
    assert message in error
    assert len(error.strip().splitlines()) == 1


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


def test_full_disk(run, monkeypatch):
    sync, done = os.fsync, []

    def full(fd):
        if len(done) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(fd)
        return sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        check_refused(run("--outdir=out --seeds=0-9 --steps=1"), os.strerror(errno.ENOSPC))
    for name in files("out"):
        assert pixels(Path("out", name)).shape == (8, 8, 3)  # what is there is whole
    ok(run("--outdir=out --seeds=0-9 --steps=1"))
    assert files("out") == [f"{i:06d}.png" for i in range(10)]


@pytest.mark.parametrize("target", ["--npz=a.npz", "--grid=a.png", "--save-traj=a.npz"])
def test_full_disk_leaves_no_joint_file(run, monkeypatch, tmp_path, target):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    check_refused(run(f"{target} --seeds=0-1 --steps=1"), os.strerror(errno.ENOSPC))
    assert files(tmp_path) == []


def test_folder_that_is_a_file(run):
    Path("out").write_text("x")
    check_refused(run("--outdir=out --seeds=0 --steps=1"), "out")


def test_images_that_are_not_finite_are_not_written(run, snapshots):
    net = networks.load_network(snapshots / "cond.pkl")
    next(p for p in net.parameters() if p.ndim == 4).fill_(torch.inf)
    networks.save_network("broken.pkl", net)
    with pytest.warns(UserWarning, match="not finite"):
        result = run("--network=broken.pkl --outdir=out --seeds=0 --steps=1", network=None)
    check_refused(result, "not finite")
    assert files("out") == []


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


def toy_network(path):
    torch.manual_seed(0)
    net = networks.build(
        "VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", prior_std=[6.0, 1.0], gaussian_noise=True
    )
    networks.save_network(path, net)
    return net


def test_points_become_a_scatter_picture_and_an_array(tmp_path):
    toy_network(tmp_path / "net.pkl")
    args = [f"--network={tmp_path}/net.pkl", f"--outdir={tmp_path}/out", "--seeds=0-9", "--N=4", "--device=cpu"]
    result = CliRunner().invoke(generate.main, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"points.png", "points.npz"}
    with np.load(tmp_path / "out" / "points.npz") as arrays:
        assert arrays["points"].shape == (10, 2)
        assert arrays["points"].dtype == np.float32
        assert arrays["seeds"].tolist() == list(range(10))
        assert np.abs(arrays["points"][:, 0]).mean() > 2  # not clipped to the range of images


def test_latents_are_the_noise_that_images_were_made_of(tmp_path):
    """One Euler step from the latents gives the points; the prior's deviations are in them."""
    net = toy_network(tmp_path / "net.pkl")
    args = [f"--network={tmp_path}/net.pkl", f"--npz={tmp_path}/p.npz", "--seeds=3-8", "--N=1", "--device=cpu"]
    args += [f"--save_latents={tmp_path}/zs"]
    result = CliRunner().invoke(generate.main, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "zs") == [f"{i:06d}.npy" for i in range(3, 9)]
    z = torch.from_numpy(np.stack([np.load(tmp_path / "zs" / f"{i:06d}.npy") for i in range(3, 9)]))
    assert z.shape == (6, 2, 1, 1)
    with np.load(tmp_path / "p.npz") as arrays:
        torch.testing.assert_close(torch.from_numpy(arrays["points"]), (z - net(z, torch.ones(6))).flatten(1))


def test_evaluations_of_an_adaptive_solver_are_said_afterwards(tmp_path):
    toy_network(tmp_path / "net.pkl")
    args = [f"--network={tmp_path}/net.pkl", f"--npz={tmp_path}/p.npz", "--seeds=0-7", "--batch=4", "--device=cpu"]
    result = CliRunner().invoke(generate.main, [*args, "--solver=dopri5", "--rtol=1e-3"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "known after sampling" in result.output
    assert "on average over images" in result.output


def test_stochastic_interpolant_sampler(run):
    """Of a denoiser; the last step in any spelling, both spellings of a form, the cost as it is said."""
    output = ok(run("--npz=a.npz --seeds=0-2 --sde-order=1 --num-steps=4 --last-step=Tweedie"))
    assert re.search(r"NFE: +4 network evaluations per image", output)
    ok(run("--npz=b.npz --seeds=0-2 --nfe=4 --last-step=tweedie --diffusion-form=inccreasing-decreasing"))
    ok(run("--npz=c.npz --seeds=0-2 --nfe=4 --last-step=tweedie --diffusion-form=increasing-decreasing --batch=2"))
    a, b, c = (np.load(f"{name}.npz")["images"].astype(int) for name in "abc")
    assert abs(b - c).max() <= 1  # in another batch, pixels on an edge may round to the other side
    assert abs(a - b).max() > 1
    check_refused(run("--grid=g.png --sde-order=2 --nfe=4"), "give 3, 5, 7")
    check_refused(run("--grid=g.png --sde-order=1 --solver=heun"), "has no --solver")


def test_arrays_for_other_suites(run):
    ok(run("--npz=a.npz --npz-name=arr_0 --seeds=0-2 --steps=1"))
    ok(run("--npz=b.npz --seeds=0-2 --steps=1"))
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert np.array_equal(a["arr_0"], b["images"])
        assert "images" not in a
    check_refused(run("--outdir=out --npz-name=arr_0 --seeds=0 --steps=1"), "add --npz=FILE")


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
