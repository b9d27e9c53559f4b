"""Roll-out of a network over a series, many members at once, and its scores beside those of simple forecasts.

Each member goes on from its own last frames. A forecast depends on (seed, window, member, lead) and on nothing else,
such as how many are computed at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers.field import Facts
from samplers.planning.plan import Plan, SamplerOptions, build_plan
from torch_utils.rng import BatchRNG
from torch_utils.scores import ensemble_scores
from training.data.series import SeriesDataset

Array = np.ndarray[Any, Any]

BRIDGE = {"field": "bridge_sde", "N": 10, "time_power": 2.0}


class Ensemble(NamedTuple):
    """Members `[n, M, leads, C, H, W]` float32 states, and network calls behind each sample of `horizon` frames."""

    members: Array
    calls: float


def dataset_of(net: Any, text: str, part: str) -> SeriesDataset:
    """A part of a series, scaled and cut as the network learnt it.

    Raises:
        ValueError: a network that was not trained on a series, data of another shape.
    """
    learnt = getattr(net, "info", {}).get("dataset", {}).get("series")
    if learnt is None:
        raise ValueError("this network was not trained on a series: train one with --data=series:... (docs/series.md)")
    return SeriesDataset(text, part, learnt)


def plan_of(net: Any, options: SamplerOptions) -> Plan:
    """The sampler of a forecast: what was asked for; else, where frames are reached from frames, the bridge's SDE.

    Its steps are short towards the data, `BRIDGE`: the last one loses the spread that is still to come. A flow without
    noise goes from one frame to one frame, so that it has no ensemble.
    """
    given = options.given()
    if Facts.of(net).begins == "frame" and not set(given) - set(BRIDGE):
        options = dataclasses.replace(options, **{k: v for k, v in BRIDGE.items() if k not in given})
    return build_plan(net, options)


@torch.inference_mode()
def roll_out(
    net: Any, plan: Plan, dataset: SeriesDataset, starts: Array, *, leads: int, members: int, seed: int = 0,
    batch: int = 1024, device: torch.device | str = "cpu", progress: Callable[[int], Any] = lambda n: None,
) -> Ensemble:  # fmt: skip
    """Forecasts of `leads` frames from `starts [n, 2]`, sequence and first frame to come.

    Args:
        batch: most members of all windows at once.
        progress: called with the number of members done.
    """
    context, _, phases = dataset.windows(starts, leads)
    begins, told = Facts.of(net).begins, Facts.of(net).label_dim == dataset.label_dim
    blocks = -(-leads // dataset.horizon)
    total, shape = len(starts) * members, [dataset.num_channels, dataset.resolution, dataset.resolution]
    found, evaluated = [], _RowCounter(net)
    for first in range(0, total, batch):
        rows = torch.arange(first, min(first + batch, total))
        window = rows // members
        seen, states = context[window].to(device), []
        for block in range(blocks):
            rng = BatchRNG(seed, block, first, first + len(rows), device)
            at = phases[window, dataset.window + block * dataset.horizon].to(device)
            label = dataset.condition(seen, at)
            label = label if told else label[:, dataset.context_dim :]
            start = seen[:, -dataset.horizon :].flatten(1, 2) if begins == "frame" else rng.randn([len(rows), *shape])
            out = plan(net, start, label, rng=rng).float().unflatten(1, (dataset.horizon, dataset.channels))
            out = dataset.scaling.on_manifold(out)
            states.append(out)
            seen = torch.cat([seen, out], dim=1)[:, -dataset.window :]
        found.append(torch.cat(states, dim=1)[:, :leads].cpu())
        progress(len(rows))
    members_ = torch.cat(found).unflatten(0, (len(starts), members)).numpy()
    return Ensemble(members_, evaluated.stop() / (total * blocks))


class _RowCounter:
    """Rows that a network's trunk was called with, until `stop`: what was really computed."""

    def __init__(self, net: Any) -> None:
        self.rows = 0
        self._handle = net.model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self.rows += len(inputs[0])

    def stop(self) -> int:
        self._handle.remove()
        return self.rows


# --- simple forecasts -------------------------------------------------------------------------------------------------


def _persistence(train: Array, last: Array, leads: int, members: int, rng: np.random.Generator) -> Array:
    """The last frame, again and again: one member."""
    return np.repeat(last[:, None, None], leads, axis=2)


def _climatology(train: Array, last: Array, leads: int, members: int, rng: np.random.Generator) -> Array:
    """Frames of the training part at random."""
    pool = train.reshape(-1, *train.shape[2:])
    return pool[rng.integers(len(pool), size=(len(last), members, leads))]


def _ar1(train: Array, last: Array, leads: int, members: int, rng: np.random.Generator) -> Array:
    """x' = mean + phi (x - mean) + noise for each element, fitted to the training part by least squares."""
    mean, phi, sd = ar1_fit(train)
    x, out = np.repeat(last[:, None] - mean, members, axis=1), np.empty((len(last), members, leads, *last.shape[1:]))
    for lead in range(leads):
        x = phi * x + sd * rng.standard_normal(x.shape)
        out[:, :, lead] = x + mean
    return out


def ar1_fit(train: Array) -> tuple[Array, Array, Array]:
    """Mean, factor and deviation of the innovations of each element, `[C, H, W]`, of sequences `[N, T, C, H, W]`."""
    mean = train.mean((0, 1))
    before, after = train[:, :-1] - mean, train[:, 1:] - mean
    phi = (before * after).sum((0, 1)) / np.square(before).sum((0, 1))
    return mean, phi, (after - phi * before).std((0, 1))


BASELINES: dict[str, Callable[..., Array]] = {"persistence": _persistence, "climatology": _climatology, "AR(1)": _ar1}


def baseline(name: str, dataset: SeriesDataset, starts: Array, leads: int, members: int, seed: int = 0) -> Array:
    """States `[n, M, leads, C, H, W]` of a forecast of BASELINES; persistence has M = 1.

    Raises:
        ValueError: an autoregression of angles, which have no mean.
    """
    if name == "AR(1)" and dataset.scaling.is_angle:
        raise ValueError("an autoregression takes numbers, and these are angles")
    last = dataset.windows(starts, 0)[0][:, -1].numpy().astype(np.float64)
    return BASELINES[name](dataset.training_states(), last, leads, members, np.random.default_rng(seed))


def score(members: Array, observed: Array) -> dict[str, Any]:
    """CRPS (both), MSE of the mean and SSR over everything, and lists of each by lead.

    Args:
        members: `[n, M, leads, ...]`. observed: `[n, leads, ...]`.
    """
    each = [
        ensemble_scores(np.moveaxis(members[:, :, lead], 1, -1), observed[:, lead]) for lead in range(observed.shape[1])
    ]
    if members.shape[1] == 1:  # JSON has no NaN
        each = [{**s, "crps_fair": None} for s in each]
    by_lead = {k: [s[k] for s in each] for k in ("crps", "crps_fair", "mse", "ssr")}
    mean = {k: None if None in by_lead[k] else float(np.mean(by_lead[k])) for k in ("crps", "crps_fair", "mse")}
    spread = np.mean([s["ssr"] ** 2 * s["mse"] for s in each])
    return {**mean, "ssr": float(np.sqrt(spread / mean["mse"])), "by_lead": by_lead}
