"""GITS: golden searches, the pairwise formula as slow twin of the cost matrix, brute force for the shortest path."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gaussian_mixture import denoiser_of, mixture
from golden_cases import cases, fill_weights
from patience import HUNG

import networks
from samplers import SOLVERS, Field, get_schedule, sample
from samplers.gits.costs import METRICS, cost_matrix, cost_sums, path_cost, path_table, shortest_path
from samplers.gits.search import insert_free_step, search_schedule
from samplers.gits.teacher import TEACHERS, run_teacher, warmup_chunks
from samplers.recipe import ScheduleFile
from samplers.start import Chunk


def field_of(case):
    """The denoiser a case describes, with its class bound."""
    spec = case.spec.get("denoiser") or case.file["denoiser"]
    if spec["type"] != "network":
        return Field(denoiser_of(case))
    entry = case.file["networks"][spec["network"]]
    net = networks.build(entry["precond"], **entry["kwargs"])
    fill_weights(net, entry["constant_keys"]).eval().requires_grad_(False)
    if spec["class_index"] is None:
        return Field(net)
    return Field(net).bind(torch.eye(net.label_dim)[torch.as_tensor(spec["class_index"]).reshape(-1)])


def options_of(solver):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in solver["options"].items()}


def golden_trajectories(case):
    """Per warm-up round: chunk, grid and the teacher's trajectory."""
    schedule = dict(case.spec["schedule"])
    grid = get_schedule(
        schedule["num_steps"], schedule["sigma_min"], schedule["sigma_max"], schedule["type"], schedule["rho"] or 7
    )
    teacher, field = case.spec["teacher"], field_of(case)
    for key in case.spec["warmup_rounds"]:
        chunk = Chunk(field, case.tensor(key).to(getattr(torch, case.spec["dtype"])))
        trajectory = run_teacher(
            chunk, grid, teacher["solver"], afs=teacher["afs"], denoise_to_zero=teacher["denoise_to_zero"],
            **options_of(teacher),
        )  # fmt: skip
        yield chunk, grid, trajectory


def golden_cost(case, rounds):
    """Mean of the rounds' means, as the golden data have it."""
    costs = [cost_matrix(t.states, t.directions, grid, case.spec["metric"]) for _, grid, t in rounds]
    return torch.stack(costs).mean(0)


@pytest.mark.parametrize("case", cases("solvers", "gits_search"))
def test_golden_search(case):
    cost = golden_cost(case, golden_trajectories(case))
    case.expect("cost", cost)
    stored = case.tensor("cost")
    for g, coeff in enumerate(case.spec["coeffs"]):
        own, ref = path_table(cost, max(case.spec["num_steps"]), coeff), path_table(stored, len(stored), coeff)
        for n, num_steps in enumerate(case.spec["num_steps"]):
            phi = case["phi"][g, n, :num_steps].tolist()
            assert ref[num_steps] == phi
            assert path_cost(stored, own[num_steps], coeff) == pytest.approx(
                path_cost(stored, phi, coeff), rel=case.spec["objective_rtol"]
            )


@pytest.mark.parametrize("case", cases("solvers", "gits_afs"))
def test_golden_free_step(case):
    rounds = list(golden_trajectories(case))
    case.expect("cost", golden_cost(case, rounds))
    stored, (_, grid, _), student = case.tensor("cost"), rounds[0], case.spec["student"]
    phi = case["phi"].tolist()
    assert shortest_path(stored, case.spec["num_steps"], case.spec["coeff"]) == phi
    used = rounds[-1:] if case.spec["afs_rounds"] == "last" else rounds
    ends = [(chunk, t.states[-1]) for chunk, _, t in used]
    found = insert_free_step(ends, grid, phi, student["solver"], **options_of(student))
    assert found in [case["dplist"].tolist(), *case.spec["dplist_alternatives"]]


@pytest.mark.parametrize("case", cases("solvers", "gits_dp"))
def test_golden_shortest_path(case):
    for g, coeff in enumerate(case.spec["coeffs"]):
        for n, num_steps in enumerate(case.spec["num_steps"]):
            assert shortest_path(case.tensor("cost"), num_steps, coeff) == case["phi"][g, n, :num_steps].tolist()


