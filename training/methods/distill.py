"""One-step distillation: a copy of a flow model learns to do in one Euler step what the model did in many.

From pairs (z, image) that the teacher made, the student's prediction x = z - v(z, 1) is fitted to the image:

    loss = mean (z - v(z, 1) - image)^2        or LPIPS of the two (Zhang et al. 2018, arXiv 1801.03924)

Lee, Kim, Ye 2023 (arXiv 2301.12003), section 5; the straighter the teacher's trajectories, the smaller the error that
is left. The targets are 8-bit images, the optimiser is Adam with betas (0.9, 0.9999), dropout stays on, and there is
neither warm-up nor averaging unless asked for. Of a model of latents the targets are the latents as they were sampled.
See docs/distillation.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import networks
from networks.models.latent_model import LatentModel
from samplers.field import Field, as_field
from samplers.path import Linear, Trig
from samplers.planning.options import SamplerOptions
from samplers.run import decoded
from torch_utils import distributed as dist
from torch_utils.errors import importing
from torch_utils.images import enlarged, from_uint8, make_grid, save_image, to_uint8
from torch_utils.options import OptionGroup, opt
from torch_utils.provenance import MADE_BY, read_record
from training.data.noise_pairs import PairDataset, find_folders
from training.latents import check_same_latents, facts_of_latents
from training.method import Batch, LossOut, Method
from training.methods import common
from training.options import CommonOptions
from training.performance import prepare

COLUMNS = 8  # pairs in the picture that goes with a snapshot
TEST_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class DistillOptions(CommonOptions):
    group: ClassVar = OptionGroup("Teacher and pairs", "What the student learns from.", rank=3)

    data: str = opt(
        None, "Images that the teacher made, or a folder that holds samples/ and zs/", metavar="DIR|ZIP",
        required=True, names=("--im-dir",),
    )  # fmt: skip
    z_dir: str | None = opt(None, "Start noise of the images, SEED.npy; default: zs/ in --data", metavar="DIR")
    network: str = opt(
        None, "Teacher and start of the student: a flow model", metavar="FILE|URL|NAME", required=True,
        names=("--ckpt",),
    )  # fmt: skip
    loss: str = opt("l2", "l2: mean squared error; lpips: perceptual, needs the package lpips", choices=["l2", "lpips"])
    test_data: str | None = opt(
        None, "Further pairs: their loss is shown with every snapshot", metavar="DIR|ZIP", names=("--im-dir-test",)
    )
    test_z_dir: str | None = opt(None, "Start noise of --test-data", metavar="DIR", names=("--z-dir-test",))

    duration: float = opt(25.6, "Training duration in million images", metavar="MIMG", above=0)
    batch: int = opt(256, "Total batch size over all processes", metavar="INT", at_least=1)
    lr: float = opt(3e-5, "Learning rate", metavar="FLOAT", above=0, names=("--learning-rate",))
    lr_rampup: float = opt(0.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    ema: float = opt(0.0, "EMA half-life in million images; 0 = no averaging", metavar="MIMG", at_least=0)
    ema_rampup: float = opt(
        0.0, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )

    def name_parts(self) -> list[str]:
        return ["distill", self.loss]


def open_pairs(options: DistillOptions) -> PairDataset:
    """The data set of `--data` and `--z-dir`.

    Raises:
        ValueError, OSError: folders that do not pair, or options that pairs do not allow.
    """
    if options.cond or options.xflip:
        name = "cond" if options.cond else "xflip"
        raise ValueError(f"--{name} does not go with pairs of noise and image, which say what each is: leave it out")
    if options.test_z_dir is not None and options.test_data is None:
        raise ValueError("--test-z-dir is the noise of --test-data: give both, or neither")
    pairs = PairDataset(*find_folders(options.data, options.z_dir))
    if pairs.holds_latents:
        pairs.latents = facts_of_latents(networks.load_network(options.network), options.network)
        if pairs.latents is None:
            raise ValueError(
                f"{options.data} holds arrays, as --save-latents writes them of a model of latents, and "
                f"--network={options.network} makes images: give the images that it made"
            )
    return pairs


def _check_teacher(net: nn.Module, options: DistillOptions) -> None:
    """Refuse pairs that another network made, as the record beside them says."""
    weights = Field(net).weights_hash()
    folders = find_folders(options.data, options.z_dir)
    if options.test_data is not None:
        folders += find_folders(options.test_data, options.test_z_dir)
    for folder in folders:
        made_by = (read_record(folder) or {}).get("network")
        if isinstance(made_by, dict) and made_by.get("weights") not in (None, weights):
            raise ValueError(
                f"{folder} was not made by --network={options.network} but by a network with other weights "
                f"({MADE_BY}): give the network that made the pairs"
            )
    for images, noise in zip(folders[::2], folders[1::2], strict=True):
        a, b = read_record(images), read_record(noise)
        if a is not None and b is not None and _drawn(a) != _drawn(b):
            raise ValueError(
                f"the noise in {noise} was drawn in another way than that of {images} ({MADE_BY}): give the one that "
                "--save-noise wrote beside these images"
            )


def _drawn(record: Mapping[str, object]) -> list[object]:
    """What decides the noise of a number, besides the network's shape."""
    sampler = record.get("sampler")
    return [record.get("rng_device"), sampler.get("prior") if isinstance(sampler, Mapping) else None]


