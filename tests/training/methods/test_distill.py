"""One-step distillation: golden training steps, pairs on disk, the whole command, and what cannot be distilled."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases, fill_weights
from mac_golden import expect, inputs, value
from PIL import Image

import fid
import generate
import networks
import train
from networks.published.flow_configs import to_kwargs
from samplers import Field
from samplers.path import Linear
from torch_utils.images import to_uint8
from torch_utils.provenance import write_record
from training.data.noise_pairs import PairDataset, find_folders
from training.method import Batch
from training.methods.distill import DistillOptions, build, one_step, open_pairs, reconstruction_loss


@pytest.mark.parametrize("case", cases("curvature", "distill"))
def test_golden(case):
    params = case.spec["params"]
    student = networks.build(**to_kwargs(params["student"]["config"])).train()
    fill_weights(student.model, [name for name, _ in student.model.named_buffers()])
    settings = {**params["optimizer"]}
    assert settings.pop("name") == "adam"
    optimizer = torch.optim.Adam(student.parameters(), **settings)
    loss_fn, losses = reconstruction_loss("l2", torch.device("cpu")), []
    for given in case.spec["step_inputs"]:
        x, z = (value(case, given[name]) for name in ("x", "z"))
        optimizer.zero_grad()
        loss = loss_fn(one_step(student, z), x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    expect(case, "losses", torch.stack(losses))
    expect(case, "param_norms", torch.stack([p.detach().double().norm() for p in student.parameters()]))
    with torch.no_grad():
        expect(case, "one_step", one_step(student.eval(), inputs(case)["z_eval"]))


def flow(**options):
    torch.manual_seed(1)
    return networks.build("VelocityNetwork", img_resolution=4, img_channels=1, model_type="MLP", hidden=16, **options)


@pytest.fixture
def pairs(tmp_path):
    """Sixteen pairs in the published layout; each image is a clipped multiple of its noise."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "zs").mkdir()
    random = np.random.RandomState(0)
    for i in range(16):
        z = random.standard_normal((1, 4, 4)).astype(np.float32)
        pixels = np.clip(z[0] * 0.3 * 127.5 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(np.repeat(pixels[:, :, None], 3, 2)).save(tmp_path / "samples" / f"{i:05d}.png")
        np.save(tmp_path / "zs" / f"{i:06d}.npy", z)
    networks.save_network(tmp_path / "teacher.pkl", flow())
    return tmp_path


def options(pairs, **more):
    values = {"outdir": str(pairs / "runs"), "data": str(pairs), "network": str(pairs / "teacher.pkl"), **more}
    return DistillOptions(**values)


def test_pairs_find_each_other(pairs):
    dataset = PairDataset(pairs / "samples", pairs / "zs")
    assert len(dataset) == 16
    assert dataset.image_shape == [1, 4, 4]
    assert dataset.latent_shape == (1, 4, 4)
    image, latent = dataset[7]
    np.testing.assert_array_equal(latent.reshape(1, 4, 4), np.load(pairs / "zs" / "000007.npy"))
    np.testing.assert_array_equal(dataset.images()[7], image)
    np.testing.assert_allclose(image / 127.5 - 1, np.clip(latent.reshape(1, 4, 4) * 0.3, -1, 1), atol=0.01)


def test_numbers_after_the_last_underscore(pairs):
    for path in (pairs / "zs").iterdir():
        path.rename(path.with_name(f"run_2_{int(path.stem)}.npy"))
    dataset = PairDataset(pairs / "samples", pairs / "zs")
    np.testing.assert_array_equal(dataset[11][1], np.load(pairs / "zs" / "run_2_11.npy").flatten())


def test_whole_command(pairs):
    """The loss falls, the log names the test loss, the snapshot is a network that makes the images in one step."""
    args = ["distill", f"--outdir={pairs / 'runs'}", f"--data={pairs}", f"--network={pairs / 'teacher.pkl'}"]
    args += [f"--test_data={pairs}", "--nosubdir", "--duration=0.02", "--batch=16", "--lr=5e-3", "--seed=0"]
    result = CliRunner().invoke(train.main, [*args, "--device=cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    log = (pairs / "runs" / "log.txt").read_text()
    tests = [float(line.split(": ")[1]) for line in log.splitlines() if line.startswith("Test loss (16 pairs)")]
    assert len(tests) >= 2
    assert tests[-1] < 0.3 * tests[0]
    student = networks.load_network(pairs / "runs" / "network-snapshot-000020.pkl")
    assert Field(student).path == Linear()
    dataset = PairDataset(pairs / "samples", pairs / "zs")
    z = dataset.targets().reshape(-1, 1, 4, 4)
    error = (one_step(student, z) - (dataset.images().float() / 127.5 - 1)).square().mean()
    assert float(error) == pytest.approx(tests[-1], rel=1e-3)
    with Image.open(pairs / "runs" / "samples-000020.png") as picture:
        assert picture.size == (512, 128)


def test_pairs_of_another_network_are_refused(pairs, tmp_path):
    """What generate.py wrote names its network; the one that made the pairs is taken, in any precision."""
    made = ["--seeds=0-3", "--N=1", "--device=cpu", "--precision=bf16"]
    made += [f"--outdir={tmp_path / 'p/samples'}", f"--save-noise={tmp_path / 'p/zs'}"]
    generate.main([f"--network={pairs / 'teacher.pkl'}", *made], standalone_mode=False)
    found = options(pairs, data=str(tmp_path / "p"))
    build(found, open_pairs(found), torch.device("cpu"))
    net = flow()
    next(net.parameters()).data += 0.1
    networks.save_network(tmp_path / "other.pkl", net)
    other = options(pairs, data=str(tmp_path / "p"), network=str(tmp_path / "other.pkl"))
    with pytest.raises(ValueError, match=r"p/samples was not made by --network=.*other\.pkl"):
        build(other, open_pairs(other), torch.device("cpu"))
    tested = options(pairs, network=str(tmp_path / "other.pkl"), test_data=str(tmp_path / "p"))
    with pytest.raises(ValueError, match="p/samples was not made by"):
        build(tested, open_pairs(tested), torch.device("cpu"))


def test_noise_that_was_drawn_in_another_way_is_refused(pairs):
    how = {"sampler": {"prior": "standard", "levels": [1, 0]}, "rng_device": "cpu"}
    write_record(pairs / "samples", how)
    write_record(pairs / "zs", how | {"sampler": {"prior": "standard", "levels": [1, 0.5, 0]}})
    dataset = PairDataset(pairs / "samples", pairs / "zs")
    build(options(pairs), dataset, torch.device("cpu"))
    for other in ({"rng_device": "cuda"}, {"sampler": {"prior": "matched"}}):
        write_record(pairs / "zs", how | other)
        with pytest.raises(ValueError, match="drawn in another way"):
            build(options(pairs), dataset, torch.device("cpu"))


def test_averages_that_are_asked_for_are_kept(pairs):
    """Of the last steps, and of a share of all: --ema, --ema-rampup and --phema are heard."""
    args = ["distill", f"--data={pairs}", f"--network={pairs / 'teacher.pkl'}", "--nosubdir", "--duration=0.001"]
    args += ["--batch=100", "--lr=5e-3", "--seed=0", "--device=cpu", "--phema=0.1"]
    found = {}
    for name, more in (("none", []), ("ema", ["--ema=1"]), ("ramp", ["--ema=1", "--ema-rampup=0.05"])):
        out = pairs / name
        result = CliRunner().invoke(train.main, [*args, *more, f"--outdir={out}"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        files = [out / f"{kind}-000001.pkl" for kind in ("network-snapshot", "phema-0.100")]
        found[name] = [torch.cat([p.flatten() for p in networks.load_network(f).parameters()]) for f in files]
    teacher = torch.cat([p.flatten() for p in networks.load_network(pairs / "teacher.pkl").parameters()])
    moved = {name: float((ema - teacher).norm()) for name, (ema, _) in found.items()}
    assert 0 < moved["ema"] < 0.1 * moved["none"]
    assert moved["ema"] < moved["ramp"] < moved["none"]
    assert 0 < float((found["none"][1] - teacher).norm()) < moved["none"]


def test_pairs_of_generate_are_what_distill_reads_and_fid_measures_one_step(tmp_path):
    """Without a step of training the student is the teacher: its one-step images are the teacher's with --N=1."""
    networks.save_network(tmp_path / "teacher.pkl", flow(gaussian_noise=True))

    def run(script, *args):
        result = CliRunner().invoke(script.main, [*args, "--device=cpu"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    network = f"--network={tmp_path / 'teacher.pkl'}"
    run(generate, network, f"--outdir={tmp_path}/samples", f"--save-noise={tmp_path}/zs", "--seeds=0-39", "--N=1")
    dataset = PairDataset(*find_folders(tmp_path, None))
    assert len(dataset) == 40
    net = networks.load_network(tmp_path / "teacher.pkl")
    own = to_uint8(one_step(net, dataset.targets().reshape(-1, 1, 4, 4)))
    assert (own.int() - dataset.images().int()).abs().max() <= 1  # float32 against float64, rounded
    distance = run(fid, "calc", network, "--N=1", f"--ref={tmp_path}/samples", "--features=pixels", "--seeds=0-39")
    assert abs(float(distance)) < 1e-3
    args = [network, f"--data={tmp_path}", f"--outdir={tmp_path}/runs", "--nosubdir", "--duration=0.001", "--batch=8"]
    measure = ["--fid-every=1", "--fid-features=pixels", "--fid-num=40", "--tick=1"]
    run(train, "distill", *args, "--lr=1e-12", "--seed=0", *measure)
    stats = [json.loads(line) for line in (tmp_path / "runs" / "stats.jsonl").read_text().splitlines()]
    assert abs(stats[-1]["Metrics/fid"]["mean"]) < 1e-3  # also in one step
    student = f"--network={tmp_path}/runs/network-snapshot-000001.pkl"
    distance = run(fid, "calc", student, "--N=1", f"--ref={tmp_path}/samples", "--features=pixels", "--seeds=0-39")
    assert abs(float(distance)) < 1e-3


def test_loss_is_the_mean_over_elements(pairs):
    given = options(pairs, batch=16)
    dataset = open_pairs(given)
    method = build(given, dataset, torch.device("cpu"))
    net = method.modules["net"]
    images, labels = dataset.images().float() / 127.5 - 1, dataset.targets()
    out = method.phases[0].loss(Batch(images, labels, None, 0))
    z = labels.reshape(images.shape)
    want = (z - net(z, torch.ones(16)) - images).square().mean()
    torch.testing.assert_close(out.loss.sum() / 16, want)
    assert net.training
    assert method.averages["ema"].beta(10_000, 16) == 0


def test_lpips_is_asked_for_or_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="package lpips, which is not installed"):
        reconstruction_loss("lpips", torch.device("cpu"))

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, x, y):
            assert x.shape[1] == 3
            return (x - y).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    values = reconstruction_loss("lpips", torch.device("cpu"))(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    torch.testing.assert_close(values, torch.ones(2, 1))


def test_only_models_whose_path_ends_in_noise():
    with pytest.raises(ValueError, match="needs a flow model"):
        one_step(lambda x, sigma, labels: x, torch.zeros(2, 3))


def break_count(pairs):
    (pairs / "zs" / "000003.npy").unlink()


def break_image(pairs):
    (pairs / "samples" / "00003.png").unlink()


def break_shape(pairs):
    np.save(pairs / "zs" / "000003.npy", np.zeros((1, 5, 5), np.float32))


def break_all_shapes(pairs):
    for path in (pairs / "zs").iterdir():
        np.save(path, np.zeros((1, 5, 5), np.float32))


def break_values(pairs):
    np.save(pairs / "zs" / "000003.npy", np.full((1, 4, 4), np.nan, np.float32))


def break_file(pairs):
    (pairs / "zs" / "000003.npy").write_bytes(b"no array")


def break_name(pairs):
    (pairs / "zs" / "000003.npy").rename(pairs / "zs" / "three.npy")


def break_twice(pairs):
    np.save(pairs / "zs" / "3.npy", np.zeros((1, 4, 4), np.float32))


def break_colour(pairs):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(pairs / "samples" / "00003.png")


def break_empty(pairs):
    for path in (pairs / "zs").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_count, "16 images and .*15 latents that must pair by number, and 00003.png has no partner"),
        (break_image, "15 images and .*16 latents .*000003.npy has no partner"),
        (break_shape, r"000003.npy has shape \[1, 5, 5\]"),
        (break_all_shapes, r"shape \[1, 4, 4\] and the latents of .*\[1, 5, 5\]"),
        (break_values, "000003.npy .*not finite"),
        (break_file, "000003.npy is not a readable .npy file"),
        (break_name, "three.npy has no number"),
        (break_twice, "have the same number"),
        (break_colour, "00003.png: it is coloured"),
        (break_empty, "holds no .npy file"),
    ],
)
def test_folders_that_do_not_pair(pairs, damage, message):
    damage(pairs)

    def read():
        dataset = PairDataset(pairs / "samples", pairs / "zs")
        return dataset.images(), dataset.targets()

    with pytest.raises(ValueError, match=message):
        read()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": "samples"}, "no folders samples and zs: say where .* --z-dir"),
        ({"z_dir": "nowhere"}, "no folder .*nowhere"),
        ({"cond": True}, "--cond does not go with pairs"),
        ({"xflip": True}, "--xflip does not go with pairs"),
        ({"test_z_dir": "zs"}, "give both, or neither"),
    ],
)
def test_options_that_do_not_fit(pairs, more, message):
    more = {k: str(pairs / v) if isinstance(v, str) else v for k, v in more.items()}
    with pytest.raises(ValueError, match=message):
        open_pairs(options(pairs, **more))


def test_teachers_that_do_not_fit(pairs):
    other = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP")
    networks.save_network(pairs / "teacher.pkl", other)
    given = options(pairs)
    with pytest.raises(ValueError, match=r"shape \[2, 1, 1\], and those of .* \[1, 4, 4\]"):
        build(given, open_pairs(given), torch.device("cpu"))
