"""Training of interpolant transformers: losses fall, processes and interruptions change nothing, samplers take them."""

import dataclasses
import signal

import pytest
import torch
from exact_runs import assert_same, drive, make_data, outcome

from bench.presets import SyntheticDataset
from bench.train import SyntheticBatches
from networks.models.decoder import LatentFacts
from samplers.field import Facts, Field
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.solvers.native import sample_native
from torch_utils.rng import BatchRNG
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.method import Batch
from training.methods.combostoc import ComboStocOptions, SiTOptions, build
from training.pictures.preview import fixed_starts

TINY = {"width": 32, "depth": 2, "num_heads": 2, "outdir": "runs", "data": "digits.zip"}
CLASSES = {"combostoc": ComboStocOptions, "sit": SiTOptions}
OPTIONS = (
    "--cond=1 --model=ComboStoc-S/4 --width=16 --depth=1 --num-heads=2 --lr=1e-3 --ema=0.0005 --batch=32 --tick=0.064 "
    "--snap=2 --dump=1 --seed=3"
)


def method(name="combostoc", **more):
    torch.manual_seed(0)
    options = CLASSES[name](**{"model": "ComboStoc-S/4" if name == "combostoc" else "SiT-S/4", **TINY, **more})
    return options, build(options, SyntheticDataset(8, 1, 0), torch.device("cpu"))


