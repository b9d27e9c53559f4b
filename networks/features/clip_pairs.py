"""CLIP for images and texts together, by transformers or open_clip: unit embeddings whose cosine is the CLIP score.

Images are prepared with Pillow, as these models were trained: the shorter side brought to the model's resolution by
bicubic interpolation in 8 bits, the middle cut out. Texts are lower-case byte pairs, cut to 77 tokens of which the end
token is the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from networks.features.table import weights_hash
from networks.features.vision_transformers import CLIP_MEAN, CLIP_STD, from_folder
from networks.models.clip_text import load_tokenizer

OPEN_CLIP = "open_clip:"


@dataclass(frozen=True)
class ClipPairs:
    """Embeddings float32 `[B, D]` of length 1, on `device`.

    Attributes:
        name: of the model, as it was asked for; weights: hash of its tensors; resize: what happens to images, in words.
        images: RGB pictures -> embeddings. texts: captions -> embeddings.
    """

    name: str
    weights: str
    resize: str
    images: Callable[[Sequence[Image.Image]], Tensor]
    texts: Callable[[Sequence[str]], Tensor]

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """100 times the cosine of each image and its text, float64 `[B]`; not cut at 0."""
        return 100 * (self.images(images).double() * self.texts(texts).double()).sum(1)


def load_clip_pairs(model: str, device: torch.device | str = "cpu") -> ClipPairs:
    """A CLIP model.

    Args:
        model: folder or cached name of transformers, or `open_clip:NAME:TAG` (`open_clip:local-dir:FOLDER`).

    Raises:
        ValueError: the package is missing, or there is no such model.
    """
    load = _open_clip if model.startswith(OPEN_CLIP) else _transformers
    return load(model, torch.device(device))


def prepare_image(image: Image.Image, resolution: int) -> Tensor:
    """The picture as CLIP takes it: normalised float32 `[3, resolution, resolution]`."""
    scale = resolution / min(image.size)
    width, height = (max(round(n * scale), resolution) for n in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    pixels = np.asarray(image.crop((left, top, left + resolution, top + resolution)), dtype=np.float32) / 255
    normal = (pixels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def _transformers(model: str, device: torch.device) -> ClipPairs:
    net = from_folder("CLIPModel", model, "clip", "--model").to(device)
    tokenizer, text = load_tokenizer(model, option="--model", local=True), net.config.text_config
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"the tokenizer of '{model}' knows {len(tokenizer)} words and the model {text.vocab_size}")
    size = net.config.vision_config.image_size

    def images(pictures: Sequence[Image.Image]) -> Tensor:
        x = torch.stack([prepare_image(picture, size) for picture in pictures]).to(device)
        return _unit(net.visual_projection(net.vision_model(pixel_values=x).pooler_output))

    def texts(captions: Sequence[str]) -> Tensor:
        ids = tokenizer(
            list(captions), padding=True, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
        ).to(device)
        return _unit(net.text_projection(net.text_model(**ids).pooler_output))

    resize = f"shorter side to {size} by Pillow's bicubic, centre crop"
    return ClipPairs(model, weights_hash(net), resize, images, texts)


def _open_clip(model: str, device: torch.device) -> ClipPairs:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"--model={model} needs the package open_clip_torch, which cannot be imported ({error}): "
            "pip install 'fewstep[clip]', or name a folder of transformers"
        ) from None
    name, _, tag = model.removeprefix(OPEN_CLIP).partition(":")
    if not tag:
        raise ValueError(f"--model={model} does not say which weights: write {OPEN_CLIP}ViT-g-14:laion2b_s34b_b88k")
    if name == "local-dir":
        name, tag = f"{name}:{tag}", ""
    try:
        net, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag or None)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"open_clip cannot load {name} {tag}: {' '.join(str(error).split())[:160]}") from error
    net = net.eval().requires_grad_(False).to(device)

    def images(pictures: Sequence[Image.Image]) -> Tensor:
        x = torch.stack([transform(picture.convert("RGB")) for picture in pictures]).to(device)
        return _unit(net.encode_image(x))

    def texts(captions: Sequence[str]) -> Tensor:
        return _unit(net.encode_text(tokenizer(list(captions)).to(device)))

    return ClipPairs(model, weights_hash(net), "the evaluation transform of open_clip", images, texts)
