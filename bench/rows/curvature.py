"""Training steps of the joint coupling / velocity models, at the published sizes, against the step written plainly.

Networks of both sides hold the same weights, and their outputs are compared before anything is timed; each side draws
its own random numbers.
"""

from __future__ import annotations

import functools

import torch

from bench.presets import SyntheticDataset
from bench.reference import curvature as reference
from bench.reference.denoiser import UNet
from bench.rows.denoiser import CPU, wake
from bench.rows.row import Row, Work
from bench.train import SyntheticBatches
from networks.published.flow_configs import PRESETS
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.methods.table import METHODS

__all__ = ["ROWS", "step"]


def _plain(config: dict[str, object]) -> UNet:
    return UNet(
        resolution=config["img_resolution"], channels=config["in_channels"], out_channels=config["out_channels"],
        classes=0, width=config["model_channels"], multipliers=config["channel_mult"], blocks=config["num_blocks"],
        attend=config["attn_resolutions"], dropout=config["dropout"],
    )  # fmt: skip


def step(preset: str, batch: int) -> Work:
    """Both steps of a published configuration."""
    torch.manual_seed(0)
    net, encoder = (_plain(PRESETS[preset][role]) for role in ("de", "en"))
    channels, size = PRESETS[preset]["de"]["in_channels"], PRESETS[preset]["de"]["img_resolution"]
    entry, data = METHODS["curvature"], SyntheticDataset(size, channels, 0)
    options = entry.options(outdir="", data="", preset=preset, batch=batch)
    method = entry.build(options, data, CPU)
    ours, encodes = (method.modules[name] for name in ("net", "encoder"))
    wake(ours)
    wake(encodes)
    net.load_state_dict(ours.model.state_dict())
    encoder.load_state_dict(encodes.encoder.state_dict())
    x, t = torch.randn(2, channels, size, size), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        moments = torch.cat(encodes.eval()(x, x)[1:], dim=1)
        torch.testing.assert_close(ours.eval()(x, t), net.eval()(x, t, None), rtol=0, atol=1e-3)
        torch.testing.assert_close(moments, encoder.eval()(x, torch.ones(2), None), rtol=0, atol=1e-3)
    for module in (ours, encodes, net, encoder):
        module.train()
    batches = SyntheticBatches(batch, data.image_shape, 0, CPU)
    loop = Loop(method, batches, LoopOptions(seed=0, batch=batch), CPU)
    return Work(reference.training_step(net, encoder, batches.next()[0], options.weight_prior), loop.step)


ROWS = [
    Row(f"curvature training step, {name}, batch {batch}", functools.partial(step, preset, batch), 1.3, None, n)
    for name, preset, batch, n in (("MNIST", "mnist", 32, 5), ("CIFAR-10", "cifar10", 2, 3))
]
