"""analyze.py from the command line: pictures and numbers of every sub-command, the page, one sentence for bad input."""

import html.parser
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_results import ok
from click.testing import CliRunner
from PIL import Image

import analyze
import networks
from samplers import get_schedule
from samplers.analysis.compare import HELD_OUT
from samplers.analysis.geometry import chord_deviation, explained_variance
from samplers.gits.costs import cost_matrix, shortest_path
from samplers.recipe import Entry, ScheduleFile
from torch_utils.frechet import Moments
from torch_utils.reference_file import save_moments
from torch_utils.report.chart import Chart, Line
from training.runs.curve import read_curve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A random 8x8 network, statistics that fit it and some that do not, a trajectory file, a schedule file, a run."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    net = networks.build(
        "EDMPrecond", img_resolution=8, img_channels=1, label_dim=3, model_type="SongUNet", model_channels=8,
        channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    networks.save_network(folder / "net.pkl", net)
    for name, dim in (("ref", 64), ("other", 12)):
        moments = Moments(torch.zeros(dim), 0.1 * torch.eye(dim, dtype=torch.float64), num=50, features="pixels")
        save_moments(folder / f"{name}.npz", moments)
    curve = trajectory_arrays(steps=24, shape=(1, 8, 8))
    np.savez(folder / "traj.npz", **curve)
    np.savez(folder / "points.npz", **trajectory_arrays(steps=5, shape=(2,)))
    entries = (Entry(sigmas=(80, 3, 0.4, 0.002), coeff=1.1), Entry(sigmas=(80, 9, 1, 0.2, 0.002), coeff=1.1))
    ScheduleFile(solver="ipndm", entries=entries).save(folder / "found.json")
    (folder / "run").mkdir()
    ticks = [
        {
            "Progress/kimg": {"mean": k},
            "Loss/loss": {"mean": 1 / (1 + k)},
            "Timing/sec_per_kimg": {"mean": 4.0},
        }
        for k in range(1, 40)
    ]
    text = "".join(json.dumps(t) + "\n" for t in ticks)
    (folder / "run" / "stats.jsonl").write_text(text + '{"Progress/kimg": {"me')  # killed while writing
    return folder


def trajectory_arrays(steps, shape):
    """Curved paths that end at level 0, as generate.py writes them."""
    g = torch.Generator().manual_seed(3)
    sigmas = torch.cat([get_schedule(steps, 0.01, 80), torch.zeros(1, dtype=torch.float64)])
    noise, std, data = (torch.randn(4, 1, *shape, generator=g, dtype=torch.float64) for _ in range(3))
    std = 0.2 + 0.3 * std.abs()
    s = sigmas.reshape(1, -1, *[1] * len(shape))
    x = data + (std**2 + s**2).sqrt() * noise  # the flow of a Gaussian
    drift = s * noise / (std**2 + s**2).sqrt()
    return {
        "x": x.float().numpy(),
        "drift": drift[:, :-1].float().numpy(),
        "sigmas": sigmas.expand(4, -1).numpy(),
        "seeds": np.arange(10, 14),
    }


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda text: CliRunner().invoke(analyze.main, shlex.split(text.replace("FILES", str(files))))


