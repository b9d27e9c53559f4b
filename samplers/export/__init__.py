"""Schedule files as plug-ins of other tools: diffusers, k-diffusion, ComfyUI."""
