"""Enumerate golden cases: numbers computed elsewhere that our code must reproduce.

Tests never name a file or a case. They ask for the cases of some kinds in an area and read every configuration from the
files, so that another directory of the same layout can be dropped in:

    FEWSTEP_GOLDEN=/path/to/golden pytest        # holds edm/, solvers/, ... ; default: tests/golden
    FEWSTEP_GOLDEN_CASES=reversed pytest         # or fewer: without the first case of each kind that has several

    @pytest.mark.parametrize("case", cases("edm", "fid"))
    def test_fid(case):
        case.expect("fid", frechet(case["features1"], case["features2"]))
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(os.environ.get("FEWSTEP_GOLDEN", Path(__file__).parent / "golden"))
# torch draws normal numbers as r cos(2 pi u) of float32 uniforms. With AVX, with which the files were made, it takes a
# cosine and a logarithm of its own; on any other processor those of the C library. 2 pi u < 8 is rounded to 2^-22 and
# r <= sqrt(2 log(2^24)) = 5.8, so both agree to 5.8 * 2^-22 = 1.4e-6; three times that, to stay clear of it.
AS_DRAWN = 0.0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 3 * 5.8 * 2**-22
# Other files hold other cases in another order, so a test may not know which comes first.
WHICH = os.environ.get("FEWSTEP_GOLDEN_CASES", "all")
LOOKED_UP = {"state_dict", "dataset_tool"}  # kinds that other cases refer to by name

# Kinds that some test handles, per area; test_golden_kinds.py fails when the files hold a kind that is not listed.
HANDLED: dict[str, set[str]] = {
    "edm": {
        "network", "state_dict_shapes", "sampler", "per_seed_draws", "parse_seed_list", "seed_batches",
        "quantise_uint8", "loss", "augment", "lr_ema_schedule", "infinite_sampler", "iddpm_table", "vp_sigma",
        "positional_embedding", "resample_conv", "dataset_tool", "dataset_class", "dataset_subset", "fid",
        "train_steps", "snapshot",
        "training_state",
    },
    "solvers": {
        "solver_grid", "schedule", "deis_vp_time", "deis_coefficients", "gits_search", "gits_afs", "gits_dp",
        "network_denoise", "network_solve", "alphas_table", "table_maps", "schedule_discrete", "cfg_denoise",
        "cfg_solve", "vp_sigma_range", "cg_denoise", "cg_solve", "trajectory_analysis", "published_schedules",
    },
    "mac": {
        "projector", "discriminator_heads", "vit_readout", "projected_discriminator", "diffaugment", "mac_calculator",
        "gaussian_kernel_1d", "gaussian_kernel_2d", "coefficient_sampler", "coefficient_network", "preconditioner",
        "pretrain_loss", "generator_sample", "generator_single_step", "trajectory_training", "state_dict",
        "state_dict_generator",
    },
    "curvature": {
        "velocity_network", "encoder_network", "net_2d", "kl", "kl_2d", "path", "train_image", "train_2d", "distill",
        "field",
        "sample", "encode", "sample_adaptive", "curvature", "ema", "to_uint8", "denoiser", "denoiser_at_infinity",
        "euler_two_ways", "exact_flow", "solver_in_t", "solver_in_sigma", "coupled_gaussian_exact",
        "coupled_gaussian_euler", "two_mode_exact", "two_mode_trained", "two_mode_start_noise", "state_dict",
    },
    "idff": {
        "path", "path_lambda", "path_rng", "loss_state", "loss", "loss_order1_target", "loss_order1",
        "ensemble_scores", "trajectory_scores", "two_sample", "regression_scores", "ot_cost", "ot_plan",
        "ot_assignment", "ot_sample", "wasserstein", "field", "sample_sde", "sample_ode", "sample_rollout",
        "edm_denoiser", "edm_mapping", "network_forward", "network_keys", "toy_draws", "toy_w2",
        "toy_w2_floor",
    },
    "checkpoints": {
        "unet_forward", "unet_probes", "classifier", "autoencoder_decode", "autoencoder_encode", "beta_schedule",
        "sigma_of_t", "t_of_sigma", "sigma_range", "time_schedule", "denoiser_cm", "denoiser_classifier_guided",
        "denoiser_cfg", "latent_decode", "network_keys",
    },
    "metrics": {"metrics"},
    "combostoc": {
        "center_crop", "timestep_embedding", "position_embedding_2d", "model_forward", "model_components",
        "label_embedding", "model_gradient", "training_target", "compensation", "seeded_draw",
        "path_coefficients", "path_drift", "diffusion_coefficient", "path_conversions", "path_plan", "denoiser",
        "interval", "sample_ode", "sample_sde", "model_cfg", "sample_network_ode", "sample_network_sde",
        "graded_control", "likelihood",
    },
}  # fmt: skip


class Case:
    """One case: `case.spec` its JSON, `case.file` the file-level JSON, `case["name"]` an array of the npz beside it."""

    def __init__(self, path: Path, file: dict[str, Any], spec: dict[str, Any]) -> None:
        self.path = path
        self.file = file
        self.spec = spec
        self.kind: str = spec["kind"]
        self.name: str = spec["name"] if "name" in spec else spec["id"]

    def __repr__(self) -> str:
        return f"{self.path.stem}:{self.name}"

    def _key(self, role: str) -> str | None:
        if role in self.spec.get("arrays", {}):
            return self.spec["arrays"][role]
        arrays = _arrays(self.path)
        return f"{self.name}/{role}" if f"{self.name}/{role}" in arrays else role

    def has(self, role: str) -> bool:
        key = self._key(role)
        return key is not None and key in _arrays(self.path)

    def __getitem__(self, role: str) -> np.ndarray:
        """Array of this case by role, or a shared array of the file by key."""
        return _arrays(self.path)[self._key(role)]

    def shared(self, key: str) -> torch.Tensor:
        """Array of the file by its full key, also where this case has an array of that name."""
        return torch.from_numpy(np.array(_arrays(self.path)[key]))

    def tensor(self, role: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self[role]))

    def input(self, role: str) -> torch.Tensor | None:
        """Input of a case that lists its inputs (schema golden-cases/1); None where this case has no such role."""
        place = self.spec["inputs"].get(role)
        return None if place is None else torch.from_numpy(np.array(self._at(place)))

    @property
    def roles(self) -> list[str]:
        """What such a case expects, by role."""
        return list(self.spec["expect"])

    def reference(self, role: str) -> np.ndarray:
        """What such a case expects of a role, whole."""
        place = self.spec["expect"][role]
        return np.asarray(place["value"]) if "value" in place else self._at(place)

    def check(self, role: str, own: Any, drawn: bool = False) -> None:
        """As `expect`, of a case that lists what it expects: own values broadcast; some rows alone may count."""
        place = self.spec["expect"][role]
        own = own.detach().cpu().numpy() if isinstance(own, torch.Tensor) else np.asarray(own)
        ref, tolerance = self.reference(role), place["tolerance"]
        own = np.broadcast_to(own, ref.shape)
        if "rows" in place:
            own, ref = own[place["rows"]], ref[place["rows"]]
        if (share := tolerance.get("max_mismatch_fraction")) is not None:
            assert (own != ref).mean() <= share, f"{self} {role}: {(own != ref).mean():.3g} of the elements differ"
        atol, rtol = max(float(tolerance["atol"]), AS_DRAWN * drawn), float(tolerance["rtol"])
        # integers (8-bit images) would wrap around in the difference
        own, ref = (a.astype(np.float64) if a.dtype.kind in "iu" else a for a in (own, ref))
        np.testing.assert_allclose(own, ref, rtol=rtol, atol=atol, err_msg=f"{self} {role}")

    def _at(self, place: dict[str, Any]) -> np.ndarray:
        array = _arrays(self.path)[place["array"]]
        return array[tuple(place["index"])] if "index" in place else array

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Definitions of the networks of the file by name; those kept in another file are looked up there."""
        found = {}
        for name, spec in self.file.get("networks", {}).items():
            if "file" in spec:
                spec = _decode(json.loads((self.path.parent / spec["file"]).read_text()))["networks"][name]
            found[name] = spec
        return found

    @property
    def outputs(self) -> list[str]:
        """Names of the expected arrays."""
        return list(self.spec.get("tolerance", {}))

    def expect(self, role: str, own: Any, tolerance: dict[str, float] | None = None, drawn: bool = False) -> None:
        """|own - ref| <= atol + rtol |ref| elementwise at the tolerance of the file; NaN matches NaN.

        `drawn`: these are normal numbers out of torch's generator, which belong to the processor.
        """
        own = own.detach().cpu().numpy() if isinstance(own, torch.Tensor) else np.asarray(own)
        tolerance = tolerance or self.spec["tolerance"][role]
        ref = self[role]
        assert own.shape == ref.shape, f"{self} {role}: shape {own.shape}, expected {ref.shape}"
        atol, rtol = max(float(tolerance["atol"]), AS_DRAWN * drawn), float(tolerance["rtol"])
        np.testing.assert_allclose(own, ref, rtol=rtol, atol=atol, err_msg=f"{self} {role}")


