import hashlib

import numpy as np
import pytest
import torch

import networks.features.table
from networks.features.inception import Inception2015, avg_pool, max_pool, resize_bilinear_tf1
from networks.features.table import FEATURES, load_features

BLOCKS = {  # output [C, H, W] of every block for one image
    "Conv2d_1a_3x3": (32, 149, 149),
    "Conv2d_2b_3x3": (64, 147, 147),
    "Conv2d_4a_3x3": (192, 71, 71),
    "Mixed_5b": (256, 35, 35),
    "Mixed_5d": (288, 35, 35),
    "Mixed_6a": (768, 17, 17),
    "Mixed_6e": (768, 17, 17),
    "Mixed_7a": (1280, 8, 8),
    "Mixed_7c": (2048, 8, 8),
}


def slow_resize(image, height, width):
    """TF1 bilinear without half-pixel offset, pixel by pixel; image [H, W]."""
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = i * image.shape[0] / height, j * image.shape[1] / width
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            dy, dx = y - top, x - left
            result[i, j] = (image[top, left] * (1 - dx) + image[top, right] * dx) * (1 - dy) + (
                image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            ) * dy
    return result


def uint8(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def net():
    """Random weights that keep the signal alive through 94 convolutions."""
    torch.manual_seed(0)
    net = Inception2015().eval()
    for name, value in net.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
    return net


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def no_weights_around(monkeypatch, tmp_path):
    """Nothing in the environment, an empty cache, and a published address that refuses connections."""
    monkeypatch.delenv("FEWSTEP_INCEPTION", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(networks.features.table, "INCEPTION_URL", "http://127.0.0.1:9/inception-6726825d.pth")


@pytest.mark.parametrize(
    ("source", "target"), [((5, 7), (11, 4)), ((2, 2), (7, 7)), ((9, 3), (4, 10)), ((1, 1), (3, 3))]
)
def test_resize_against_slow_reference(source, target):
    images = torch.rand(2, 3, *source)
    own = resize_bilinear_tf1(images, *target)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(own[b, c], slow_resize(images[b, c].double().numpy(), *target), atol=1e-6)


def test_resize_has_no_half_pixel_offset():
    row = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
    assert resize_bilinear_tf1(row, 1, 4).flatten().tolist() == [1.0, 1.5, 2.0, 2.0]


def test_resize_to_the_same_size_is_the_identity():
    images = torch.rand(1, 3, 299, 299) * 255
    assert torch.equal(resize_bilinear_tf1(images, 299, 299), images)


def test_pools_do_not_see_the_padding(net):
    image = -torch.ones(1, 1, 5, 5)
    torch.testing.assert_close(avg_pool(image), image)
    assert torch.equal(max_pool(image), image)
    assert net.Mixed_7b.pool is avg_pool
    assert net.Mixed_7c.pool is max_pool


def test_state_dict_of_the_published_file(net):
    state = {k: list(v.shape) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    assert len(state) == 94 * 5 + 2
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
        "Conv2d_3b_1x1.bn.running_var": [80],
        "Mixed_5b.branch1x1.bn.running_mean": [64],
        "Mixed_5c.branch5x5_2.conv.weight": [64, 48, 5, 5],
        "Mixed_5d.branch_pool.conv.weight": [64, 288, 1, 1],
        "Mixed_6a.branch3x3dbl_3.conv.weight": [96, 96, 3, 3],
        "Mixed_6c.branch7x7_2.conv.weight": [160, 160, 1, 7],
        "Mixed_6c.branch7x7dbl_2.conv.weight": [160, 160, 7, 1],
        "Mixed_6e.branch7x7dbl_5.conv.weight": [192, 192, 1, 7],
        "Mixed_7a.branch7x7x3_4.conv.weight": [192, 192, 3, 3],
        "Mixed_7b.branch3x3_2b.conv.weight": [384, 384, 3, 1],
        "Mixed_7c.branch3x3dbl_3a.conv.weight": [384, 384, 1, 3],
        "Mixed_7c.branch_pool.bn.bias": [192],
        "fc.weight": [1008, 2048],
        "fc.bias": [1008],
    }.items():
        assert state[name] == shape, name
    assert {m.eps for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}


def test_block_shapes(net):
    shapes = {}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: shapes.update({name: y.shape[1:]}))
        for name in BLOCKS
    ]
    with torch.inference_mode():
        assert net(uint8(1, 3, 8, 8)).shape == (1, 2048)
    for handle in handles:
        handle.remove()
    assert {name: tuple(shape) for name, shape in shapes.items()} == BLOCKS


