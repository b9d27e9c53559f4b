"""Tiny random files of every published family in the container of the original, made on the spot."""

import contextlib
import json
import pickle
import sys
import types
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from golden_cases import fill_weights
from live_pickles import persistence_in, persistent_tree

import networks
from networks.models.autoencoder import build_autoencoder
from networks.models.clip_text import CLIPText
from networks.trunks.adm_classifier import ADMClassifier
from networks.trunks.adm_unet import ADMUNet
from torch_utils.noise_table import alphas_cumprod, betas_of

LINEAR = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
LATENT = {"kind": "sqrt_linear_squared", "steps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}
UNET = {
    "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2],
    "num_head_channels": 16,
}  # fmt: skip
STAGE = {
    "z_channels": 3, "embed_dim": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": 1,
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
    "max_position_embeddings": 8, "vocab_size": 19,
}  # fmt: skip


@dataclass
class Files:
    """One published model: its file, the configuration it needs, and a classifier."""

    path: Path
    config: dict = field(default_factory=dict)
    classifier: Path | None = None

    def config_file(self):
        path = self.path.with_suffix(".json")
        path.write_text(json.dumps(self.config))
        return path


def state_of(net):
    """The state dict of a network with weights by the golden rule, a third as large: outputs stay moderate."""
    return {k: v.clone() for k, v in fill_weights(net).state_dict().items()}


def unet(**options):
    return state_of(ADMUNet(img_resolution=16, **{"in_channels": 3, "out_channels": 3, **UNET, **options}))


def adm(folder):
    state = unet(out_channels=6, label_dim=10, resblock_updown=True, use_scale_shift_norm=True)
    torch.save(state, folder / "adm.pt")
    classifier = ADMClassifier(
        img_resolution=16, in_channels=3, out_channels=10, pool="attention", **{**UNET, "model_channels": 64}
    )
    torch.save(state_of(classifier), folder / "adm_classifier.pt")
    head = {"num_head_channels": 16, "attention_order": "heads_then_qkv"}
    return Files(
        folder / "adm.pt", {"image_size": 16, **head, "schedule": LINEAR, "classifier": head},
        folder / "adm_classifier.pt",
    )  # fmt: skip


def cm(folder):
    state = unet(resblock_updown=True, use_scale_shift_norm=False, attention_axes=2, use_new_attention_order=True)
    torch.save(state, folder / "edm_tiny_ema.pt", _use_new_zipfile_serialization=False)
    return Files(folder / "edm_tiny_ema.pt", {"image_size": 16, "num_head_channels": 16})


def latent_state(net, stage, scale=None, averaged=True):
    """The state dict of a training checkpoint: raw weights, their average under squeezed names, autoencoder, table."""
    state = {f"model.diffusion_model.{k}": v for k, v in net.items()}
    if averaged:
        state = {k: torch.zeros_like(v) for k, v in state.items()}
        state |= {"model_ema." + f"diffusion_model.{k}".replace(".", ""): v for k, v in net.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state |= {f"first_stage_model.{k}": v for k, v in stage.items()}
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    betas = betas_of(**LATENT)
    state |= {"betas": betas.float(), "alphas_cumprod": alphas_cumprod(betas, torch.float32).float()}
    state |= {"sqrt_alphas_cumprod": betas.float(), "posterior_variance": betas.float(), "logvar": betas.float()}
    return state | ({} if scale is None else {"scale_factor": torch.tensor(scale)})


@contextlib.contextmanager
def training_program():
    """Modules that a training checkpoint names: gone again when it is read."""
    modules = {}

    def module(name, **content):
        made = types.ModuleType(name)
        for key, value in content.items():
            setattr(made, key, value)
            value.__module__ = name
        modules[name] = made

    class ModelCheckpoint:
        pass

    class DictConfig:
        def __init__(self, content):
            self.__dict__["_content"] = content

    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "omegaconf"):
        module(name)
    ModelCheckpoint.__qualname__, DictConfig.__qualname__ = "ModelCheckpoint", "DictConfig"
    module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    module("omegaconf.dictconfig", DictConfig=DictConfig)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield ModelCheckpoint, DictConfig
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def lightning(state, path):
    """A training checkpoint with a class as a key, a configuration object, and an optimiser."""
    with training_program() as (callback, config):
        torch.save(
            {
                "epoch": 3, "global_step": 70, "pytorch-lightning_version": "1.0.8", "state_dict": state,
                "callbacks": {callback: {"best_model_score": torch.tensor(1.0), "monitor": "val"}},
                "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []}],
                "lr_schedulers": [], "hyper_parameters": config({"a": 1, "b": config([1, 2])}),
            },
            path,
        )  # fmt: skip
    return path


def ldm(folder):
    stage = state_of(build_autoencoder("VQAutoencoder", n_embed=16, **STAGE))
    state = latent_state(unet(use_scale_shift_norm=False), stage)
    lightning(state, folder / "model.ckpt")
    with zipfile.ZipFile(folder / "ldm.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "model.ckpt", "model.ckpt")
    (folder / "model.ckpt").unlink()
    config = {"image_size": 8, "num_head_channels": 16, "attention_order": "heads_then_qkv", "scale_factor": 1.0}
    return Files(folder / "ldm.zip", config)


KL = STAGE | {"z_channels": 4, "embed_dim": 4}
CONTEXT = {
    "in_channels": 4, "out_channels": 4, "use_scale_shift_norm": False, "num_heads": 2, "num_head_channels": -1,
}  # fmt: skip


def cin(folder):
    stage = state_of(build_autoencoder("KLAutoencoder", **KL))
    state = latent_state(unet(**CONTEXT, context_dim=24), stage, scale=0.5)
    state["cond_stage_model.embedding.weight"] = torch.randn(11, 24, generator=torch.Generator().manual_seed(0))
    return Files(lightning(state, folder / "cin.ckpt"), {"image_size": 8, "num_heads": 2})


def sd(folder):
    stage = state_of(build_autoencoder("KLAutoencoder", **KL))
    state = latent_state(unet(**CONTEXT, context_dim=64), stage, averaged=False)
    text = state_of(CLIPText(**TEXT))
    names = {k: f"cond_stage_model.transformer.{k}" for k in text}
    state |= {names[k]: v for k, v in text.items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(8)[None]
    config = {"image_size": 8, "num_heads": 2, "scale_factor": 0.18215}
    return Files(lightning(state, folder / "sd.ckpt"), config)


def edm_pickle(path, protocol=4):
    """A pickle of persistent objects, as EDM's training writes it."""
    config = {
        "img_resolution": 16, "img_channels": 3, "label_dim": 3, "model_type": "SongUNet", "model_channels": 8,
        "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8],
    }  # fmt: skip
    net = fill_weights(networks.build("EDMPrecond", **config))
    with pytest.MonkeyPatch.context() as patch:
        tree = persistent_tree(
            net, persistence_in(patch), config, sigma_data=0.5, sigma_min=0, sigma_max=float("inf"), label_dim=3,
            img_resolution=16, img_channels=3, use_fp16=False,
        )  # fmt: skip
        path.write_bytes(pickle.dumps({"ema": tree, "loss_fn": None}, protocol))
    return path


def yaml_of(target="ldm.models.diffusion.ddpm.LatentDiffusion"):
    return {
        "model": {
            "target": target,
            "params": {
                "linear_start": LATENT["beta_start"], "linear_end": LATENT["beta_end"], "timesteps": 1000,
                "image_size": 8, "channels": 3, "cond_stage_config": "__is_unconditional__",
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": {"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32,
                               "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2],
                               "num_head_channels": 16, "attention_order": "heads_then_qkv"},
                },
                "first_stage_config": {
                    "target": "ldm.models.autoencoder.VQModelInterface",
                    "params": {"embed_dim": 3, "n_embed": 16, "ddconfig": {"resolution": 16, "attn_resolutions": []}},
                },
            },
        }
    }  # fmt: skip


def tokenizer(folder):
    """A CLIP tokenizer of 19 words in a folder of its own."""
    folder.mkdir(exist_ok=True)
    letters = [*"abcdefgh", *(f"{c}</w>" for c in "abcdefgh")]
    words = [*letters, "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return folder


FAMILIES = {"adm": adm, "cm": cm, "ldm": ldm, "cin": cin, "sd": sd}
