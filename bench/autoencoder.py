"""A small autoencoder of photographs, for latents where no published one is at hand.

    python -m bench.autoencoder --outdir=runs/autoencoder

Trains diffusers' `AutoencoderKL`, 1.7 M parameters, on 64x64 crops of the photographs that installed packages ship, and
writes it as a folder of diffusers, for `dataset_tool.py --encode=diffusers:runs/autoencoder/vae`. The loss is that of
latent diffusion without a discriminator (Rombach et al. 2022, arXiv 2112.10752, section 3.1): absolute difference,
distance in features of an ImageNet network, and a small Kullback-Leibler term. Latents are `[4, 16, 16]`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bench import commands
from networks.features.maps import load_map
from networks.load import load_autoencoder
from torch_utils import process
from torch_utils.cli import Command
from torch_utils.images import from_uint8, make_grid, save_image, to_uint8
from training.data.image_dataset import ImageDataset, decoded

WIDTHS = (32, 64, 96)
FEATURES, KL = 0.05, 1e-6  # weights of the terms beside the absolute difference
JUDGED, SHOWN = 128, 10  # unseen crops


def _crops(outdir: Path, split: str) -> Tensor:
    """All crops of one part, uint8 `[N, 3, 64, 64]`."""
    path = outdir / f"photos64-{split}.zip"
    if not path.exists():
        commands.call("dataset_tool.py", f"--source=photos64 --split={split} --dest={path}")
    dataset = ImageDataset(str(path))
    return torch.cat(list(decoded(dataset, range(len(dataset)), 500)))


def train(images: Tensor, iterations: int, batch: int, lr: float) -> nn.Module:
    """The autoencoder of uint8 `images`, with a scaling factor that gives latents a deviation of 1."""
    from diffusers import AutoencoderKL

    levels = len(WIDTHS)
    vae = AutoencoderKL(
        block_out_channels=WIDTHS, layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=4, norm_num_groups=8,
        sample_size=images.shape[2],
    ).to(memory_format=torch.channels_last)  # fmt: skip
    features, _ = load_map("efficientnet-lite0")
    optimizer = torch.optim.Adam(vae.parameters(), lr=lr, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations, pct_start=0.05)
    bar = tqdm(range(iterations), unit="step")
    for _ in bar:
        x = from_uint8(images[torch.randint(len(images), (batch,))])
        x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x, x.flip(3)).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(x).latent_dist
        y = vae.decode(latents.sample()).sample
        seen = F.mse_loss(features(y), features(x), reduction="sum") / batch
        loss = F.l1_loss(y, x) + FEATURES * seen + KL * latents.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    with torch.inference_mode():
        chosen = from_uint8(images[torch.randperm(len(images))[:512]]).split(64)
        deviation = torch.cat([vae.encode(x).latent_dist.mean for x in chosen]).std()
    vae.register_to_config(scaling_factor=1 / deviation.item())
    return vae.eval()


@click.command(cls=Command)
@click.option("--outdir", type=Path, default="runs/autoencoder", show_default=True, help="Where everything goes")
@click.option("--iterations", type=click.IntRange(40), default=6000, show_default=True, help="Steps of training")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops in a step")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Largest learning rate")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of training")
def main(outdir: Path, iterations: int, batch: int, lr: float, seed: int) -> None:
    """Train the autoencoder, and say what it loses of crops that training did not see."""
    process.tune()
    torch.manual_seed(seed)
    outdir.mkdir(parents=True, exist_ok=True)
    vae = train(_crops(outdir, "train"), iterations, batch, lr)
    shutil.rmtree(outdir / "vae", ignore_errors=True)
    vae.save_pretrained(outdir / "vae")
    stage = load_autoencoder(f"diffusers:{outdir / 'vae'}").stage
    unseen = _crops(outdir, "test")
    unseen = unseen[:: len(unseen) // JUDGED][:JUDGED]
    with torch.inference_mode():
        x = from_uint8(unseen)
        again = stage.decode(stage.moments(x).chunk(2, dim=1)[0])
        features, _ = load_map("efficientnet-lite2")
        seen = (features(again) - features(x)).square().sum(1).mean().sqrt()
    mse = F.mse_loss(again.clamp(-1, 1), x)
    click.echo(f"{JUDGED} unseen crops: PSNR {10 * torch.log10(4 / mse):.2f} dB, {seen:.4f} in features of lite2")
    shown = range(0, JUDGED, JUDGED // SHOWN)[:SHOWN]
    save_image(make_grid(torch.cat([unseen[shown], to_uint8(again[shown])]), SHOWN), outdir / "reconstructions.png")


if __name__ == "__main__":
    main()
