"""A scheduler for pipelines of diffusers that samples exactly as a schedule file says.

    pipe.scheduler = FewstepScheduler.from_config(pipe.scheduler.config)
    image = pipe("a prompt", num_inference_steps=5).images[0]

The network is told fractional time steps, the state between steps is the pipeline's own (variance-preserving, or on the
straight path of a flow), and the result is the sample at the schedule's last level. Custom `sigmas` end with the level
to stop at, as `scheduler.sigmas` does: noise levels sigma of noise-predicting models, times in [0, 1] of flow models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from samplers.export.core import FORMULAS, Run, looks
from samplers.export.lookup import level_at, levels_for, schedule_program, time_at
from torch_utils.noise_table import NoiseTable, scheduler_alphas

__all__ = ["FewstepScheduler"]

SCHEDULE: dict[str, Any] = {}  # the content of a schedule file, written here by the exporter

SLACK = 1e-3  # of the highest level: published lists have four decimals
_PREDICTIONS = {"ve": ("epsilon", "v_prediction", "sample"), "linear": ("flow_prediction",)}


class FewstepScheduler(SchedulerMixin, ConfigMixin):
    """Runs a schedule file: searched levels with their solver, or a calibrated solver with its coefficients.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: noise levels that the model was trained
            on, by the names of every scheduler; `from_config` takes them over.
        prediction_type: "epsilon", "v_prediction" or "sample" for a file made on such a model, "flow_prediction" for
            one made on a flow model; None: "epsilon" or "flow_prediction".
        use_flow_sigmas: tells pipelines of flow models not to pass levels of their own.
        schedule: content of a schedule file; None: of the one that this module was exported from.
    """

    _compatibles: list[str] = []  # noqa: RUF012  # what the library reads

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str | None = None,
        use_flow_sigmas: bool = True,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        self.schedule = SCHEDULE if schedule is None else schedule
        path = self.schedule["path"]
        self.flow = path == "linear"
        self.prediction = prediction_type or _PREDICTIONS[path][0]
        self.register_to_config(schedule=dict(self.schedule), prediction_type=self.prediction)
        if self.prediction not in _PREDICTIONS[path]:
            raise ValueError(
                f"the schedule file was made for a model on the path '{path}', which predicts "
                f"{' or '.join(_PREDICTIONS[path])}, and this model predicts {self.prediction}: search or calibrate a "
                "schedule for it"
            )
        if not self.flow:
            self.table = NoiseTable(_alphas(self.config))
        self.order = FORMULAS[self.schedule["solver"]][1]
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._levels: list[float] = []
        self.sigmas, self.timesteps = torch.zeros(0), torch.zeros(0)
        self._start_over()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def _start_over(self) -> None:
        self._run: Run | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Place of the next time step among `timesteps`."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Place of the first time step that the pipeline will take, as it said."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Called by pipelines that start in the middle, from an image."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose a schedule of the file, by its number of steps as the pipeline counts them, or give levels.

        Args:
            timesteps: those to stop at on the way; the last level of the file is added.
            sigmas: see the module; as many as steps and one more, which may be 0.
            mu: shift by image size: of no use here, levels are used as they are.

        Raises:
            ValueError: no schedule of that length, or levels that do not fall.
        """
        self._start_over()
        if timesteps is not None and sigmas is not None:
            raise ValueError("timesteps and sigmas both say which levels: give one of them")
        entries = self.schedule["entries"]
        if timesteps is not None:
            given = self._level_of(torch.as_tensor(timesteps, dtype=torch.float64)).tolist()
            self._levels = [*given, entries[0]["sigmas"][-1]]
        elif sigmas is not None:
            self._levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
            if self.flow:
                self._levels = [level_at(t) for t in self._levels]
        else:
            self._levels = levels_for(self.schedule, num_inference_steps)
        lines = schedule_program(self.schedule, self._levels, logging.getLogger(__name__).warning)
        self._looks = [line.level for line in looks(lines)]
        self._check_known(self._looks[0])
        times = [self._time_of(level) for level in self._looks]
        self.timesteps = torch.tensor(times, dtype=torch.float32).to(device)
        shown = [time_at(s) for s in self._levels] if self.flow else self._levels
        self.sigmas = torch.tensor(shown, dtype=torch.float32)
        self.num_inference_steps = len(times)
        top = self._levels[0]
        self.init_noise_sigma = 1.0
        if not self.flow:  # the first state to be evaluated: after the analytical first step, if there is one
            self.init_noise_sigma = top * lines[0].mix["start"] * self._alpha(self._looks[0])

    def _alpha(self, level: float) -> float:
        """Factor from x = data + level * noise to the state of the pipeline."""
        if level == math.inf:
            return 1.0
        return 1 / (1 + level) if self.flow else 1 / math.sqrt(1 + level * level)

    def _check_known(self, level: float) -> None:
        """A ValueError for a level above those that the network was trained on, of which it knows nothing."""
        if self.flow:
            return
        top = float(self.table.sigma(torch.ones((), dtype=torch.float64)))
        if level > top * (1 + SLACK):
            raise ValueError(
                f"the noise level {level:g} is above those that this model was trained on, up to {top:.6g}: begin lower"
            )

    def _time_of(self, level: float) -> float:
        """Time step that the network is told."""
        if self.flow:
            return self.config.num_train_timesteps * time_at(level)
        return float(self.table.network_time(level))

    def _level_of(self, timestep: Tensor) -> Tensor:
        share = timestep.double() / self.config.num_train_timesteps
        if self.flow:
            return share / (1 - share)
        return self.table.sigma(share + 1 / self.config.num_train_timesteps)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as it is: between steps it is what the network sees."""
        return sample

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """Place of a time step; of two that are equal the second, which begins a step."""
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (times.cpu() == torch.as_tensor(timestep, dtype=times.dtype).cpu()).nonzero().flatten().tolist()
        if not found:
            raise ValueError(f"time step {float(timestep):g} is not one of this schedule: take them from timesteps")
        return found[min(1, len(found) - 1)]

    def _begin(self, timestep: Any, sample: Tensor, generator: Any) -> Run:
        """The program from where the pipeline starts."""
        if self.num_inference_steps is None:
            raise ValueError("this scheduler has no levels yet: call set_timesteps before sampling")
        at = self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
        levels, lines = self._levels, schedule_program(self.schedule, self._levels, _silent)
        if at > 0:
            level = self._looks[at]
            lines = schedule_program(self.schedule, levels[levels.index(level) :], _silent) if level in levels else []
            if len(looks(lines)) != len(self._looks) - at:
                raise ValueError(
                    f"time step {at} of this schedule lies within a step of solver '{self.schedule['solver']}': start "
                    f"at one that begins a step of its {self.order} evaluations"
                )
        self._step_index = at

        def noise() -> Tensor:
            return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=_precise(sample).dtype)

        return Run(lines, self.schedule["options"].get("thresholding") == "dynamic", noise)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From the network's output on `sample` to the next state that it is to see, or the result."""
        fresh = self._run is None
        if fresh:
            self._run = self._begin(timestep, sample, generator)
        run = self._run
        if run.line.level is None:
            raise ValueError("this schedule is over: call set_timesteps before sampling again")
        level = run.line.level
        x = _precise(sample) / self._alpha(level)
        if fresh:
            run.begin_at(x)
        result = run.feed(x, self._data(_precise(model_output), x, level))
        if run.line.level is not None:
            result = result * self._alpha(run.line.level)
        self._step_index += 1
        result = result.to(model_output.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _data(self, out: Tensor, x: Tensor, level: float) -> Tensor:
        """The clean estimate at x = data + level * noise that a prediction means."""
        alpha = self._alpha(level)
        if self.flow:  # x_t = (1 - t) data + t noise, out = noise - data
            return x - out if level == math.inf else alpha * x - level * alpha * out
        if self.prediction == "sample":
            return out
        noise = out if self.prediction == "epsilon" else level * alpha * (alpha * x) + alpha * out
        return x - level * noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """States at time steps, one each, from data and noise."""
        level = self._level_of(timesteps.cpu()).reshape(-1, *[1] * (noise.ndim - 1)).to(noise.device)
        alpha = 1 / (1 + level) if self.flow else (1 + level.square()).rsqrt()
        share = 1 - alpha if self.flow else (1 - alpha.square()).sqrt()
        state = alpha.to(noise.dtype) * original_samples + share.to(noise.dtype) * noise
        return state.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` as pipelines of flow models call it."""
        return self.add_noise(sample, noise, torch.atleast_1d(torch.as_tensor(timestep)))


def _silent(line: str) -> None:
    """The line about levels that the file does not know was said when they were set."""


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _alphas(config: Any) -> Tensor:
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("a model with rescale_betas_zero_snr has no finite first noise level: it cannot be sampled")
    return scheduler_alphas(config)
