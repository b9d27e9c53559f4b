"""One evaluation of every published full-size network with random weights: processor seconds and peak memory.

    python -m bench.full_size            # all, each in a process of its own
    python -m bench.full_size sit-xl-2

Float32, one sample, processor seconds of the second of two evaluations; the peak is of the process with its weights.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import networks
from networks.models.autoencoder import build_autoencoder
from networks.models.clip_text import CLIPText
from networks.models.interpolant import transformer_config
from networks.trunks.adm_classifier import ADMClassifier
from networks.trunks.adm_unet import ADMUNet
from torch_utils.profile import cpu_memory_gib

SONG = {"model_type": "SongUNet", "model_channels": 128, "num_blocks": 4, "attn_resolutions": [16]}
DHARIWAL = {"model_type": "DhariwalUNet", "label_dim": 1000, "model_channels": 192, "channel_mult": [1, 2, 3, 4]}
ADM = {
    "img_resolution": 256, "in_channels": 3, "model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4],
    "num_res_blocks": 2, "attention_resolutions": [8, 16, 32], "num_head_channels": 64, "resblock_updown": True,
}  # fmt: skip
LATENT = {"img_resolution": 64, "num_res_blocks": 2, "use_scale_shift_norm": False}
STAGE = {"resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "num_res_blocks": 2}


def _edm(size: int, **options: object) -> tuple[nn.Module, tuple]:
    net = networks.build("EDMPrecond", img_resolution=size, img_channels=3, **options)
    labels = torch.eye(1000)[:1] if net.label_dim else None
    return net, (torch.randn(1, 3, size, size), torch.ones(1), labels)


def _unet(classes: bool = False, context: int = 0, **options: object) -> tuple[nn.Module, tuple]:
    net = ADMUNet(
        **options, **({"label_dim": 1000} if classes else {}), **({"context_dim": context} if context else {})
    )
    size, channels = options["img_resolution"], options["in_channels"]
    more = (torch.zeros(1, dtype=torch.int64),) if classes else (None, torch.randn(1, 77, context)) if context else ()
    return net, (torch.randn(1, channels, size, size), torch.tensor([500.0]), *more)


def _classifier() -> tuple[nn.Module, tuple]:
    net = ADMClassifier(**{**ADM, "model_channels": 128}, out_channels=1000, pool="attention")
    return net, (torch.randn(1, 3, 256, 256), torch.tensor([500.0]))


class _Decoder(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, z: Tensor) -> Tensor:
        return self.stage.decode(z)


def _decoder(kind: str, channels: int, mult: list[int], **options: object) -> tuple[nn.Module, tuple]:
    stage = build_autoencoder(kind, z_channels=channels, embed_dim=channels, ch_mult=mult, **STAGE, **options)
    return _Decoder(stage), (torch.randn(1, channels, 64, 64),)


def _text() -> tuple[nn.Module, tuple]:
    return CLIPText(), (torch.zeros(1, 77, dtype=torch.int64),)


def _transformer(name: str) -> tuple[nn.Module, tuple]:
    if name == "DiT-XL/2":
        trunk = {"patch_size": 2, "width": 1152, "depth": 28, "num_heads": 16, "learn_sigma": True}
        net = networks.build("DiTPrecond", img_resolution=32, img_channels=4, label_dim=1000, network=trunk)
        net.alphas_cumprod.copy_(torch.linspace(0.999, 1e-4, 1000))
    else:
        net = networks.build(**transformer_config(name, 32, 4, 1000, learn_sigma=True))
    time = torch.rand(1, 4, 32, 32) if name.startswith("ComboStoc") else torch.tensor([0.5])
    return net, (torch.randn(1, 4, 32, 32), time, torch.eye(1000)[:1])


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple]]] = {
    "edm-cifar10": partial(_edm, 32, channel_mult=[2, 2, 2], **SONG),
    "edm-ffhq": partial(_edm, 64, channel_mult=[1, 2, 2, 2], **SONG),
    "edm-imagenet64": partial(_edm, 64, **DHARIWAL),
    "cm-lsun-256": partial(_unet, **ADM, out_channels=3, use_scale_shift_norm=False),
    "adm-imagenet-256": partial(_unet, classes=True, **ADM, out_channels=6, use_scale_shift_norm=True),
    "adm-classifier-256": _classifier,
    "ldm-64": partial(
        _unet, **LATENT, in_channels=3, out_channels=3, model_channels=224, channel_mult=[1, 2, 3, 4],
        attention_resolutions=[2, 4, 8], num_head_channels=32,
    ),
    "sd-v1": partial(
        _unet, **LATENT, context=768, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1, 2, 4, 4],
        attention_resolutions=[1, 2, 4], num_heads=8, num_head_channels=-1,
    ),
    "clip-text": _text,
    "decoder-vq-f4": partial(_decoder, "VQAutoencoder", 3, [1, 2, 4], n_embed=8192),
    "decoder-kl-f8": partial(_decoder, "KLAutoencoder", 4, [1, 2, 4, 4]),
    "dit-xl-2": partial(_transformer, "DiT-XL/2"),
    "sit-xl-2": partial(_transformer, "SiT-XL/2"),
    "combostoc-xl-2": partial(_transformer, "ComboStoc-XL/2"),
}  # fmt: skip


@torch.inference_mode()
def measure(name: str) -> str:
    """One line: name, parameters, seconds, peak memory."""
    net, inputs = NETWORKS[name]()
    net.eval().requires_grad_(False)
    for _ in range(2):
        began = time.process_time()
        net(*inputs)
        took = time.process_time() - began
    parameters = sum(p.numel() for p in net.parameters())
    return f"| {name} | {parameters / 1e6:.1f}M | {took:.3g} | {cpu_memory_gib():.1f} GiB |"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NETWORKS:
        if len(sys.argv) == 2:
            print(measure(wanted), flush=True)
        else:
            subprocess.run([sys.executable, "-m", "bench.full_size", wanted], check=False)
