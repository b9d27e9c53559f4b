"""DEIS coefficients against golden tables; the solves are in test_solvers.py."""

import numpy as np
import pytest
from golden_cases import cases

from samplers.path import VP
from samplers.solvers.weights import deis_table


@pytest.mark.parametrize("case", cases("solvers", "deis_vp_time"))
def test_golden_vp_time(case):
    path = VP.through(*case.spec["vp_sigma_range"])
    case.expect("vp_t", path.time_of(case.tensor("t").double()))
    case.expect("beta01", np.array([path.beta_min, path.beta_min + path.beta_d]))


@pytest.mark.parametrize("case", cases("solvers", "deis_coefficients"))
@pytest.mark.parametrize("exact", [True, False])
def test_golden_deis_coefficients(case, exact):
    t = case.tensor("t").double()
    options = {} if exact else {"quadrature_points": case.spec["quadrature_points"]}
    if case.spec["vp_sigma_range"]:
        options["vp_sigma_range"] = case.spec["vp_sigma_range"]
    own = deis_table(t.tolist(), case.spec["max_order"], mode=case.spec["mode"], **options)
    ref, rows = case["out"], slice(case.spec["first_row"], case.spec["rows"])
    own = np.pad(own, [(0, 0), (0, ref.shape[1] - own.shape[1])])
    tol = case.spec["tolerance"]["out"]
    bound = tol["atol"] + tol["rtol"] * np.abs(ref) + tol["rtol_step"] * t.diff().abs().numpy()[: len(ref), None]
    assert (np.abs(own[: len(ref)] - ref) <= bound)[rows].all()