@cache
def _arrays(path: Path) -> dict[str, np.ndarray]:
    npz = path.with_suffix(".npz")
    if not npz.exists():
        return {}
    with np.load(npz, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def _decode(value: Any) -> Any:
    """The strings "inf", "-inf", "nan" in numeric places stand for these floats."""
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_decode(v) for v in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


@cache
def _area(area: str) -> tuple[Case, ...]:
    found = []
    for path in sorted((GOLDEN / area).rglob("*.json")):
        file = _decode(json.loads(path.read_text()))
        found += [Case(path, {k: v for k, v in file.items() if k != "cases"}, spec) for spec in file["cases"]]
    return tuple({"all": list, "reversed": lambda x: x[::-1], "fewer": _without_first}[WHICH](found))


def _without_first(found: list[Case]) -> list[Case]:
    """Without the first case of every kind of which there are several."""
    many = Counter(case.kind for case in found)
    first = {kind: next(case for case in found if case.kind == kind) for kind in many}
    return [c for c in found if c is not first[c.kind] or many[c.kind] == 1 or c.kind in LOOKED_UP]


def cases(area: str, *kinds: str) -> list[Any]:
    """pytest parameters for every case of these kinds, in every file of the area."""
    return [pytest.param(case, id=repr(case)) for case in _area(area) if case.kind in kinds]


def kinds(area: str) -> set[str]:
    return {case.kind for case in _area(area)}


def fill_weights(module: torch.nn.Module, constant_keys: list[str] = (), prefix: str = "") -> torch.nn.Module:
    """The golden weight rule: every state-dict entry is a function of its name and shape."""
    state = module.state_dict()
    for key, value in state.items():
        name = prefix + key
        if name in constant_keys or key in constant_keys:
            continue
        w = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(value.shape)
        if w.ndim >= 2:
            w = w / np.sqrt(np.prod(w.shape[1:]))
        elif w.ndim == 1 and key.endswith("bias"):
            w = 0.1 * w
        elif w.ndim == 1 and key.endswith("weight"):
            w = 1 + 0.1 * w
        else:
            w = 0.1 * w
        state[key] = torch.from_numpy(np.asarray(w, dtype=np.float32)).to(value.dtype)
    module.load_state_dict(state)
    return module
