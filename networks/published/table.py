"""PUBLISHED: checkpoints that others have published, by the name that `--network` takes; DATASETS: by data set.

Where a file lies (mirrors in order), what belongs to it, under which licence its weights are, and the sampling settings
that the published tables were measured with. Nothing here is needed to load a file that is already at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DATASETS", "PUBLISHED", "TOKENIZER", "Checkpoint", "named"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One published network.

    Attributes:
        urls: where the file lies, mirrors in order; the first that gives it is taken.
        classifier: address of the classifier of noisy images that belongs to it.
        sha256: of the file, by address, where it is known.
        family: which adapter reads it.
        licence: of the weights.
        settings: options of generate.py that published figures were measured with.
        search: those of the published search of noise levels, beside --dp.
    """

    urls: tuple[str, ...]
    family: str
    licence: str
    classifier: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_CM = "https://openaipublic.blob.core.windows.net/consistency"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
_LDM = "https://ommer-lab.com/files/latent-diffusion"
_HUB = "https://huggingface.co"
_SD = f"{_HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors"

_POLYNOMIAL = {"schedule_type": "polynomial", "schedule_rho": 7, "solver": "ipndm", "max_order": 4}
_DISCRETE = {"schedule_type": "discrete", "schedule_rho": 1, "solver": "dpmpp"}
_SETTINGS = {
    "edm": _POLYNOMIAL,
    "cm": _POLYNOMIAL,
    "adm": {"schedule_type": "time_uniform", "schedule_rho": 1, "solver": "dpmpp", "max_order": 3, "predict_x0": True},
    "ldm": {**_DISCRETE, "max_order": 3, "predict_x0": False},
    "sd": {
        **_DISCRETE, "max_order": 2, "predict_x0": False, "lower_order_final": True, "guidance_type": "cfg",
        "guidance_rate": 7.5,
    },
}  # fmt: skip


def _edm(name: str) -> Checkpoint:
    return Checkpoint(
        urls=(f"{_EDM}/{name}.pkl",), family="edm", licence="CC BY-NC-SA 4.0", settings=_SETTINGS["edm"]
    )  # fmt: skip


def _cm(name: str) -> Checkpoint:
    return Checkpoint(urls=(f"{_CM}/{name}.pt",), family="cm", licence="MIT", settings=_SETTINGS["cm"])


def _adm(name: str, classifier: str | None = None, rate: float | None = None) -> Checkpoint:
    guided = {} if rate is None else {"guidance_type": "cg", "guidance_rate": rate}
    return Checkpoint(
        urls=(f"{_ADM}/{name}.pt",), family="adm", licence="MIT", settings={**_SETTINGS["adm"], **guided},
        classifier=None if classifier is None else f"{_ADM}/{classifier}.pt",
    )  # fmt: skip


def _ldm(file: str, **settings: Any) -> Checkpoint:
    return Checkpoint(
        urls=(f"{_LDM}/{file}",), family="ldm", licence="MIT", settings={**_SETTINGS["ldm"], **settings}
    )  # fmt: skip


_EDM_NAMES = [
    *(f"edm-{data}-{arch}"
      for data in ("cifar10-32x32-cond", "cifar10-32x32-uncond", "ffhq-64x64-uncond", "afhqv2-64x64-uncond")
      for arch in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
]  # fmt: skip
_BASELINES = ("cifar10-32x32-uncond-vp", "cifar10-32x32-uncond-ve", "imagenet-64x64-cond-adm")

PUBLISHED: dict[str, Checkpoint] = {
    # Karras et al. 2022 (arXiv 2206.00364)
    **{name: _edm(name) for name in _EDM_NAMES},
    **{f"baseline-{name}": _edm(f"baseline/baseline-{name}") for name in _BASELINES},
    # the EDM models behind the consistency models of Song et al. 2023 (arXiv 2303.01469)
    "cm-lsun-bedroom-256": _cm("edm_bedroom256_ema"),
    "cm-lsun-cat-256": _cm("edm_cat256_ema"),
    "cm-imagenet-64": _cm("edm_imagenet64_ema"),
    # Dhariwal and Nichol 2021 (arXiv 2105.05233); the rate that the few-step samplers' tables use at 256, theirs else
    "adm-imagenet-64": _adm("64x64_diffusion", "64x64_classifier"),
    "adm-imagenet-128": _adm("128x128_diffusion", "128x128_classifier", 0.5),
    "adm-imagenet-256": _adm("256x256_diffusion", "256x256_classifier", 4.0),
    "adm-imagenet-512": _adm("512x512_diffusion", "512x512_classifier", 4.0),
    "adm-imagenet-256-uncond": _adm("256x256_diffusion_uncond", "256x256_classifier", 10.0),
    "adm-lsun-bedroom-256": _adm("lsun_bedroom"),
    "adm-lsun-cat-256": _adm("lsun_cat"),
    "adm-lsun-horse-256": _adm("lsun_horse"),
    # Rombach et al. 2022 (arXiv 2112.10752)
    "ldm-lsun-bedroom-256": _ldm("lsun_bedrooms.zip"),
    "ldm-ffhq-256": _ldm("ffhq.zip"),
    "ldm-celeba-256": _ldm("celeba.zip"),
    "ldm-lsun-church-256": _ldm("lsun_churches.zip"),
    "ldm-imagenet-256": _ldm("nitro/cin/model.ckpt", guidance_type="cfg", guidance_rate=1.5),
    "sd-v1-5": Checkpoint(
        urls=(_SD, f"{_HUB}/runwayml/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.ckpt"),
        family="ldm", licence="CreativeML Open RAIL-M", settings=_SETTINGS["sd"],
        search={"coeff": (1.2,), "solver_tea": "dpmpp", "num_steps_tea": 61},
        sha256={_SD: "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"},
    ),
}  # fmt: skip

TOKENIZER = "openai/clip-vit-large-patch14"  # of models of text, on the hub

# The checkpoint that the GITS command line means by a data set's name.
DATASETS: dict[str, str] = {
    "cifar10": "edm-cifar10-32x32-uncond-vp",
    "ffhq": "edm-ffhq-64x64-uncond-vp",
    "afhqv2": "edm-afhqv2-64x64-uncond-vp",
    "imagenet64": "edm-imagenet-64x64-cond-adm",
    "lsun_bedroom": "cm-lsun-bedroom-256",
    "imagenet256": "adm-imagenet-256",
    "lsun_bedroom_ldm": "ldm-lsun-bedroom-256",
    "ffhq_ldm": "ldm-ffhq-256",
    "ms_coco": "sd-v1-5",
}


def named(source: str) -> Checkpoint | None:
    """The published checkpoint of this name, or of the data set of this name."""
    return PUBLISHED.get(DATASETS.get(source, source))