def numbers(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


def is_picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.std() > 5


def test_compare(run):
    output = ok(
        run(
            "compare --network=FILES/net.pkl --outdir=out/deep --solvers=euler,heun,edm,ipndm:2 --nfe=3-5 --num=6 "
            "--teacher_steps=8 --schedule=FILES/found.json --ref=FILES/ref.npz --num-fid=10 --device=cpu"
        )
    )
    report = numbers("out/deep/compare.json")
    labels = ["euler", "heun", "edm", "ipndm:2", "ipndm@found"]
    assert list(dict.fromkeys(r["solver"] for r in report["results"])) == labels
    assert report["seeds"] == f"{HELD_OUT}-{HELD_OUT + 5}"
    assert report["frechet"] == {"features": "pixels", "num": 10}
    got = {(r["solver"], r["nfe"]): r for r in report["results"]}
    assert [got["heun", n]["rmse"] is None for n in (3, 4, 5)] == [True, False, True]
    assert [got["edm", n]["frechet"] is None if "frechet" in got["edm", n] else True for n in (3, 4, 5)] == [0, 1, 0]
    assert got["ipndm@found", 4]["sigmas"] == [80, 9, 1, 0.2, 0.002]
    assert all(r["rmse"] > 0 and r["frechet"] > 0 for r in report["results"] if r["sigmas"])
    first, second = output.split("\n\n")[:2]
    assert "RMSE over 6 samples" in first
    assert "pixels, 10 images" in second
    rows = [line.split() for line in first.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["3", "4", "5"]
    assert rows[0][2] == "-"
    assert sum("*" in cell for cell in rows[0]) == 1
    is_picture("out/deep/compare.png")


def test_compare_does_not_depend_on_the_batch(run):
    command = "compare --network=FILES/net.pkl --solvers=euler --nfe=3 --num=5 --teacher-steps=3 --device=cpu"
    ok(run(f"{command} --outdir=a"))
    ok(run(f"{command} --outdir=b --batch=2"))
    a, b = (numbers(f"{d}/compare.json")["results"][0]["rmse"] for d in "ab")
    assert a == pytest.approx(b, rel=1e-4)  # the network's float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--network=none.pkl", "'none.pkl' is neither a file"),
        ("--network=FILES/net.pkl --solvers=huen", "no solver 'huen'"),
        ("--network=FILES/net.pkl --solvers=heun --nfe=1", "'heun' is not possible with NFE 1"),
        ("--network=FILES/net.pkl --nfe=0", "NFE at least 1"),
        ("--network=FILES/net.pkl --solvers=,", "at least one solver"),
        ("--network=FILES/net.pkl --ref=FILES/other.npz", "12 features an image, 'pixels' gives 64"),
        ("--network=FILES/net.pkl --ref=FILES/traj.npz", "and not mu and sigma"),
        ("--network=FILES/net.pkl --ref=none.npz", "no file none.npz"),
        ("--network=FILES/net.pkl --num-fid=9", "give --ref"),
        ("--network=FILES/net.pkl --ref=FILES/ref.npz --num-fid=9", "at most num_fid"),
        ("--network=FILES/net.pkl --schedule=none.json", "No such file"),
        ("--network=FILES/net.pkl --schedule=FILES/run/stats.jsonl", "not a schedule file"),
        ("--network=FILES/ref.npz", "ref.npz"),
    ],
)
def test_compare_refuses(run, arguments, message):
    check_refused(run(f"compare --outdir=out --device=cpu {arguments}"), message)


def check_refused(result, message):
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_trajectory(run, files):
    output = ok(run("trajectory FILES/traj.npz --outdir=out"))
    assert "Wrote trajectory.json, trajectory.png, projection.png and strip.png to out" in output
    found, arrays = numbers("out/trajectory.json"), np.load(files / "traj.npz")
    x = torch.from_numpy(arrays["x"]).transpose(0, 1)
    assert found["seeds"] == [10, 11, 12, 13]
    np.testing.assert_allclose(found["deviation"], chord_deviation(x).T)
    np.testing.assert_allclose(found["explained"], explained_variance(x)[:, :3])
    data = arrays["x"][:, :-1] - arrays["sigmas"][:, :-1].reshape(4, -1, 1, 1, 1) * arrays["drift"].astype(float)
    np.testing.assert_allclose(found["norm_estimate"], np.linalg.norm(data.reshape(4, -1, 64), axis=-1))
    assert np.shape(found["projection"]) == (4, 25, 3)
    assert np.shape(found["curvature"]) == (4, 25)
    assert np.shape(found["cosine"]) == (4, 24)
    for name in ("trajectory", "projection", "strip"):
        is_picture(f"out/{name}.png")


def test_trajectory_of_points_has_no_strip(run, tmp_path):
    output = ok(run("trajectory FILES/points.npz --outdir=out --num=2"))
    assert "no strip.png" in output
    found = numbers("out/trajectory.json")
    assert found["seeds"] == [10, 11]
    assert "projection" not in found
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["trajectory.json", "trajectory.png"]


def test_straight_trajectories_have_no_numbers_where_none_are_defined(run, tmp_path):
    sigmas = np.linspace(2, 0, 12)[None].repeat(2, 0)
    noise = np.ones((2, 1, 3, 4, 4), np.float32)
    x = sigmas.reshape(2, -1, 1, 1, 1).astype(np.float32) * noise
    np.savez("straight.npz", x=x, drift=noise.repeat(11, 1), sigmas=sigmas, seeds=np.arange(2))
    ok(run("trajectory straight.npz --outdir=out"))
    found = numbers("out/trajectory.json")
    np.testing.assert_allclose(found["deviation"], 0, atol=1e-5)
    np.testing.assert_allclose(found["explained"], 1)