def stripes(count):
    """Data with something to learn: every image is one of two patterns."""
    pattern = torch.ones(8, 8)
    pattern[::2] = -1
    sign = torch.where(torch.arange(count) % 2 == 1, 1.0, -1.0)
    return (sign[:, None, None, None] * pattern).float()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sit", {}), ("combostoc", {}), ("combostoc", {"combostoc_type": "UNSYNC_NONE"}),
        ("combostoc", {"combostoc_type": "UNSYNC_VEC", "path_type": "GVP"}),
        ("combostoc", {"combostoc_type": "UNSYNC_PATCH", "prediction": "noise"}),
        ("combostoc", {"halves": False, "blend": False, "compensate": "off"}),
        ("combostoc", {"prediction": "score", "loss_weight": "velocity", "path_type": "VP"}),
    ],
)  # fmt: skip
def test_losses_fall(name, more):
    """By a tenth within 40 steps; the times and noise of the first and last ones are the same."""
    options, made = method(name, **more)
    net, phase = made.modules["net"], made.phases[0]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for step in [0, 1, 2, 3, *range(40), 0, 1, 2, 3]:
        rng = BatchRNG(0, 32 * step, 0, 32)
        loss = phase.loss(Batch(stripes(32), torch.zeros(32, 0), rng, 0)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step() if len(losses) >= 4 else None
        losses.append(loss.item())
    assert all(torch.tensor(losses).isfinite())
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert options.split == (None if name == "sit" else options.combostoc_type)


def test_what_is_trained_is_known_to_samplers():
    for name, more, expected in (
        ("combostoc", {}, (True, True)), ("combostoc", {"compensate": "off"}, (True, False)),
        ("combostoc", {"path_type": "GVP"}, (True, False)), ("sit", {}, (False, False)),
        ("combostoc", {"combostoc_type": "UNSYNC_NONE"}, (True, False)),
        ("combostoc", {"path_type": "GVP", "compensate": "reference"}, (True, True)),
        ("combostoc", {"prediction": "noise"}, (True, False)),
    ):  # fmt: skip
        facts = Facts.of(method(name, **more)[1].modules["net"])
        assert (facts.element_times, facts.compensated) == expected


@pytest.fixture(scope="module", params=["combostoc", "sit"])
def field(request):
    _, made = method(request.param)
    net = made.modules["net"].eval().requires_grad_(False)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return Field(net)


@pytest.mark.parametrize(
    "given", [{"dp": True, "num_warmup": 4, "num_steps_tea": 13, "num_steps": 4},
              {"calibrate": (3,), "num_warmup": 8, "num_steps_tea": 13}],
    ids=["search", "calibration"],
)  # fmt: skip
def test_searches_take_the_field(field, given):
    plan = build_plan(field, SamplerOptions(**given), batch=8)
    x = plan(field, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert plan.chosen.found is not None
    assert x.isfinite().all()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.mark.parametrize("name", ["combostoc", "sit"])
def test_two_processes_and_a_kill_change_nothing(tmp_path, data, name):
    options = {"method": name, "options": OPTIONS.replace("ComboStoc", "SiT") if name == "sit" else OPTIONS}
    for world in (1, 2):
        drive(tmp_path, data, tmp_path / f"by{world}", 1, [{}], world, **options)
    (one, curves), (two, other) = (outcome(tmp_path / f"by{world}") for world in (1, 2))
    for a, b in zip(curves["Loss/loss"], other["Loss/loss"], strict=True):
        assert (a["num"], a["mean"]) == (b["num"], pytest.approx(b["mean"], rel=1e-4))
    # keys have a common offset that attention does not see: its gradient is rounding, which Adam makes a whole step
    for key in [k for k in one if "/loop.modules." in k and not k.endswith("qkv.bias")]:
        # elsewhere, few elements have so small a gradient that its rounding is part of Adam's step of 1e-3
        difference = (two[key] - one[key]).abs()
        assert difference.mean() < 0.05 * 1e-3, key
        assert difference.max() < 1e-3, key
    kills = [{"signal": "KILL", "event": event, "rank": 0} for event in (5, 9)]
    results, _ = drive(tmp_path, data, tmp_path / "killed", 1, [*kills, {}], **options)
    assert [processes[0][0] for processes in results] == [-signal.SIGKILL] * 2 + [0]
    assert_same(outcome(tmp_path / "killed"), (one, curves))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "SiT-S/4"}, "is told one time a sample"), ({"model": "ComboStoc-S/3"}, "do not tile"),
        ({"prediction": "noise", "compensate": "off"}, "changes velocities"),
        ({"loss_weight": "velocity"}, "has none"), ({"label_dropout": 0.2}, "this network has none"),
        ({"path_type": "VP", "train_eps": 0.0}, "velocity has no bound on the VP path at t = 0, the data"),
        (
            {"prediction": "noise", "loss_weight": "velocity", "train_eps": 0.0},
            "noise loss with the weight velocity has no bound on the Linear path at t = 1, the noise",
        ),
        (
            {"prediction": "score", "loss_weight": "likelihood", "train_eps": 0.0, "path_type": "GVP"},
            "has no bound on the Trig path at t = 1",
        ),
        ({"prediction": "score", "loss_weight": "velocity", "train_eps": 0.0, "path_type": "VP"}, "at t = 0, the data"),
        ({"num_classes": 10}, "add --cond=1"), ({"image_size": 16}, "holds 8x8"), ({"vae": "ema"}, "holds images"),
        ({"cfg_scale": 4.0}, "learns no labels: add --cond=1"),
        ({"sample_eps": 0.0, "prediction": "noise"}, "--sample-eps=0 ends where the flow"),
        ({"sample_eps": 0.0, "path_type": "VP", "train_eps": 1e-3}, "predicts velocity on the path VP has no bound"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(more, message):
    with pytest.raises(ValueError, match=message):
        method(**more)


def test_latents_of_the_published_autoencoders():
    """They are told by the name that the data set records."""

    def latents(network):
        facts = LatentFacts("moments", (8, 8, 8), 0.18215, 64, network=network)
        return dataclasses.replace(SyntheticDataset(8, 4, 10), latents=facts)

    options = {**TINY, "model": "SiT-S/4", "vae": "mse"}
    for name in ("diffusers:models/sd-vae-ft-mse", "hf:stabilityai/x/vae-ft-mse-840000-ema-pruned.safetensors"):
        assert build(SiTOptions(**options), latents(name), torch.device("cpu")).modules
    for name in ("diffusers:models/sd-vae-ft-ema", "vae.safetensors", None):
        with pytest.raises(ValueError, match=f"--vae=mse is sd-vae-ft-mse, and digits.zip names {name} as"):
            build(SiTOptions(**options), latents(name), torch.device("cpu"))


@pytest.mark.parametrize(
    ("more", "calls"), [({}, 36), ({"cfg_scale": 1.0}, 36), ({"cfg_scale": 4.0}, 72), ({"sample_eps": 0.01}, 34),
                        ({"cfg_scale": 2.0, "sample_eps": 0.0}, 68),
                        ({"sample_eps": 0.01, "prediction": "noise", "path_type": "VP"}, 34)],
)  # fmt: skip
def test_pictures_as_the_published_options_say(more, calls, tmp_path):
    """Guided on three of four channels, and over the times that --sample-eps leaves."""
    options = SiTOptions(**{**TINY, "model": "SiT-S/4", "cond": True, **more})
    made = build(options, SyntheticDataset(8, 4, 2), torch.device("cpu"))
    net = made.modules["net"].eval().requires_grad_(False)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    net.decode = lambda x: (seen.setdefault("x", x), x[:, :3])[1]
    seen, times, rows = {}, [], []

    def note(module, args):
        times.append(1 - args[1].flatten().double())
        rows.append(len(args[0]))

    with net.model.register_forward_pre_hook(note):
        made.preview(tmp_path / "grid.png", {"ema": net})
    assert (tmp_path / "grid.png").is_file()
    assert sum(rows) == 16 * calls
    if (eps := more.get("sample_eps")) is not None:
        first = 1.0 if more.get("path_type") == "VP" else 1 - eps
        torch.testing.assert_close(times[0].max().item(), first, rtol=0, atol=1e-6)
        torch.testing.assert_close(times[-1].min().item(), eps, rtol=0, atol=1e-6)
    if more == {"cfg_scale": 2.0, "sample_eps": 0.0}:
        noise, labels = fixed_starts(net, 16, 8)
        plain = sample_native(net, noise, torch.linspace(1, 0, 18), solver="heun2", class_labels=labels)
        assert not torch.allclose(seen["x"], plain[:8].float(), atol=1e-3)  # decoded eight at a time


PUBLISHED = {"outdir": "runs", "data": "latents.zip", "batch": 64}


def test_counts_of_steps_and_epochs():
    """As the published defaults have them: a line every 100 steps, and what else there is in multiples of that."""
    dataset = SyntheticDataset(8, 1, 0)
    counts = {"epochs": 3, "log_every": 100, "ckpt_every": 500, "sample_every": 200, "reckpt_every": 300}
    told = ComboStocOptions(**PUBLISHED, **counts).told(dataset)
    assert told == ComboStocOptions(**PUBLISHED, duration=3 * len(dataset) / 1e6, tick=6.4, snap=2, dump=3)
    told = SiTOptions(**PUBLISHED, ckpt_every=50_000, xflip=True, epochs=2).told([0] * 100)
    assert (told.tick, told.snap, told.duration) == (6.4, 500, 1e-4)
    plain = SiTOptions(**PUBLISHED)
    assert plain.told(dataset) == plain
    for given, message in (
        ({"ckpt_every": 150}, "no whole number of ticks of 100 steps"),
        ({"epochs": 2, "duration": 1.0}, "say the same"),
        ({"log_every": 10, "tick": 3.0}, "say the same"),
        ({"reckpt_every": 50, "tick": 6.4}, "no whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            SiTOptions(**PUBLISHED, **given).told(dataset)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("sit", "SiT-XL/2"), ("combostoc", "ComboStoc-XL/2")])
def test_the_largest_network_takes_a_step(name, model, reserve_memory):
    """XL/2 at full size, one latent of 32x32x4 with a label; every element at a time of its own of ComboStoc."""
    reserve_memory(15)  # weights, gradients, two moments and the average of 675 M parameters are 13.5 GB
    more = {"halves": False} if name == "combostoc" else {}
    options = CLASSES[name](
        outdir="runs", data="latents.zip", cond=True, batch=1, model=model, learn_sigma=True, **more
    )
    dataset, device = SyntheticDataset(32, 4, 1000), torch.device("cpu")
    made = build(options, dataset, device)
    net = made.modules["net"]
    count = sum(p.numel() for p in net.state_dict().values())
    assert count == {"sit": 675_129_632, "combostoc": 673_581_240}[name]
    loop = Loop(made, SyntheticBatches(1, dataset.image_shape, 1000, device), LoopOptions(seed=0, batch=1), device)
    first = net.model.final_layer.linear.weight.detach().clone()  # it begins at 0, so that all gradients but its own do
    loop.step()
    changed = net.model.final_layer.linear.weight - first
    assert changed.isfinite().all()
    # Adam's first step: the learning rate in every weight of the 4 channels that are used, 0 in those of learn_sigma
    used = changed.unflatten(0, (4, 8))[:, :4]
    assert (used.abs() > 0.9 * options.lr).float().mean() > 0.9
    assert not changed.unflatten(0, (4, 8))[:, 4:].any()
