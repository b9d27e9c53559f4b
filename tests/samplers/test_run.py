"""Seeds to images: batches over processes, draw order, classes, precision, and the sampler that options describe."""

import math

import pytest
import torch
from golden_cases import cases

from samplers import SOLVERS, get_schedule, sample
from samplers.planning.plan import SamplerOptions, build_plan
from samplers.run import Recorder, generate, image_shape, prepare, seed_batches
from samplers.schedules.edm import general_levels
from samplers.solvers.churn import ablation_sampler, edm_sampler
from torch_utils.misc import expand_to
from torch_utils.rng import PerSampleRNG


@pytest.mark.parametrize("case", cases("edm", "seed_batches"))
def test_seed_batches(case):
    n, world = case.spec["num_seeds"], case.spec["world_size"]
    own = [seed_batches(range(n), case.spec["max_batch"], rank, world) for rank in range(world)]
    assert [[[b[0], b[-1] + 1] for b in rank] for rank in own] == case.spec["expected_begin_end_per_rank"]


def test_seed_batches_of_nothing_and_of_too_little():
    assert seed_batches([], 8, 0, 3) == []
    assert [seed_batches([5, 5], 8, rank, 3) for rank in range(3)] == [[[5]], [[5]], []]
    with pytest.raises(ValueError, match="batch size"):
        seed_batches([1], 0)


class Net(torch.nn.Module):
    """A small denoiser whose result depends on its label; records what it was given."""

    def __init__(self, label_dim=0, img_channels=2, img_resolution=4):
        super().__init__()
        self.label_dim, self.img_channels, self.img_resolution = label_dim, img_channels, img_resolution
        self.sigma_min, self.sigma_max = 0, math.inf
        self.weight = torch.nn.Parameter(torch.tensor(0.25))
        self.calls = self.samples = 0

    def forward(self, x, sigma, class_labels=None):
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        x = x.float()
        data = x * self.weight / (self.weight + expand_to(sigma.float(), x) ** 2)
        if class_labels is not None:
            data = data + (class_labels @ torch.linspace(-0.5, 0.5, self.label_dim))[:, None, None, None]
        return data


def run(net, seeds, sampler=edm_sampler, **options):
    batches = list(generate(net, seeds, sampler, **options))
    return torch.cat([b.images for b in batches]), [s for b in batches for s in b.seeds], batches


def test_draw_order_is_latents_class_noise():
    net, seeds = Net(label_dim=3), [4, 11]
    plan = build_plan(net, SamplerOptions(steps=3, S_churn=1))
    images, _, batches = run(net, seeds, plan)
    rng = PerSampleRNG(seeds)
    noise = rng.randn([2, *image_shape(net)])
    labels = torch.nn.functional.one_hot(rng.randint(3, [2]), 3).float()
    assert torch.equal(batches[0].labels, labels)
    assert torch.equal(images, edm_sampler(net, noise, labels, rng=rng, num_steps=3, S_churn=1))


def test_a_given_class_changes_the_labels_and_not_the_noise():
    net, seeds = Net(label_dim=3), [4, 11]
    plan = build_plan(net, SamplerOptions(steps=3, S_churn=2))
    images, _, batches = run(net, seeds, plan, class_idx=2)
    assert batches[0].labels.tolist() == [[0, 0, 1]] * 2
    rng = PerSampleRNG(seeds)
    noise = rng.randn([2, *image_shape(net)])
    rng.randint(3, [2])  # the class is drawn all the same
    assert torch.equal(images, edm_sampler(net, noise, batches[0].labels, rng=rng, num_steps=3, S_churn=2))


@pytest.mark.parametrize("options", [{}, {"S_churn": 5}, {"solver": "heun", "disc": "vp", "schedule": "vp"}])
def test_an_image_depends_on_its_seed_alone(options):
    net = Net(label_dim=3)
    plan = build_plan(net, SamplerOptions(steps=4, **options))
    seeds = [3, 2**32 + 5, 0, 3, 9, 1]
    whole, _, _ = run(net, seeds, plan, batch=64)
    small, order, _ = run(net, seeds, plan, batch=2)
    assert order == seeds
    torch.testing.assert_close(small, whole, rtol=0, atol=0)
    torch.testing.assert_close(whole[3], whole[0], rtol=0, atol=0)
    torch.testing.assert_close(run(net, [5], plan)[0][0], whole[1], rtol=0, atol=0)
    shares = {}
    for rank in range(3):
        images, own, _ = run(net, seeds, plan, batch=2, rank=rank, world=3)
        shares |= dict(zip(own, images, strict=True))
    torch.testing.assert_close(torch.stack([shares[s] for s in seeds]), whole, rtol=0, atol=0)