@pytest.mark.parametrize("command", ["trajectory", "cost"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "no file bad.npz"),
        (b"text", "not a trajectory file"),
        ({"images": np.zeros(3)}, "holds images, not x, drift"),
        ({"x": np.zeros((2, 3, 4))}, "shapes are"),
        ({"drift": np.zeros((4, 2, 1, 8, 8))}, "shapes are"),
        ({"x": np.full((4, 25, 1, 8, 8), np.nan)}, "not finite"),
        ({"sigmas": np.ones((4, 25))}, "do not fall"),
        ({"sigmas": np.linspace(9, 0, 25)[None] + np.arange(4)[:, None]}, "differ between samples"),
        ({"seeds": np.array([{}], dtype=object)}, "not a trajectory file"),
    ],
)
def test_bad_trajectory_files(run, command, make, message):
    if isinstance(make, bytes):
        Path("bad.npz").write_bytes(make)
    elif make is not None:
        np.savez("bad.npz", **(make if "images" in make else trajectory_arrays(24, (1, 8, 8)) | make))
    check_refused(run(f"{command} bad.npz --outdir=out"), message)


def test_cost(run, files):
    output = ok(run("cost FILES/traj.npz --outdir=out --num-steps=5 --metric=l2 --coeff=1.2"))
    found, arrays = numbers("out/cost.json"), np.load(files / "traj.npz")
    x, drift = (torch.from_numpy(arrays[k]).transpose(0, 1) for k in ("x", "drift"))
    matrix = cost_matrix(x, drift, torch.from_numpy(arrays["sigmas"][0]), "l2")
    np.testing.assert_allclose(found["cost"], matrix)
    assert found["indices"] == shortest_path(matrix, 5, 1.2)
    assert found["chosen"] == [arrays["sigmas"][0, i] for i in found["indices"]]
    assert "5 levels: 80, " in output
    is_picture("out/cost.png")
    check_refused(run("cost FILES/traj.npz --outdir=out --num-steps=99"), "on a teacher grid of 25")
    check_refused(run("cost FILES/traj.npz --outdir=out --coeff=-1"), "coeff is -1")


def test_schedules(run):
    ok(run("schedules polynomial FILES/found.json logsnr --outdir=out --num_steps=4"))
    found = numbers("out/schedules.json")
    assert list(found) == ["polynomial, 4 levels", "found#1.1, 4 levels", "logsnr, 4 levels"]
    assert found["polynomial, 4 levels"] == get_schedule(4).tolist()
    assert found["found#1.1, 4 levels"] == [80, 3, 0.4, 0.002]
    is_picture("out/schedules.png")
    ok(run("schedules FILES/found.json --outdir=out"))
    assert len(numbers("out/schedules.json")) == 2
    check_refused(
        run("schedules FILES/found.json FILES/found.json --outdir=out"), "two schedules are called 'found#1.1, 4"
    )
    check_refused(run("schedules cosine --outdir=out"), "no schedule 'cosine'")
    check_refused(run("schedules discrete --outdir=out"), "noise levels")
    check_refused(run("schedules FILES/found.json --outdir=out --num-steps=9"), "no schedule with the number")


def test_curve(run, files):
    ok(run("curve FILES/run --outdir=out"))
    found = numbers("out/curve.json")
    assert found["kimg"] == list(range(1, 40))
    assert found["loss"][0] == 0.5
    assert set(found["images_per_second"]) == {250.0}
    is_picture("out/curve.png")


def test_smoothing_keeps_a_straight_line_and_damps_noise(tmp_path):
    def smooth(loss):
        ticks = (
            {"Progress/kimg": {"mean": 1.0 + i}, "Loss/loss": {"mean": v}, "Timing/sec_per_kimg": {"mean": 1}}
            for i, v in enumerate(loss)
        )
        (tmp_path / "stats.jsonl").write_text("".join(json.dumps(t) + "\n" for t in ticks))
        return np.array(read_curve(tmp_path)["smooth"])

    line = np.linspace(1, 0, 200)
    np.testing.assert_allclose(smooth(line)[40:-40], line[40:-40], rtol=1e-9)
    noisy = line + 0.1 * (-1.0) ** np.arange(200)
    assert np.abs(smooth(noisy) - line)[40:-40].max() < 0.01


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no stats.jsonl"),
        ("", "no tick yet"),
        ('{"a": 1}\n', "lacks 'Progress/kimg'"),
        ("{\n{}\n", "damaged in line 1"),
    ],
)
def test_bad_runs(run, tmp_path, content, message):
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "stats.jsonl").write_text(content)
    check_refused(run("curve bad --outdir=out"), message)