def test_inception_features(weights):
    extractor = load_features("inception", weights)
    images = uint8(3, 3, 32, 24)
    features = extractor(images)
    assert (extractor.name, extractor.dim) == ("inception", 2048)
    assert features.shape == (3, 2048)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    scale = features.std()
    assert scale > 1e-3
    torch.testing.assert_close(extractor(images[1:2]), features[1:2], rtol=1e-4, atol=1e-4 * float(scale))
    assert (features[0] - features[1]).abs().max() > 1e-3 * scale


def test_gray_images_are_repeated_to_three_channels(weights):
    extractor = load_features("inception", weights)
    gray = uint8(1, 1, 16, 16)
    torch.testing.assert_close(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))


def test_weights_with_a_hash_in_their_name(weights, tmp_path):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    good, bad = tmp_path / f"weights-{digest[:8]}.pth", tmp_path / "weights-deadbeef.pth"
    good.symlink_to(weights)
    bad.symlink_to(weights)
    assert load_features("inception", good).dim == 2048
    with pytest.raises(ValueError, match="SHA-256 begins with"):
        load_features("inception", bad)


def test_weights_from_the_environment(weights, monkeypatch, no_weights_around):
    monkeypatch.setenv("FEWSTEP_INCEPTION", str(weights))
    assert load_features("inception").dim == 2048


def test_weights_put_into_the_cache_folder_by_hand(weights, tmp_path, monkeypatch, no_weights_around):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    name = f"inception-{digest[:8]}.pth"
    monkeypatch.setattr(networks.features.table, "INCEPTION_URL", f"http://127.0.0.1:9/{name}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(weights)
    assert load_features("inception").dim == 2048


def test_weights_without_step_counters(net, weights, tmp_path):
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "lean.pth")
    images = uint8(1, 3, 8, 8)
    torch.testing.assert_close(
        load_features("inception", tmp_path / "lean.pth")(images), load_features("inception", weights)(images)
    )


@pytest.mark.usefixtures("no_weights_around")
def test_absent_weights():
    with pytest.raises(
        ValueError, match=r"no Inception weights: .*127.0.0.1.* at .*cache.*--weights=PATH.*FEWSTEP_INCEPTION"
    ):
        load_features("inception")
    with pytest.raises(ValueError, match="there is no file nowhere"):
        load_features("inception", "nowhere.pth")


def test_wrong_weights(net, tmp_path):
    path = tmp_path / "weights.pth"
    state = net.state_dict()
    del state["Mixed_7c.branch_pool.bn.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 tensors differ, first Mixed_7c.branch_pool.bn.bias"):
        load_features("inception", path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="not a state dict"):
        load_features("inception", path)
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="not a file of PyTorch weights"):
        load_features("inception", path)


def test_pixels():
    extractor = load_features("pixels")
    images = uint8(4, 3, 5, 6)
    features = extractor(images)
    assert (extractor.name, extractor.dim) == ("pixels", None)
    assert features.dtype == torch.float32
    # Two roundings of values up to 2; three times that, to stay clear of it.
    atol = 3 * 2 * 2 * 2**-24
    np.testing.assert_allclose(features, images.flatten(1).double() / 127.5 - 1, rtol=0, atol=atol)


def test_pixels_refuse_large_images_and_weights():
    with pytest.raises(ValueError, match="too large"):
        load_features("pixels")(torch.zeros(1, 3, 65, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no weights"):
        load_features("pixels", "weights.pth")


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)],
)
def test_bad_images(images):
    with pytest.raises(ValueError, match="uint8 images"):
        load_features("pixels")(images)


def test_unknown_features():
    with pytest.raises(ValueError, match=f"use one of {', '.join(FEATURES)}"):
        load_features("vgg")


@pytest.mark.gpu
def test_inception_on_a_gpu(weights):
    images = uint8(2, 3, 32, 32)
    cpu, gpu = (load_features("inception", weights, device)(images).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-4 * float(cpu.std()))
