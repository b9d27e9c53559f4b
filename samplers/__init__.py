"""Flow maths: paths, fields, solvers, schedules. Meets networks only through the call `net(x, sigma, class_labels)`."""

from typing import TYPE_CHECKING

from torch_utils.lazy import lent

if TYPE_CHECKING:
    from samplers import gits
    from samplers.field import Field
    from samplers.path import PATHS
    from samplers.schedules.explicit import validate_t_steps
    from samplers.schedules.formulas import SCHEDULES, get_schedule
    from samplers.solvers.base import Step
    from samplers.solvers.entry import Solver
    from samplers.solvers.table import SOLVERS, sample

__all__ = [
    "PATHS", "SCHEDULES", "SOLVERS", "Field", "Solver", "Step", "get_schedule", "gits", "sample", "validate_t_steps",
]  # fmt: skip

__getattr__, __dir__ = lent(
    __name__,
    {
        "samplers.field": ("Field",),
        "samplers.path": ("PATHS",),
        "samplers.schedules.explicit": ("validate_t_steps",),
        "samplers.schedules.formulas": ("SCHEDULES", "get_schedule"),
        "samplers.solvers.base": ("Step",),
        "samplers.solvers.entry": ("Solver",),
        "samplers.solvers.table": ("SOLVERS", "sample"),
    },
)
