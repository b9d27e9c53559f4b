"""Solvers: functions from a field, a state and noise levels to the state at the last level."""
