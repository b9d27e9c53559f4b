"""DINOv2 and CLIP as features, by the package transformers: from a folder or its cache, without network or code in it.

DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the class token after the last norm, of images stretched to 224 x 224.
CLIP (Radford et al. 2021, arXiv 2103.00020): the projected image embedding, of the middle of images whose shorter side
becomes 224. Both resize by bicubic interpolation with antialiasing, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from networks.features.resize import centre_crop, stretch
from torch_utils.errors import importing

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_RESOLUTION = 224  # of the published figures, whatever the network was trained with


class Pretrained(NamedTuple):
    """Where a network is looked for, what transformers calls it, and how its input is scaled."""

    name: str
    kind: str  # `model_type` of its configuration
    cls: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


SOURCES = {
    "dinov2": Pretrained(
        "facebook/dinov2-large", "dinov2", "Dinov2Model", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "clip": Pretrained("openai/clip-vit-large-patch14", "clip", "CLIPModel", CLIP_MEAN, CLIP_STD),
}


def from_folder(cls: str, source: str | Path, kind: str, option: str = "--weights") -> nn.Module:
    """A network of transformers, in float32 for evaluation; nothing is downloaded and no code of the folder runs.

    Args:
        cls: the class in transformers.
        source: folder with config.json and model.safetensors, or a name that its cache holds.
        kind: what the configuration calls itself.
        option: of the command, that names another source.

    Raises:
        ValueError: transformers is missing, nothing is there, or something else.
    """
    with importing(f"'{source}' needs the package transformers: pip install 'fewstep[text]'"):
        import transformers
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        net, found = None, {}
        if config.model_type == kind:
            net, found = getattr(transformers, cls).from_pretrained(
                str(source), local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{source}' is neither a folder with config.json and model.safetensors nor in the cache of transformers: "
            f"fetch it first (hf download {source}), or give a folder with {option}"
        ) from error
    except Exception as error:  # tensors of other sizes, or what a library says of damaged ones
        raise ValueError(f"the weights of '{source}' do not fit its configuration: get it again") from error
    if net is None:
        raise ValueError(f"'{source}' is a {config.model_type}, not a {kind}: give another with {option}")
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"the weights of '{source}' lack {len(missing)} tensors, first {missing[0]}: get it again")
    return net.eval().requires_grad_(False)


def load(
    name: str, source: str | Path | None, device: torch.device
) -> tuple[nn.Module, int, str, Callable[[Tensor], Tensor]]:
    """A key of SOURCES: the network, D, how it resizes in words, and uint8 images `[B, C, H, W]` -> features `[B, D]`.

    Args:
        source: folder or name in the cache; None: the published one.
    """
    known = SOURCES[name]
    net: Any = from_folder(known.cls, source or known.name, known.kind).to(device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (known.mean, known.std))
    size = DINO_RESOLUTION if name == "dinov2" else net.config.vision_config.image_size

    def features(images: Tensor) -> Tensor:
        x = stretch(images, size, size) if name == "dinov2" else centre_crop(images, size)
        x = (x / 255 - mean) / std  # gray images become three channels
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            if name == "dinov2":
                return net(pixel_values=x).pooler_output
            return net.visual_projection(net.vision_model(pixel_values=x).pooler_output)

    if name == "dinov2":
        return net, net.config.hidden_size, f"bicubic to {size} x {size}, antialiased, in float32", features
    resize = f"shorter side to {size} bicubic, antialiased, in float32, centre crop"
    return net, net.config.projection_dim, resize, features
