"""Rows of `python -m bench.pairs`: what is measured against its plain implementation, one module per area."""
