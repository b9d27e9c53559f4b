"""generate.py from the command line: which files it writes, which it keeps, and which it does not take for its own."""

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
from cli_results import ok
from click.testing import CliRunner
from generate_command import check_refused, files, pixels, toy_network
from patience import HUNG
from PIL import Image

import generate
import networks
from samplers import outputs
from torch_utils.images import to_uint8
from torch_utils.provenance import MADE_BY
from training import generation

ROOT = Path(__file__).parents[2]
# what decides an image, beside its seed: each alone changes the record and the default folder
OTHERS = ["--steps=3", "--steps=2 --S_churn=1", "--solver=euler --num-steps=3", "--solver=ipndm --num-steps=3",
          "--solver=euler --num-steps=3 --schedule-type=logsnr", "--steps=2 --class=1", "--steps=2 --precision=bf16",
          "--steps=2 --sigma-max=40", "--steps=2 --rho=5", "--solver=euler --num-steps=3 --dp --num-warmup=8",
          "--steps=2 --guidance-type=uncond", "--steps=2 --tf32=1"]  # fmt: skip


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


def test_two_commands_do_not_mix_their_images(run, monkeypatch):
    """The second one begins while the first has no image yet, so the folder is its own from then on."""
    whole = outputs.Targets.write

    def meanwhile(self, *args):
        monkeypatch.setattr(outputs.Targets, "write", whole)
        ok(run("--seeds=4-5 --outdir=out --steps=3"))
        return whole(self, *args)

    monkeypatch.setattr(outputs.Targets, "write", meanwhile)
    done = run("--seeds=0-2 --outdir=out --steps=2")
    assert done.exit_code == 1
    assert "another command has begun to fill out" in done.output
    assert "sampler.levels" in done.output
    assert files("out") == ["000004.png", "000005.png"]


BAD_FILES = ["--npz=here", "--npz=net.json", "--grid=here.png", "--save-traj=here", "--save-schedule=here.json",
             "--save-schedule=x.txt", "--npz=x --save-traj=./x"]  # fmt: skip


@pytest.mark.parametrize("flag", BAD_FILES)
def test_files_that_cannot_be_written_are_refused_before_the_work(run, monkeypatch, flag):
    for name in ("here", "here.png", "here.json"):
        Path(name).mkdir()
    Path("net.json").write_text("{}")
    monkeypatch.setattr(generation, "open_chosen", lambda *_: pytest.fail("the network is opened"))
    done = run(f"--seeds=0-1 --solver=euler --num-steps=3 --config-de=net.json {flag}")
    assert done.exit_code == 1, done.output
    assert done.output.startswith("Error: ")
    assert files(".") == ["net.json"]
    assert Path("net.json").read_text() == "{}"


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
    ok(run("--outdir=a/samples --save-noise=a/zs --seeds=0-1 --steps=1"))
    check_refused(
        run("--outdir=b/samples --save-noise=a/zs --seeds=0-1 --steps=2"),
        "a/zs holds 2 files of another network or sampler (other sampler.levels",
    )


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
    args[1:3] = [f"--npz={tmp_path}/a.npz", "--npz-name=arr_0", "--seeds=0-1"]
    check_refused(CliRunner().invoke(generate.main, args), "leave it out of points")


def test_latents_are_the_noise_that_images_were_made_of(tmp_path):
    """One Euler step from the latents gives the points; the prior's deviations are in them."""
    net = toy_network(tmp_path / "net.pkl")
    args = [f"--network={tmp_path}/net.pkl", f"--npz={tmp_path}/p.npz", "--seeds=3-8", "--N=1", "--device=cpu"]
    args += [f"--save_noise={tmp_path}/zs"]
    result = CliRunner().invoke(generate.main, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "zs") == [f"{i:06d}.npy" for i in range(3, 9)]
    z = torch.from_numpy(np.stack([np.load(tmp_path / "zs" / f"{i:06d}.npy") for i in range(3, 9)]))
    assert z.shape == (6, 2, 1, 1)
    with np.load(tmp_path / "p.npz") as arrays:
        torch.testing.assert_close(torch.from_numpy(arrays["points"]), (z - net(z, torch.ones(6))).flatten(1))


def test_arrays_for_other_suites(run):
    ok(run("--npz=a.npz --npz-name=arr_0 --seeds=0-2 --steps=1"))
    ok(run("--npz=b.npz --seeds=0-2 --steps=1"))
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert np.array_equal(a["arr_0"], b["images"])
        assert "images" not in a
    check_refused(run("--outdir=out --npz-name=arr_0 --seeds=0 --steps=1"), "add --npz=FILE")
