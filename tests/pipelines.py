"""Tiny random pipelines of diffusers, written to folders on the spot."""

import json

import torch
from published_files import tokenizer

SIDE, WORDS = 8, 19
BLOCKS = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}


def pixels(**options):
    import diffusers

    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=SIDE, in_channels=3, **{"out_channels": 3, **options}, down_block_types=down, up_block_types=up,
        **BLOCKS,
    )  # fmt: skip


def text_unet(**options):
    import diffusers

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE, in_channels=4, out_channels=4, attention_head_dim=8, down_block_types=down,
        up_block_types=up, **{"cross_attention_dim": 64, **options}, **BLOCKS,
    )  # fmt: skip


def xl():
    return text_unet(
        cross_attention_dim=96, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip


def dit():
    import diffusers

    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=SIDE,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def sd3():
    import diffusers

    return diffusers.SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=80, caption_projection_dim=16, pooled_projection_dim=48, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip


def flux():
    import diffusers

    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def vae(**options):
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=2 * SIDE, **{"scaling_factor": 0.3, **options},
    )  # fmt: skip


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
SHIFTED = {"scaling_factor": 0.36, "shift_factor": 0.12}
# name -> network, options of its scheduler, its folder, options of the autoencoder or None, text encoders in order
PIPELINES = {
    "pixels": (pixels, {"beta_schedule": "linear"}, "unet", None, ()),
    "learned variance": (
        lambda: pixels(out_channels=6), {"beta_schedule": "squaredcos_cap_v2"}, "unet", None, (),
    ),
    "classes": (lambda: pixels(num_class_embeds=5), {"prediction_type": "v_prediction"}, "unet", None, ()),
    "sample": (pixels, {"prediction_type": "sample", "num_train_timesteps": 300}, "unet", None, ()),
    "text": (text_unet, SCALED, "unet", {}, ("CLIPTextModel",)),
    "xl": (xl, SCALED, "unet", {}, ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "dit": (dit, {"beta_schedule": "linear"}, "transformer", {}, ()),
    "sd3": (
        sd3, {"shift": 3.0}, "transformer", SHIFTED,
        ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"),
    ),
    "flux": (flux, DYNAMIC, "transformer", SHIFTED, ("CLIPTextModel", "T5EncoderModel")),
}  # fmt: skip
FLOW = ("sd3", "flux")
TEXT = ("text", "xl", "sd3", "flux")
WIDTHS = {"text": (64,), "xl": (64, 32), "sd3": (32, 32, 80), "flux": (64, 32)}


def encoder(kind, width):
    import transformers

    if kind == "T5EncoderModel":
        config = transformers.T5Config(vocab_size=WORDS, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    else:
        config = transformers.CLIPTextConfig(
            hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1, vocab_size=WORDS,
            max_position_embeddings=8, bos_token_id=17, eos_token_id=18, projection_dim=24,
        )  # fmt: skip
    return getattr(transformers, kind)(config)


def words(kind, folder):
    import transformers

    if kind == "T5EncoderModel":
        pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmno"]
        vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
        return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=6)
    return transformers.CLIPTokenizer.from_pretrained(str(tokenizer(folder / "words")), model_max_length=8)


def write(folder, name):
    """A pipeline's folder with random weights."""
    import diffusers

    torch.manual_seed(0)
    make, scheduler, part, stage, encoders = PIPELINES[name]
    net = make()
    for p in net.parameters():  # zero-initialised layers would hide what they do
        torch.nn.init.normal_(p, std=0.05)
    kind = "FlowMatchEulerDiscreteScheduler" if name in FLOW else "DDIMScheduler"
    options = {} if name in FLOW else {"clip_sample": False, "set_alpha_to_one": False}
    index = {"_class_name": "Some", part: ["diffusers", type(net).__name__], "scheduler": ["diffusers", kind]}
    net.save_pretrained(folder / part)
    getattr(diffusers, kind)(**options, **scheduler).save_pretrained(folder / "scheduler")
    if stage is not None:
        vae(**stage).save_pretrained(folder / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    for i, (kind, width) in enumerate(zip(encoders, WIDTHS.get(name, ()), strict=True)):
        suffix = f"_{i + 1}" if i else ""
        encoder(kind, width).save_pretrained(folder / f"text_encoder{suffix}")
        words(kind, folder).save_pretrained(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", kind]
        index[f"tokenizer{suffix}"] = ["transformers", "Some"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
