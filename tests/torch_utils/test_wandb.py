"""Weights & Biases without an account or a network."""

import time

import wandb
from patience import HUNG

from torch_utils.stats import Wandb


def test_offline_run_keeps_its_id_and_its_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = Wandb(tmp_path, "toy", {"lr": 1})
    run_id = first.run_id
    first.log({"Loss/loss": {"num": 1, "mean": 0.5, "std": 0.0}}, kimg=0.064)
    first.close()
    assert wandb.run is None
    (record,) = tmp_path.rglob(f"run-{run_id}.wandb")
    deadline = time.monotonic() + HUNG / 10
    while b"Loss/loss" not in record.read_bytes() and time.monotonic() < deadline:  # a service of wandb's own writes it
        time.sleep(0.05)
    assert b"Loss/loss" in record.read_bytes()
    again = Wandb(tmp_path, "toy", {"lr": 1}, run_id)
    assert again.run_id == run_id
    again.close()
    assert list(tmp_path.rglob(f"run-{run_id}.wandb"))
