"""Flow maths: paths, fields, solvers, schedules. Meets networks only through the call `net(x, sigma, class_labels)`."""

from samplers import gits
from samplers.field import Field
from samplers.path import PATHS
from samplers.schedules import SCHEDULES, get_schedule, validate_t_steps
from samplers.solve import SOLVERS, sample
from samplers.solver import Solver, Step

__all__ = [
    "PATHS",
    "SCHEDULES",
    "SOLVERS",
    "Field",
    "Solver",
    "Step",
    "get_schedule",
    "gits",
    "sample",
    "validate_t_steps",
]