def test_more_processes_than_seeds():
    assert list(generate(Net(), [7], edm_sampler, rank=1, world=2)) == []


def test_sampling_builds_no_graph():
    net = Net()
    images, _, _ = run(net, [0], num_steps_two)
    assert not images.requires_grad


def num_steps_two(net, noise, labels, rng):
    return edm_sampler(net, noise, labels, num_steps=2)


@pytest.mark.parametrize(
    ("label_dim", "class_idx", "message"), [(0, 0, "unconditional"), (3, 3, "classes 0 to 2"), (3, -1, "0 to 2")]
)
def test_classes_that_do_not_exist_are_refused_at_once(label_dim, class_idx, message):
    with pytest.raises(ValueError, match=message):
        generate(Net(label_dim), [0], edm_sampler, class_idx=class_idx)


def test_recorder_keeps_the_trajectory():
    net = Net()
    plan = build_plan(net, SamplerOptions(solver="euler", num_steps=4))
    recorder = Recorder(plan)
    images = next(generate(net, [0, 1], recorder)).images
    assert recorder.x.shape == (2, 4, 2, 4, 4)
    assert recorder.drift.shape == (2, 3, 2, 4, 4)
    torch.testing.assert_close(recorder.sigmas[1], plan.sigmas)
    torch.testing.assert_close(recorder.x[:, -1], images.float())
    h = plan.sigmas.diff().float()[None, :, None, None, None]
    torch.testing.assert_close(recorder.x[:, :-1] + h * recorder.drift, recorder.x[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [None, "ipndm"])
def test_recorded_levels_end_where_the_sampler_ends(solver):
    net = Net()
    options = SamplerOptions() if solver is None else SamplerOptions(solver=solver, denoise_to_zero=True)
    recorder = Recorder(build_plan(net, options))
    next(generate(net, [0], recorder))
    assert recorder.x.shape[1] == recorder.sigmas.shape[1]
    assert recorder.sigmas[0, -1] == 0


def test_bf16_by_autocast_and_by_the_networks_own_switch():
    class Linear(Net):
        def forward(self, x, sigma, class_labels=None):
            self.dtype = torch.nn.functional.linear(x.float(), torch.eye(4)).dtype
            return super().forward(x, sigma)

    class Switch(Linear):
        compute_dtype = torch.float32

    plain, own = prepare(Linear(), "cpu", precision="bf16"), prepare(Switch(), "cpu", precision="bf16")
    run(plain, [0]), run(own, [0])
    assert plain.dtype == torch.bfloat16
    assert (own.dtype, own.compute_dtype) == (torch.float32, torch.bfloat16)
    assert prepare(Switch(), "cpu").compute_dtype == torch.float32
    with pytest.raises(ValueError, match="needs a GPU"):
        prepare(Net(), "cpu", precision="fp16")
    with pytest.raises(ValueError, match="auto, fp32, fp16, bf16"):
        prepare(Net(), "cpu", precision="fp8")


NOISE = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda net: edm_sampler(net, NOISE)),
        (
            {"steps": 6, "sigma_max": 50, "rho": 5},
            lambda net: edm_sampler(net, NOISE, num_steps=6, sigma_max=50, rho=5),
        ),
        (
            {"steps": 6, "solver": "euler", "disc": "ve", "schedule": "ve", "scaling": "vp"},
            lambda net: ablation_sampler(
                net, NOISE, num_steps=6, solver="euler", discretization="ve", schedule="ve", scaling="vp"
            ),
        ),
        ({"solver": "heun", "steps": 5}, lambda net: ablation_sampler(net, NOISE, num_steps=5)),
        ({"schedule": "vp"}, lambda net: ablation_sampler(net, NOISE, schedule="vp")),
        ({"num_steps": 5}, lambda net: sample(net, NOISE.double(), get_schedule(5), solver="ipndm")),
        ({"solver": "heun"}, lambda net: sample(net, NOISE.double(), get_schedule(7), solver="heun")),
        (
            {"solver": "dpmpp", "schedule_type": "logsnr", "predict_x0": False, "max_order": 2, "afs": True},
            lambda net: sample(
                net, NOISE.double(), get_schedule(7, schedule_type="logsnr"), solver="dpmpp", predict_x0=False,
                max_order=2, afs=True,
            ),
        ),
        (
            {"t_steps": (40.0, 3.0, 0.1), "solver": "deis", "deis_mode": "rhoab", "denoise_to_zero": True},
            lambda net: sample(
                net, NOISE.double(), [40.0, 3.0, 0.1], solver="deis", deis_mode="rhoab", denoise_to_zero=True
            ),
        ),
        (
            {"schedule": "gits_cifar10", "solver": "euler"},
            lambda net: sample(
                net, NOISE.double(), get_schedule(7, schedule_type="gits_cifar10"), solver="euler"
            ),
        ),
    ],
)  # fmt: skip
def test_plan_is_the_sampler_the_options_describe(options, expected):
    net = Net()
    plan = build_plan(net, SamplerOptions(**options))
    own = plan(net, NOISE)
    assert net.calls == plan.nfe
    assert own.dtype == torch.float64
    torch.testing.assert_close(own, expected(net), rtol=0, atol=0)
    assert f"{plan.nfe} network evaluation" in str(plan)