@pytest.mark.parametrize("case", cases("solvers", "network_denoise"))
def test_golden_network_denoise(case):
    field, x, sigma = field_of(case), case.tensor("x"), case.spec.get("sigma")
    sigma = torch.as_tensor(case["sigma"] if sigma is None else sigma)
    case.expect("out", field.data(x * sigma, sigma))


@pytest.mark.parametrize("case", cases("solvers", "network_solve"))
def test_golden_network_solve(case):
    x = sample(
        field_of(case), case.tensor("latents"), case.tensor("t_steps").double(), solver=case.spec["solver"],
        afs=case.spec["afs"], denoise_to_zero=case.spec["denoise_to_zero"], **options_of(case.spec),
    )  # fmt: skip
    case.expect("out", x)


def pairwise_cost(states, directions, sigmas, metric):
    """The definition, one pair of levels at a time: the slow twin."""
    T = len(sigmas)
    x, e = states.double().flatten(2), directions.double().flatten(2)
    u = torch.nn.functional.normalize(x[-1] - x[0], dim=-1)

    def deviation(y):
        v = x[-1] - y
        return (v - (v * u).sum(-1, keepdim=True) * u).norm(dim=-1).mean()

    cost = torch.zeros(T, T, dtype=torch.float64)
    for i, j in itertools.combinations(range(T), 2):
        jump = x[i] + (sigmas[j] - sigmas[i]) * e[i]
        if metric == "dev":
            cost[i, j] = deviation(jump) - deviation(x[j])
        else:
            cost[i, j] = (jump - x[j]).norm(p=int(metric[1]), dim=-1).mean()
    return cost


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("shape", "extra"), [((5, 3, 2, 2), 0), ((4, 7), 0), ((3, 6), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cost_matrix_equals_its_slow_twin(metric, shape, extra, dtype):
    chunk = Chunk(Field(two_modes()), torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    grid = get_schedule(17)
    states, directions = run_teacher(chunk, grid, denoise_to_zero=bool(extra))
    assert len(states) == len(grid) + extra
    cost = cost_matrix(states, directions, grid, metric)
    assert cost.dtype == torch.float64
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5  # l1 adds elements in the dtype of the states
    torch.testing.assert_close(cost, pairwise_cost(states, directions, grid, metric), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_cost_sums_add_over_chunks(metric, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states, directions = (torch.randn(n, 7, 4, dtype=torch.float64, generator=generator) for n in (9, 8))
    whole = cost_sums(states, directions, get_schedule(9), metric)
    monkeypatch.setitem(cost_sums.__globals__["_WORKSPACE"], "cpu", 1)  # one sample at a time
    torch.testing.assert_close(cost_sums(states, directions, get_schedule(9), metric), whole, rtol=1e-10, atol=1e-10)


def test_straight_trajectories_cost_nothing():
    sigmas, data = get_schedule(9), torch.randn(6, 5, dtype=torch.float64)
    drift = torch.randn(6, 5, dtype=torch.float64)
    states = data + sigmas[:, None, None] * drift
    for metric in METRICS:
        cost = cost_matrix(states, drift.expand(8, -1, -1), sigmas, metric)
        assert cost.abs().max() < 1e-5  # square roots of rounding errors at sigma = 80


@pytest.mark.parametrize("coeff", [0.8, 1.0, 1.15])
def test_shortest_path_is_optimal(coeff):
    T = 9
    cost = torch.randn(T, T, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    table = path_table(cost, T, coeff)
    assert sorted(table) == list(range(2, T + 1))
    for num_steps, found in table.items():
        every = ([0, *inner, T - 1] for inner in itertools.combinations(range(1, T - 1), num_steps - 2))
        best = min(every, key=lambda path: path_cost(cost, path, coeff))
        assert found == best == shortest_path(cost, num_steps, coeff)


def test_ties_go_to_the_first_index():
    assert shortest_path(torch.zeros(6, 6), 4, 1.15) == [0, 1, 2, 5]


def two_modes():
    """A mixture of two Gaussians in any number of dimensions: a model with a bend."""

    def denoise(x, sigma, class_labels=None):
        size = x[0].numel()
        mu = torch.linspace(-0.6, 0.7, size, dtype=x.dtype)
        shift = 0 if class_labels is None else class_labels[:, :1].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        pi, std = torch.tensor([0.4, 0.6], dtype=x.dtype), torch.tensor([[0.2], [0.3]], dtype=x.dtype)
        return mixture(pi, torch.stack([mu, -mu.flip(0)]), std)(x - 0.2 * shift, sigma) + 0.2 * shift

    return denoise


SMALL = {"img_shape": (2, 3, 3), "num_steps_tea": 21, "num_warmup": 10, "batch": 4}


def test_search_takes_a_subset_of_the_grid():
    found = search_schedule(Field(two_modes()), 5, **SMALL, coeff=[1.15, 0.9])
    assert found.indices == shortest_path(found.cost, 5, 1.15) == found.table[1.15][5]
    torch.testing.assert_close(found.sigmas, get_schedule(21)[found.indices], rtol=0, atol=0)
    assert found.table[0.9][7] == shortest_path(found.cost, 7, 0.9)
    assert {e.num_steps for e in found.entries()} == set(range(2, 22))


def test_search_does_not_depend_on_the_batch():
    one = search_schedule(Field(two_modes()), 5, **SMALL)
    other = search_schedule(Field(two_modes()), 5, **{**SMALL, "batch": 10})
    torch.testing.assert_close(one.cost, other.cost, rtol=1e-5, atol=1e-6)
    assert one.indices == other.indices
    assert not torch.equal(one.cost, search_schedule(Field(two_modes()), 5, **SMALL, seed=1).cost)


def test_processes_share_the_samples(monkeypatch):
    whole = torch.cat([c.noise for c in warmup_chunks(Field(two_modes()), 10, (2, 3, 3), batch=3)])
    parts = []
    for rank in range(3):
        monkeypatch.setattr("samplers.gits.teacher.dist.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("samplers.gits.teacher.dist.get_world_size", lambda: 3)
        parts += [c.noise for c in warmup_chunks(Field(two_modes()), 10, (2, 3, 3), batch=4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


TWO_PROCESSES = """
import json, sys
import torch
from samplers.calibration.calibrate import calibrate
from samplers.gits.search import search_schedule
from torch_utils import distributed as dist

def model(x, sigma, class_labels=None):
    return torch.tanh(1.5 * x / (1 + sigma**2) ** 0.5 + 0.2)

with dist.process_group("cpu"):
    options = {"img_shape": (2, 3), "num_steps_tea": 13, "num_warmup": 9, "batch": 4}
    found = search_schedule(model, 4, afs=True, **options)
    student = calibrate(model, 2, num_heldout=5, **options).students[0]
    result = [found.indices, found.cost.tolist(), student.sigmas.tolist(), student.errors["held_out"]]
    open(f"{sys.argv[1]}/{dist.get_world_size()}-{dist.get_rank()}.json", "w").write(json.dumps(result))
"""


def test_two_processes_find_what_one_finds(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(TWO_PROCESSES)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3]), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path],
            env=environment | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for world, rank in ((1, 0), (2, 0), (2, 1))
    ]
    assert [p.wait(timeout=HUNG) for p in processes] == [0, 0, 0]
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert one[0] == first[0]
    torch.testing.assert_close(torch.tensor(one[1]), torch.tensor(first[1]), rtol=1e-5, atol=1e-6)
    assert first[2] == pytest.approx(one[2], rel=1e-2)
    assert first[3] == pytest.approx(one[3], rel=1e-2)


class Conditional:
    label_dim, img_channels, img_resolution = 3, 2, 3

    def __init__(self):
        self.seen = []

    def __call__(self, x, sigma, class_labels=None):
        self.seen.append(class_labels)
        return two_modes()(x, sigma, class_labels)


def test_classes_are_drawn_or_given():
    net = Conditional()
    search_schedule(net, 4, num_steps_tea=5, num_warmup=30, batch=30)  # shape and classes from the network
    assert net.seen[0].shape == (30, 3)
    assert (net.seen[0].sum(0) > 0).all()
    search_schedule(net, 4, num_steps_tea=5, num_warmup=3, class_idx=1)
    assert net.seen[-1].tolist() == [[0, 1, 0]] * 3
    search_schedule(Field(net).bind(torch.eye(3)[2:]), 4, num_steps_tea=5, num_warmup=3)
    assert net.seen[-1].tolist() == [[0, 0, 1]]
    search_schedule(Field(net).bind(torch.eye(3)), 4, num_steps_tea=5, num_warmup=3, batch=2)
    assert net.seen[-1].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("solver", ["ipndm", "dpmpp", "unipc", "deis"])
def test_afs_adds_one_free_step(solver):
    order = {"max_order": 3} if solver != "deis" else {}
    found = search_schedule(Field(two_modes()), 4, **SMALL, afs=True, solver=solver, metric="l2", coeff=2.5, **order)
    before = shortest_path(found.cost, 4, 2.5)
    assert before[1] > 1
    assert len(found.indices) == 5
    assert found.indices[2:] == before[1:]
    (entry,) = found.entries()
    assert entry.afs
    assert entry.indices == tuple(found.indices)
    assert SOLVERS[solver].nfe(len(found.sigmas), afs=True) == 3


def test_afs_without_room_searches_one_jump_more():
    found = search_schedule(Field(two_modes()), 5, **{**SMALL, "num_steps_tea": 6}, afs=True)
    assert len(found.indices) == 6
    with pytest.raises(ValueError, match="no room"):
        search_schedule(Field(two_modes()), 6, **{**SMALL, "num_steps_tea": 6}, afs=True)


def test_any_path_and_every_teacher():
    class Velocity:
        path, predicts = "linear", "velocity"

        def __call__(self, x, t, class_labels=None):
            return x / (1 + t)

    found = search_schedule(Velocity(), 4, **SMALL, sigma_max=20)
    assert found.schedule_file().path == "linear"
    for solver in TEACHERS:
        order = {"max_order": 3} if "max_order" in SOLVERS[solver].options else {}
        assert len(search_schedule(two_modes(), 4, **SMALL, solver_tea=solver, solver="dpmpp", **order).indices) == 4


def test_schedule_file_round_trip(tmp_path):
    found = search_schedule(Field(two_modes()), 5, **SMALL, coeff=[1.15, 1.0], max_order=3)
    found.schedule_file(model_hash="abc").save(tmp_path / "schedule.json")
    loaded = ScheduleFile.load(tmp_path / "schedule.json")
    entry = loaded.choose(num_steps=5, coeff=1.15)
    assert entry.sigmas == tuple(found.sigmas.tolist())
    assert entry.indices == tuple(found.indices)
    assert entry.cost == pytest.approx(path_cost(found.cost, found.indices, 1.15))
    assert loaded.options == {"max_order": 3}
    assert loaded.provenance["seed"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 22}, "num_steps=22 .* teacher's 21"),
        ({"num_steps": 1}, "num_steps=1 "),
        ({"metric": "bdev"}, "unknown metric 'bdev'"),
        ({"solver_tea": "unipc"}, "'unipc' cannot be the teacher"),
        ({"solver_tea": "nope"}, "'nope' cannot be the teacher"),
        ({"solver": "nope"}, "no solver 'nope'"),
        ({"num_warmup": 0}, "num_warmup=0"),
        ({"batch": 0}, "batch size is 0"),
        ({"coeff": 0.0}, "coeff=0"),
        ({"coeff": []}, "coeff="),
        ({"class_idx": 1}, "class 1 "),
        ({"img_shape": None}, "img_shape"),
        ({"solver_tea": "dpmpp", "max_order": 4}, "max_order=4"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        search_schedule(Field(two_modes()), **{**SMALL, **options})


def test_mismatched_shapes_are_named():
    with pytest.raises(ValueError, match="5 levels"):
        cost_matrix(torch.zeros(4, 2, 3), torch.zeros(3, 2, 3), get_schedule(5))
    with pytest.raises(ValueError, match="condition of shape"):
        next(warmup_chunks(Field(Conditional()).bind(torch.eye(3)), 4, (2, 3, 3)))
