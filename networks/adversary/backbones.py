"""Backbones of the projected discriminator: images in, feature maps at four scales out, finest first.

- `deit_*_distilled_patch16_224`, `vit_base_patch16_224`, `tf_efficientnet_lite0`: classifiers of the package timm with
  their ImageNet weights. A vision transformer has one scale: the outputs of blocks 2, 5, 8 and 11 are rearranged to
  maps and brought to four scales by a random, frozen readout (Ranftl et al. 2021, arXiv 2103.13413, figure 1).
- `light`: a small pyramid of random convolutions of our own. Needs no package and no weights, takes any number of
  channels and any size from 8 x 8 up. Says less about natural images than the others.

Which taps and channels: Sauer et al. 2022 (StyleGAN-XL, arXiv 2202.00273), as used by MAC (arXiv 2404.14161).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_utils import checkpoint
from torch_utils.errors import reason

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
INPUT_SIZE = 224  # pixels; every published backbone was trained at this size
NOMINAL_SIZES = [56, 28, 14, 7]  # of their maps at that size
TAPPED_BLOCKS = (2, 5, 8, 11)
LIGHT_MIN_RESOLUTION = 8
LIGHT_MAX_MAP = 64
LIGHT_MIN_MAP = 4


class Backbone(nn.Module):
    """What all backbones share: preparation of the images and the facts a projection needs.

    Attributes:
        name: key in state dicts.
        in_channels: channels it takes; grey images are repeated where that is 3.
        resize: side in pixels to which images are resized, or None for their own.
        channels: of each map, finest first.
        map_sizes: nominal side of each map; the heads of a discriminator get their depth from it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        channels: Sequence[int],
        map_sizes: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_channels = len(mean)
        self.channels = list(channels)
        self.map_sizes = list(map_sizes)
        self.resize = resize
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` in [-1, 1] to what `taps` takes."""
        if images.shape[1] == 1:
            images = images.expand(-1, self.in_channels, -1, -1)
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"the backbone {self.name} takes images of {self.in_channels} channels, or grey ones, "
                f"got {images.shape[1]}: use the backbone light"
            )
        images = ((images + 1) / 2 - self.mean) / self.std
        if self.resize is None:
            return images
        return F.interpolate(images, size=(self.resize, self.resize), mode="bilinear", align_corners=False)

    def taps(self, x: Tensor) -> list[Tensor]:
        raise TypeError(f"{type(self).__name__} does not say how its maps are made")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `[B, C, H, W]` in [-1, 1] to maps `[B, channels[i], h_i, w_i]`, finest first."""
        return self.taps(self.prepare(images))


class Pyramid(Backbone):
    """Layers applied one after the other, each output a map."""

    def __init__(self, name: str, layers: Sequence[nn.Module], **facts: Any) -> None:
        super().__init__(name, **facts)
        self.depth = len(layers)
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def taps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(self.depth):
            x = self.get_submodule(f"layer{i}")(x)
            maps.append(x)
        return maps


class TransformerTaps(Backbone):
    """A vision transformer whose tapped blocks are read out as maps at four scales.

    Args:
        model: has `blocks`, `embed_dim`, `num_prefix_tokens` and `forward_features`, as timm's classes do.
        grid: patches along each side.
    """

    def __init__(self, name: str, model: nn.Module, grid: int, **facts: Any) -> None:
        width = model.embed_dim
        channels = [width // 8, width // 4, width // 2, width]
        super().__init__(name, channels=channels, **facts)
        self.model = model
        self.readout = ViTReadout(channels, width, model.num_prefix_tokens, (grid, grid))

    def taps(self, x: Tensor) -> list[Tensor]:
        with _outputs([self.model.blocks[i] for i in TAPPED_BLOCKS]) as tokens:
            self.model.forward_features(x)
        return self.readout(tokens)


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list to which each of the modules adds its output as it runs. Local to one call: two models never mix."""
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(lambda _m, _args, output: found.append(output)))
        yield found


class ViTReadout(nn.Module):
    """Tokens of four transformer blocks to maps at 4, 2, 1 and 1/2 times the grid.

    Args:
        features: channels of the four maps.
        vit_features: width of the tokens.
        start_index: leading tokens that are no patches (class, distillation).
        grid: patches along height and width.
    """

    def __init__(self, features: Sequence[int], vit_features: int, start_index: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.start_index = start_index
        scales = [
            [nn.ConvTranspose2d(features[0], features[0], 4, stride=4)],
            [nn.ConvTranspose2d(features[1], features[1], 2, stride=2)],
            [],
            [nn.Conv2d(features[3], features[3], 3, stride=2, padding=1)],
        ]
        for i, (width, scale) in enumerate(zip(features, scales, strict=True)):
            # Indices 3 and 4 hold the weights in published state dicts; 0 to 2 turn tokens into a map.
            to_map = [nn.Identity(), _Transpose(), nn.Unflatten(2, tuple(grid))]
            self.add_module(f"layer{i + 1}", nn.Sequential(*to_map, nn.Conv2d(vit_features, width, 1), *scale))

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Four tensors `[B, start_index + patches, vit_features]` to four maps, finest first."""
        return [self.get_submodule(f"layer{i + 1}")(t[:, self.start_index :]) for i, t in enumerate(tokens)]


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@dataclass(frozen=True)
class Published:
    """How a model of timm is used: `patch` pixels per token, or None for a convolutional network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int | None = None


PUBLISHED: dict[str, Published] = {
    "deit_base_distilled_patch16_224": Published(*IMAGENET, patch=16),
    "deit_small_distilled_patch16_224": Published(*IMAGENET, patch=16),
    "deit_tiny_distilled_patch16_224": Published(*IMAGENET, patch=16),
    "vit_base_patch16_224": Published(*HALF, patch=16),
    "tf_efficientnet_lite0": Published(*HALF),
}
BACKBONES: tuple[str, ...] = (*PUBLISHED, "light")


def build_backbone(
    name: str, *, img_resolution: int, img_channels: int = 3, weights: str | Path | None = None
) -> Backbone:
    """Build a backbone; what is random in it comes from torch's global generator.

    Args:
        name: one of `BACKBONES`.
        img_resolution: side of the images in pixels.
        img_channels: 1 or 3; any for `light`.
        weights: None = the published weights, which timm fetches; "random"; or a .pth or .safetensors file.

    Raises:
        ValueError: unknown name, images that the backbone cannot take, timm or the weights missing.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called '{name}': use one of {', '.join(BACKBONES)}")
    if name == "light":
        if weights not in (None, "random"):
            raise ValueError(f"the backbone light is random and takes no weights, got {weights}: leave them out")
        return _light(img_resolution, img_channels)
    if img_channels not in (1, 3):
        raise ValueError(
            f"the backbone {name} takes grey or RGB images, not {img_channels} channels: use --backbones=light"
        )
    model = _timm_model(name, weights)
    about = PUBLISHED[name]
    facts = {"mean": about.mean, "std": about.std, "map_sizes": NOMINAL_SIZES}
    if about.patch is not None:
        return TransformerTaps(name, model, INPUT_SIZE // about.patch, resize=INPUT_SIZE, **facts)
    stages = model.blocks
    layers = [
        nn.Sequential(model.conv_stem, model.bn1, stages[0], stages[1]),
        nn.Sequential(stages[2]),
        nn.Sequential(stages[3], stages[4]),
        nn.Sequential(stages[5], stages[6]),
    ]
    resize = INPUT_SIZE if img_resolution < INPUT_SIZE else None
    return Pyramid(name, layers, channels=[24, 40, 112, 320], resize=resize, **facts)


def _light(img_resolution: int, img_channels: int) -> Pyramid:
    """Maps at full size (at most 64), 1/2, 1/4 and 1/8, as far as they have 4 x 4 pixels; 32 to 256 channels."""
    if img_resolution < LIGHT_MIN_RESOLUTION:
        raise ValueError(
            f"the backbone light needs images of at least {LIGHT_MIN_RESOLUTION} x {LIGHT_MIN_RESOLUTION} pixels, "
            f"got {img_resolution} x {img_resolution}: use larger images"
        )
    size, width = img_resolution, 32
    stem = [_random_conv(img_channels, width, stride=1)]
    while size > LIGHT_MAX_MAP:
        stem.append(_random_conv(width, width, stride=2))
        size = (size + 1) // 2
    layers, channels, sizes = [nn.Sequential(*stem)], [width], [size]
    while len(layers) < 4 and (size + 1) // 2 >= LIGHT_MIN_MAP:
        size = (size + 1) // 2
        layers.append(nn.Sequential(_random_conv(width, 2 * width, stride=2), _random_conv(2 * width, 2 * width, 1)))
        width *= 2
        channels.append(width)
        sizes.append(size)
    half = (0.5,) * img_channels
    return Pyramid("light", layers, channels=channels, map_sizes=sizes, mean=half, std=half, resize=None)


def _random_conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=0.2)  # keeps the scale of the features through all layers
    return nn.Sequential(conv, nn.LeakyReLU(0.2))


def _timm_model(name: str, weights: str | Path | None) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision that does not fit torch raises RuntimeError
        raise ValueError(
            f"the backbone {name} needs the package timm, which cannot be imported ({reason(error)}): "
            "run pip install timm, or use --backbones=light"
        ) from error
    if weights is not None:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        if weights != "random":
            _load_weights(model, name, Path(weights))
        return model
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many types
        raise ValueError(
            f"timm could not fetch the weights of {name} ({reason(error)}): name a file that holds them, "
            "or use --backbones=light"
        ) from error


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Fill `model` from a file; classifier heads and whatever else the model lacks are passed over."""
    if not path.is_file():
        raise ValueError(f"there is no file {path} with weights of {name}")
    if path.suffix == ".safetensors":
        state = checkpoint.load_safetensors(path).payload
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for files that are no archives of tensors
            raise ValueError(f"{path} is not a file of PyTorch weights: {reason(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # DeiT's own files
        state = state["model"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    own = model.state_dict()
    if wrong := [key for key, value in own.items() if getattr(state.get(key), "shape", None) != value.shape]:
        raise ValueError(
            f"{path} does not hold weights of {name}: {len(wrong)} of {len(own)} tensors are missing or of another "
            f"shape, first {wrong[0]}"
        )
    model.load_state_dict({key: state[key] for key in own})
