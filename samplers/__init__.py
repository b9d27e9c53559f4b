"""Flow maths: paths, fields, solvers, schedules. Meets networks only through the call `net(x, sigma, class_labels)`."""

from samplers import gits
from samplers.field import Field
from samplers.path import PATHS
from samplers.schedules.explicit import validate_t_steps
from samplers.schedules.formulas import SCHEDULES, get_schedule
from samplers.solvers.base import Solver, Step
from samplers.solvers.table import SOLVERS, sample

__all__ = [
    "PATHS", "SCHEDULES", "SOLVERS", "Field", "Solver", "Step", "get_schedule", "gits", "sample", "validate_t_steps",
]  # fmt: skip