class Page(html.parser.HTMLParser):
    """Tags that stay open, addresses, and the visible text of a page."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text, self.tags, self.alts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.alts += [(tag, v) for k, v in attrs if k == "alt"]
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def test_page_shows_everything_and_escapes_it(run, tmp_path):
    ok(
        run(
            "compare --network=FILES/net.pkl --outdir=out --solvers=euler,heun --nfe=2,3 --num=2 --teacher-steps=3 "
            "--device=cpu"
        )
    )
    ok(run("curve FILES/run --outdir=out"))
    Image.new("L", (40, 20)).save(tmp_path / "out" / "a <b> & #1.png")
    report = numbers("out/compare.json")
    report["results"][0]["solver"] = "<script>alert(1)</script>"
    (tmp_path / "out" / "compare.json").write_text(json.dumps(report))
    ok(run("""page out --title='1 < 2 & "so"' --caption='curve.png=Loss <i>now</i>'"""))
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert not page.open
    assert page.tags.count("script") == 3 + 1  # the data of three charts, and the page's own
    assert "i" not in page.tags
    assert "b" not in page.tags
    assert '1 < 2 & "so"' in page.text
    assert "Loss <i>now</i>" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert all(a.startswith(("data:", "#")) for a in page.addresses)  # one file, without a network
    pictures = [alt for tag, alt in page.alts if tag == "img"]
    assert pictures == ["Loss <i>now</i>", "a <b> & #1"]  # captioned by the user: first; compare.png is a chart here
    assert "-" in page.text
    assert 'width="480" height="240"' in text  # a tiny picture is enlarged by a whole factor


def test_charts_hold_the_numbers_of_the_files(run, tmp_path):
    ok(run("curve FILES/run --outdir=out"))
    ok(run("page out"))
    text = (tmp_path / "out" / "index.html").read_text()
    loss, speed = (
        json.loads(part.split("</script>")[0]) for part in text.split('<script type="application/json">')[1:]
    )
    curve = numbers("out/curve.json")
    assert loss["data"] == [curve["kimg"], curve["smooth"], curve["loss"]]
    assert speed["data"] == [curve["kimg"], curve["images_per_second"]]
    assert loss["log_y"]


def test_what_has_no_place_on_a_chart_is_a_gap():
    lines = [Line("<b>", [1, 2, 3], [0.0, float("nan"), 2.0], 0), Line("b", [2, 4], [1.0, None], 1)]
    text = Chart("t", "x", "y", lines, log_y=True).html()
    assert "<b>" not in text
    chart = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    assert chart["data"] == [[1, 2, 3, 4], [None, None, 2.0, None], [None, 1.0, None, None]]
    assert chart["series"][0]["name"] == "<b>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none", "none is not a folder"),
        ("empty", "no pictures"),
        ("broken", "broken.png is not a picture"),
        ("other", "other/compare.json: this is not what `analyze.py compare` writes"),
        ("empty --caption=a.png", "names no picture"),
    ],
)
def test_bad_pages(run, tmp_path, arguments, message):
    for name in ("empty", "broken", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "broken.png").write_text("no")
    (tmp_path / "other" / "compare.json").write_text("[1]")
    check_refused(run(f"page {arguments}"), message)


def test_an_unwritable_folder_is_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("")
    check_refused(run("curve FILES/run --outdir=file/out"), "file")


def test_a_file_for_every_line():
    assert {p.stem for p in (ROOT / "analyses").glob("*.py")} == {*analyze.ANALYSES, "__init__", "shared"}


@pytest.mark.parametrize("name", analyze.ANALYSES)
def test_help_of_every_subcommand(name):
    result = CliRunner().invoke(analyze.main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: main {name} " in result.output
    examples = result.output.partition("Examples:")[2]
    assert f"analyze.py {name} " in examples
    assert examples.count("# ") == 1  # those of its own block
