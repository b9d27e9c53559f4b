"""The comparison of objectives: its table, and that what was measured is not measured again."""

import pytest
import torch

import networks
from bench.calibration import Results, calibrated, nfe_of, table
from samplers.field import Field


def test_table():
    found = {
        "teacher": {"pixels": 0.0, "fd": 20.0},
        "ipndm 3": {"pixels": 0.5, "fd": 90.0},
        "pixels 3 0": {"pixels": 0.1, "fd": 40.0},
        "pixels 3 1": {"pixels": 0.3, "fd": 50.0},
        "pixels between 3 0": {"pixels": 0.2, "fd": 45.0},
    }
    assert table(found).splitlines()[2:] == [
        "| teacher | 0 | 20 |",
        "| ipndm 3 | 0.5 | 90 |",
        "| pixels 3 | 0.2 ± 0.14 | 45 ± 7.1 |",
        "| pixels between 3 | 0.2 | 45 |",
    ]


def test_results_are_kept(tmp_path):
    path, made_by = tmp_path / "r.json", {"num": 2}
    Results(path, made_by).get("a", lambda: {"fd": 1.0})
    Results(path, made_by).get("a", lambda: {"fd": 2.0})
    assert Results(path, made_by).found == {"a": {"fd": 1.0}}
    with pytest.raises(ValueError, match=r"measured on {'num': 2}, this is {'num': 3}: choose another --outdir"):
        Results(path, {"num": 3})


def test_files_are_added_to(tmp_path):
    path, how = tmp_path / "c.json", {"num_warmup": 8, "num_heldout": 4, "num_steps_tea": 9, "seed": 0, "iterations": 1}
    torch.manual_seed(0)
    trunk = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    fields = [Field(networks.build("EDMPrecond", img_resolution=4, img_channels=1, **trunk).eval()) for _ in range(2)]
    first = calibrated(path, fields[0], [2], "pixels/free", **how)
    both = calibrated(path, fields[0], [2, 3], "pixels/free", **how)
    assert [nfe_of(e) for e in both.entries] == [2, 3]
    assert both.entries[0] == first.entries[0]
    assert [s["nfe"] for s in both.provenance["students"]] == [2, 3]
    with pytest.raises(ValueError, match="calibrated on another network"):
        calibrated(path, fields[1], [2], "pixels/free", **how)
    with pytest.raises(ValueError, match="after the slash goes free or corrections"):
        calibrated(tmp_path / "d.json", fields[0], [2], "pixels/tied", **how)
