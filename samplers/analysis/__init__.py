"""How samplers compare and how trajectories run: tables, geometry, figures."""