def one_step(net: Field | Callable[..., Tensor], noise: Tensor) -> Tensor:
    """E[data | noise] of a flow model, `[B, ...]`: the Euler step from t = 1 to 0.

    Raises:
        ValueError: a model whose path does not end in noise alone.
    """
    field = as_field(net)
    if not isinstance(field.path, Linear | Trig):
        raise ValueError(
            "one-step distillation needs a flow model, whose path ends in noise alone; this one lives on "
            f"{type(field.path).__name__}: train one with train.py curvature"
        )
    return field.data(noise, torch.ones((), dtype=torch.float64, device=noise.device))


def reconstruction_loss(
    name: str, device: torch.device, decode: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """`loss(estimate, target) -> [B, ...]`: squared differences, or one LPIPS value per image, which `decode` makes.

    Raises:
        ValueError: lpips without the package, or without its weights.
    """
    if name == "l2":
        return lambda estimate, target: (estimate - target).square()
    with importing("--loss=lpips needs the package lpips, which is not installed: pip install lpips, or use --loss=l2"):
        import lpips
    try:
        net = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except OSError as error:
        raise ValueError(
            f"the weights of lpips cannot be had ({error}): see its documentation, or use --loss=l2"
        ) from error

    def shown(x: Tensor) -> Tensor:
        return _three(x if decode is None else decode(x))

    return lambda estimate, target: net(shown(estimate), shown(target)).flatten(1)


def _three(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def build(options: DistillOptions, dataset: PairDataset, device: torch.device) -> Method:
    """The method: one network, one phase, one average.

    Raises:
        ValueError: a teacher that does not fit the pairs or the method.
    """
    net = networks.load_network(options.network)
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    if shape != tuple(dataset.image_shape):
        raise ValueError(
            f"the teacher makes images of shape {list(shape)}, and those of {options.data} have "
            f"{list(dataset.image_shape)}: give the network that made them"
        )
    check_same_latents("--network", options.network, net, dataset)
    if net.label_dim:
        raise ValueError("the teacher is class-conditional, and pairs hold no classes: give an unconditional network")
    _check_teacher(net, options)
    net = net.network if isinstance(net, LatentModel) else net  # an autoencoder is not trained
    one_step(net, torch.zeros(1, *shape))  # fails now, with a sentence, where the model is of the wrong kind
    test = _test_pairs(options, dataset)
    cost = common.training_cost(net)
    decoder = dataset.autoencoder
    if dataset.latents is not None and decoder is None and (options.loss == "lpips" or test is not None):
        what = "--loss=lpips" if options.loss == "lpips" else "--test-data"
        raise ValueError(f"{what} looks at images, and the autoencoder of the latents is not at hand: give --decoder")
    loss_fn = reconstruction_loss(options.loss, device, decoder and decoder.decode)
    field = Field(net)
    call = Field(prepare(net, options, device), field.path, field.predicts)

    def loss(batch: Batch) -> LossOut:
        noise = batch.labels.reshape(batch.data.shape)
        values = loss_fn(one_step(call, noise), batch.data)
        return LossOut(values.flatten(1).mean(1), {"Loss/loss": values})

    return Method(
        name="distill",
        modules={"net": net},
        phases=(common.adam_phase(loss, options, betas=(0.9, 0.9999)),),
        averages=common.averages(options),
        save=common.save,
        sampler=SamplerOptions(N=1),
        preview=functools.partial(_preview, shown=test or dataset, test=test, loss_fn=loss_fn),
        flops_per_image=3 * cost.flops,
        summary=(
            ("Teacher", f"{type(net).__name__}, {common.size(net)}"),
            ("Data", f"{len(dataset)} pairs of noise and image {list(shape)}"),
            ("Test data", f"{len(test)} pairs" if test is not None else "none"),
            common.steps(options),
        ),
    )


def _test_pairs(options: DistillOptions, dataset: PairDataset) -> PairDataset | None:
    if options.test_data is None:
        return None
    test = PairDataset(*find_folders(options.test_data, options.test_z_dir))
    if test.image_shape != dataset.image_shape or test.holds_latents != dataset.holds_latents:
        raise ValueError(
            f"the images of --test-data={options.test_data} have shape {list(test.image_shape)}, those of --data "
            f"{list(dataset.image_shape)}: both must come from one network"
        )
    return test


def _pairs(dataset: PairDataset, num: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise and images of the first `num` pairs, in batches."""
    for start in range(0, num, TEST_BATCH):
        items = [dataset[i] for i in range(start, min(start + TEST_BATCH, num))]
        images = torch.stack([torch.from_numpy(image) for image, _ in items]).to(device)
        noise = torch.stack([torch.from_numpy(latent) for _, latent in items]).to(device)
        yield noise.reshape(images.shape), images if dataset.holds_latents else from_uint8(images)


@torch.inference_mode()
def _preview(
    path: Path,
    averaged: Mapping[str, nn.Module],
    *,
    shown: PairDataset,
    test: PairDataset | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Targets above what the student makes of their noise; and the loss over the test pairs, in the log."""
    net = averaged["ema"]
    device = next(net.parameters()).device
    noise, target = next(_pairs(shown, min(COLUMNS, len(shown)), device))
    rows = decoded(as_field(net), torch.cat([target, one_step(net, noise).float()]))
    save_image(enlarged(make_grid(to_uint8(rows).cpu(), columns=len(target))), path)
    if test is not None:
        values = [loss_fn(one_step(net, z), x).flatten(1).mean(1) for z, x in _pairs(test, len(test), device)]
        dist.print0(f"Test loss ({len(test)} pairs): {float(torch.cat(values).double().mean()):.6g}")
