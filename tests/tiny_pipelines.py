"""Tiny random pipelines of diffusers in float64, with the denoiser that `samplers.sample` needs for the same model."""

import diffusers
import torch

from samplers import Field
from torch_utils.noise_table import NoiseTable, alphas_cumprod, betas_of

SD_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE = NoiseTable(alphas_cumprod(betas_of("sqrt_linear_squared", 1000, 0.00085, 0.012), torch.float32))
GUIDANCE = 2.0
KINDS = ("sd", "sd-v", "sd-x", "sdxl", "flow")
PREDICTIONS = {"sd-v": "v_prediction", "sd-x": "sample"}


def _random(net):
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    return net.double().eval()


def _unet(**more):
    return _random(
        diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=8,
            block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
        )
    )  # fmt: skip


def _embeddings(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(kind, img2img=False):
    """`(pipeline, arguments of its call, field)`; the pipeline returns latents and has the library's own scheduler."""
    tokens, empty = _embeddings(1, 3, 16, seed=1), _embeddings(1, 3, 16, seed=2)
    call = {
        "prompt_embeds": tokens,
        "negative_prompt_embeds": empty,
        "guidance_scale": GUIDANCE,
        "output_type": "latent",
    }
    pooled = _embeddings(1, 16, seed=3), _embeddings(1, 16, seed=4)
    if kind == "flow":
        net = _random(
            diffusers.SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
                num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16,
                pos_embed_max_size=8,
            )
        )  # fmt: skip
        parts = dict.fromkeys(
            ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        )
        cls = diffusers.StableDiffusion3Img2ImgPipeline if img2img else diffusers.StableDiffusion3Pipeline
        pipe = cls(transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
        call |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}

        def velocity(x, t, class_labels=None):
            time = (1000 * t.double()).float().expand(2 * len(x))
            out = net(
                x.repeat(2, 1, 1, 1), timestep=time, encoder_hidden_states=torch.cat([empty, tokens]),
                pooled_projections=torch.cat(pooled[::-1]), return_dict=False,
            )[0]  # fmt: skip
            return _guided(out)

        field = Field(velocity, "linear", "velocity")
    else:
        prediction = PREDICTIONS.get(kind, "epsilon")
        scheduler = diffusers.DDIMScheduler(**SD_NOISE, prediction_type=prediction, clip_sample=False, steps_offset=1)
        more = {}
        if kind == "sdxl":
            net = _unet(
                addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40
            )
            parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
            parts["vae"] = diffusers.AutoencoderKL(
                block_out_channels=(4,) * 4, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )  # fmt: skip
            cls = diffusers.StableDiffusionXLImg2ImgPipeline if img2img else diffusers.StableDiffusionXLPipeline
            pipe = cls(unet=net, scheduler=scheduler, **parts)
            call |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
            size = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2, dtype=torch.float64)
            more = {"added_cond_kwargs": {"text_embeds": torch.cat(pooled[::-1]), "time_ids": size}}
        else:
            net = _unet()
            parts = dict.fromkeys(
                ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
            )
            cls = diffusers.StableDiffusionImg2ImgPipeline if img2img else diffusers.StableDiffusionPipeline
            pipe = cls(unet=net, scheduler=scheduler, requires_safety_checker=False, **parts)

        def denoise(x, sigma, class_labels=None):
            sigma = torch.as_tensor(sigma, dtype=torch.float64)
            alpha = (1 + sigma**2) ** -0.5
            time = TABLE.network_time(sigma).float()
            out = net(
                (alpha * x).repeat(2, 1, 1, 1), time, encoder_hidden_states=torch.cat([empty, tokens]),
                return_dict=False, **more,
            )[0]  # fmt: skip
            out = _guided(out)
            if prediction == "sample":
                return out
            noise = out if prediction == "epsilon" else sigma * alpha * (alpha * x) + alpha * out
            return x - sigma * noise

        field = Field(denoise)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call, field


def _guided(out):
    without, with_text = out.chunk(2)
    return without + GUIDANCE * (with_text - without)
