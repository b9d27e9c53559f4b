"""ComfyUI nodes of a schedule file, for its current interface: a list of levels and a sampler."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import ComfyExtension, io

from samplers.export.kdiffusion import STEPS, get_sigmas, sample_schedule

NAME = "Fewstep"  # the exporter writes the name of the schedule file here


class FewstepSigmas(io.ComfyNode):
    """The levels of the file's schedule of a number of steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        steps = io.Int.Input("steps", default=STEPS[0], min=STEPS[0], max=STEPS[-1])
        return io.Schema(
            node_id=f"FewstepSigmas_{NAME}", display_name=f"Few-step levels ({NAME})",
            category="sampling/custom_sampling/schedulers", inputs=[steps], outputs=[io.Sigmas.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, steps: int) -> io.NodeOutput:
        """The levels, on the CPU."""
        return io.NodeOutput(get_sigmas(steps))


class FewstepSampler(io.ComfyNode):
    """The file's solver."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id=f"FewstepSampler_{NAME}", display_name=f"Few-step sampler ({NAME})",
            category="sampling/custom_sampling/samplers", inputs=[], outputs=[io.Sampler.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """The sampler."""
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_schedule, {}, {}))


class FewstepExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Their classes."""
        return [FewstepSigmas, FewstepSampler]


async def comfy_entrypoint() -> FewstepExtension:
    """Called by ComfyUI."""
    return FewstepExtension()
