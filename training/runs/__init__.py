"""A run on disk: its directory, states, snapshots, progress, metrics."""
