"""ComfyUI nodes of a schedule file, for its first interface: a list of levels and a sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from samplers.export.kdiffusion import STEPS, get_sigmas, sample_schedule

NAME = "Fewstep"  # the exporter writes the name of the schedule file here


class FirstFewstepSigmas:
    """The levels of the file's schedule of a number of steps."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # the interface's name
        """What ComfyUI shows."""
        return {"required": {"steps": ("INT", {"default": STEPS[0], "min": STEPS[0], "max": STEPS[-1]})}}

    def get(self, steps: int) -> tuple[Tensor]:
        """The levels, on the CPU."""
        return (get_sigmas(steps),)


class FirstFewstepSampler:
    """The file's solver."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # the interface's name
        """What ComfyUI shows."""
        return {"required": {}}

    def get(self) -> tuple[Any]:
        """The sampler."""
        return (comfy.samplers.KSAMPLER(sample_schedule, {}, {}),)


NODE_CLASS_MAPPINGS = {f"FewstepSigmas_{NAME}": FirstFewstepSigmas, f"FewstepSampler_{NAME}": FirstFewstepSampler}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"FewstepSigmas_{NAME}": f"Few-step levels ({NAME})",
    f"FewstepSampler_{NAME}": f"Few-step sampler ({NAME})",
}
