"""GITS: schedules found along a model's trajectories (see `samplers.gits.search`)."""

from samplers.gits.costs import METRICS, cost_matrix, shortest_path
from samplers.gits.search import Found, search_schedule

__all__ = ["METRICS", "Found", "cost_matrix", "search_schedule", "shortest_path"]
