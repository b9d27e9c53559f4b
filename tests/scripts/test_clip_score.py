"""clip_score.py: pairs by the number in a file name, whatever the order, the subset or the number of processes."""

import csv
import json
import os
import shlex
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patience import HUNG
from PIL import Image
from published_files import tokenizer

import clip_score
from networks.features import clip_pairs
from torch_utils import distributed as dist
from training.data.image_dataset import subset_indices

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
CAPTIONS = ["a b", "c", "ab d", "e", "f g h", "a", "b", "c d e f g h a b c d"]


def picture(i):
    return Image.fromarray(np.random.RandomState(i).randint(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny random CLIP, captions, and images of most of them in sub-folders."""
    root = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 19, "max_position_embeddings": 8, "bos_token_id": 17, "eos_token_id": 18}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(root / "model")
    tokenizer(root / "model")
    for i in (7, 0, 3, 1, 4, 6):
        folder = root / "images" / f"{i // 4:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i:06d}.png")
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([i, text] for i, text in enumerate(CAPTIONS))])
    return root


def run(text, **kwargs):
    return CliRunner().invoke(clip_score.main, shlex.split(f"calc --device=cpu {text.format(**kwargs)}"))


def score(place, more=""):
    text = f"--images={place}/images --prompts={place}/captions.csv --model={place}/model --json={place}/out.json"
    result = run(f"{text} {more}")
    assert result.exit_code == 0, result.output
    return json.loads((place / "out.json").read_text()), result


def by_hand(place, rows):
    """Cosines by transformers' own model and processor, one pair at a time."""
    net = transformers.CLIPModel.from_pretrained(place / "model").eval()
    words = transformers.CLIPTokenizer.from_pretrained(place / "model")
    found = []
    for i in rows:
        image = picture(i).resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        x = torch.tensor((np.asarray(image) / 255 - mean) / std).float().permute(2, 0, 1)[None]
        ids = words(CAPTIONS[i], truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            out = net(pixel_values=x, **ids)
        found.append(100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).item())
    return found


def test_every_image_meets_its_own_caption(place):
    report, result = score(place)
    expected = by_hand(place, [0, 1, 3, 4, 6, 7])
    figure = report["clip_score"]
    assert figure["value"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert figure["half_width"] == pytest.approx(1.96 * np.std(expected, ddof=1) / 6**0.5, rel=1e-3)
    assert result.stdout == f"{figure['value']:g}\n"
    assert f"model {place}/model, weights {report['protocol']['weights']}" in result.stderr
    assert report["num"] == 6


def test_a_subset_keeps_its_pairs(place):
    rows = np.array([0, 1, 3, 4, 6, 7])[subset_indices(6, 3, seed=5)]
    found = score(place, "--num=3 --seed=5 --batch=2")[0]["clip_score"]["value"]
    assert found == pytest.approx(np.mean(by_hand(place, rows)), abs=1e-4)


def test_batches_change_nothing(place):
    whole, small = (score(place, f"--batch={b}")[0]["clip_score"]["value"] for b in (64, 1))
    assert small == pytest.approx(whole, abs=1e-4)


def test_shares_of_processes_add_up(place, monkeypatch):
    whole = score(place, "--batch=2")[0]["clip_score"]["value"]
    sums = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank in (1, 0):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "all_reduce_sum", lambda x: sums.append(x.clone()) or sum(sums))
        with monkeypatch.context() as m:
            for name in ("rank0_first", "from_rank0"):
                m.setattr(dist, name, lambda function: function())
            m.setattr(dist, "barrier", lambda: None)
            text = f"--images={place}/images --prompts={place}/captions.csv --model={place}/model --batch=2"
            result = run(text)
        assert result.exit_code == 0, result.output
        assert bool(result.stdout) == (rank == 0)
    assert float(result.stdout) == pytest.approx(whole, rel=1e-5)  # as printed


@pytest.mark.slow
def test_two_processes_give_the_score_of_one(place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    text = f"--images={place}/images --prompts={place}/captions.csv --model={place}/model --batch=2 --device=cpu"
    started = [
        subprocess.Popen(
            [sys.executable, "clip_score.py", "calc", *text.split(), f"--json={place}/two.json"], cwd=ROOT,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=HUNG)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0]
    assert outputs[1] == ""
    two = json.loads((place / "two.json").read_text())["clip_score"]
    one = score(place, "--batch=2")[0]["clip_score"]
    assert two["value"] == pytest.approx(one["value"], rel=1e-6)  # embeddings are float32


@pytest.mark.parametrize("installed", [False, True])
def test_open_clip_through_a_stand_in(monkeypatch, place, installed):
    if not installed:
        monkeypatch.setitem(sys.modules, "open_clip", None)
        result = run("--images={p}/images --prompts={p}/captions.csv --model=open_clip:ViT-g-14:tag", p=place)
        assert "needs the package open_clip_torch" in result.output
        return
    asked = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def encode_image(self, x):
            return x * self.weight

        def encode_text(self, tokens):
            return tokens.float() * self.weight

    def create(name, pretrained):
        asked.append((name, pretrained))
        return Net(), None, lambda image: torch.tensor([3.0, 4.0]) if image.mode == "RGB" else None

    def get_tokenizer(name):
        return lambda texts: torch.tensor([[1, 0] if "a" in text else [0, 1] for text in texts])

    module = types.SimpleNamespace(create_model_and_transforms=create, get_tokenizer=get_tokenizer)
    monkeypatch.setitem(sys.modules, "open_clip", module)
    clip = clip_pairs.load_clip_pairs("open_clip:ViT-g-14:laion2b_s34b_b88k")
    assert clip.scores([picture(0), picture(1)], ["a", "b"]).tolist() == pytest.approx([60, 80], rel=1e-6)
    clip_pairs.load_clip_pairs(f"open_clip:local-dir:{place}")
    assert asked == [("ViT-g-14", "laion2b_s34b_b88k"), (f"local-dir:{place}", None)]
    with pytest.raises(ValueError, match="does not say which weights"):
        clip_pairs.load_clip_pairs("open_clip:ViT-g-14")


def test_bad_input_is_one_sentence(place, tmp_path):
    (tmp_path / "few.csv").write_text("text\na\nb\n")
    (tmp_path / "names").mkdir()
    picture(0).save(tmp_path / "names" / "cat.png")
    (tmp_path / "twice" / "a").mkdir(parents=True)
    for name in ("1.png", "a/0001.png"):
        picture(0).save(tmp_path / "twice" / name)
    given = "--prompts={p}/captions.csv --model={p}/model"
    for text, words in {
        "--images={p}/images --prompts={t}/few.csv --model={p}/model": "000007.png is number 7, and {t}/few.csv has "
        "captions 0 to 1",
        f"--images={{t}}/names {given}": "cat.png has no number",
        f"--images={{t}}/twice {given}": "are both number 1",
        f"--images={{p}}/images {given} --num=7": "holds 6 images, 7 are needed",
        "--images={p}/images --prompts={p}/captions.csv --model={t}": "neither a folder with config.json",
        f"--images={{t}}/nowhere {given}": "nowhere",
    }.items():
        result = run(text, p=place, t=tmp_path)
        assert result.exit_code == 1
        assert words.format(t=tmp_path) in " ".join(result.output.split())
        assert "Traceback" not in result.output
