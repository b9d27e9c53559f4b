"""PUBLISHED: addresses of checkpoints that others have published, by the name that `--network` takes for them."""

from __future__ import annotations

__all__ = ["PUBLISHED"]

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"

# Checkpoints of Karras et al. 2022 (arXiv 2206.00364); weights under CC BY-NC-SA 4.0. alias -> address
PUBLISHED: dict[str, str] = {
    **{
        f"edm-{data}-{arch}": f"{_EDM}/edm-{data}-{arch}.pkl"
        for data in ("cifar10-32x32-cond", "cifar10-32x32-uncond", "ffhq-64x64-uncond", "afhqv2-64x64-uncond")
        for arch in ("vp", "ve")
    },
    "edm-imagenet-64x64-cond-adm": f"{_EDM}/edm-imagenet-64x64-cond-adm.pkl",
    **{
        f"baseline-{name}": f"{_EDM}/baseline/baseline-{name}.pkl"
        for name in ("cifar10-32x32-uncond-vp", "cifar10-32x32-uncond-ve", "imagenet-64x64-cond-adm")
    },
}
