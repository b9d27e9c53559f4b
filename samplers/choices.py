"""The words that options of samplers accept, and no code: so `--help` need not wait for torch.

What a word means is in the file named above it. Where that has a dict from words to what they mean,
`tests/scripts/test_start.py` compares its keys.
"""

from __future__ import annotations

# samplers/schedules/edm.py
DISCRETIZATIONS = ("vp", "ve", "iddpm", "edm")
SCHEDULE_FORMS = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")

# samplers/gits/costs.py and samplers/calibration/starts.py
METRICS = ("dev", "l1", "l2")
CALIBRATION_STARTS = ("gits", "polynomial", "logsnr", "time_uniform")

# samplers/solvers/interpolant.py
FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing")
LEARNT = "KL-eta"  # the form that follows a table of losses
LAST_STEPS = ("mean", "euler", "tweedie", "none")

# samplers/start.py and samplers/fusion.py
STARTS = ("exact", "scaled")
SCORE_SOURCES = ("head", "tweedie", "jacobian")

# samplers/guidance.py
GUIDANCE = ("cfg", "cg", "uncond")
BATCHES = ("joint", "split")
CHANNELS: dict[str, int | None] = {"all": None, "3": 3}  # which are guided -> how many

# samplers/run.py
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
