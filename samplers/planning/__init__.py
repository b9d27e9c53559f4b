"""From options to a plan: which levels, which solver, at which cost; decided before the first sample."""
