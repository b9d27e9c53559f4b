"""Benchmarks behind every claim of speed. Run as modules: `python -m bench.train --preset=digits`."""
