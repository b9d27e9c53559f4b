"""The published size of trajectory optimisation: DDPM++ of CIFAR-10 and the default coefficient network, one step."""

import numpy as np
import pytest
import torch
from PIL import Image

import networks
from bench.presets import PRESETS
from training.data.image_dataset import ImageDataset
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.methods.edm import build_network
from training.methods.trajectory import TrajectoryOptions, build

CPU = torch.device("cpu")


class TwoImages:
    """What the loop reads of batches; the phases have batches of the same size."""

    def twin(self, batch_size):
        return self

    def next(self):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1, torch.eye(10)[:2]


@pytest.mark.slow
def test_full_size_cifar10_steps_once(tmp_path, reserve_memory):
    reserve_memory(11)  # weights, gradients, two moments and the average of 447 M parameters are 9 GB
    (tmp_path / "data").mkdir()
    for i in range(10):
        pixels = np.random.RandomState(i).randint(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    labels = ", ".join(f'["{i}.png", {i}]' for i in range(10))
    (tmp_path / "data" / "dataset.json").write_text(f'{{"labels": [{labels}]}}')
    dataset = ImageDataset(tmp_path / "data", use_labels=True)
    v = build_network(PRESETS["cifar10"].options, dataset)
    networks.save_network(tmp_path / "v.pkl", v)
    del v
    options = TrajectoryOptions(
        outdir="", data="", network=str(tmp_path / "v.pkl"), cond=True, backbones="light", batch=2, batch_edm=2,
        batch_disc=2,
    )  # fmt: skip
    method = build(options, dataset, CPU)
    about = dict(method.summary)
    assert "55.7M parameters, 42.4G FLOPs" in about["Network V"]
    assert "391.0M parameters, 315.2G FLOPs = 7.44 evaluations of V" in about["Network C"]
    loop = Loop(method, TwoImages(), LoopOptions(seed=0, batch=2, nonfinite="stop"), CPU)
    before = {name: p.detach().clone() for name, p in method.modules["net"].named_parameters() if "aux" in name}
    loop.step()
    loop.finish_step()
    moved = {name.split(".")[0] for name, p in method.modules["net"].named_parameters()
             if name in before and not torch.equal(p, before[name])}  # fmt: skip
    assert moved == {"V", "C"}
