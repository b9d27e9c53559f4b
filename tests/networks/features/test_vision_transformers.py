"""DINOv2 and CLIP features from folders that are made on the spot: what they see, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from networks.features.table import load_features
from torch_utils.checkpoint import tensor_hash

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)).save_pretrained(root / "dinov2")
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={**SMALL, "intermediate_size": 16}, projection_dim=8,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(root / "clip")
    return root


def uint8(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_dinov2_is_the_class_token(folders):
    extractor = load_features("dinov2", folders / "dinov2")
    images = uint8(3, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    net = transformers.Dinov2Model.from_pretrained(folders / "dinov2").eval()
    with torch.no_grad():
        expected = net(pixel_values=(images / 255 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.dim) == ("dinov2", 16)
    assert extractor.weights == tensor_hash(net.state_dict())[:16]
    assert "224 x 224" in extractor.resize


def test_clip_is_the_projected_embedding(folders):
    extractor = load_features("clip", folders / "clip")
    net = transformers.CLIPModel.from_pretrained(folders / "clip").eval()
    images = uint8(2, 3, 28, 40)  # the middle is cut out
    mean, std = (torch.tensor(v)[:, None, None] for v in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    with torch.no_grad():
        seen = net.vision_model(pixel_values=(images[..., 6:34] / 255 - mean) / std).pooler_output
        expected = net.visual_projection(seen)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert extractor.dim == 8


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_any_size_and_gray_images(folders, name):
    extractor = load_features(name, folders / name)
    gray = uint8(2, 1, 20, 30)
    torch.testing.assert_close(extractor(gray), extractor(gray.expand(-1, 3, -1, -1)))


def test_what_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"neither a folder with config\.json"):
        load_features("dinov2", tmp_path)
    with pytest.raises(ValueError, match=r"hf download facebook/dinov2-large"):
        load_features("dinov2")
    with pytest.raises(ValueError, match="is a clip, not a dinov2"):
        load_features("dinov2", folders / "clip")
    config = json.loads((folders / "dinov2" / "config.json").read_text())
    state = load_file(folders / "dinov2" / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({k: v for k, v in state.items() if k != "layernorm.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lack 1 tensors, first layernorm\.bias"):
        load_features("dinov2", tmp_path)
    save_file({**state, "layernorm.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit its configuration"):
        load_features("dinov2", tmp_path)
    code = {**config, "auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (tmp_path / "config.json").write_text(json.dumps(code))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="neither a folder"):
        load_features("dinov2", tmp_path)
    assert not (tmp_path / "ran").exists()