def test_one_step_is_one_evaluation():
    plan = build_plan(Net(), SamplerOptions(steps=1))
    assert (plan.nfe, plan.sigmas.tolist()) == (1, [80, 0])
    assert "1 network evaluation per sample" in str(plan)


def test_added_noise_with_searched_or_listed_time_stamps():
    net = Net()
    plan = build_plan(net, SamplerOptions(solver="heun_churn", num_steps=5, S_churn=3))
    own = plan(net, NOISE, rng=PerSampleRNG([0, 1]))
    again = sample(net, NOISE.double(), get_schedule(5), solver="heun_churn", S_churn=3, rng=PerSampleRNG([0, 1]))
    assert torch.equal(own, again)
    assert not torch.equal(own, plan(net, NOISE, rng=PerSampleRNG([2, 3])))


def test_time_stamps_span_the_networks_own_range():
    net = Net()
    net.sigma_min, net.sigma_max = 0.01, 150.0
    assert build_plan(net, SamplerOptions(num_steps=4)).sigmas[[0, -1]].tolist() == pytest.approx([150, 0.01])
    assert build_plan(net, SamplerOptions(steps=4)).sigmas.tolist() == general_levels(net, 4).tolist()
    assert build_plan(net, SamplerOptions(steps=4)).sigmas[0] == pytest.approx(80)


def test_off_switches_are_no_options():
    build_plan(Net(), SamplerOptions(steps=3, afs=False, denoise_to_zero=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4, "num_steps": 4}, "give one of them"),
        ({"steps": 0}, "0 steps"),
        ({"num_steps": 1}, "num_steps=1"),
        ({"solver": "ipndm", "steps": 4}, "say --num-steps"),
        ({"solver": "rk5"}, "choose from euler"),
        ({"S_churn": 1.0, "afs": True}, "--S_churn belongs to EDM's samplers and --afs"),
        ({"solver": "ipndm", "S_churn": 1.0}, "--S_churn belongs to EDM's"),
        ({"S_noise": 1.003}, "--S_churn as well"),
        ({"disc": "vp", "rho": 5.0}, "--rho shapes"),
        ({"solver": "euler", "max_order": 2}, "no option max_order"),
        ({"solver": "dpmpp", "max_order": 4}, "choose from 1, 2, 3"),
        ({"solver": "unipc", "deis_mode": "tab"}, "no option deis_mode"),
        ({"schedule_type": "logsnr", "schedule_rho": 3.0}, "does not use --schedule-rho"),
        ({"schedule": "gits_cifar10", "sigma_max": 40.0}, "does not use --sigma-max"),
        ({"schedule": "gits_cifar10", "t_steps": (1.0, 0.1)}, "leave one of them out"),
        ({"schedule": "nonsense"}, "no schedule 'nonsense'"),
        ({"t_steps": (1.0, 2.0)}, "falling order"),
        ({"schedule_type": "discrete"}, "discrete schedule"),
        ({"sigma_min": 90.0}, "sigma_min=90"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        build_plan(Net(), SamplerOptions(**options))


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "calibrated"])
def test_every_solver_can_be_planned(solver):
    net = Net()
    plan = build_plan(net, SamplerOptions(solver=solver))
    assert torch.isfinite(plan(net, NOISE)).all()
    if SOLVERS[solver].adaptive:  # images that have arrived are evaluated no more
        assert sum(plan.evaluations) == net.samples
    else:
        assert net.calls == plan.nfe
