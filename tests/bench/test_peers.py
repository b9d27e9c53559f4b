"""The comparison with diffusers' schedulers on a small network: what it measures, and what it says."""

import json

import pytest
import torch
from click.testing import CliRunner

import networks
from bench.peers import PEERS, main, peer_cells, verdict
from networks.load import save_network
from samplers import Field

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def shrink(x, sigma, class_labels=None):
    """Data of variance 1/4."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype)
    return 0.25 * x / (0.25 + sigma**2)


def test_schedulers_converge_to_the_flow():
    """Every scheduler, with many steps, ends where the flow of Gaussian data does."""
    noise = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    exact = 0.25 / (0.25 + 80**2) ** 0.5 * 80 / 0.25**0.5
    for cell in peer_cells(Field(shrink), (81,)):
        end = float(cell.plan(Field(shrink), noise).mean())
        assert end == pytest.approx(exact, abs=0.06 if cell.label == "Euler" else 0.02), cell.label


def test_heun_takes_odd_numbers():
    cells = {c.label: c for c in peer_cells(Field(shrink), (6,))}
    assert cells["Heun"].plan is None
    assert "odd" in cells["Heun"].why
    assert set(cells) == set(PEERS)


def test_what_the_verdict_says():
    def cell(solver, nfe, rmse):
        return {"solver": solver, "nfe": nfe, "rmse": rmse}

    results = [cell("UniPC", 4, 3.0), cell("UniPC", 8, 2.0), cell("DEIS", 8, 1.5), cell("ours", 8, 0.1)]
    (row,) = verdict([*results, cell("calibrated@x", 4, 1.4), cell("calibrated@x", 8, 1.0)])
    assert row["holds"]
    assert (row["same_by"], row["double_by"], row["double"]) == ("UniPC", "DEIS", 1.5)
    (row,) = verdict([*results, cell("calibrated@x", 4, 1.6)])
    assert not row["holds"]


def test_the_command(tmp_path):
    torch.manual_seed(0)
    net = networks.build(
        "EDMPrecond", img_resolution=4, img_channels=1, model_type="SongUNet", model_channels=8, channel_mult=[1],
        num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    save_network(tmp_path / "net.pkl", net.eval(), {})
    arguments = [f"--network={tmp_path / 'net.pkl'}", f"--outdir={tmp_path / 'out'}", "--num=4", "--num-warmup=2"]
    done = CliRunner().invoke(main, [*arguments, "--nfe=2,4", "--ours=ipndm", "--device=cpu"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "peers.json").read_text())
    (row,) = report["verdict"]["rmse"]
    assert (row["nfe"], row["double_by"] in PEERS) == (2, True)
    assert {"calibrated.json", "peers.json", "peers.png"} == {p.name for p in (tmp_path / "out").iterdir()}
