"""What generate.py can be asked for: whose images, which, what is kept of others, by which sampler, and where.

Nothing here or in what it imports waits for torch, so that `--help` does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from networks.published.table import DATASETS, TOKENIZER
from samplers.choices import PRECISIONS
from samplers.output_options import OutputOptions
from samplers.planning.options import SamplerOptions
from torch_utils.options import OptionGroup, opt

# Strengths of --keep, in words
WORDS = "0.7, left:0.5 (right, top, bottom), quadrants[:A,B,C,D], channels:0=0.9,1=0.5, or a file MASK.png or MASK.npy"
PART_WORDS = (
    "0.7, parts:0,2-4 (completion) or parts:0,2-4=0.9, assembly, attributes:size=0.9,code=0.5 (existence, centre, "
    "size, box, code), or a file MASK.npy"
)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    group: ClassVar = OptionGroup("Network", "Whose images are made: give one of the first two.", rank=0)

    network: str | None = opt(
        None, "A file, an address, or the name of a published checkpoint", metavar="FILE|URL|NAME",
        names=("--model-path",),
    )  # fmt: skip
    dataset_name: str | None = opt(
        None, "A published checkpoint by its data set, with the settings its published figures were measured with "
        f"where no others are given: {', '.join(DATASETS)}", metavar="NAME",
    )  # fmt: skip
    unsafe_pickle: bool = opt(
        False, "Open --network with dill, which runs the code that the file carries: files of people you trust alone",
        flag=True,
    )  # fmt: skip
    config_de: str | None = opt(
        None, "For a file that holds tensors alone (.pt, .pth, .ckpt): the network's settings, as a JSON file, the "
        "original's YAML file, or the name of a preset of train.py curvature [default: told by the tensors' shapes]",
        metavar="FILE|NAME", names=("--config",),
    )  # fmt: skip
    classifier: str | None = opt(
        None, "Classifier of noisy images for --guidance-type=cg [default: the published one of a published name]",
        metavar="FILE|URL",
    )  # fmt: skip
    vae: str | None = opt(
        None, "Autoencoder of a network of latents that brings none (a DiT or SiT file, or trained on cached latents): "
        "a file of its own, a latent model, or diffusers:DIR [default: that of the training data, where it is at hand]",
        metavar="FILE|URL|NAME",
    )  # fmt: skip
    guidance_network: str | None = opt(
        None, "A weaker network of the same data, away from which --guidance-rate guides (autoguidance)",
        metavar="FILE|URL|NAME",
    )  # fmt: skip
    tokenizer: str | None = opt(
        None, "For models of text: folder with CLIP's tokenizer.json, or vocab.json and merges.txt, or its name on the "
        f"hub [default: {TOKENIZER}]", metavar="DIR|NAME",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GradedOptions:
    group: ClassVar = OptionGroup(
        "Graded control", "How much of other images is kept where; exact for models with times of elements.", rank=6.5
    )

    reference: str | None = opt(
        None, "Images or shapes to keep something of: a file, folder or zip, encoded for models of latents, or samples "
        "as .npy; one seed after the other takes one", metavar="IMAGES",
    )  # fmt: skip
    keep: str | None = opt(
        None, f"Strength from 0 (made anew) to 1 (kept): {WORDS}; of shapes {PART_WORDS}", metavar="WHERE"
    )
    graded_steps: str | None = opt(
        None, "Elements make steps of one number, or of one size so that much kept ones arrive early [default: number]",
        choices=["number", "size"],
    )  # fmt: skip
    compensation_inverse: bool | None = opt(
        None, "Divide velocities by what compensated training adds to them [default: of networks trained so]",
        metavar="BOOL",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    group: ClassVar = OptionGroup("Device", "Where and how fast; --batch changes no image.", rank=7)

    batch: int = opt(64, "Most images at once on one process", metavar="INT", at_least=1)
    decode_batch: int = opt(8, "Most latents that become images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")
    precision: str = opt("auto", "Precision of the network's trunk; auto: as it was saved", choices=list(PRECISIONS))
    compile: bool = opt(False, "Compile the network with torch.compile; did not pay on a CPU", flag=True)
    rng_device: str | None = opt(
        None, "Where random numbers are drawn: cpu makes the same images on every device; default: --device",
        choices=["cpu", "cuda"],
    )  # fmt: skip
    tf32: bool = opt(False, "Allow TF32 in fp32 matrix products and convolutions", metavar="BOOL")


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions, GradedOptions, SamplerOptions, OutputOptions, NetworkOptions):
    pass
